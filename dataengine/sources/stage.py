"""The sources stage, URL tables: input files become CANDIDATE parts.

A URL table is an exchange: `<source>.scan` reads each input file, or a run of row groups of one, and routes its rows
by key range; `<source>` merges each range into one sorted part and counts its hosts. Images that are already there are
the business of `in_place`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.config.sources import TableSource
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.schemas import CANDIDATE
from dataengine.sources.candidates import (
    ROUTED,
    batched,
    bucket_width,
    columns_of,
    deal_rows,
    merge_rows,
    route_rows,
    rows_of_range,
)
from dataengine.sources.files import expand_braces
from dataengine.sources.hosts import HOSTS, count_hosts
from dataengine.sources.in_place import content_sha256
from dataengine.sources.tables import cut_table, file_name, read_columns, table_format
from dataengine.storage.inputs import content_fingerprint, find_files, input_address
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.store import Root

_FILE_POSITIONS = 1 << 40  # input rows are numbered file by file; no file holds 2**40 rows
# Routed rows are held in memory twice, and memory that is freed is not given back at once: five times this in all.
_BATCH_ROWS = 2**20
_BATCH_BYTES = 96 * 2**20


@dataclass(frozen=True)
class ScanTable(Step):
    """Reads the input files of a URL-table source and routes their rows to key ranges."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 3
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
        patterns = [name for item in self.config.paths for name in expand_braces(input_address(context.root, item))]
        files = find_files(context.root, patterns, f"sources.{self.source}.paths")
        contents = {path: content_fingerprint(context.root, path) for path in files}
        specs = [spec for number, path in enumerate(files) for spec in self._specs(context.root, path, number)]
        num_ranges = max(1, -(-sum(spec["num_rows"] for spec in specs) // self.part_rows))
        for spec in specs:
            spec["num_ranges"] = num_ranges
            spec["reads"] = {
                "input": contents[spec["path"]],
                # Another file more or less deals the same rows to other ranges, so a commit holds for one number only.
                "num_ranges": str(num_ranges),
                # The same content at another place is another piece; and details name the file.
                "rows": f"{file_name(spec['path'])} {spec['first_position']}+{spec['num_rows']}",
            }
        return Plan(tuple(Part(f"part-{i:06d}", spec) for i, spec in enumerate(specs)), contents)

    def _specs(self, root: Root, path: str, number: int) -> Iterator[dict[str, Any]]:
        form, compression = table_format(path, self.config.format)
        with root.open(path) as file:
            pieces = cut_table(file, path, form, compression, columns_of(self.config, form))
        for piece in pieces:
            groups = piece.row_groups
            yield {
                "path": path,
                "first_position": number * _FILE_POSITIONS + piece.first_row,
                "num_rows": piece.num_rows,
                "row_groups": None if groups is None else [groups.start, groups.stop],
            }

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, row_groups = part.spec["path"], part.spec["row_groups"]
        form, compression = table_format(path, self.config.format)
        columns = columns_of(self.config, form)
        with inputs.root.open(path) as file:
            blocks = read_columns(file, path, form, compression, columns, row_groups and range(*row_groups))
            routed = self._route(blocks, part.spec["first_position"])
            for number, rows in enumerate(batched(routed, _BATCH_ROWS, _BATCH_BYTES)):
                outputs.buckets(f"routed-{number:03d}", ROUTED, deal_rows(rows, part.spec["num_ranges"]))
                outputs.rows_out += len(rows)
        outputs.rows_in = outputs.rows_out

    def _route(self, blocks: Iterable[pa.Table], position: int) -> Iterator[pa.Table]:
        for block in blocks:
            yield route_rows(block, self.source, self.config, position)
            position += len(block)


def input_urls(root: Root, path: str, config: TableSource) -> Iterator[pa.ChunkedArray]:
    """The URLs of an input file, block by block. Raises InputError."""
    form, compression = table_format(path, config.format)
    with root.open(path) as file:
        for block in read_columns(file, path, form, compression, [config.url_column], None):
            yield block.column(config.url_column)


@dataclass(frozen=True)
class MergeTable(Step):
    """Merges the rows of one key range into a sorted CANDIDATE part."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 2
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
            tuple(Part(f"part-{i:06d}", {"range": i, "num_ranges": num_ranges}) for i in range(num_ranges)),
            {"ranges": str(num_ranges)},
        )

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        number, num_ranges = part.spec["range"], part.spec["num_ranges"]
        found = inputs.buckets(f"sources/{self.source}.scan", "routed-", ROUTED, number // bucket_width(num_ranges))
        routed = pa.concat_tables([ROUTED.empty(), *(rows_of_range(rows, number, num_ranges) for rows in found)])
        outputs.rows_in = len(routed)
        table = merge_rows(routed, self.source)
        outputs.table("candidate", CANDIDATE, table)
        outputs.table("hosts", HOSTS, count_hosts(table.filter(pc.is_null(table.column("fault"))).column("url")))
        outputs.facts["content_sha256"] = content_sha256(table)
