"""The dedup stage, exact copies of images: samples are routed by content hash and reduced to classes.

    route.<source>  ──by content hash──►  classes ──► centroids, cells ──by cell──► images, recall (image_steps.py)
    texts.<source>  ──by caption hash──►  caption-classes ──► ...             (text_steps.py, caption_steps.py)

Everything after `classes` works on representatives alone, so a million copies cost a million rows and no pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.classes import classes, representatives
from dataengine.dedup.routed import PIXEL_ROWS, flat, image_rows_schema, to_binary
from dataengine.keys import key_ranges
from dataengine.schemas import CLASS, SAMPLE, TableSchema, score_schema
from dataengine.storage.rundir import Part, Plan


@dataclass(frozen=True)
class Route(Step):
    """Sends the content hashes of a source's images to their buckets, with what later steps need of them."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    source: str
    scorer: str
    """Whose embeddings are compared."""
    measurer: str
    """The scorer whose table holds the perceptual hashes."""
    num_buckets: int

    @property
    def unit(self) -> str:
        return f"route.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        scores = dict.fromkeys((f"score/{self.scorer}.{self.source}", f"score/{self.measurer}.{self.source}"))
        return tuple(Need(name) for name in (f"download/{self.source}", *scores))

    def identity(self) -> Mapping[str, Any]:
        return {"scorer": self.scorer, "measurer": self.measurer, "num_buckets": self.num_buckets}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, ["key", "status", "sha256", "pixel_hash"])
        phashes = inputs.table(f"score/{self.measurer}.{self.source}", "score", _PHASH, ["phash"]).column("phash")
        embeddings = inputs.array(f"score/{self.scorer}.{self.source}", "embedding")
        there = pc.equal(samples.column("status"), "ok")
        keys = flat(samples.column("key").filter(there))
        images = {
            "key": keys,
            "content_hash": flat(samples.column("sha256").filter(there)),
            "phash": flat(phashes.filter(there)),
            "embedding": to_binary(embeddings[there.to_numpy()]),
        }
        pixels = {"key": keys, "content_hash": flat(samples.column("pixel_hash").filter(there))}
        outputs.rows_in, outputs.rows_out = len(samples), len(keys)
        outputs.facts["dim"] = int(embeddings.shape[1])
        for name, schema, columns in (
            ("images", image_rows_schema(embeddings.shape[1]), images),
            ("pixels", PIXEL_ROWS, pixels),
        ):
            outputs.buckets(name, schema, list(self._routed(schema.table(columns))))

    def _routed(self, rows: pa.Table) -> Iterator[pa.Table]:
        """`rows` by content hash; rows without one, which are copies of nothing, by key."""
        hashes = pc.fill_null(pc.utf8_slice_codeunits(rows.column("content_hash"), 0, 32), rows.column("key"))
        buckets = pa.array(key_ranges(hashes, self.num_buckets))
        for bucket in range(self.num_buckets):
            yield rows.filter(pc.equal(buckets, bucket))


_PHASH = score_schema((), (), measures=True)


@dataclass(frozen=True)
class Classes(Step):
    """Finds exact copies of image bytes and of pixels, and who represents each class."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    sources: tuple[str, ...]
    num_buckets: int

    @property
    def unit(self) -> str:
        return "classes"

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Need(f"dedup/route.{source}", whole=True) for source in self.sources)

    def identity(self) -> Mapping[str, Any]:
        return {"sources": list(self.sources), "num_buckets": self.num_buckets}

    def plan(self, context: PlanContext) -> Plan:
        return bucket_plan(self.num_buckets)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        bucket = part.spec["bucket"]
        dim = embedding_dim(inputs, self.sources)
        images = self._gather(inputs, "images", image_rows_schema(dim), bucket)
        pixels = self._gather(inputs, "pixels", PIXEL_ROWS, bucket)
        found = pa.concat_tables(_classes(rows, kind) for rows, kind in ((images, "image_bytes"), (pixels, "pixels")))
        outputs.rows_in = len(images)
        outputs.count(dict(zip(*_counted(found), strict=True)))
        outputs.facts["dim"] = dim
        outputs.table("class", CLASS, found)
        outputs.table("images", image_rows_schema(dim), _speakers(images))

    def _gather(self, inputs: Inputs, name: str, schema: TableSchema, bucket: int) -> pa.Table:
        routed = [inputs.bucket(f"dedup/route.{source}", name, schema, bucket) for source in self.sources]
        return pa.concat_tables(routed).sort_by("key").combine_chunks()


def bucket_plan(num_buckets: int) -> Plan:
    """One part per bucket."""
    parts = tuple(Part(f"part-{bucket:06d}", {"bucket": bucket}) for bucket in range(num_buckets))
    return Plan(parts, {"buckets": str(num_buckets)})


def embedding_dim(inputs: Inputs, sources: tuple[str, ...]) -> int:
    """Length of the embeddings that the route steps carried."""
    return int(inputs.commits(f"dedup/route.{sources[0]}")[0].facts["dim"])


def _classes(rows: pa.Table, kind: str) -> pa.Table:
    return classes(flat(rows.column("key")), flat(rows.column("content_hash")), kind)


def _speakers(rows: pa.Table) -> pa.Table:
    return rows.filter(representatives(flat(rows.column("key")), flat(rows.column("content_hash")))).combine_chunks()


def _counted(found: pa.Table) -> tuple[list[str], list[int]]:
    counts = found.group_by("kind").aggregate([("key", "count")]).sort_by("kind")
    return counts.column("kind").to_pylist(), counts.column("key_count").to_pylist()
