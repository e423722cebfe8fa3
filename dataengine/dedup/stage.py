"""The dedup stage, exact copies of images: samples are routed by content hash and reduced to classes.

    route.<source>  ──by content hash──►  classes ──► vectors, centroids, cells              (image_steps.py)
                                                      ──by cell──► images, recall            (image_search.py)
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
from dataengine.dedup.classes import classes
from dataengine.dedup.routed import IMAGE_ROWS, KEYS, PIXEL_ROWS, flat
from dataengine.keys import key_ranges
from dataengine.schemas import CLASS, SAMPLE, TableSchema
from dataengine.storage.rundir import Part, Plan


@dataclass(frozen=True)
class Route(Step):
    """Sends the content hashes of a source's images to their buckets, with what later steps need of them."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    source: str
    num_buckets: int

    @property
    def unit(self) -> str:
        return f"route.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"download/{self.source}"),)

    def identity(self) -> Mapping[str, Any]:
        return {"num_buckets": self.num_buckets}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, ["key", "status", "sha256", "pixel_hash"])
        there = pc.equal(samples.column("status"), "ok")
        keys = flat(samples.column("key").filter(there))
        images = {"key": keys, "content_hash": flat(samples.column("sha256").filter(there))}
        pixels = {"key": keys, "content_hash": flat(samples.column("pixel_hash").filter(there))}
        outputs.rows_in, outputs.rows_out = len(samples), len(keys)
        for name, schema, columns in (
            ("images", IMAGE_ROWS, images),
            ("pixels", PIXEL_ROWS, pixels),
        ):
            outputs.buckets(name, schema, list(self._routed(schema.table(columns))))

    def _routed(self, rows: pa.Table) -> Iterator[pa.Table]:
        """`rows` by content hash; rows without one, which are copies of nothing, by key."""
        hashes = pc.fill_null(pc.utf8_slice_codeunits(rows.column("content_hash"), 0, 32), rows.column("key"))
        buckets = pa.array(key_ranges(hashes, self.num_buckets))
        for bucket in range(self.num_buckets):
            yield rows.filter(pc.equal(buckets, bucket))


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
        images = self._gather(inputs, "images", IMAGE_ROWS, bucket)
        pixels = self._gather(inputs, "pixels", PIXEL_ROWS, bucket)
        found = pa.concat_tables(_classes(rows, kind) for rows, kind in ((images, "image_bytes"), (pixels, "pixels")))
        outputs.rows_in = len(images)
        outputs.count(dict(zip(*_counted(found), strict=True)))
        outputs.table("class", CLASS, found)
        outputs.table("copies", KEYS, _copies(found))

    def _gather(self, inputs: Inputs, name: str, schema: TableSchema, bucket: int) -> pa.Table:
        routed = [inputs.bucket(f"dedup/route.{source}", name, schema, bucket) for source in self.sources]
        return pa.concat_tables(routed).sort_by("key").combine_chunks()


def bucket_plan(num_buckets: int) -> Plan:
    """One part per bucket."""
    parts = tuple(Part(f"part-{bucket:06d}", {"bucket": bucket}) for bucket in range(num_buckets))
    return Plan(parts, {"buckets": str(num_buckets)})


def _copies(found: pa.Table) -> pa.Table:
    """The images for which another one speaks. Equal bytes have equal pixels, so the two kinds do not contradict."""
    silent = found.filter(pc.not_equal(found["key"], found["class_key"]))
    return silent.group_by("key").aggregate([]).sort_by("key")


def _classes(rows: pa.Table, kind: str) -> pa.Table:
    return classes(flat(rows.column("key")), flat(rows.column("content_hash")), kind)


def _counted(found: pa.Table) -> tuple[list[str], list[int]]:
    counts = found.group_by("kind").aggregate([("key", "count")]).sort_by("kind")
    return counts.column("kind").to_pylist(), counts.column("key_count").to_pylist()
