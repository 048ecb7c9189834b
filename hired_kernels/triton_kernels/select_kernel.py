# SPDX-License-Identifier: Apache-2.0
"""`select` and `select_qk` in one launch.

Jobs, in the order of their tickets: a head of a score row, or a part of its queries (`select_qk`);
a picture's budgets, or under `pooled` a partition's scores; a partition's choice; some rows of the
output. Bytes moved: each key or attention row once, of many queries twice a tile of them, each kept
token read and written once, and a few kilobytes of scores between the jobs.

Grid: as many programs as jobs; a program owns one. Limits: T <= 4096, R * C <= 64.

Letters are those of docs/design.md. Model constants (T, D, H, N, Dh, MERGE, the rules) are compiled
in; nothing that differs from batch to batch is.
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
from .pooled import choose_pooled_job, score_job
from .queries import jobs_of_head
from .rows import heads_job, row_keys
from .tickets import (
    CHOSEN,
    HEADS_FINAL,
    HEADS_INIT,
    PREPARED,
    arrive,
    counter_of,
    draw_ticket,
    wait_for,
)

_NOT_COMPILED_IN = [
    "count", "partitions", "first_partition", "init_is_by_picture", "init_jobs", "counted",
    "full_chunks", "sub_chunks", "pictures", "heads", "set_words",
    "queries_init", "per_job_init", "queries_final", "per_job_final",
]  # fmt: skip


# Their alignment changes with the batch, and no wide access hangs on it.
_NOT_VECTORISED = ["indices", "counts", "workspace", "counters"]


@triton.jit(do_not_specialize=_NOT_COMPILED_IN, do_not_specialize_on_alignment=_NOT_VECTORISED)
def select_kernel(
    features, stride_p, stride_t,  # [P, T, D], integers of the element's size
    tokens, indices, counts,  # [K, MERGE^2 * D], [K] int64, [P] int64
    init, final,  # (data [rows, H, T], its strides), or (query [rows, H, Dh], two strides, key
    # [rows, N, H, Dh], three strides), where they are MANY (query [rows, Q, H, Dh], three strides,
    # key, ...); P rows, or for init one a picture
    queries_init, per_job_init, queries_final, per_job_final,  # of a head, and of a job
    workspace,  # int32: kept lists [P, M], row counts [P, SIDE], and shares [P] or, under `pooled`,
    # keys [P, M]; then float32, where patches are merged, their scores [P + B, T], and of
    # `select_qk` attention [P + B, H, N], or [.., H, jobs of a head, N]; rows of init last
    counters, set_words,  # tickets.py
    pictures,  # pictures.py
    count, partitions, first_partition,  # pictures and partitions of this launch, those before it
    init_is_by_picture, init_jobs, counted, full_chunks, sub_chunks, scale,
    heads,  # H again, where it must not be known: see attend
    T: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    FROM_KEYS: tl.constexpr, MANY_INIT: tl.constexpr, MANY_FINAL: tl.constexpr,
    PUBLISHED: tl.constexpr, POOLED: tl.constexpr, RASTER: tl.constexpr, FULL_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_POOL: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    PICTURES: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = T // (MERGE * MERGE)
    each = heads if H == 1 else H  # jobs of a row
    each_init, each_final = each, each
    if MANY_INIT:
        each_init *= jobs_of_head(queries_init, per_job_init)
    if MANY_FINAL:
        each_final *= jobs_of_head(queries_final, per_job_final)
    kept_lists, row_counts = workspace, workspace + partitions * M
    shares = row_counts + partitions * SIDE
    pool, preparing, words = shares, count, partitions
    if POOLED:
        preparing, words = partitions, partitions * M
    patch_scores = (shares + words).to(tl.pointer_type(tl.float32), bitcast=True)
    attention = patch_scores
    if MERGE > 1:
        attention += (partitions + count).to(tl.int64) * T
    attention_init = attention + partitions.to(tl.int64) * (each_final * N)
    init_layer = (init, queries_init, per_job_init, attention_init)
    final_layer = (final, queries_final, per_job_final, attention)
    job, ours = draw_ticket(counters, set_words)
    heads_jobs = 0
    if FROM_KEYS:
        heads_jobs = init_jobs + partitions * each_final

    if job < init_jobs:
        if FROM_KEYS and not POOLED:
            b, job_of_row = job // each_init, job % each_init
            b, box, budgets, place = find_picture(pictures, count, b, 1, 0, PICTURES)
            if rest_of(budgets) > 0:  # else nobody will ask
                row = tl.where(init_is_by_picture != 0, b, first_partition_of(budgets))
                heads_job(
                    init_layer, row, b, job_of_row, scale, counter_of(ours, b, HEADS_INIT),
                    T, H, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, BLOCK_Q, BLOCK_KEYS, STEP, WIDEN, DRAIN,
                    MANY_INIT, True,
                )  # fmt: skip
    elif job < heads_jobs:
        if FROM_KEYS:
            p, job_of_row = (job - init_jobs) // each_final, (job - init_jobs) % each_final
            b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
            heads_job(
                final_layer, p, p, job_of_row, scale, counter_of(ours, b, HEADS_FINAL),
                T, H, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, BLOCK_Q, BLOCK_KEYS, STEP, WIDEN, DRAIN,
                MANY_FINAL, False,
            )  # fmt: skip
    elif job < heads_jobs + preparing:
        if POOLED:
            p = job - heads_jobs
            b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
            R, C = grid_of(box, budgets)
            if FROM_KEYS:
                wait_for(counter_of(ours, b, HEADS_FINAL), each_final * (1 + R * C))
            keys = row_keys(
                final_layer, p, p, patch_scores + p.to(tl.int64) * T,
                T, H, N, SIDE, MERGE, BLOCK_T, BLOCK_M, FROM_KEYS, MANY_FINAL,
            )  # fmt: skip
            full_image = first_partition_of(budgets)
            score_job(p - full_image, keys, box, budgets, pool + full_image * M, M, SIDE, BLOCK_M)
        else:
            b, box, budgets, place = find_picture(pictures, count, job - heads_jobs, 1, 0, PICTURES)
            R, C = grid_of(box, budgets)
            i = tl.arange(0, SUB_IMAGES)
            given = tl.zeros([SUB_IMAGES], tl.int32)
            if rest_of(budgets) > 0:
                if FROM_KEYS:
                    wait_for(counter_of(ours, b, HEADS_INIT), each_init)
                row = tl.where(init_is_by_picture != 0, b, first_partition_of(budgets))
                keys = row_keys(
                    init_layer, row, b, patch_scores + (partitions + b).to(tl.int64) * T,
                    T, H, N, SIDE, MERGE, BLOCK_T, BLOCK_M, FROM_KEYS, MANY_INIT,
                )  # fmt: skip
                given = allocate(box, budgets, keys, counted, M, SIDE, BLOCK_M, PUBLISHED)
            tl.store(shares + first_partition_of(budgets) + 1 + i, given, mask=i < R * C)
        arrive(counter_of(ours, b, PREPARED), DRAIN)
    elif job < heads_jobs + preparing + partitions:
        p = job - heads_jobs - preparing
        b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
        full_image, prepared = first_partition_of(budgets), counter_of(ours, b, PREPARED)
        kept_list = kept_lists + p.to(tl.int64) * M
        if POOLED:
            choose_pooled_job(
                p - full_image, box, budgets, prepared, pool + full_image * M,
                kept_list, row_counts + p * SIDE, counts + p,
                M, SIDE, BLOCK_M, BLOCK_POOL, RASTER,
            )  # fmt: skip
        else:
            R, C = grid_of(box, budgets)
            if FROM_KEYS:
                wait_for(counter_of(ours, b, HEADS_FINAL), each_final * (1 + R * C))
            keys = row_keys(
                final_layer, p, p, patch_scores + p.to(tl.int64) * T,
                T, H, N, SIDE, MERGE, BLOCK_T, BLOCK_M, FROM_KEYS, MANY_FINAL,
            )  # fmt: skip
            choose_job(
                p - full_image, full_budget_of(place), keys, box, budgets,
                prepared, shares + full_image + 1, kept_list, row_counts + p * SIDE, counts + p,
                M, SIDE, BLOCK_M, PUBLISHED, RASTER,
            )  # fmt: skip
        arrive(counter_of(ours, b, CHOSEN), DRAIN)
    else:
        job -= heads_jobs + preparing + partitions
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
