"""Decontamination by images: each sample against every image of the evaluation sets, exactly.

Sets are small beside the samples, so no cells are needed: main axes tell most pairs apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, Step
from dataengine.dedup.image_steps import VectorSource
from dataengine.dedup.neighbours import ImageRows, against_edges
from dataengine.dedup.products import worth_int8
from dataengine.dedup.routed import flat
from dataengine.schemas import EDGE, EVALUATION
from dataengine.storage.rundir import Part


@dataclass(frozen=True)
class AgainstEvaluation(Step):
    """Near-duplicates of a source's images in evaluation sets."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    vectors: VectorSource
    config: ImageDedupConfig

    @property
    def unit(self) -> str:
        return f"evaluation.{self.vectors.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*self.vectors.needs, Need("dedup/centroids", whole=True), Need(self._sets, whole=True))

    @property
    def _sets(self) -> str:
        return f"score/evaluation-images.{self.vectors.scorer}"

    def identity(self) -> Mapping[str, Any]:
        names = ("min_similarity", "confirm", "max_phash_distance")
        return {**self.vectors.identity(), **{name: getattr(self.config, name) for name in names}}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows, speak = self.vectors.read(inputs)
        speakers = rows.take(np.flatnonzero(speak))
        axes = np.asarray(next(inputs.arrays("dedup/centroids", "axes")))
        int8 = worth_int8(inputs.commits("dedup/centroids")[0].facts["num_cells"])
        tables = inputs.tables(self._sets, "evaluation", EVALUATION)
        found = [EDGE.empty()]
        for table, embeddings in zip(tables, inputs.arrays(self._sets, "embedding"), strict=True):
            images = ImageRows(flat(table.column("name")), embeddings, flat(table.column("phash")))
            sets = flat(table.column("set"))
            found.append(against_edges(speakers, images, sets, self.config, axes, int8))
        edges = pa.concat_tables(found).sort_by([(name, "ascending") for name in EDGE.sorted_by])
        outputs.rows_in = len(speakers.keys)
        outputs.count({"contaminated": len(edges)})
        outputs.table("edge", EDGE, edges)
