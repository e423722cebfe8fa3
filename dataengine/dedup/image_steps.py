"""The dedup stage, images: near-duplicates by cosine, found exactly inside cells.

Cells are learnt from a sample, representatives are routed to the cells they probe, each cell is searched exactly, and
the recall of it all is measured against exact search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.cells import num_cells, probe_cells, train_cells
from dataengine.dedup.neighbours import image_edges
from dataengine.dedup.recall import exact_pairs, measure, recall_sample
from dataengine.dedup.routed import from_binary, image_rows, image_rows_schema, probed_rows_schema, to_binary
from dataengine.dedup.stage import bucket_plan
from dataengine.keys import draws
from dataengine.schemas import CELL, EDGE
from dataengine.storage.rundir import Part, Plan

_ROWS_PER_CENTROID = 64  # k-means gains little from more points a centroid (FAISS itself samples at most 256)


@dataclass(frozen=True)
class Centroids(Step):
    """k-means centroids of a seeded sample of the embeddings."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: ImageDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return "centroids"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/classes", whole=True),)

    def identity(self) -> Mapping[str, Any]:
        return {"rows_per_cell": self.config.rows_per_cell, "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        schema = image_rows_schema(_dim(inputs))
        num_rows = sum(commit.objects["images"].num_rows for commit in inputs.commits("dedup/classes"))
        cells = num_cells(num_rows, self.config.rows_per_cell)
        share = min(1.0, cells * _ROWS_PER_CENTROID / max(num_rows, 1))
        sampled = [
            table.filter(pa.array(draws(table.column("key"), self.seed, "centroids") < share))
            for table in inputs.tables("dedup/classes", "images", schema)
        ]
        sample = image_rows(pa.concat_tables(sampled).sort_by("key").combine_chunks())
        centroids = train_cells(sample.embeddings, cells, self.seed)
        outputs.rows_in, outputs.rows_out = num_rows, len(centroids)
        outputs.facts |= {"num_cells": len(centroids), "dim": _dim(inputs)}
        outputs.array("centroids", centroids)


@dataclass(frozen=True)
class Cells(Step):
    """Sends each representative to the cells it is looked up in, and keeps its nearest one as CELL."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: ImageDedupConfig

    @property
    def unit(self) -> str:
        return "cells"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/classes"), Need("dedup/centroids", whole=True))

    def identity(self) -> Mapping[str, Any]:
        return {"num_probes": self.config.num_probes}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        facts = inputs.commits("dedup/centroids")[0].facts
        centroids = next(inputs.arrays("dedup/centroids", "centroids"))
        rows = inputs.table("dedup/classes", "images", image_rows_schema(facts["dim"]))
        probes = probe_cells(image_rows(rows).embeddings, np.asarray(centroids), self.config.num_probes)
        schema = probed_rows_schema(facts["dim"], probes.shape[1])
        probed = schema.table({**{name: rows.column(name) for name in rows.column_names}, "probes": to_binary(probes)})
        routed = [probed.filter(pa.array((probes == cell).any(axis=1))) for cell in range(len(centroids))]
        outputs.rows_in = len(rows)
        outputs.facts["num_probes"] = int(probes.shape[1])
        outputs.table("cell", CELL, CELL.table({"key": rows.column("key"), "cell": probes[:, 0]}))
        outputs.buckets("probed", schema, routed)


@dataclass(frozen=True)
class ImageEdges(Step):
    """Near-duplicate images of one cell, by exact search."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: ImageDedupConfig

    @property
    def unit(self) -> str:
        return "images"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/centroids", whole=True), Need("dedup/cells", whole=True))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return ("dedup/centroids",)

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity()}

    def plan(self, context: PlanContext) -> Plan:
        return bucket_plan(context.commits("dedup/centroids")[0].facts["num_cells"])

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        cell = part.spec["bucket"]
        dim = inputs.commits("dedup/centroids")[0].facts["dim"]
        num_probes = inputs.commits("dedup/cells")[0].facts["num_probes"]
        rows = inputs.bucket("dedup/cells", "probed", probed_rows_schema(dim, num_probes), cell)
        found = image_edges(image_rows(rows), _probes(rows), cell, self.config)
        outputs.rows_in = len(rows)
        outputs.count({"edges": len(found.edges), "refused_by_confirm": found.num_refused})
        outputs.table("edge", EDGE, found.edges)


@dataclass(frozen=True)
class MeasureRecall(Step):
    """Searches a seeded sample exactly, and says which share of its true pairs the cells found."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: ImageDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return "recall"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/classes", whole=True), Need("dedup/images", whole=True))

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        schema = image_rows_schema(_dim(inputs))
        num_rows = sum(commit.objects["images"].num_rows for commit in inputs.commits("dedup/classes"))
        chosen = [schema.empty()]
        for table in inputs.tables("dedup/classes", "images", schema):
            keep = recall_sample(table.column("key"), num_rows, self.config.recall_rows, self.seed)
            chosen.append(table.filter(pa.array(keep)))
        sample = image_rows(pa.concat_tables(chosen).combine_chunks())
        true_pairs = [
            exact_pairs(sample, image_rows(table), self.config)
            for table in inputs.tables("dedup/classes", "images", schema)
        ]
        found = pa.concat_tables(inputs.tables("dedup/images", "edge", EDGE))
        recall = measure(pa.concat_tables(true_pairs), found)
        outputs.rows_in = outputs.rows_out = len(sample.keys)
        outputs.facts["recall"] = {
            "min_similarity": self.config.min_similarity,
            "target": self.config.target_recall,
            "num_rows": len(sample.keys),
            "num_pairs": recall.num_pairs,
            "num_found": recall.num_found,
            "value": round(recall.value, 6),
            "low": round(recall.low, 6),
            "high": round(recall.high, 6),
            "reached": recall.high >= self.config.target_recall,
        }


def _dim(inputs: Inputs) -> int:
    return int(inputs.commits("dedup/classes")[0].facts["dim"])


def _probes(rows: pa.Table) -> NDArray[np.int32]:
    return from_binary(rows.column("probes"), np.int32)
