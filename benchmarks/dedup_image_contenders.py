"""Contenders of `benchmarks.dedup_images`: each finds pairs of near-duplicate vectors, in a process of its own.

python -m benchmarks.dedup_image_contenders NAME VECTORS.npy OUT.npz

prints one JSON line: seconds, CPU-seconds and peak memory of the search, imports not counted. OUT holds `left` and
`right`, row numbers of the pairs found.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.dedup_image_given import GivenClasses, GivenSamples, GivenVectors, row_numbers
from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Machine, Step
from dataengine.dedup.image_search import ImageEdges, MeasureRecall
from dataengine.dedup.image_steps import Centroids, PlaceVectors, SampleVectors, VectorSource
from dataengine.dedup.products import dots
from dataengine.engine.board import Board
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.schemas import EDGE
from dataengine.storage.rundir import RunDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table

MIN_SIMILARITY = 0.95
Found = tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Any]]


def _units(path: Path) -> NDArray[np.float32]:
    rows = np.load(path).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def exact(path: Path) -> Found:
    """Every row with every later one, block by block."""
    units, found = _units(path), []
    for top in range(0, len(units), 2048):
        for start in range(top, len(units), 8192):
            near = units[top : top + 2048] @ units[start : start + 8192].T >= MIN_SIMILARITY
            left, right = np.divmod(np.flatnonzero(near), near.shape[1])
            later = left + top < right + start
            found.append((left[later] + top, right[later] + start))
    return (*_joined(found), {})


def semdedup(path: Path) -> Found:
    """SemDeDup's method (Abbas et al. 2023): k-means of n / 1000 clusters, 20 iterations, pairs within a cluster."""
    units, found = _units(path), []
    clusters = max(10, len(units) // 1000)
    kmeans = faiss.Kmeans(units.shape[1], clusters, niter=20, spherical=True, seed=1, max_points_per_centroid=256)
    kmeans.train(units)
    _, nearest = kmeans.index.search(units, 1)
    order = np.argsort(nearest[:, 0], kind="stable")
    ends = np.searchsorted(nearest[order, 0], np.arange(clusters + 1))
    for first, last in itertools.pairwise(ends):
        rows = order[first:last]
        for top in range(0, len(rows), 4096):
            near = units[rows[top : top + 4096]] @ units[rows[top:]].T >= MIN_SIMILARITY
            left, right = np.divmod(np.flatnonzero(near), max(near.shape[1], 1))
            later = left < right
            found.append((rows[left[later] + top], rows[right[later] + top]))
    return (*_joined(found), {})


def _joined(found: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = (np.concatenate([np.zeros(0, np.int64), *sides]) for sides in zip(*found, strict=True))
    return np.minimum(left, right), np.maximum(left, right)


def dataengine(path: Path, folder: Path) -> tuple[Callable[[], None], Callable[[], Found]]:
    """The image steps of the dedup stage as the engine runs them, from the commits of score to edges and recall."""
    given: list[Step] = [GivenSamples(str(path)), GivenVectors(str(path)), GivenClasses(str(path))]
    config = ImageDedupConfig(confirm="none", min_similarity=MIN_SIMILARITY)
    vectors = VectorSource("web", "clip", "clip")
    steps: list[Step] = [SampleVectors(vectors, config, 0), Centroids(("web",), config, 0)]
    for rung in (0, 1):
        steps += [PlaceVectors(vectors, config, rung), ImageEdges(("web",), config, 0, rung)]
        steps += [MeasureRecall(("web",), config, rung)]
    _drive(folder, given)
    importlib.import_module("torch")  # imports are not counted, nor those that numba makes at its first call
    one, first = np.ones((1, 1), np.float32), np.zeros(1, np.int64)
    dots(one, first, one, first)
    board: list[Board] = []

    def search() -> None:
        board.append(_drive(folder, [*given, *steps]))

    def found() -> Found:
        commits = {name: state.commits() for name, state in board[0].states.items()}
        edges = [
            read_table(board[0].root, commit.objects["edge"].path, EDGE, ["left_key", "right_key"])
            for name in ("dedup/images", "dedup/images-wide")
            for commit in commits[name]
        ]
        table = pa.concat_tables(edges)
        left, right = (row_numbers(table.column(name)) for name in ("left_key", "right_key"))
        seconds = {name: round(sum(item.seconds for item in commits[name]), 2) for name in commits}
        facts = commits["dedup/recall"][0].facts["recall"]
        extra = {"measured": facts, "cells": commits["dedup/centroids"][0].facts["num_cells"], "steps": seconds}
        return np.minimum(left, right), np.maximum(left, right), extra

    return search, found


class _Silent:
    def update(self, board: Board, running: object) -> None:
        pass


def _drive(folder: Path, steps: list[Step]) -> Board:
    machine = Machine(1, 0, 1, {}, lambda: datetime.now(UTC))
    machines = dict.fromkeys(("download", "score", "dedup"), machine)
    board = Board(RunDirectory(Root(str(folder)), "bench"), steps, {step.name: "0" * 64 for step in steps}, store=True)
    Runner(board, lambda: SerialExecutor(machines), _Silent(), 600).run()
    return board


def _peak_gib() -> float:
    """The most memory this process ever held; getrusage would also tell of the process that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=["exact", "semdedup", "dataengine"])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    faiss.omp_set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.out.parent) as folder:
        search: Callable[[], Any] = lambda: {"exact": exact, "semdedup": semdedup}[asked.name](asked.vectors)  # noqa: E731
        collect: Callable[[], Found] | None = None
        if asked.name == "dataengine":
            search, collect = dataengine(asked.vectors, Path(folder))
        started, cpu = time.monotonic(), time.process_time()
        result = search()
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
        peak = _peak_gib()
        left, right, extra = collect() if collect else result
    np.savez(asked.out, left=left, right=right)
    print(json.dumps({**spent, "peak_gib": peak, **extra}))


if __name__ == "__main__":
    main()
