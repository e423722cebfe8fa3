"""The step that writes shards: rows routed to it in, one tar with its index and its rows of the manifest out.

A part is one shard and a pure function of its rows: stored bytes are read where they lie, proven by their hash on the
way, and written once, while SHA-256 is taken of what passes. Nothing is decoded or encoded anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import xxhash

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.emit.plan import ShardPlan
from dataengine.emit.shard import Layout, Shard, plan_shard
from dataengine.emit.sidecars import tar_index
from dataengine.emit.stage import ROWS, emit_rows_schema
from dataengine.emit.versions import find_shard, note_shard, version_path
from dataengine.errors import CorruptObject
from dataengine.schemas import EXTRA_MEMBERS, LOCATION, manifest_schema
from dataengine.storage.located import LocatedReads, Place
from dataengine.storage.rundir import Part, Plan, canonical_json
from dataengine.storage.slices import read_each
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes


@dataclass(frozen=True)
class WriteShards(Step):
    """Writes one shard per part: tar, index and MANIFEST rows, into the claimed version.

    A tar that an earlier published version of the dataset has already, under the same name and with the same rows, is
    named and not written again.
    """

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 3
    dataset: str
    sources: tuple[str, ...]
    score_columns: tuple[str, ...]
    caption_names: tuple[str, ...]
    extra_names: tuple[str, ...]
    extra_members: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Source → extensions of its extra members; sources without any are left out."""

    @property
    def unit(self) -> str:
        return "shards"

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Need(name, whole=True) for name in ("emit/plan", *(f"emit/rows.{s}" for s in self.sources)))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return ("emit/plan",)

    def identity(self) -> Mapping[str, Any]:
        return {
            "caption_names": list(self.caption_names),
            "extra_names": list(self.extra_names),
            "extra_members": {source: list(names) for source, names in self.extra_members},
        }

    def plan(self, context: PlanContext) -> Plan:
        facts = context.commits("emit/plan")[0].facts
        parts, bucket = [], dict.fromkeys(self.sources, 0)
        for number, shard in enumerate(facts["shards"]):
            spec = {"shard": shard, "bucket": bucket[shard["source"]], "version": facts["version"]}
            parts.append(Part(f"part-{number:06d}", spec))
            bucket[shard["source"]] += 1
        return Plan(tuple(parts), {"plan": facts["plan"], "version": str(facts["version"])})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        planned = ShardPlan(**part.spec["shard"])
        rows = self._rows(planned, part.spec["bucket"], inputs)
        names = dict(self.extra_members).get(planned.source, ())
        shard = plan_shard(
            rows,
            caption_names=self.caption_names,
            extra_names=self.extra_names,
            extra_members=names,
            extra_sizes=_extra_sizes(rows, names),
        )
        self._write_tar(planned, part.spec["version"], rows, shard, inputs, outputs)
        folder = version_path(self.dataset, part.spec["version"])
        samples = self._samples(planned, rows, shard.layout)
        outputs.put_to("samples", f"{folder}/samples/{part.name}.parquet", parquet_bytes(samples), len(rows))
        outputs.rows_in = outputs.rows_out = len(rows)

    def _rows(self, planned: ShardPlan, bucket: int, inputs: Inputs) -> pa.Table:
        """The shard's rows, in key order."""
        schema = emit_rows_schema(self.score_columns)
        found = read_each(inputs.sliced(f"emit/rows.{planned.source}", ROWS), schema, bucket, bucket + 1)
        rows = pa.concat_tables(found).sort_by("key").combine_chunks()
        keys = rows.column("key")
        ends = (keys[0].as_py(), keys[-1].as_py()) if len(rows) else None
        if len(rows) != planned.num_samples or ends != (planned.min_key, planned.max_key):
            raise CorruptObject(
                f"{planned.name}: planned {planned.num_samples} samples from {planned.min_key} to {planned.max_key}, "
                f"its rows are {len(rows)} from {ends and ends[0]} to {ends and ends[1]}"
            )
        return rows

    def _samples(self, planned: ShardPlan, rows: pa.Table, layout: Layout) -> pa.Table:
        manifest = manifest_schema(self.score_columns)
        names = [name for name in rows.column_names if name in manifest.arrow.names]
        columns: dict[str, Any] = {name: rows.column(name) for name in names}
        columns |= {name: pa.array(values) for name, values in layout.columns.items()}
        columns |= {
            "shard": pa.repeat(planned.name, len(rows)),
            "index_in_shard": pa.array(np.arange(len(rows), dtype=np.int32)),
            "extra_members": _placed(rows, layout),
        }
        return manifest.table(columns)

    def _write_tar(
        self, planned: ShardPlan, version: int, rows: pa.Table, shard: Shard, inputs: Inputs, outputs: Outputs
    ) -> None:
        """The tar and its index, written, or those of an earlier version that hold the same rows."""
        identity = self._identity_of(planned, rows)
        found = find_shard(inputs.root, self.dataset, identity, version)
        if found is not None:
            outputs.objects |= found
            outputs.metrics["num_reused"] = 1
            return
        path = f"{version_path(self.dataset, version)}/{planned.path}"
        stored = Stored.of(rows, shard.layout)
        with outputs.stream_to("tar", path) as tar, stored.reads(inputs.root) as reads:
            shard.write(stored.filler(reads), tar.write, pieces_ahead=reads.num_parallel)
        if outputs.objects["tar"].nbytes != shard.layout.nbytes:
            written = outputs.objects["tar"].nbytes
            raise CorruptObject(f"{planned.name}: laid out {shard.layout.nbytes} bytes, wrote {written}")
        outputs.put_to("tar_index", f"{path}.idx", tar_index(shard.layout.sample_offsets))
        note_shard(inputs.root, self.dataset, identity, version, outputs.objects)

    def _identity_of(self, planned: ShardPlan, rows: pa.Table) -> str:
        """Hash of all that the tar depends on: its place, and its rows but for how often each is drawn."""
        described = [self.version, planned.path, self.identity()]
        told = rows.drop_columns(["repeat", *(field.name for field in LOCATION)])
        hashes = [[place["xxh3"] for _, place in found] for found in rows.column("extra_members").to_pylist()]
        told = told.drop_columns(["extra_members"]).append_column("extra_hashes", pa.array(hashes, _HASHES))
        content = parquet_bytes(told.replace_schema_metadata())
        return hashlib.sha256(canonical_json(described) + content).hexdigest()


_HASHES = pa.list_(pa.string())


@dataclass(frozen=True)
class Stored:
    """The members of a shard that are stored somewhere: of each sample the image, then its extra members."""

    keys: list[str]
    places: list[Place]
    hashes: list[str]
    """XXH3-64 of each place, 16 hex characters."""

    @classmethod
    def of(cls, rows: pa.Table, layout: Layout) -> Stored:
        """Those of `rows`, in the order that `Shard.write` fills them."""
        names = layout.names[3:]
        columns = (rows.column(name).to_pylist() for name in ("object", "offset", "nbytes", "xxh3", "extra_members"))
        places, hashes = [], []
        for path, offset, nbytes, xxh3, extras in zip(*columns, strict=True):
            places.append((path, offset, nbytes))
            hashes.append(xxh3)
            for place in map(dict(extras).__getitem__, names):
                places.append((path, place["offset"], place["nbytes"]))
                hashes.append(place["xxh3"])
        return cls(rows.column("key").to_pylist(), places, hashes)

    @property
    def per_sample(self) -> int:
        """Stored members of each sample."""
        return len(self.places) // max(len(self.keys), 1)

    def reads(self, root: Root) -> LocatedReads:
        """Somebody who reads them: to be entered, and left when the shard is written."""
        return LocatedReads(root, is_local=all(root.local_path(path) for path in {path for path, _, _ in self.places}))

    def filler(self, reads: LocatedReads) -> Callable[[int, Sequence[memoryview]], Callable[[], None]]:
        """What `Shard.write` asks for: it raises CorruptObject, naming the key, when bytes are not those hashed."""

        def fill(first: int, views: Sequence[memoryview]) -> Callable[[], None]:
            start = first * self.per_sample

            def check(i: int) -> None:
                found = xxhash.xxh3_64_hexdigest(views[i])
                if found != self.hashes[start + i]:
                    raise CorruptObject(self._changed(start + i, found))

            return reads.begin(self.places[start : start + len(views)], views, check)

        return fill

    def _changed(self, number: int, found: str) -> str:
        path, offset, nbytes = self.places[number]
        return (
            f"sample {self.keys[number // self.per_sample]}: {nbytes} bytes at {offset} of {path} have xxh3 {found}, "
            f"wanted {self.hashes[number]}; the object changed after download. Restore it, or remove the download "
            "commit of its part to fetch it again."
        )


def _extra_sizes(rows: pa.Table, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    if not names:
        return None
    found = (dict(extras) for extras in rows.column("extra_members").to_pylist())
    sizes = [extras[name]["nbytes"] for extras in found for name in names]
    return np.array(sizes, np.int64).reshape(len(rows), len(names))


def _placed(rows: pa.Table, layout: Layout) -> pa.Array:
    """Extra members, placed in the tar that was laid out."""
    names = layout.names[3:]
    if not names:
        return pa.array([[]] * len(rows), EXTRA_MEMBERS)
    offsets = iter(layout.offsets[:, 3:].ravel().tolist())
    placed = []
    for extras in rows.column("extra_members").to_pylist():
        known = dict(extras)
        placed.append([(name, known[name] | {"offset": next(offsets)}) for name in names])
    return pa.array(placed, EXTRA_MEMBERS)
