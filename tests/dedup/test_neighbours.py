from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.dedup import ImageDedupConfig
from dataengine.dedup import neighbours
from dataengine.dedup.cells import probe_cells, train_cells
from dataengine.dedup.neighbours import ImageRows, cross_edges, image_edges
from dataengine.dedup.recall import exact_pairs, measure
from dataengine.keys import url_keys
from dataengine.schemas import EDGE

ANY = ImageDedupConfig(confirm="none", num_probes=3)


def image_rows(embeddings: np.ndarray, phashes: list[str | None] | None = None) -> ImageRows:
    keys = pa.array(url_keys("s", [str(row) for row in range(len(embeddings))]), pa.string())
    return ImageRows(keys, embeddings, pa.array(phashes or [None] * len(embeddings), pa.string()))


def families(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    """Float16 embeddings in families of near-duplicates."""
    centres = rng.normal(size=(max(num_rows // 4, 1), 16))
    return (centres[rng.integers(len(centres), size=num_rows)] + rng.normal(0, 0.15, (num_rows, 16))).astype(np.float16)


def take(rows: ImageRows, order: np.ndarray) -> ImageRows:
    return ImageRows(rows.keys.take(order), rows.embeddings[order], rows.phashes.take(order))


def search(rows: ImageRows, num_cells: int, config: ImageDedupConfig) -> pa.Table:
    """Every cell's edges, put together as the stage does."""
    by_key = take(rows, np.argsort(rows.keys.to_pylist()))
    centroids = train_cells(by_key.embeddings, num_cells, seed=1)
    probes = probe_cells(rows.embeddings, centroids, config.num_probes)
    cells = [np.flatnonzero((probes == cell).any(axis=1)) for cell in range(len(centroids))]
    found = [image_edges(take(rows, cell), probes[cell], number, config).edges for number, cell in enumerate(cells)]
    return pa.concat_tables(found).sort_by([("left_key", "ascending"), ("right_key", "ascending")])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 80), st.integers(1, 6))
def test_every_pair_once_in_any_order(seed: int, num_rows: int, num_cells: int) -> None:
    rng = np.random.default_rng(seed)
    rows = image_rows(families(rng, num_rows))
    edges = EDGE.check(search(rows, num_cells, ANY))
    truth = cross_edges(rows, rows, ANY).edges
    truth = (
        truth.group_by(EDGE.arrow.names).aggregate([]).sort_by([("left_key", "ascending"), ("right_key", "ascending")])
    )
    true_pairs = set(zip(truth["left_key"].to_pylist(), truth["right_key"].to_pylist(), strict=True))
    found = list(zip(edges["left_key"].to_pylist(), edges["right_key"].to_pylist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) <= true_pairs
    if num_cells <= ANY.num_probes:
        assert edges.equals(truth), "rows that look into every cell miss nothing"
    assert search(take(rows, rng.permutation(num_rows)), num_cells, ANY).equals(edges)


def test_similarity_is_exact_and_the_threshold_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_FLOATS", 64)  # blocks of one to three rows
    embeddings = families(np.random.default_rng(3), 25).astype(np.float64)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = unit @ unit.T
    rows = image_rows(embeddings.astype(np.float16))
    keys = rows.keys.to_pylist()
    edges = image_edges(rows, np.zeros((25, 1), np.int32), 0, ANY).edges.to_pylist()
    assert len(edges) == np.count_nonzero(np.triu(cosine >= 0.95, k=1))
    for edge in edges:
        pair = cosine[keys.index(edge["left_key"]), keys.index(edge["right_key"])]
        assert edge["similarity"] == pytest.approx(pair, abs=1e-6)


def test_identical_rows_match_and_unusable_rows_never_do() -> None:
    embeddings = np.array([[1, 2], [1, 2], [0, 0], [0, 0], [np.nan, 1], [np.nan, 1]], np.float16)
    config = ANY.model_copy(update={"min_similarity": 1.0})
    edges = image_edges(image_rows(embeddings), np.zeros((6, 1), np.int32), 0, config).edges
    assert edges["similarity"].to_pylist() == [1.0]


def test_confirmation_refuses_distant_and_unknown_hashes() -> None:
    rows = image_rows(np.ones((3, 2), np.float16), ["00000000000000ff", "0000000000000000", None])
    config = ImageDedupConfig(max_phash_distance=8)
    found = image_edges(rows, np.zeros((3, 1), np.int32), 0, config)
    assert found.edges["phash_distance"].to_pylist() == [8]
    assert found.num_refused == 2
    strict = config.model_copy(update={"max_phash_distance": 7})
    assert image_edges(rows, np.zeros((3, 1), np.int32), 0, strict).num_refused == 3
    trusting = config.model_copy(update={"confirm": "none"})
    distances = image_edges(rows, np.zeros((3, 1), np.int32), 0, trusting).edges["phash_distance"].to_pylist()
    assert sorted(distances, key=str) == [8, None, None]


def test_recall_of_a_search_that_looks_into_one_cell() -> None:
    rows = image_rows(families(np.random.default_rng(8), 300))
    config = ANY.model_copy(update={"num_probes": 1, "min_similarity": 0.9})
    edges = search(rows, 20, config)
    sample = take(rows, np.arange(0, 300, 3))
    halves = [take(rows, np.arange(150)), take(rows, np.arange(150, 300))]
    truth = pa.concat_tables([exact_pairs(sample, half, config) for half in halves])
    recall = measure(truth, edges)
    pairs = {(row["left_key"], row["right_key"]) for row in truth.to_pylist()}
    found = {(row["left_key"], row["right_key"]) for row in edges.to_pylist()}
    assert (recall.num_pairs, recall.num_found) == (len(pairs), len(pairs & found))
    assert 0.5 < recall.low < recall.value < recall.high
    assert measure(truth, truth).value == 1.0
