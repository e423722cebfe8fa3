"""The dedup stage, captions: representatives are signed, routed by band hash, and compared bucket by bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.bands import band_hashes, bucket_rows, hot_bands
from dataengine.dedup.caption_edges import caption_edges
from dataengine.dedup.minhash import signatures
from dataengine.dedup.routed import CAPTION_ROWS, banded_rows_schema, flat, from_binary, to_binary
from dataengine.dedup.shingles import has_shingles
from dataengine.dedup.stage import bucket_plan
from dataengine.schemas import EDGE
from dataengine.storage.rundir import Part, Plan


@dataclass(frozen=True)
class Signatures(Step):
    """MinHash signatures of caption representatives, cut into bands and routed by band hash."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: CaptionDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return "signatures"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/classes"),)

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "seed": self.seed}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows = inputs.table("dedup/classes", "captions", CAPTION_ROWS, ["key", "caption"])
        # Captions shorter than a shingle are compared whole, which their class already did.
        rows = rows.filter(pa.array(has_shingles(flat(rows.column("caption")), self.config.shingle_chars)))
        bands = band_hashes(signatures(flat(rows.column("caption")), self.config, self.seed), self.config.num_bands)
        members, buckets = bucket_rows(bands, self.config.num_buckets)
        schema = banded_rows_schema(self.config.num_bands)
        signed = schema.table({"key": rows.column("key"), "caption": rows.column("caption"), "bands": to_binary(bands)})
        routed = [signed.take(pa.array(members[buckets == bucket])) for bucket in range(self.config.num_buckets)]
        outputs.rows_in = outputs.rows_out = len(rows)
        outputs.buckets("banded", schema, routed)


@dataclass(frozen=True)
class HotBands(Step):
    """Which band hashes so many captions share that they are compared through anchors only."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: CaptionDedupConfig

    @property
    def unit(self) -> str:
        return "hot"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/signatures", whole=True),)

    def identity(self) -> Mapping[str, Any]:
        return {"num_buckets": self.config.num_buckets, "max_degree": self.config.max_degree}

    def plan(self, context: PlanContext) -> Plan:
        return bucket_plan(self.config.num_buckets)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        bucket = part.spec["bucket"]
        _, bands = _banded(inputs, bucket, self.config)
        hot = hot_bands(bands, bucket, self.config.num_buckets, self.config.max_degree)
        outputs.rows_in, outputs.rows_out = len(bands), len(hot)
        outputs.array("hot", hot)


@dataclass(frozen=True)
class CaptionEdges(Step):
    """Near-duplicate captions of one bucket, verified by exact Jaccard."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config: CaptionDedupConfig
    seed: int

    @property
    def unit(self) -> str:
        return "captions"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/signatures", whole=True), Need("dedup/hot", whole=True))

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        return bucket_plan(self.config.num_buckets)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        bucket = part.spec["bucket"]
        rows, bands = _banded(inputs, bucket, self.config)
        hot = np.concatenate(list(inputs.arrays("dedup/hot", "hot")))
        # The captions of a bucket may exceed the 2 GiB of a string array.
        keys, captions = flat(rows.column("key")), flat(rows.column("caption").cast(pa.large_string()))
        found = caption_edges(keys, captions, bands, bucket, hot, self.config, self.seed)
        outputs.rows_in = len(rows)
        outputs.count({"edges": len(found.edges), "capped_rows": found.num_capped})
        outputs.table("edge", EDGE, found.edges)


def _banded(inputs: Inputs, bucket: int, config: CaptionDedupConfig) -> tuple[pa.Table, NDArray[np.uint64]]:
    """The rows routed to `bucket`, and their band hashes [rows, num_bands]."""
    rows = inputs.bucket("dedup/signatures", "banded", banded_rows_schema(config.num_bands), bucket)
    return rows, from_binary(rows.column("bands"), np.uint64)
