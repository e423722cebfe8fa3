"""The dedup stage, images, from the exchange on: the pairs of each bucket of cells, and how many of all pairs that is.

A bucket's task reads the ranges that were routed to it and needs nothing of other buckets; whatever is built to search
it is built there and gone with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.cells import bucket_cells
from dataengine.dedup.image_steps import RECALL_FIRST, must_widen
from dataengine.dedup.neighbours import Bucket, Looks, image_edges
from dataengine.dedup.products import worth_int8
from dataengine.dedup.recall import Recall, measure
from dataengine.dedup.routed import KEYS, flat, image_rows, image_rows_schema, placed_rows_schema
from dataengine.dedup.stage import bucket_plan
from dataengine.schemas import EDGE
from dataengine.storage.rundir import Part, Plan


@dataclass(frozen=True)
class ImageEdges(Step):
    """Near-duplicate images of one bucket of cells, by exact search."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3
    sources: tuple[str, ...]
    config: ImageDedupConfig
    seed: int
    rung: int

    @property
    def unit(self) -> str:
        return "images-wide" if self.rung else "images"

    @property
    def needs(self) -> tuple[Need, ...]:
        first = (RECALL_FIRST,) if self.rung else ()
        return tuple(Need(name, whole=True) for name in ("dedup/centroids", *_cells(self.sources, self.rung), *first))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return ("dedup/centroids", RECALL_FIRST) if self.rung else ("dedup/centroids",)

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "seed": self.seed, "rung": self.rung}

    def plan(self, context: PlanContext) -> Plan:
        if self.rung and not must_widen(context):
            return Plan(())
        return bucket_plan(len(context.commits("dedup/centroids")[0].facts["bucket_starts"]))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        number = part.spec["bucket"]
        facts = inputs.commits("dedup/centroids")[0].facts
        cells = bucket_cells(facts["bucket_starts"], facts["num_cells"])[number]
        schema = placed_rows_schema(facts["dim"])
        routed = (
            table for step in _cells(self.sources, self.rung) for table in inputs.ranges(step, "placed", schema, number)
        )
        bucket = _bucket(pa.concat_tables([schema.empty(), *routed]))
        found = image_edges(bucket, cells, self.rung, self.config, self.seed, worth_int8(facts["num_cells"]))
        outputs.rows_in = len(bucket.home)
        outputs.count(
            {
                "edges": len(found.edges),
                "refused_by_confirm": found.num_refused,
                "bounded_by_max_degree": len(found.bounded),
            }
        )
        outputs.table("edge", EDGE, found.edges)
        outputs.table("bounded", KEYS, pa.table({"key": found.bounded}, KEYS.arrow).sort_by("key"))


def _cells(sources: tuple[str, ...], rung: int) -> list[str]:
    return [f"dedup/{'cells-wide' if rung else 'cells'}.{source}" for source in sources]


def _bucket(table: pa.Table) -> Bucket:
    rows = image_rows(table)
    looks = flat(table.column("looks"))
    row = np.repeat(np.arange(len(table)), np.asarray(pc.list_value_length(looks)))
    cell, rung = (np.asarray(flat(table.column(name)).flatten()) for name in ("looks", "rungs"))
    return Bucket(rows, np.asarray(flat(table.column("home"))), Looks(row, cell, rung))


@dataclass(frozen=True)
class MeasureRecall(Step):
    """Says which share of a sample's true pairs was found; at rung 1 with the wider search, where there was one."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3
    sources: tuple[str, ...]
    config: ImageDedupConfig
    rung: int

    @property
    def unit(self) -> str:
        return "recall" if self.rung else RECALL_FIRST.removeprefix("dedup/")

    @property
    def needs(self) -> tuple[Need, ...]:
        steps = ("dedup/centroids", *_cells(self.sources, 0), *self._searches())
        return tuple(Need(name, whole=True) for name in steps)

    def _searches(self) -> tuple[str, ...]:
        return ("dedup/images", "dedup/images-wide")[: self.rung + 1]

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "rung": self.rung}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        schema = image_rows_schema(inputs.commits("dedup/centroids")[0].facts["dim"])
        sample = flat(next(inputs.tables("dedup/centroids", "recall", schema, ["key"])).column("key"))
        exact = [table for step in _cells(self.sources, 0) for table in inputs.tables(step, "true_pairs", EDGE)]
        found = pa.concat_tables([EDGE.empty(), *self._touching(inputs, sample)])
        bounded = [table for step in self._searches() for table in inputs.tables(step, "bounded", KEYS)]
        dense = flat(pa.concat_tables([KEYS.empty(), *bounded]).column("key"))
        recall = measure(pa.concat_tables([EDGE.empty(), *exact]), found, sample, dense)
        outputs.rows_in = outputs.rows_out = len(sample)
        outputs.facts["recall"] = self._facts(recall, len(sample), inputs)

    def _touching(self, inputs: Inputs, sample: pa.Array) -> Iterator[pa.Table]:
        """The edges of sampled rows, table by table: all edges would not fit."""
        for step in self._searches():
            for table in inputs.tables(step, "edge", EDGE):
                ends = (pc.is_in(table[name], sample) for name in ("left_key", "right_key"))
                yield table.filter(pc.or_(*ends))

    def _facts(self, recall: Recall, num_rows: int, inputs: Inputs) -> dict[str, Any]:
        commits = [commit for step in self._searches() for commit in inputs.commits(step)]
        widened = len(self._searches()) == 2 and bool(inputs.commits("dedup/images-wide"))
        counts = {
            f"num_{name}": sum(commit.counts.get(reason, 0) for commit in commits)
            for name, reason in (
                ("edges", "edges"),
                ("refused", "refused_by_confirm"),
                ("bounded_rows", "bounded_by_max_degree"),
            )
        }
        return {
            "min_similarity": self.config.min_similarity,
            "target": self.config.target_recall,
            "border": 1.0 if widened else self.config.border,
            "num_rows": num_rows,
            "num_pairs": recall.num_pairs,
            "num_found": recall.num_found,
            "value": None if recall.value is None else round(recall.value, 6),
            "low": round(recall.low, 6),
            "high": round(recall.high, 6),
            "reached": recall.high >= self.config.target_recall,
            "num_bounded_pairs": recall.num_bounded,
            "num_lost_rows": recall.num_lost,
            **counts,
        }
