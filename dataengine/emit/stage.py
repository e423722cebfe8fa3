"""The emit stage: the kept rows become shards of a claimed dataset version.

    plan ──► rows.<source> ──by shard──► shards ──► publish (publish.py)

`plan` cuts shards and claims a version; `rows` routes each kept row to its shard; `shards` writes one tar per part, as
a pure function of its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.config.run import EmitConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.emit.buckets import nearest_bucket
from dataengine.emit.order import sorted_by_key
from dataengine.emit.plan import ShardPlan, plan_shards
from dataengine.emit.shard import ShardContent, build_shard, place_members
from dataengine.emit.sidecars import tar_index
from dataengine.emit.versions import claim_version, find_shard, note_shard, version_path
from dataengine.errors import CorruptObject
from dataengine.schemas import CANDIDATE, LOCATION, SAMPLE, SELECTION, TableSchema, manifest_schema
from dataengine.storage.located import places_of, read_located
from dataengine.storage.rundir import Part, Plan, canonical_json
from dataengine.storage.tables import parquet_bytes, read_table

_PLACES = tuple(f"{member}_{what}" for member in ("image", "txt", "json") for what in ("offset", "nbytes"))
_SAMPLE_COLUMNS = ["format", "width", "height", "sha256", "xxh3", "object", "offset", "nbytes"]


def emit_rows_schema(scores: tuple[str, ...]) -> TableSchema:
    """MANIFEST without the places in a tar, plus where the image bytes are to be read."""
    fields = [
        field for field in manifest_schema(scores).arrow if field.name not in {"shard", "index_in_shard", *_PLACES}
    ]
    return TableSchema("emit_rows", pa.schema([*fields, *LOCATION]), sorted_by=())


@dataclass(frozen=True)
class PlanShards(Step):
    """Cuts the kept rows into shards and claims the dataset version that will hold them."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 2
    dataset: str
    sources: tuple[str, ...]
    scorers: tuple[str, ...]
    config: EmitConfig
    published: Mapping[str, Any]
    """Everything else that the published files depend on: config and recipes."""

    @property
    def unit(self) -> str:
        return "plan"

    @property
    def needs(self) -> tuple[Need, ...]:
        per_source = (f"{stage}/{source}" for stage in ("sources", "download") for source in self.sources)
        return tuple(Need(name, whole=True) for name in ("select/selection", *per_source, *self._score_steps()))

    def _score_steps(self) -> list[str]:
        return [f"score/{scorer}.{source}" for scorer in self.scorers for source in self.sources]

    def identity(self) -> Mapping[str, Any]:
        return {"dataset": self.dataset, "config": self.config.identity(), "published": dict(self.published)}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows = self._kept(inputs)
        shards = plan_shards(rows, self.config)
        described = [dict(self.identity()), self._content(inputs)]
        plan_hash = hashlib.sha256(canonical_json(described) + parquet_bytes(rows)).hexdigest()
        outputs.rows_in = outputs.rows_out = len(rows)
        outputs.facts |= {
            "version": (version := claim_version(inputs.root, self.dataset, plan_hash)),
            "folder": version_path(self.dataset, version),
            "plan": plan_hash,
            "shards": [asdict(shard) for shard in shards],
        }

    def _content(self, inputs: Inputs) -> dict[str, Any]:
        """What samples, ledger and statistics say besides the kept rows; without places, times and attempts."""
        found: dict[str, Any] = {
            name: inputs.whole[name].digest() for name in ("select/selection", *self._score_steps())
        }
        for source in self.sources:
            commits = inputs.commits(f"sources/{source}")
            found[f"sources/{source}"] = {commit.part: commit.facts["content_sha256"] for commit in commits}
        return found

    def _kept(self, inputs: Inputs) -> pa.Table:
        """Kept rows sorted by key: key, source, split, repeat, and what SAMPLE says that is published."""
        (selected,) = inputs.commits("select/selection")
        tables = []
        for source in self.sources:
            for commit in inputs.commits(f"download/{source}"):
                path = selected.objects[f"{source}.{commit.part}"].path
                chosen = read_table(inputs.root, path, SELECTION, ["source", "verdict", "split", "repeat"])
                names = ["key", "sha256", "xxh3", "format", "width", "height", "nbytes"]
                samples = read_table(inputs.root, commit.objects["sample"].path, SAMPLE, names)
                columns = {name: samples.column(name) for name in names}
                columns |= {name: chosen.column(name) for name in ("source", "split", "repeat")}
                tables.append(pa.table(columns).filter(pc.equal(chosen.column("verdict"), "kept")))
        return sorted_by_key(tables)


@dataclass(frozen=True)
class RouteRows(Step):
    """Sends each kept row of a source to its shard, with everything that the manifest says of it."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 1
    source: str
    scores: tuple[tuple[str, TableSchema], ...]
    score_columns: tuple[str, ...]

    @property
    def unit(self) -> str:
        return f"rows.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        by_part = (f"sources/{self.source}", f"download/{self.source}", *self._score_steps().values())
        whole = ("select/selection", "emit/plan")
        return (*(Need(name) for name in by_part), *(Need(name, whole=True) for name in whole))

    def _score_steps(self) -> dict[str, str]:
        return {scorer: f"score/{scorer}.{self.source}" for scorer, _ in self.scores}

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source, "score_columns": list(self.score_columns)}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        schema = emit_rows_schema(self.score_columns)
        rows = self._rows(part, inputs, schema)
        shards = shards_of(inputs, self.source)
        routed = [rows.filter(_in_shard(rows, shard)) for shard in shards] or [rows.slice(0, 0)]
        outputs.rows_in, outputs.rows_out = len(rows), sum(map(len, routed))
        outputs.buckets("rows", schema, routed)

    def _rows(self, part: Part, inputs: Inputs, schema: TableSchema) -> pa.Table:
        (selected,) = inputs.commits("select/selection")
        chosen = read_table(inputs.root, selected.objects[f"{self.source}.{part.name}"].path, SELECTION)
        kept = pc.equal(chosen.column("verdict"), "kept")
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE).filter(kept)
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, _SAMPLE_COLUMNS).filter(kept)
        chosen = chosen.filter(kept)
        columns: dict[str, Any] = {name: samples.column(name) for name in _SAMPLE_COLUMNS}
        columns |= {name: candidates.column(name) for name in ("key", "source", "url", "caption", "extra")}
        columns |= {name: chosen.column(name) for name in ("split", "repeat")}
        columns["captions"] = _joined(candidates.column("captions"), chosen.column("merged_captions"))
        columns["bucket"] = nearest_bucket(samples.column("width").to_numpy(), samples.column("height").to_numpy())
        for (_, table), step in zip(self.scores, self._score_steps().values(), strict=True):
            names = [name for name in table.arrow.names if name in schema.arrow.names and name != "key"]
            scored = inputs.table(step, "score", table, names).filter(kept)
            columns |= {name: scored.column(name) for name in names}
        return schema.table(columns)


@dataclass(frozen=True)
class WriteShards(Step):
    """Writes one shard per part: tar, index and MANIFEST rows, into the claimed version.

    A tar that an earlier published version of the dataset has already, under the same name and with the same rows, is
    named and not written again.
    """

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 2
    dataset: str
    sources: tuple[str, ...]
    score_columns: tuple[str, ...]
    caption_names: tuple[str, ...]
    extra_names: tuple[str, ...]

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
        return {"caption_names": list(self.caption_names), "extra_names": list(self.extra_names)}

    def plan(self, context: PlanContext) -> Plan:
        facts = context.commits("emit/plan")[0].facts
        parts, bucket = [], dict.fromkeys(self.sources, 0)
        for number, shard in enumerate(facts["shards"]):
            spec = {"shard": shard, "bucket": bucket[shard["source"]], "version": facts["version"]}
            parts.append(Part(f"part-{number:06d}", spec))
            bucket[shard["source"]] += 1
        return Plan(tuple(parts), {"plan": facts["plan"], "version": str(facts["version"])})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        shard = ShardPlan(**part.spec["shard"])
        folder = version_path(self.dataset, part.spec["version"])
        schema = emit_rows_schema(self.score_columns)
        rows = inputs.bucket(f"emit/rows.{shard.source}", "rows", schema, part.spec["bucket"]).sort_by("key")
        if len(rows) != shard.num_samples:
            raise CorruptObject(f"{shard.name}: planned {shard.num_samples} samples, its rows are {len(rows)}")
        content = self._write_tar(shard, part.spec["version"], rows, inputs, outputs)
        manifest = manifest_schema(self.score_columns)
        columns: dict[str, Any] = {
            name: rows.column(name) for name in rows.column_names if name in manifest.arrow.names
        }
        columns |= content.columns | {
            "shard": pa.repeat(shard.name, len(rows)),
            "index_in_shard": np.arange(len(rows), dtype=np.int32),
        }
        samples = parquet_bytes(manifest.table({name: _array(values) for name, values in columns.items()}))
        outputs.put_to("samples", f"{folder}/samples/{part.name}.parquet", samples, len(rows))
        outputs.rows_in = outputs.rows_out = len(rows)

    def _write_tar(
        self, shard: ShardPlan, version: int, rows: pa.Table, inputs: Inputs, outputs: Outputs
    ) -> ShardContent:
        """The tar and its index, written, or those of an earlier version that hold the same rows."""
        told = rows.drop_columns([field.name for field in LOCATION])
        names = {"caption_names": self.caption_names, "extra_names": self.extra_names}
        identity = self._identity_of(shard, told)
        found = find_shard(inputs.root, self.dataset, identity, version)
        if found is not None:
            outputs.objects |= found
            outputs.metrics["num_reused"] = 1
            return place_members(told, rows.column("nbytes").to_numpy(), **names)
        folder = version_path(self.dataset, version)
        with outputs.stream_to("tar", f"{folder}/{shard.path}") as tar:
            content = build_shard(told, self._images(rows, inputs), tar.write, **names)
        outputs.put_to("tar_index", f"{folder}/{shard.path}.idx", tar_index(content.sample_offsets))
        note_shard(inputs.root, self.dataset, identity, version, outputs.objects)
        return content

    def _identity_of(self, shard: ShardPlan, rows: pa.Table) -> str:
        """Hash of all that the tar depends on: its place, and its rows but for how often each is drawn."""
        described = [self.version, shard.path, list(self.caption_names), list(self.extra_names)]
        content = parquet_bytes(rows.drop_columns(["repeat"]).replace_schema_metadata())
        return hashlib.sha256(canonical_json(described) + content).hexdigest()

    def _images(self, rows: pa.Table, inputs: Inputs) -> Iterator[bytes]:
        places = places_of(rows.select(["object", "offset", "nbytes"]).to_pydict())
        for content in read_located(inputs.root, places):
            assert content is not None
            yield content


def shards_of(inputs: Inputs, source: str) -> list[ShardPlan]:
    """The planned shards of `source`, in bucket order."""
    (planned,) = inputs.commits("emit/plan")
    return [ShardPlan(**shard) for shard in planned.facts["shards"] if shard["source"] == source]


def _in_shard(rows: pa.Table, shard: ShardPlan) -> pa.ChunkedArray:
    keys = rows.column("key")
    within = pc.and_(pc.greater_equal(keys, shard.min_key), pc.less_equal(keys, shard.max_key))
    same = pc.and_(pc.equal(rows.column("format"), shard.format), pc.equal(rows.column("split"), shard.split))
    return pc.and_(within, same)


def _joined(first: pa.ChunkedArray, second: pa.ChunkedArray) -> list[list[tuple[str, str]]]:
    """Two map columns as one; where a name stands in both, the first one's text."""
    pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
    return [list((dict(right) | dict(left)).items()) for left, right in pairs]


def _array(values: Any) -> Any:
    return pa.array(values) if isinstance(values, np.ndarray) else values
