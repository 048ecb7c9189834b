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
from .choose import choose_from, count_first
from .pictures import (
    SUB_IMAGES,
    find_picture,
    first_partition_of,
    first_row_of,
    full_budget_of,
    grid_of,
    output_rows_of,
    rest_of,
)
from .place import counts_beside, raster_shifts
from .region import is_picture, is_whole
from .score import KEY_EXCLUDED, attend, score_attention
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
    layer, row, score_row, probabilities,
    T: tl.constexpr, H: tl.constexpr, N: tl.constexpr, BLOCK_T: tl.constexpr,
    FROM_KEYS: tl.constexpr,
):  # fmt: skip
    """Ordered keys [BLOCK_T] of a row of scores: of attention as given, or as the heads left it."""
    if FROM_KEYS:
        attention = probabilities + score_row.to(tl.int64) * (H * N) + (N - T)  # [H, T]
        keys = score_attention(attention, N, 1, H, T, BLOCK_T)
    else:
        data, stride_row, stride_h, stride_t = layer
        attention = data + row.to(tl.int64) * stride_row  # [H, T]
        keys = score_attention(attention, stride_h, stride_t, H, T, BLOCK_T)
    return keys


@triton.jit
def choose_job(
    partition, kept_in_full, keys, box, budgets, weighed, shares, kept_list, row_counts, counts,
    T: tl.constexpr, SIDE: tl.constexpr, BLOCK_T: tl.constexpr,
    PUBLISHED: tl.constexpr, RASTER: tl.constexpr,
):  # fmt: skip
    """What a partition (0: the full image) keeps of keys [BLOCK_T]: its list, its number, and for
    sub-images under raster order its number in each patch row. Pointers are the partition's own,
    those to the counter and to shares [R * C] the picture's. What does not hang on the budgets is
    done before they are waited for."""
    t = tl.arange(0, BLOCK_T)
    valid = t < T
    if partition > 0 and not is_whole(box, budgets, SIDE):
        valid &= is_picture(box, budgets, partition - 1, t, SIDE)
    if not PUBLISHED:  # which learns what is padding only after it has chosen
        keys = tl.where(valid, keys, KEY_EXCLUDED)
    first = count_first(keys)
    k = kept_in_full
    if partition > 0:
        wait_for(weighed, 1)
        k = tl.load(shares + partition - 1)
    kept = choose_from(keys, first, k) & valid
    places = tl.cumsum(kept.to(tl.int32), axis=0)
    tl.store(kept_list + places - 1, t, mask=kept)
    # No budget is beyond what may be kept, so that `exact` keeps all of it.
    number = tl.sum(kept.to(tl.int64), axis=0) if PUBLISHED else k.to(tl.int64)
    tl.store(counts, number)
    if RASTER:
        y = tl.arange(0, SUB_IMAGES)
        tl.store(row_counts + y, tl.histogram(t // SIDE, SUB_IMAGES, mask=kept), mask=y < SIDE)


@triton.jit
def load_kept(kept_list, i, length):
    """Which patches stand at i of a list; 0 beyond its length."""
    return tl.load(kept_list + i, mask=i < length, other=0)


@triton.jit
def load_tokens(features, stride_t, t, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The first BLOCK_D columns of those tokens t [BLOCK_ROWS] that are inside."""
    d = tl.arange(0, BLOCK_D)[None, :]
    here = inside[:, None] & (d < D)  # [BLOCK_ROWS, BLOCK_D]
    return tl.load(features + t[:, None].to(tl.int64) * stride_t + d, mask=here, other=0)


@triton.jit
def places_of(t, i, shifts, SIDE: tl.constexpr, RASTER: tl.constexpr):
    """Where patches t go, the i-th ones that their partition keeps, from its first row on."""
    if RASTER:
        i += tl.gather(shifts, t // SIDE, axis=0)
    return i


@triton.jit
def gather_job(
    features, stride_t, tokens, indices, first_index, kept_list, kept, fetched, row, shifts,
    first, step,
    SIDE: tl.constexpr, D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, RASTER: tl.constexpr,
):  # fmt: skip
    """A partition's kept tokens, blocks of rows `step` apart from row `first` on.

    features [T, D] and first_index are the partition's; its rows of tokens [K, D] and indices [K]
    count from `row`, to which shifts [SUB_IMAGES] add by patch row. `fetched`: the patches of the
    first block, their places and tokens, and the patches of the second.
    """
    t, places, tile, later = fetched
    i = first + tl.arange(0, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_D)[None, :]
    for _ in range(first, kept, step):
        inside = i < kept
        to = row + places
        tl.store(indices + to, first_index + t, mask=inside)
        copy_to = tokens + to[:, None].to(tl.int64) * D + d
        tl.store(copy_to, tile, mask=inside[:, None] & (d < D))
        for column in range(BLOCK_D, D, BLOCK_D):
            tile = load_tokens(features + column, stride_t, t, inside, D - column, BLOCK_D)
            tl.store(copy_to + column, tile, mask=inside[:, None] & (column + d < D))
        i += step
        t, later = later, load_kept(kept_list, i + step, kept)
        tile = load_tokens(features, stride_t, t, i < kept, D, BLOCK_D)
        places = places_of(t, i, shifts, SIDE, RASTER)


@triton.jit
def clear_rows(
    tokens, indices, first, end, chunk, chunks,
    D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows [first, end) of the output that a picture owns and does not fill (`published`)."""
    for start in range(first + chunk * BLOCK_ROWS, end, chunks * BLOCK_ROWS):
        to = start + tl.arange(0, BLOCK_ROWS)
        tl.store(indices + to, -1, mask=to < end)
        for column in range(0, D, BLOCK_D):
            d = column + tl.arange(0, BLOCK_D)[None, :]
            here = (to < end)[:, None] & (d < D)
            tl.store(tokens + to[:, None].to(tl.int64) * D + d, 0, mask=here)


_NOT_COMPILED_IN = [
    "count", "partitions", "first_partition", "init_is_by_picture", "init_jobs", "counted",
    "full_chunks", "sub_chunks", "pictures", "heads", "set_words",
]  # fmt: skip


# Their alignment changes with the batch, and no wide access hangs on it.
_NOT_VECTORISED = ["indices", "counts", "workspace", "counters"]


@triton.jit(do_not_specialize=_NOT_COMPILED_IN, do_not_specialize_on_alignment=_NOT_VECTORISED)
def select_kernel(
    features, stride_p, stride_t,  # [P, T, D], integers of the element's size
    tokens, indices, counts,  # [K, D], [K] int64, [P] int64
    init, final,  # (data [rows, H, T], its strides), or (query [rows, H, Dh], two strides, key
    # [rows, N, H, Dh], three strides); P rows, or for init one a picture
    workspace,  # int32: kept lists [P, T], row counts [P, SIDE], shares [P]; then, of `select_qk`,
    # float32 probabilities [P + B, H, N], those of init last
    counters, set_words,  # tickets.py
    pictures,  # pictures.py
    count, partitions, first_partition,  # pictures and partitions of this launch, those before it
    init_is_by_picture, init_jobs, counted, full_chunks, sub_chunks, scale,
    heads,  # H again, where it must not be known: see attend
    T: tl.constexpr, SIDE: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    FROM_KEYS: tl.constexpr, PUBLISHED: tl.constexpr, RASTER: tl.constexpr,
    BLOCK_T: tl.constexpr, ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    PICTURES: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    kept_lists, row_counts = workspace, workspace + partitions * T
    shares = row_counts + partitions * SIDE
    probabilities = (shares + partitions).to(tl.pointer_type(tl.float32), bitcast=True)
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
            keys = row_keys(init, row, partitions + b, probabilities, T, H, N, BLOCK_T, FROM_KEYS)
            given = allocate(box, budgets, keys, counted, T, SIDE, BLOCK_T, PUBLISHED)
        tl.store(shares + first_partition_of(budgets) + 1 + i, given, mask=i < R * C)
        arrive(counter_of(ours, b, WEIGHED), DRAIN)
    elif job < heads_jobs + count + partitions:
        p = job - heads_jobs - count
        b, box, budgets, place = find_picture(pictures, count, p, 0, 1, PICTURES)
        R, C = grid_of(box, budgets)
        if FROM_KEYS:
            wait_for(counter_of(ours, b, HEADS_FINAL), H * (1 + R * C))
        keys = row_keys(final, p, p, probabilities, T, H, N, BLOCK_T, FROM_KEYS)
        choose_job(
            p - first_partition_of(budgets), full_budget_of(place), keys, box, budgets,
            counter_of(ours, b, WEIGHED), shares + first_partition_of(budgets) + 1,
            kept_lists + p.to(tl.int64) * T, row_counts + p * SIDE, counts + p,
            T, SIDE, BLOCK_T, PUBLISHED, RASTER,
        )  # fmt: skip
        arrive(counter_of(ours, b, CHOSEN), DRAIN)
    else:
        job -= heads_jobs + count + partitions
        b, box, budgets, place = find_picture(
            pictures, count, job, full_chunks - sub_chunks, sub_chunks, PICTURES
        )
        R, C = grid_of(box, budgets)
        full_image = first_partition_of(budgets)
        job -= b * (full_chunks - sub_chunks) + full_image * sub_chunks
        is_full = job < full_chunks
        job -= tl.where(is_full, 0, full_chunks)
        partition = tl.where(is_full, 0, 1 + job // sub_chunks)
        chunk = tl.where(is_full, job, job % sub_chunks)
        chunks = tl.where(is_full, full_chunks, sub_chunks)
        p = full_image + partition
        sub_image = tl.maximum(partition - 1, 0)
        preceding = sub_image  # partitions, of which all that is kept comes first: at most 64
        if RASTER:
            preceding = sub_image // tl.maximum(C, 1) * C
        preceding = tl.where(is_full, 0, preceding + 1)
        wait_for(counter_of(ours, b, CHOSEN), 1 + R * C)

        # One trip to memory: all is asked for, whatever the counts will say, before any is looked
        # at. A second one for the tokens; where they go is worked out meanwhile.
        i = tl.arange(0, SUB_IMAGES)
        kept_list = kept_lists + p.to(tl.int64) * T
        first, step = chunk * BLOCK_ROWS, chunks * BLOCK_ROWS
        in_block = first + tl.arange(0, BLOCK_ROWS)
        t, later = load_kept(kept_list, in_block, T), load_kept(kept_list, in_block + step, T)
        before = tl.load(counts + full_image + i, mask=i < preceding, other=0).to(tl.int32)
        kept = tl.load(counts + p).to(tl.int32)
        shifts = tl.zeros([SUB_IMAGES], tl.int32)
        if RASTER:
            band, columns = row_counts + (full_image + 1) * SIDE, tl.where(is_full, 0, C)
            beside = counts_beside(band, sub_image, columns, SIDE)
        t = tl.where(in_block < kept, t, 0)
        later = tl.where(in_block + step < kept, later, 0)
        own_features = features + p.to(tl.int64) * stride_p
        tile = load_tokens(own_features, stride_t, t, in_block < kept, D, BLOCK_D)
        if RASTER:
            shifts = raster_shifts(beside)
        places = places_of(t, in_block, shifts, SIDE, RASTER)
        # Last, for ptxas may have it wait for the tokens.
        row = first_row_of(place) + tl.sum(before, axis=0)
        gather_job(
            own_features, stride_t, tokens, indices, (first_partition + p).to(tl.int64) * T,
            kept_list, kept, (t, places, tile, later), row, shifts, first, step,
            SIDE, D, BLOCK_ROWS, BLOCK_D, RASTER,
        )  # fmt: skip
        if PUBLISHED and partition == 0:
            in_subs = tl.load(counts + full_image + 1 + i, mask=i < R * C, other=0).to(tl.int32)
            filled = kept + tl.sum(in_subs, axis=0)
            clear_rows(
                tokens, indices, first_row_of(place) + filled,
                first_row_of(place) + output_rows_of(budgets), chunk, chunks,
                D, BLOCK_ROWS, BLOCK_D,
            )  # fmt: skip
