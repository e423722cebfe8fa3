"""The order of draws: a permutation each epoch, the same wherever it is entered, with lanes that stay with a worker."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataengine.trainer.chunks import CHUNK_ROWS, Chunks, cut_chunks, keep, repeated
from dataengine.trainer.order import PHASES, Order, StreamOrder, slots_of
from dataengine.trainer.shuffle import permuted, philox_permutation

SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=6)


def chunks_of(sizes: list[int]) -> Chunks:
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return cut_chunks(bounds[:-1], np.array(sizes))


def order_of(
    sizes: list[int], seed: int = 0, batch: int = 8, *, shuffle: bool = True, carried: bool = True
) -> StreamOrder:
    return StreamOrder(chunks_of(sizes), Order(seed, batch, shuffle, carried))


@given(SIZES, st.integers(-5, 2**64), st.integers(1, 48), st.integers(0, 5), st.booleans())
@settings(max_examples=60)
@example([700] * 6, 0, 8, 3, True)
def test_every_epoch_is_a_permutation(sizes: list[int], seed: int, batch: int, epoch: int, carried: bool) -> None:
    order, length = order_of(sizes, seed, batch, carried=carried), sum(sizes)
    rows, epochs = order.rows(np.arange(epoch * length, (epoch + 1) * length))
    assert sorted(rows.tolist()) == list(range(length))
    assert set(epochs.tolist()) == {epoch}


@given(SIZES, st.integers(1, 48), st.data())
@settings(max_examples=60)
def test_any_place_can_be_entered(sizes: list[int], batch: int, data: st.DataObject) -> None:
    order, length = order_of(sizes, 3, batch), sum(sizes)
    whole, _ = order.rows(np.arange(3 * length))
    places = np.array(data.draw(st.lists(st.integers(0, 3 * length - 1), min_size=1, max_size=20)))
    assert order.rows(places)[0].tolist() == whole[places].tolist()


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_permuted_is_a_bijection(length: int, key: int) -> None:
    places = np.arange(length, dtype=np.uint64)
    found = permuted(places, np.uint64(length), np.array([key], dtype=np.uint64))  # type: ignore[arg-type]
    assert sorted(found.tolist()) == list(range(length))


def test_permuted_looks_random() -> None:
    """Over many keys a place goes everywhere about as often: chi-square of 63 degrees, five sigma wide."""
    keys = np.arange(20_000, dtype=np.uint64)
    for place in (0, 1, 31, 63):
        found = permuted(np.full(len(keys), place, np.uint64), np.uint64(64), keys)  # type: ignore[arg-type]
        counts = np.bincount(found.astype(int), minlength=64)
        chi_square = float(((counts - len(keys) / 64) ** 2).sum() / (len(keys) / 64))
        assert chi_square < 63 + 5 * (2 * 63) ** 0.5
    neighbours = permuted(np.arange(512, dtype=np.uint64), np.uint64(512), keys[:1]).astype(int)  # type: ignore[arg-type]
    assert np.mean(np.abs(np.diff(neighbours)) <= 4) < 0.05


def test_seeds_epochs_and_streams_give_other_orders() -> None:
    chunks = chunks_of([300, 400])
    orders = [
        tuple(StreamOrder(chunks, Order(seed, 8), stream).rows(np.arange(epoch * 700, epoch * 700 + 700))[0])
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in (0, 1)
    ]
    assert len(set(orders)) == 8


def test_the_order_never_changes() -> None:
    # A change here breaks every saved position: raise position.FORMAT with it.
    assert philox_permutation(8, 7, 3, 1).tolist() == [6, 4, 0, 2, 5, 3, 1, 7]
    rows, _ = order_of([5, 4], seed=7, batch=2).rows(np.arange(18))
    assert rows.tolist() == [8, 7, 4, 1, 2, 3, 5, 0, 6, 2, 6, 0, 5, 1, 8, 4, 3, 7]
    long, _ = order_of([4000], seed=7, batch=8).rows(np.array([0, 1, 2, 2000, 3999, 4001, 11999]))
    assert long.tolist() == [1037, 632, 129, 3720, 3564, 1927, 2144]


def test_without_shuffle_rows_come_in_the_order_of_the_tars() -> None:
    assert order_of([70, 3, 130], shuffle=False).rows(np.arange(203))[0].tolist() == list(range(203))


@pytest.mark.parametrize(("ranks", "workers"), [(4, 1), (4, 8), (1, 4), (8, 2)])
def test_a_chunk_is_read_by_one_worker(ranks: int, workers: int) -> None:
    """Slots stay with a rank and phases with a worker, so that but for lanes' ends nobody shares a chunk."""
    batch, length = 32, 64 * 1024
    order = order_of([length], batch=batch)
    rows, _ = order.rows(np.arange(length))
    places = np.arange(length)
    worker = places % batch * ranks // batch * workers + places // batch % workers
    readers = np.zeros((length // CHUNK_ROWS, ranks * workers), dtype=bool)
    readers[rows // CHUNK_ROWS, worker] = True
    lanes = slots_of(batch) * PHASES
    assert readers.sum() <= len(readers) + lanes + PHASES * batch


@pytest.mark.parametrize(
    ("batch", "slots"), [(4096, 128), (3840, 384), (512, 128), (256, 128), (1, 1), (7, 7), (48, 48)]
)
def test_slots(batch: int, slots: int) -> None:
    assert slots_of(batch) == slots


@given(SIZES, st.data())
@settings(max_examples=60)
def test_kept_rows_are_found(sizes: list[int], data: st.DataObject) -> None:
    length = sum(sizes)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    times = rng.integers(0, data.draw(st.integers(1, 4)), length)
    chunks = repeated(chunks_of(sizes), times)
    assert chunks.num_rows == times.sum()
    chunk = np.repeat(np.arange(len(chunks.starts)), chunks.counts)
    within = np.arange(len(chunk)) - np.repeat(np.cumsum(chunks.counts) - chunks.counts, chunks.counts)
    found = chunks.rows(chunk, within)
    assert np.bincount(found, minlength=length).tolist() == times.tolist()
    first = found[: int((times > 0).sum())]
    assert first.tolist() == np.flatnonzero(times).tolist()


def test_chunks_are_runs_of_one_shard() -> None:
    chunks = cut_chunks(np.array([0, 300, 301]), np.array([300, 1, 128]))
    assert chunks.starts.tolist() == [0, 128, 256, 300, 301]
    assert chunks.counts.tolist() == [128, 128, 44, 1, 128]
    assert keep(chunks, np.ones(429, bool)) is chunks


@pytest.mark.parametrize("module", ["order", "index", "reader", "manifest", "ranks", "position", "loader"])
def test_imports_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import dataengine.trainer.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
