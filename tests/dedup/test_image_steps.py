"""The image steps of dedup, from samples and vectors to edges and recall, on every kind of input that is awkward."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataengine.config.dedup import ImageDedupConfig
from dataengine.dedup import neighbours, products
from dataengine.dedup.neighbours import ImageRows, cross_edges
from dataengine.dedup.products import Products
from dataengine.engine.board import Job
from dataengine.engine.worker import Outcome, run_job
from dataengine.keys import url_keys
from dataengine.schemas import CELL, EDGE
from dataengine.storage.rundir import Commit, UnitDirectory
from dataengine.storage.tables import read_table
from tests.dedup.vectors import ENDS, MACHINES, Source, drive, edges_of, image_steps

MULTIPLY = Products._multiply
ANY = ImageDedupConfig(confirm="none", min_similarity=0.9, border=1.0, bucket_rows=40)


def source(name: str, vectors: np.ndarray) -> Source:
    keys = tuple(sorted(url_keys(name, [str(row) for row in range(len(vectors))])))
    return Source(name, keys, vectors.astype(np.float16))


def families(seed: int, num_rows: int, dim: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_rows // 5, dim)) + 1
    return centres[rng.integers(len(centres), size=num_rows)] + rng.normal(0, 0.3, (num_rows, dim))


def two_sources() -> list[Source]:
    """Near-duplicates within and across sources."""
    everything = families(1, 400)
    return [source("shop", everything[:250]), source("web", everything[250:])]


def truth(sources: list[Source], config: ImageDedupConfig, without: tuple[str, ...] = ()) -> pa.Table:
    keys = [key for item in sources for key in item.keys]
    vectors = np.concatenate([item.vectors for item in sources])
    silent = {*without, *(key for item in sources for key in item.failed)}
    there = np.array([key not in silent for key in keys]) & vectors.any(axis=1)
    rows = ImageRows(pa.array(keys), vectors, pa.nulls(len(keys), pa.string())).take(np.flatnonzero(there))
    edges = cross_edges(rows, rows, config)
    return edges.group_by(EDGE.arrow.names).aggregate([]).sort_by(ENDS).combine_chunks()


@pytest.mark.parametrize(("part_rows", "bucket_rows"), [(1000, 10_000), (60, 40), (7, 16)])
def test_edges_are_those_of_exact_search_however_the_work_is_cut(
    tmp_path: Path, part_rows: int, bucket_rows: int
) -> None:
    config = ANY.model_copy(update={"bucket_rows": bucket_rows})
    board = drive(tmp_path, image_steps(two_sources(), config, part_rows))
    wanted = truth(two_sources(), config)
    assert edges_of(board).equals(wanted)
    across = {key[:2] for key in wanted["left_key"].to_pylist()}
    assert across
    recall = board.commits("dedup/recall")[0].facts["recall"]
    assert recall["value"] == 1.0
    assert recall["num_edges"] == len(wanted)
    assert not board.commits("dedup/images-wide")


def test_products_in_8_bit_integers_change_no_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ANY.model_copy(update={"border": 0.35, "rows_per_cell": 60})
    plain = edges_of(drive(tmp_path / "plain", image_steps(two_sources(), config, 60)))
    monkeypatch.setattr(products, "_MIN_CELLS", 1)
    monkeypatch.setattr(neighbours, "_INT8_ROWS", 1)
    monkeypatch.setattr(products, "_has_int8", lambda: True)
    multiplied = []
    monkeypatch.setattr(Products, "_multiply", lambda *given: multiplied.append(1) or MULTIPLY(*given))
    assert edges_of(drive(tmp_path / "quick", image_steps(two_sources(), config, 60))).equals(plain)
    assert len(plain) > 100
    assert len(multiplied) > 10


def test_a_border_too_narrow_is_widened_until_every_pair_is_found(tmp_path: Path) -> None:
    config = ANY.model_copy(update={"border": 1e-6, "target_recall": 0.999, "rows_per_cell": 16})
    board = drive(tmp_path, image_steps(two_sources(), config))
    first, last = (board.commits(name)[0].facts["recall"] for name in ("dedup/recall-first", "dedup/recall"))
    assert not first["reached"]
    assert first["high"] < 0.999
    assert (last["reached"], last["value"], last["border"]) == (True, 1.0, 1.0)
    wanted = truth(two_sources(), config)
    assert edges_of(board).equals(wanted)
    found = sum(commit.counts["edges"] for commit in board.commits("dedup/images"))
    assert 0 < found < len(wanted)
    assert first["low"] <= found / len(wanted) <= first["high"], "the interval holds the recall of all rows"


def test_rows_without_a_vector_and_copies_meet_nobody(tmp_path: Path) -> None:
    web = source("web", families(2, 120))
    web.vectors[10:20] = 0
    web = replace(web, failed=frozenset(web.keys[20:25]))
    copies = web.keys[30:60]
    board = drive(tmp_path, image_steps([web], ANY, copies=copies))
    assert edges_of(board).equals(truth([web], ANY, copies))
    tables = [read_table(board.root, item.objects["cell"].path, CELL) for item in board.commits("dedup/cells.web")]
    celled = pa.concat_tables(tables)["key"].to_pylist()
    assert celled == [key for key in web.keys if key not in {*web.keys[10:20], *web.failed}], "copies have cells, too"


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_hardly_any_rows(tmp_path: Path, num_rows: int) -> None:
    sources = [source("web", np.ones((num_rows, 8))), source("shop", np.zeros((3, 8)))]
    edges = edges_of(drive(tmp_path, image_steps(sources, ANY)))
    assert edges["similarity"].to_pylist() == [1.0] * (num_rows == 2)


def test_a_group_of_thousands_is_bounded_and_said_to_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    group = rng.normal(size=24) + rng.normal(0, 0.01, (2000, 24))
    config = ANY.model_copy(update={"max_degree": 8, "bucket_rows": 500})
    sources = [source("shop", group[:900]), source("web", np.concatenate([group[900:], families(6, 300)]))]
    board = drive(tmp_path, image_steps(sources, config, part_rows=400))
    recall = board.commits("dedup/recall")[0].facts["recall"]
    assert recall["num_bounded_rows"] >= 2000
    assert recall["num_edges"] <= 2300 * 8
    assert (recall["num_lost_rows"], recall["value"]) == (0, 1.0)
    assert recall["num_bounded_pairs"] > 1000


class Backwards:
    """Holds every job it gets and runs a random one: workers finish in any order."""

    def __init__(self, seed: int) -> None:
        self._random, self._jobs = random.Random(seed), list[Job]()

    def has_room(self, stage: str) -> bool:
        return True

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> Outcome | None:
        job = self._jobs.pop(self._random.randrange(len(self._jobs)))
        return run_job(job, MACHINES[job.step.stage])

    def retire(self, stage: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


def test_the_order_in_which_workers_finish_changes_nothing(tmp_path: Path) -> None:
    config = ANY.model_copy(update={"border": 1e-6, "target_recall": 0.999, "rows_per_cell": 16})
    steps = image_steps(two_sources(), config)
    boards = [drive(tmp_path / str(seed), steps, lambda seed=seed: Backwards(seed)) for seed in range(3)]
    digests = [{name: [c.digest for c in state.commits()] for name, state in board.states.items()} for board in boards]
    assert digests[0] == digests[1] == digests[2]


def test_killed_in_every_phase_it_goes_on_to_the_same_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ANY.model_copy(update={"border": 1e-6, "target_recall": 0.999, "rows_per_cell": 16})
    steps = image_steps(two_sources(), config, part_rows=200)
    whole = drive(tmp_path / "whole", steps)
    num_parts = sum(len(state.done) for state in whole.states.values())
    store, left = UnitDirectory.store_commit, [0]

    def store_or_die(directory: UnitDirectory, commit: Commit) -> Commit:
        """One commit a life: the next part dies with its objects written."""
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return store(directory, commit)

    monkeypatch.setattr(UnitDirectory, "store_commit", store_or_die)
    board, num_kills = None, 0
    while board is None:
        left[0] = 1
        try:
            board = drive(tmp_path / "killed", steps)
        except KeyboardInterrupt:
            num_kills += 1
    assert num_kills == num_parts - 1
    assert {name.partition(".")[0] for name, state in board.states.items() if state.done} >= {
        *("dedup/vectors", "dedup/centroids", "dedup/cells", "dedup/images", "dedup/recall-first"),
        *("dedup/cells-wide", "dedup/images-wide", "dedup/recall"),
    }
    digests = [{name: [c.digest for c in state.commits()] for name, state in b.states.items()} for b in (board, whole)]
    assert digests[0] == digests[1]
