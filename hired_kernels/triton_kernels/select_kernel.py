# SPDX-License-Identifier: Apache-2.0
"""`select` and `select_qk` in one launch.

Jobs, in the order of their tickets: a head of a score row (`select_qk`), a picture's budgets, a
partition's choice, some rows of the output. Bytes moved: each key or attention row once, each kept
token read and written once, and a few kilobytes of scores between the jobs.

Grid: as many programs as jobs; a program owns one. Limits: T <= 4096, R * C <= 64.

Letters are those of docs/design.md. Model constants (T, D, H, N, Dh, strides) are compiled in;
nothing that differs from batch to batch is.
"""

import triton
import triton.language as tl

from .allocate import allocate
from .choose import choose_job
from .gather import gather_job
from .pictures import (
    SUB_IMAGES,
    find_picture,
    first_partition_of,
    full_budget_of,
    grid_of,
    rest_of,
)
from .score import attend, score_attention, token_keys
from .tickets import (
    CHOSEN,
    HEADS_FINAL,
    HEADS_INIT,
    WEIGHED,
    arrive,
    counter_of,
    draw_ticket,
    wait_for,
)


@triton.jit
def heads_job(
    layer, row, score_row, h, scale, probabilities, counter,
    T: tl.constexpr, H: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr, DRAIN: tl.constexpr,
    INIT: tl.constexpr,
):  # fmt: skip
    """One head of a layer's row, into the last T of probabilities [score rows, H, N]."""
    head = probabilities + (score_row.to(tl.int64) * H + h) * N
    attend(layer, row, h, scale, head, head + (N - T), T, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, INIT)
    arrive(counter, DRAIN)


@triton.jit
def row_keys(
    layer, row, score_row, probabilities, patch_scores,
    T: tl.constexpr, H: tl.constexpr, N: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, FROM_KEYS: tl.constexpr,
):  # fmt: skip
    """Ordered keys [BLOCK_M] of a row of tokens: of attention as given, or as the heads left it."""
    if FROM_KEYS:
        attention = probabilities + score_row.to(tl.int64) * (H * N) + (N - T)  # [H, T]
        score = score_attention(attention, N, 1, H, T, BLOCK_T)
    else:
        data, stride_row, stride_h, stride_t = layer
        attention = data + row.to(tl.int64) * stride_row  # [H, T]
        score = score_attention(attention, stride_h, stride_t, H, T, BLOCK_T)
    patch_scores += score_row.to(tl.int64) * T
    return token_keys(score, patch_scores, T, SIDE, MERGE, BLOCK_T, BLOCK_M)


_NOT_COMPILED_IN = [
    "count", "partitions", "first_partition", "init_is_by_picture", "init_jobs", "counted",
    "full_chunks", "sub_chunks", "pictures", "heads", "set_words",
]  # fmt: skip


# Their alignment changes with the batch, and no wide access hangs on it.
_NOT_VECTORISED = ["indices", "counts", "workspace", "counters"]


@triton.jit(do_not_specialize=_NOT_COMPILED_IN, do_not_specialize_on_alignment=_NOT_VECTORISED)
def select_kernel(
    features, stride_p, stride_t,  # [P, T, D], integers of the element's size
    tokens, indices, counts,  # [K, MERGE^2 * D], [K] int64, [P] int64
    init, final,  # (data [rows, H, T], its strides), or (query [rows, H, Dh], two strides, key
    # [rows, N, H, Dh], three strides); P rows, or for init one a picture
    workspace,  # int32: kept lists [P, M], row counts [P, SIDE], shares [P]; then float32, where
    # patches are merged, their scores [P + B, T], and of `select_qk` probabilities [P + B, H, N];
    # rows of init last
    counters, set_words,  # tickets.py
    pictures,  # pictures.py
    count, partitions, first_partition,  # pictures and partitions of this launch, those before it
    init_is_by_picture, init_jobs, counted, full_chunks, sub_chunks, scale,
    heads,  # H again, where it must not be known: see attend
    T: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    FROM_KEYS: tl.constexpr, PUBLISHED: tl.constexpr, RASTER: tl.constexpr, FULL_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    PICTURES: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = T // (MERGE * MERGE)
    kept_lists, row_counts = workspace, workspace + partitions * M
    shares = row_counts + partitions * SIDE
    patch_scores = (shares + partitions).to(tl.pointer_type(tl.float32), bitcast=True)
    probabilities = patch_scores
    if MERGE > 1:
        probabilities += (partitions + count).to(tl.int64) * T
    job, ours = draw_ticket(counters, set_words)
    heads_jobs = 0
    each = heads if H == 1 else H  # jobs of a row
    if FROM_KEYS:
        heads_jobs = init_jobs + partitions * H

    if job < init_jobs:
        if FROM_KEYS:
            b, h = job // each, job % each
            b, box, budgets, place = find_picture(pictures, count, b, 1, 0, PICTURES)
            if rest_of(budgets) > 0:  # else nobody will ask
                row = tl.where(init_is_by_picture != 0, b, first_partition_of(budgets))
                heads_job(
                    init, row, partitions + b, h, scale, probabilities,
                    counter_of(ours, b, HEADS_INIT), T, H, N, Dh, ALL_N, BLOCK_N, BLOCK_DH,
                    DRAIN, True,
                )  # fmt: skip
    elif job < heads_jobs:
        if FROM_KEYS:
            p, h = (job - init_jobs) // each, (job - init_jobs) % each
            b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
            heads_job(
                final, p, p, h, scale, probabilities,
                counter_of(ours, b, HEADS_FINAL), T, H, N, Dh, ALL_N, BLOCK_N, BLOCK_DH,
                DRAIN, False,
            )  # fmt: skip
    elif job < heads_jobs + count:
        b, box, budgets, place = find_picture(pictures, count, job - heads_jobs, 1, 0, PICTURES)
        R, C = grid_of(box, budgets)
        i = tl.arange(0, SUB_IMAGES)
        given = tl.zeros([SUB_IMAGES], tl.int32)
        if rest_of(budgets) > 0:
            if FROM_KEYS:
                wait_for(counter_of(ours, b, HEADS_INIT), H)
            row = tl.where(init_is_by_picture != 0, b, first_partition_of(budgets))
            keys = row_keys(
                init, row, partitions + b, probabilities, patch_scores,
                T, H, N, SIDE, MERGE, BLOCK_T, BLOCK_M, FROM_KEYS,
            )  # fmt: skip
            given = allocate(box, budgets, keys, counted, M, SIDE, BLOCK_M, PUBLISHED)
        tl.store(shares + first_partition_of(budgets) + 1 + i, given, mask=i < R * C)
        arrive(counter_of(ours, b, WEIGHED), DRAIN)
    elif job < heads_jobs + count + partitions:
        p = job - heads_jobs - count
        b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
        R, C = grid_of(box, budgets)
        if FROM_KEYS:
            wait_for(counter_of(ours, b, HEADS_FINAL), H * (1 + R * C))
        keys = row_keys(
            final, p, p, probabilities, patch_scores,
            T, H, N, SIDE, MERGE, BLOCK_T, BLOCK_M, FROM_KEYS,
        )  # fmt: skip
        choose_job(
            p - first_partition_of(budgets), full_budget_of(place), keys, box, budgets,
            counter_of(ours, b, WEIGHED), shares + first_partition_of(budgets) + 1,
            kept_lists + p.to(tl.int64) * M, row_counts + p * SIDE, counts + p,
            M, SIDE, BLOCK_M, PUBLISHED, RASTER,
        )  # fmt: skip
        arrive(counter_of(ours, b, CHOSEN), DRAIN)
    else:
        job -= heads_jobs + count + partitions
        b, box, budgets, place = find_picture(
            pictures, count, job, full_chunks - sub_chunks, sub_chunks, PICTURES
        )
        full_image = first_partition_of(budgets)
        job -= b * (full_chunks - sub_chunks) + full_image * sub_chunks
        is_full = job < full_chunks
        job -= tl.where(is_full, 0, full_chunks)
        partition = tl.where(is_full, 0, 1 + job // sub_chunks)
        first_index = (first_partition + full_image + partition).to(tl.int64) * M
        gather_job(
            features, stride_p, stride_t, tokens, indices, counts, kept_lists, row_counts,
            partition, tl.where(is_full, job, job % sub_chunks),
            tl.where(is_full, full_chunks, sub_chunks), counter_of(ours, b, CHOSEN),
            box, budgets, place, first_index,
            M, SIDE, D, MERGE, PUBLISHED, RASTER, FULL_LAST, BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
