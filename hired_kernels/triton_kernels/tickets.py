# SPDX-License-Identifier: Apache-2.0
"""How programs of one launch wait for each other, whatever order they run in.

A program does not do the job of its index but the next of the list, by a ticket it draws as it
starts, and waits only for jobs before its own. The lowest unfinished ticket waits for nobody, so it
ends, and then the next one: no order of scheduling can hang a launch, one program at a time
(Triton's interpreter) included.

Counters: tickets, a spare word, and two sets, used in turn. A set has for each picture how many
heads of its initial-layer row and of its partitions' final-layer rows are done, how many jobs that
prepare its choices (one that weighs, or under `pooled` one a partition that scores), and how many
partitions are chosen. The top bit of the tickets says which set a launch
takes. Who draws the last ticket knows that nobody will touch that word, nor the other set, before
the next launch, and makes both ready for it: so no program waits for another to leave, and no word
counts who left. Launches on the same counters must not overlap.
"""

import triton
import triton.language as tl

HEADS_INIT = tl.constexpr(0)
HEADS_FINAL = tl.constexpr(1)
PREPARED = tl.constexpr(2)
CHOSEN = tl.constexpr(3)


SETS = tl.constexpr(2)  # where they begin
SECOND_SET = tl.constexpr(-(2**31))


def counters_of(pictures: int) -> int:
    """Words of the counters of launches of so many pictures at most."""
    return SETS.value + 2 * 4 * pictures


def set_of(counters: int) -> int:
    """Words of one of the two sets in so many words of counters."""
    return (counters - SETS.value) // 2


@triton.jit
def draw_ticket(counters, set_words):
    """A job, and this launch's set."""
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    job = ticket & ~SECOND_SET
    first, second = counters + SETS, counters + SETS + set_words
    if job == tl.num_programs(0) - 1:
        other = tl.where(ticket < 0, first, second)
        for start in range(0, set_words, 128):
            word = start + tl.arange(0, 128)
            tl.store(other + word, 0, mask=word < set_words)
        tl.store(counters, ~ticket & SECOND_SET)
    return job, tl.where(ticket < 0, second, first)


@triton.jit
def counter_of(ours, picture, which: tl.constexpr):
    return ours + 4 * picture + which


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
