"""The dedup stage, images, up to the exchange: which cells there are, and who lives and looks where.

    classes ──► vectors.<source> ──► centroids ──► cells.<source> ──by cell──► images, recall-first ──► recall
                                                   cells-wide.<source> ──────► images-wide ───────────►

Vectors stay with the scores they were made with, and travel once, raw, to the tasks that own the cells they live in or
look into. The wide steps have no parts unless the recall measured first is too low.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step, WholeUnit
from dataengine.dedup.cells import (
    Cells,
    Placement,
    bucket_cells,
    bucket_starts,
    main_axes,
    num_cells,
    place,
    search_radius,
    train_cells,
    unit_vectors,
    usable,
)
from dataengine.dedup.neighbours import NUM_AXES, ImageRows, cross_edges
from dataengine.dedup.recall import recall_sample
from dataengine.dedup.routed import KEYS, flat, image_rows, image_rows_schema, placed_rows_schema, to_binary
from dataengine.keys import draws
from dataengine.schemas import CELL, EDGE, SAMPLE, score_schema
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.tables import read_npy, read_table

_ROWS_PER_CENTROID = 16  # k-means gains little from more points a centroid (FAISS itself samples at most 256)
_TRUE_PAIRS = 16  # of a sampled row in a part: a group of 100,000 would fill memory, and its rows are bounded anyway
_PHASH = score_schema((), (), measures=True)
RECALL_FIRST = "dedup/recall-first"


@dataclass(frozen=True)
class VectorSource:
    """Where the vectors of a source and their perceptual hashes are."""

    source: str
    scorer: str
    """Whose embeddings are compared."""
    measurer: str
    """The scorer whose table holds the perceptual hashes."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """The steps whose part of the same name is read, and the classes."""
        scores = dict.fromkeys((f"score/{self.scorer}.{self.source}", f"score/{self.measurer}.{self.source}"))
        by_part = (Need(name) for name in (f"download/{self.source}", *scores))
        return (*by_part, Need("dedup/classes", whole=True))

    def identity(self) -> dict[str, str]:
        """As plain JSON."""
        return {"scorer": self.scorer, "measurer": self.measurer}

    def read(self, inputs: Inputs) -> tuple[ImageRows, NDArray[np.bool_]]:
        """The part's images that have a vector, and which of them speak for their class: bool [rows]."""
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, ["key", "status"])
        phashes = inputs.table(f"score/{self.measurer}.{self.source}", "score", _PHASH, ["phash"]).column("phash")
        embeddings = inputs.array(f"score/{self.scorer}.{self.source}", "embedding")
        there = np.flatnonzero(pc.equal(samples.column("status"), "ok").to_numpy() & usable(embeddings))
        rows = ImageRows(flat(samples.column("key")), embeddings, flat(phashes)).take(there)
        copies = _copies(inputs.whole["dedup/classes"])
        mine = copies.filter(pc.is_in(copies, rows.keys))  # the table is built over the part's keys, the fewer ones
        return rows, ~np.asarray(pc.is_in(rows.keys, mine))


@functools.lru_cache(maxsize=1)
def _copies(classes: WholeUnit) -> pa.Array:
    """Keys of the images that another one speaks for; read once per process."""
    root = classes.directory.root
    tables = [read_table(root, commit.objects["copies"].path, KEYS) for commit in classes.commits()]
    return pc.unique(flat(pa.concat_tables([KEYS.empty(), *tables]).column("key")))


def num_images(inputs: Inputs) -> int:
    """Images there are, those that others speak for taken off; some may have no vector."""
    classes = inputs.whole["dedup/classes"]
    return sum(commit.rows_in for commit in classes.commits()) - len(_copies(classes))


@dataclass(frozen=True)
class SampleVectors(Step):
    """Draws, from a source, the vectors that the cells are learnt from and those that recall is measured on."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    vectors: VectorSource
    config: ImageDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return f"vectors.{self.vectors.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.vectors.needs

    def identity(self) -> Mapping[str, Any]:
        sizes = {"rows_per_cell": self.config.rows_per_cell, "recall_rows": self.config.recall_rows}
        return {**self.vectors.identity(), **sizes, "seed": self.seed}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows, speak = self.vectors.read(inputs)
        total = max(num_images(inputs), 1)
        share = num_cells(total, self.config.rows_per_cell) * _ROWS_PER_CENTROID / total
        taught = np.flatnonzero(speak & (draws(rows.keys, self.seed, "centroids") < share))
        asked = np.flatnonzero(speak & recall_sample(rows.keys, total, self.config.recall_rows, self.seed))
        outputs.rows_in = len(rows.keys)
        outputs.facts |= {"dim": rows.embeddings.shape[1], "num_rows": int(speak.sum())}
        outputs.table("recall", image_rows_schema(rows.embeddings.shape[1]), _table(rows.take(asked)))
        outputs.array("training", rows.embeddings[taught])


@dataclass(frozen=True)
class Centroids(Step):
    """Learns the cells, cuts them into buckets, and gathers the sample that recall is measured on."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    sources: tuple[str, ...]
    config: ImageDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return "centroids"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/classes", whole=True), *(Need(name, whole=True) for name in self._steps()))

    def _steps(self) -> list[str]:
        return [f"dedup/vectors.{source}" for source in self.sources]

    def identity(self) -> Mapping[str, Any]:
        names = ("rows_per_cell", "bucket_rows", "min_similarity")
        return {**{name: getattr(self.config, name) for name in names}, "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        facts = [commit.facts for step in self._steps() for commit in inputs.commits(step)]
        dim = max((int(item["dim"]) for item in facts), default=1)
        num_rows = sum(int(item["num_rows"]) for item in facts)
        arrays = [array for step in self._steps() for array in inputs.arrays(step, "training")]
        sample = np.concatenate([np.zeros((0, dim), np.float16), *arrays])
        cells = num_cells(num_images(inputs), self.config.rows_per_cell)
        centroids = train_cells(sample, cells, search_radius(self.config.min_similarity), self.seed)
        homes = place(unit_vectors(sample), Cells(centroids), 0.0).home
        sizes = np.bincount(homes, minlength=len(centroids)) * (num_rows / max(len(sample), 1))
        outputs.rows_in = num_rows
        outputs.facts |= {
            "num_rows": num_rows,
            "dim": dim,
            "num_cells": len(centroids),
            "bucket_starts": bucket_starts(sizes, self.config.bucket_rows),
        }
        outputs.table("recall", image_rows_schema(dim), pa.concat_tables(self._asked(inputs, dim)))
        outputs.array("centroids", centroids)
        outputs.array("axes", main_axes(centroids, NUM_AXES))

    def _asked(self, inputs: Inputs, dim: int) -> Iterator[pa.Table]:
        yield image_rows_schema(dim).empty()
        for step in self._steps():
            yield from inputs.tables(step, "recall", image_rows_schema(dim))


@dataclass(frozen=True)
class PlaceVectors(Step):
    """Gives each row its home, kept as CELL, and sends vectors to the buckets that they live in or look into.

    At rung 1 (the wider border) it has no parts where the recall measured first was good enough.
    """

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3
    vectors: VectorSource
    config: ImageDedupConfig
    rung: int

    @property
    def unit(self) -> str:
        return f"{'cells-wide' if self.rung else 'cells'}.{self.vectors.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        first = (Need(RECALL_FIRST, whole=True),) if self.rung else ()
        return (*self.vectors.needs, Need("dedup/centroids", whole=True), *first)

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return (RECALL_FIRST,) if self.rung else ()

    def identity(self) -> Mapping[str, Any]:
        names = ("min_similarity", "border", "confirm", "max_phash_distance")
        return {**self.vectors.identity(), **{name: getattr(self.config, name) for name in names}, "rung": self.rung}

    def plan(self, context: PlanContext) -> Plan:
        if self.rung and not must_widen(context):
            return Plan(())
        return super().plan(context)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        facts = inputs.commits("dedup/centroids")[0].facts
        cells = _cells(inputs.whole["dedup/centroids"])
        rows, speak = self.vectors.read(inputs)
        placed = place(rows.units, cells, self._reach(1.0 if self.rung else self.config.border))
        outputs.rows_in = len(rows.keys)
        if not self.rung:
            outputs.table("cell", CELL, CELL.table({"key": rows.keys, "cell": placed.home}))
            schema = image_rows_schema(facts["dim"])
            sample = image_rows(next(inputs.tables("dedup/centroids", "recall", schema)))
            axes = np.asarray(next(inputs.arrays("dedup/centroids", "axes")))
            speakers = rows.take(np.flatnonzero(speak))
            true_pairs = cross_edges(sample, speakers, self.config, axes, cells.int8, _TRUE_PAIRS)
            outputs.table("true_pairs", EDGE, true_pairs)
        table = self._placed(rows, placed, cells)
        buckets = bucket_cells(facts["bucket_starts"], facts["num_cells"])
        outputs.ranges("placed", placed_rows_schema(facts["dim"]), _routed(table, placed, speak, buckets))

    def _reach(self, border: float) -> float:
        return border * search_radius(self.config.min_similarity) / 2

    def _placed(self, rows: ImageRows, placed: Placement, cells: Cells) -> pa.Table:
        """placed_rows of all rows."""
        rungs = np.zeros(len(placed.look_row), np.int8)
        if self.rung:
            first = place(rows.units, cells, self._reach(self.config.border))
            now, before = (item.look_row * len(cells.centroids) + item.look_cell for item in (placed, first))
            rungs = (~np.isin(now, before)).astype(np.int8)
        ends = np.searchsorted(placed.look_row, np.arange(len(rows.keys) + 1)).astype(np.int32)
        lists = {"looks": pa.array(placed.look_cell), "rungs": pa.array(rungs)}
        schema = placed_rows_schema(rows.embeddings.shape[1])
        columns = {name: pa.ListArray.from_arrays(pa.array(ends), values) for name, values in lists.items()}
        return schema.table({**_columns(rows), "home": pa.array(placed.home), **columns})


@functools.lru_cache(maxsize=1)
def _cells(centroids: WholeUnit) -> Cells:
    """The cells; read once per process."""
    return Cells(read_npy(centroids.directory.root, centroids.commits()[0].objects["centroids"]))


def must_widen(context: PlanContext) -> bool:
    """Whether the recall measured first is surely below what was asked for."""
    return not context.commits(RECALL_FIRST)[0].facts["recall"]["reached"]


def _routed(table: pa.Table, placed: Placement, speak: NDArray[np.bool_], buckets: list[range]) -> list[pa.Table]:
    """The rows for each bucket, in key order."""
    ends = np.array([cells.stop for cells in buckets])
    rows = np.arange(len(speak))
    row = np.concatenate([rows, placed.look_row])
    bucket = np.searchsorted(ends, np.concatenate([placed.home, placed.look_cell]), side="right")
    codes = np.unique(bucket[speak[row]] * len(speak) + row[speak[row]])
    firsts = np.searchsorted(codes, np.arange(len(buckets) + 1) * len(speak))
    return [table.take(pa.array(codes[first:last] % max(len(speak), 1))) for first, last in itertools.pairwise(firsts)]


def _columns(rows: ImageRows) -> dict[str, pa.Array]:
    return {"key": rows.keys, "phash": rows.phashes, "embedding": to_binary(rows.embeddings)}


def _table(rows: ImageRows) -> pa.Table:
    return image_rows_schema(rows.embeddings.shape[1]).table(_columns(rows))
