"""The sources stage: input tables and tars become CANDIDATE parts.

A URL table is an exchange: `<source>.scan` reads each input file and routes its rows by key range, `<source>` merges
each range into one sorted part. Existing tars are indexed in place, one part a tar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from dataengine.config.sources import TableSource, WebDatasetSource
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.errors import InputError
from dataengine.schemas import CANDIDATE, LOCATION
from dataengine.sources.candidates import ROUTED, columns_of, deal_rows, merge_rows, route_rows
from dataengine.sources.files import expand_braces
from dataengine.sources.tables import count_rows, read_columns, table_format
from dataengine.sources.webdataset import index_candidates, read_samples
from dataengine.storage.inputs import content_fingerprint, find_files, input_address, quick_fingerprint
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.tables import parquet_bytes

_FILE_POSITIONS = 1 << 40  # input rows are numbered file by file; no file holds 2**40 rows


@dataclass(frozen=True)
class ScanTable(Step):
    """Reads the input files of a URL-table source and routes their rows to key ranges."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 1
    source: str
    config: TableSource
    part_rows: int

    @property
    def unit(self) -> str:
        return f"{self.source}.scan"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source, "config": self.config.identity(), "part_rows": self.part_rows}

    def plan(self, context: PlanContext) -> Plan:
        files = find_files(context.root, self.config.paths, f"sources.{self.source}.paths")
        specs: list[dict[str, Any]] = []
        for number, path in enumerate(files):
            form, compression = table_format(path, self.config.format)
            with context.root.open(path) as file:
                num_rows = count_rows(file, path, form, compression)
            reads = {"input": content_fingerprint(context.root, path)}
            position = number * _FILE_POSITIONS
            specs.append({"path": path, "first_position": position, "num_rows": num_rows, "reads": reads})
        num_ranges = max(1, -(-sum(spec["num_rows"] for spec in specs) // self.part_rows))
        for spec in specs:
            # Another file more or less deals the same rows to other ranges, so a commit holds for one number only.
            spec["num_ranges"] = num_ranges
            spec["reads"]["num_ranges"] = str(num_ranges)
        parts = (Part(f"part-{i:06d}", spec) for i, spec in enumerate(specs))
        return Plan(tuple(parts), {spec["path"]: spec["reads"]["input"] for spec in specs})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, position, num_ranges = part.spec["path"], part.spec["first_position"], part.spec["num_ranges"]
        form, compression = table_format(path, self.config.format)
        routed: list[list[pa.Table]] = [[ROUTED.empty()] for _ in range(num_ranges)]
        with inputs.root.open(path) as file:
            for table in read_columns(file, path, form, compression, columns_of(self.config, form)):
                rows = route_rows(table, self.source, self.config, position)
                for pieces, piece in zip(routed, deal_rows(rows, num_ranges), strict=True):
                    pieces.append(piece)
                position += len(table)
        outputs.rows_in = outputs.rows_out = position - part.spec["first_position"]
        outputs.buckets("routed", ROUTED, [pa.concat_tables(pieces) for pieces in routed])


@dataclass(frozen=True)
class MergeTable(Step):
    """Merges the rows of one key range into a sorted CANDIDATE part."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 1
    source: str

    @property
    def unit(self) -> str:
        return self.source

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.source}.scan", whole=True),)

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source}

    def plan(self, context: PlanContext) -> Plan:
        num_ranges = context.parts(f"sources/{self.source}.scan")[0].spec["num_ranges"]
        return Plan(
            tuple(Part(f"part-{i:06d}", {"bucket": i}) for i in range(num_ranges)),
            {"ranges": str(num_ranges)},
        )

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        routed = inputs.bucket(f"sources/{self.source}.scan", "routed", ROUTED, part.spec["bucket"])
        outputs.rows_in = len(routed)
        table = merge_rows(routed, self.source)
        outputs.table("candidate", CANDIDATE, table)
        outputs.facts["content_sha256"] = _content_sha256(table)


@dataclass(frozen=True)
class IndexTars(Step):
    """Indexes existing tars: one CANDIDATE part a tar, its images located by offset and left where they are."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 1
    source: str
    config: WebDatasetSource

    @property
    def unit(self) -> str:
        return self.source

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source, "config": self.config.identity()}

    def plan(self, context: PlanContext) -> Plan:
        patterns = [path for item in self.config.paths for path in expand_braces(input_address(context.root, item))]
        tars = find_files(context.root, patterns, f"sources.{self.source}.paths")
        shards = [path.rpartition("/")[2].removesuffix(".tar") for path in tars]
        if len(set(shards)) != len(shards):
            twice = next(name for name in shards if shards.count(name) > 1)
            raise InputError(
                f"sources.{self.source}.paths: two tars are called {twice}.tar, so their samples would share keys; "
                f"rename one or make two sources of them"
            )
        parts, reads = [], {}
        for i, (path, shard) in enumerate(zip(tars, shards, strict=True)):
            reads[path] = quick_fingerprint(context.root, path)
            # Keys hold the tar's name and locations its place, so a tar that was moved is indexed anew.
            read = {"input": reads[path], "object": context.root.within(path)}
            parts.append(Part(f"part-{i:06d}", {"path": path, "shard": shard, "reads": read}))
        return Plan(tuple(parts), reads)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, shard = part.spec["path"], part.spec["shard"]
        with inputs.root.open(path) as file:
            samples = read_samples(file, path, self.config)
            table = index_candidates(samples, self.source, shard, inputs.root.within(path), self.config)
        outputs.rows_in = sum(table.column("num_rows").to_pylist())
        outputs.table("candidate", CANDIDATE, table)
        outputs.facts["content_sha256"] = _content_sha256(table)


def _content_sha256(candidates: pa.Table) -> str:
    """What tells candidates apart wherever their images lie: a dataset is the same after its tars were moved."""
    content = candidates.drop_columns([field.name for field in LOCATION])
    return hashlib.sha256(parquet_bytes(content)).hexdigest()
