from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.dedup import ImageDedupConfig
from dataengine.dedup import neighbours
from dataengine.dedup.cells import Cells, bucket_cells, main_axes, place, search_radius, train_cells, unit_vectors
from dataengine.dedup.neighbours import Bucket, ImageRows, Looks, cross_edges, image_edges
from dataengine.dedup.recall import measure
from dataengine.keys import url_keys
from dataengine.schemas import EDGE

ANY = ImageDedupConfig(confirm="none", border=1.0)
ENDS = [("left_key", "ascending"), ("right_key", "ascending")]
Rung = tuple[float, float]


def image_rows(embeddings: np.ndarray, phashes: list[str | None] | None = None) -> ImageRows:
    keys = pa.array(url_keys("s", [str(row) for row in range(len(embeddings))]), pa.string())
    hashes = pa.array(phashes or [None] * len(embeddings), pa.string())
    return ImageRows(keys, embeddings.astype(np.float16), hashes)


def families(rng: np.random.Generator, num_rows: int, spread: float = 0.15) -> np.ndarray:
    """Float16 embeddings in families of near-duplicates."""
    centres = rng.normal(size=(max(num_rows // 4, 1), 16))
    noise = rng.normal(0, spread, (num_rows, 16))
    return (centres[rng.integers(len(centres), size=num_rows)] + noise).astype(np.float16)


def search(
    rows: ImageRows, num_cells: int, config: ImageDedupConfig, wide: float | None = None, buckets: int = 2
) -> pa.Table:
    """The edges of every bucket at every rung, put together as the stage does."""
    order = np.argsort(rows.keys.to_numpy(zero_copy_only=False))
    radius = search_radius(config.min_similarity)
    centroids = train_cells(rows.take(order).embeddings, num_cells, radius, seed=1)
    units = unit_vectors(rows.embeddings)
    first = place(units, Cells(centroids), config.border * radius / 2)
    placed = first if wide is None else place(units, Cells(centroids), wide * radius / 2)
    before = set(zip(first.look_row.tolist(), first.look_cell.tolist(), strict=True))
    looks = zip(placed.look_row.tolist(), placed.look_cell.tolist(), strict=True)
    rungs = np.array([look not in before for look in looks], np.int8)
    starts = sorted({0, *(len(centroids) * part // buckets for part in range(buckets))})
    found = []
    for cells in bucket_cells(starts, len(centroids)):
        inside = np.isin(placed.look_cell, np.array(cells))
        there = np.union1d(np.flatnonzero(np.isin(placed.home, np.array(cells))), placed.look_row[inside])
        mine = np.isin(placed.look_row, there)
        row = np.searchsorted(there, placed.look_row[mine])
        bucket = Bucket(rows.take(there), placed.home[there], Looks(row, placed.look_cell[mine], rungs[mine]))
        found += [image_edges(bucket, cells, rung, config, 7).edges for rung in range(1 if wide is None else 2)]
    return pa.concat_tables([EDGE.empty(), *found]).sort_by(ENDS)


def truth(rows: ImageRows, config: ImageDedupConfig) -> pa.Table:
    edges = cross_edges(rows, rows, config)
    return edges.group_by(EDGE.arrow.names).aggregate([]).sort_by(ENDS)


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(0, 80), st.integers(1, 12), st.integers(1, 4))
def test_every_pair_once_in_any_order(seed: int, num_rows: int, num_cells: int, buckets: int) -> None:
    rng = np.random.default_rng(seed)
    rows = image_rows(families(rng, num_rows, 0.3))
    config = ANY.model_copy(update={"min_similarity": 0.9})
    edges = EDGE.check(search(rows, num_cells, config, buckets=buckets))
    assert edges.equals(truth(rows, config))
    assert search(rows.take(rng.permutation(num_rows)), num_cells, config).equals(edges)


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(0, 80), st.integers(1, 12), st.floats(0.01, 1))
def test_a_second_rung_adds_what_the_first_missed(seed: int, num_rows: int, num_cells: int, border: float) -> None:
    rows = image_rows(families(np.random.default_rng(seed), num_rows, 0.3))
    config = ANY.model_copy(update={"border": border, "min_similarity": 0.9})
    assert search(rows, num_cells, config, wide=1.0).equals(truth(rows, config))


def test_similarity_is_exact_and_the_threshold_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_FLOATS", 1024)  # blocks of four columns
    monkeypatch.setattr(neighbours, "_EXACT_PAIRS", 7)
    rows = image_rows(families(np.random.default_rng(3), 25))
    unit = rows.embeddings / np.linalg.norm(rows.embeddings.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ unit.T
    keys = rows.keys.to_pylist()
    edges = search(rows, 1, ANY).to_pylist()
    assert len(edges) == np.count_nonzero(np.triu(cosine >= 0.95, k=1))
    for edge in edges:
        pair = cosine[keys.index(edge["left_key"]), keys.index(edge["right_key"])]
        assert edge["similarity"] == np.float32(pair)


def test_identical_rows_match_and_unusable_rows_never_do() -> None:
    embeddings = np.array([[1, 2], [1, 2], [0, 0], [0, 0], [np.nan, 1], [np.nan, 1]], np.float16)
    config = ANY.model_copy(update={"min_similarity": 1.0})
    assert search(image_rows(embeddings), 1, config)["similarity"].to_pylist() == [1.0]
    assert cross_edges(image_rows(embeddings), image_rows(embeddings), config)["similarity"].to_pylist() == [1.0, 1.0]


def test_a_group_of_five_thousand_costs_no_square_and_loses_nobody() -> None:
    rng = np.random.default_rng(4)
    group = rng.normal(size=32) + rng.normal(0, 0.02, (5000, 32))
    rows = image_rows(np.concatenate([group, rng.normal(size=(500, 32))]))
    config = ANY.model_copy(update={"max_degree": 16})
    bucket = Bucket(
        rows, np.zeros(5500, np.int32), Looks(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int8))
    )
    found = image_edges(bucket, range(1), 0, config, 7)
    assert len(found.bounded) == 5000
    assert len(found.edges) == 5000 * 16
    members = set(rows.keys.to_pylist()[:5000])
    reached, neighbours_of = set(), {key: [] for key in members}
    for edge in found.edges.to_pylist():
        neighbours_of[edge["left_key"]].append(edge["right_key"])
        neighbours_of[edge["right_key"]].append(edge["left_key"])
    waiting = [min(members)]
    while waiting:
        reached.add(key := waiting.pop())
        waiting += [other for other in neighbours_of[key] if other not in reached]
    assert reached == members


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_has_one_neighbourhood_in_a_cell_of_many_blocks(monkeypatch: pytest.MonkeyPatch, int8: bool) -> None:
    rng = np.random.default_rng(4)
    rows = image_rows(rng.normal(size=32) + rng.normal(0, 0.1, (300, 32)))
    nobody = Looks(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int8))
    config = ANY.model_copy(update={"max_degree": 5})
    bucket = Bucket(rows, np.zeros(300, np.int32), nobody)
    whole = image_edges(bucket, range(1), 0, config, 7)
    monkeypatch.setattr(neighbours, "_BLOCK_FLOATS", 256 * 40)
    found = image_edges(bucket, range(1), 0, config, 7, int8)
    assert len(whole.bounded) == 300
    assert found.edges.sort_by(ENDS).equals(whole.edges.sort_by(ENDS))
    assert found.bounded.equals(whole.bounded)


def test_a_chain_keeps_its_links_and_gains_none() -> None:
    angles = np.radians([0, 15, 30])
    rows = image_rows(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    edges = search(rows, 3, ANY.model_copy(update={"rows_per_cell": 16}))
    keys = rows.keys.to_pylist()
    found = {frozenset((keys.index(edge["left_key"]), keys.index(edge["right_key"]))) for edge in edges.to_pylist()}
    assert found == {frozenset((0, 1)), frozenset((1, 2))}


def test_confirmation_refuses_distant_and_unknown_hashes() -> None:
    rows = image_rows(np.ones((3, 2)), ["00000000000000ff", "0000000000000000", None])
    bucket = Bucket(
        rows, np.zeros(3, np.int32), Looks(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int8))
    )
    config = ImageDedupConfig(max_phash_distance=8)
    found = image_edges(bucket, range(1), 0, config, 7)
    assert found.edges["phash_distance"].to_pylist() == [8]
    assert found.num_refused == 2
    strict = config.model_copy(update={"max_phash_distance": 7})
    assert image_edges(bucket, range(1), 0, strict, 7).num_refused == 3
    trusting = config.model_copy(update={"confirm": "none"})
    distances = image_edges(bucket, range(1), 0, trusting, 7).edges["phash_distance"].to_pylist()
    assert sorted(distances, key=str) == [8, None, None]


def test_recall_of_a_search_that_stays_at_home() -> None:
    rows = image_rows(families(np.random.default_rng(8), 300, 0.3))
    config = ANY.model_copy(update={"border": 1e-6, "min_similarity": 0.9})
    edges = search(rows, 40, config)
    sample = rows.take(np.arange(0, 300, 3))
    halves = [rows.take(np.arange(150)), rows.take(np.arange(150, 300))]
    exact = pa.concat_tables([cross_edges(sample, half, config) for half in halves])
    recall = measure(exact, edges, sample.keys, sample.keys[:0])
    pairs = {(row["left_key"], row["right_key"]) for row in exact.to_pylist()}
    found = {(row["left_key"], row["right_key"]) for row in edges.to_pylist()}
    assert (recall.num_pairs, recall.num_found) == (len(pairs), len(pairs & found))
    assert 0.3 < recall.low < recall.value < recall.high < 1


@pytest.mark.parametrize("spread", [0.02, 0.6])
def test_axes_change_nothing(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_FLOATS", 3000)
    rng = np.random.default_rng(9)
    centres = rng.normal(size=(20, 64)) * np.arange(1, 65) ** -0.5
    rows = image_rows(centres[rng.integers(20, size=300)] + rng.normal(0, spread / 8, (300, 64)))
    axes = main_axes(unit_vectors(centres), 15)
    assert axes.T @ axes == pytest.approx(np.eye(15), abs=1e-5)
    sample = rows.take(np.arange(0, 300, 5))
    for min_similarity in (0.8, 0.95):
        config = ANY.model_copy(update={"min_similarity": min_similarity})
        plain = cross_edges(sample, rows, config)
        assert cross_edges(sample, rows, config, axes).equals(plain)
        assert cross_edges(sample, rows, config, axes, int8=True).equals(plain)
        assert cross_edges(sample, rows, config, int8=True).equals(plain)


def test_a_short_rest_beside_the_axes_hides_no_pair() -> None:
    rng = np.random.default_rng(12)
    axes = main_axes(unit_vectors(rng.normal(size=(300, 64)) * np.repeat([3, 0.3], [31, 33])), 31)
    along = unit_vectors(rng.normal(size=(500, 31))) @ axes.T
    across = rng.normal(size=(500, 64))
    across = unit_vectors(across - across @ axes @ axes.T)
    short = rng.uniform(1e-4, 6e-4, (500, 1))
    long = np.sqrt(1 - (0.5 + 5e-5 - np.sqrt(0.75) * short) ** 2)
    first, second = (image_rows(np.sqrt(1 - rest**2) * along + rest * across) for rest in (long, short))
    second = replace(second, keys=pa.array(url_keys("t", [str(row) for row in range(500)]), pa.string()))
    config = ANY.model_copy(update={"min_similarity": 0.5})
    plain = cross_edges(first, second, config)
    assert len(plain) > 450
    assert cross_edges(first, second, config, axes).equals(plain)


@pytest.mark.parametrize("int8", [False, True])
def test_pairs_below_the_threshold_take_nobodys_place(int8: bool) -> None:
    rng = np.random.default_rng(13)
    decoys = np.column_stack([np.full(2000, 0.94996), unit_vectors(rng.normal(size=(2000, 255))) * 0.3124])
    friend = np.r_[0.96, 0.28, np.zeros(254)]
    cosines = unit_vectors(decoys.astype(np.float16)) @ np.eye(256, 1, dtype=np.float32)[:, 0]
    decoys = decoys[(cosines < 0.95) & (cosines > 0.94991)]
    rows = image_rows(np.concatenate([np.eye(1, 256), [friend], decoys]))
    home = np.r_[0, np.ones(len(decoys) + 1)].astype(np.int32)
    looks = Looks(np.array([0]), np.array([1], np.int32), np.array([0], np.int8))
    found = image_edges(Bucket(rows, home, looks), range(2), 0, ANY.model_copy(update={"max_degree": 20}), 7, int8)
    assert len(decoys) > 500
    ends = pa.concat_tables([found.edges.select([name]).rename_columns(["key"]) for name, _ in ENDS])
    assert ends["key"].to_pylist().count(rows.keys[0].as_py()) == 1
    assert rows.keys[0].as_py() not in found.bounded.to_pylist()


def test_a_block_of_pairs_is_bounded_where_all_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_FLOATS", 256 * 60)
    rows = np.repeat(unit_vectors(np.ones((1, 8))), 400, axis=0)
    blocks = [len(left) for left, _, _ in neighbours._proposed(rows, rows, ANY, int8=False)]
    assert max(blocks) <= 256 * 60
    assert sum(blocks) == 400**2


def test_of_a_giant_group_some_true_pairs_stand_for_all() -> None:
    rows = image_rows(np.concatenate([np.ones((300, 4)), [[1, -1, 1, -1]], [[1, -1, 1, -0.9]]]))
    sample = rows.take(np.array([0, 1, 2, 300]))
    edges = cross_edges(sample, rows, ANY, max_pairs=16)
    some, every = (
        {frozenset(pair.values()) for pair in found.select([name for name, _ in ENDS]).to_pylist()}
        for found in (edges, cross_edges(sample, rows, ANY))
    )
    per_row = [sum(key in pair for pair in some) for key in sample.keys.to_pylist()]
    assert [15 <= number <= 18 for number in per_row[:3]] == [True] * 3
    assert per_row[3] == 1
    assert some < every
