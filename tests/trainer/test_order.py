"""The order of an epoch: a permutation, dealt exactly once, the same wherever it is entered."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.trainer.order import CHUNK_ROWS, WINDOW_CHUNKS, EpochOrder, Share, cut_chunks, draw_rows

RUNS = st.lists(st.integers(1, 200), min_size=1, max_size=12)


def order_of(runs: list[int], seed: int = 0, epoch: int = 0, *, shuffle: bool = True) -> EpochOrder:
    shards = np.repeat(np.arange(len(runs), dtype=np.int32), runs)
    return EpochOrder(cut_chunks(shards), seed, epoch, shuffle=shuffle)


def drawn(order: EpochOrder, share: Share) -> list[int]:
    return [int(draw) for draws in order.draws(share) for draw in draws]


@given(RUNS, st.integers(-5, 2**64), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_a_permutation(runs: list[int], seed: int, epoch: int) -> None:
    order = order_of(runs, seed, epoch)
    assert sorted(drawn(order, Share(0, order.num_positions))) == list(range(sum(runs)))


@given(RUNS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.data())
@settings(max_examples=80, deadline=None)
def test_shares_cover_the_rest_of_an_epoch_once(
    runs: list[int], world_size: int, num_workers: int, block: int, data: st.DataObject
) -> None:
    order = order_of(runs)
    start = data.draw(st.integers(0, order.num_positions))
    whole = drawn(order, Share(0, order.num_positions))
    taken = [
        drawn(order, Share(start, order.num_positions, rank, world_size, worker, num_workers, block))
        for rank in range(world_size)
        for worker in range(num_workers)
    ]
    assert sorted(draw for share in taken for draw in share) == sorted(whole[start:])


@given(RUNS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_batches_of_all_ranks_are_a_prefix(
    runs: list[int], world_size: int, num_workers: int, block: int, num_batches: int
) -> None:
    order = order_of(runs)
    whole = drawn(order, Share(0, order.num_positions))
    handed_out: list[int] = []
    for rank in range(world_size):
        workers = [
            drawn(order, Share(0, order.num_positions, rank, world_size, worker, num_workers, block))
            for worker in range(num_workers)
        ]
        for batch in range(num_batches):
            first = batch // num_workers * block
            handed_out += workers[batch % num_workers][first : first + block]
    assert sorted(handed_out) == sorted(whole[: world_size * block * num_batches])


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 7), st.integers(0, 6))
def test_num_positions_counts_the_rank(start: int, length: int, world_size: int, rank: int) -> None:
    share = Share(start, start + length, rank % world_size, world_size)
    assert share.num_positions() == len(share.within(0, start + length + 9))


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = [drawn(order_of([50, 60], seed, epoch), Share(0, 110)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_never_changes() -> None:
    # A change here breaks every saved position: raise position.FORMAT with it.
    assert drawn(order_of([5, 4], seed=7, epoch=3), Share(0, 9)) == [6, 4, 8, 0, 2, 5, 3, 1, 7]


def test_without_shuffle_draws_come_in_table_order() -> None:
    assert drawn(order_of([70, 3, 130], shuffle=False), Share(0, 203)) == list(range(203))


def test_a_window_stays_within_its_chunks() -> None:
    order = order_of([CHUNK_ROWS * WINDOW_CHUNKS * 3])
    first = next(order.draws(Share(0, order.num_positions)))
    assert len(first) == CHUNK_ROWS * WINDOW_CHUNKS
    assert len(np.unique(first // CHUNK_ROWS)) == WINDOW_CHUNKS


def test_chunks_are_runs_of_one_shard() -> None:
    starts, sizes = cut_chunks(np.array([0, 0, 0, 1, 2, 2, 0], np.int32), chunk_rows=2)
    assert list(zip(starts.tolist(), sizes.tolist(), strict=True)) == [(0, 2), (2, 1), (3, 1), (4, 2), (6, 1)]
    assert cut_chunks(np.empty(0, np.int32))[0].size == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=30))
def test_draw_rows_repeats_wanted_rows(rows: list[tuple[bool, int]]) -> None:
    wanted = np.array([want for want, _ in rows], bool)
    repeat = np.array([times for _, times in rows], np.int32)
    draws = draw_rows(wanted, repeat)
    counts = np.ones(len(rows), int) if draws is None else np.bincount(draws, minlength=len(rows))
    assert counts.tolist() == np.where(wanted, repeat, 0).tolist()
    once = draw_rows(wanted, None)
    assert wanted.all() if once is None else once.tolist() == np.flatnonzero(wanted).tolist()


def test_copies_of_a_sample_are_a_pass_apart() -> None:
    draws = draw_rows(np.ones(4, bool), np.array([2, 1, 3, 1], np.int32))
    assert draws is not None
    assert draws.tolist() == [0, 1, 2, 3, 0, 2, 2]


@pytest.mark.parametrize("module", ["order", "index", "reader", "manifest", "ranks", "position"])
def test_imports_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import dataengine.trainer.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
