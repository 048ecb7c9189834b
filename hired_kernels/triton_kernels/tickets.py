# SPDX-License-Identifier: Apache-2.0
"""How programs of one launch wait for each other, whatever order they run in.

A program does not do the job of its index but the next of the list, by a ticket it draws as it
starts, and waits only for jobs before its own. The lowest unfinished ticket waits for nobody, so it
ends, and then the next one: no order of scheduling can hang a launch, one program at a time
(Triton's interpreter) included. The last to leave sets all counters back to zero.

Counters: tickets, leavers, then for each picture how many heads of its initial-layer row and of its
partitions' final-layer rows are done, whether it is weighed, and how many partitions are chosen.
"""

import triton
import triton.language as tl

HEADS_INIT = tl.constexpr(0)
HEADS_FINAL = tl.constexpr(1)
WEIGHED = tl.constexpr(2)
CHOSEN = tl.constexpr(3)


def counters_of(pictures: int) -> int:
    """Words of the counters of a launch: a power of two, for they are cleared as a vector."""
    return triton.next_power_of_2(2 + 4 * pictures)


@triton.jit
def counter_of(counters, picture, which: tl.constexpr):
    return counters + 2 + 4 * picture + which


@triton.jit
def draw_ticket(counters):
    return tl.atomic_add(counters, 1, sem="relaxed")


@triton.jit
def all_stored(DRAIN: tl.constexpr):
    """Until the stores of all threads of the program are where one thread can publish them.

    With DRAIN, for AMD's gfx9, each wave waits for its own first: there a barrier does not, and a
    release by one wave covers no other's.
    """
    if DRAIN:
        lanes = tl.arange(0, 1024)  # of every wave some
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)", "=v,0,~{memory}", [lanes], tl.int32, is_pure=False, pack=1
        )
    tl.debug_barrier()


@triton.jit
def arrive(counter, DRAIN: tl.constexpr):
    """Publish what this program wrote, and count it."""
    all_stored(DRAIN)
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait_for(counter, arrivals):
    """Until that many have arrived; what they wrote can then be read."""
    while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
        pass


@triton.jit
def leave(counters, COUNTERS: tl.constexpr, DRAIN: tl.constexpr):
    all_stored(DRAIN)
    if tl.atomic_add(counters + 1, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(counters + tl.arange(0, COUNTERS), 0)
