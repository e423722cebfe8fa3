"""A published dataset version as Polars frames.

In goes the address of a manifest.json, a version folder or a dataset folder; out come lazy frames over its
tables, so that a question reads only the columns and row groups it needs. Which files belong to the version
is the manifest's word alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from dataengine.schemas import TableSchema, manifest_schema
from dataengine.storage.ahead import map_ahead
from dataengine.storage.tables import read_table
from dataengine.trainer.manifest import Version, open_version

_PARTS_AHEAD = 16
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class Dataset:
    """The tables of one published version."""

    version: Version

    @property
    def manifest(self) -> Mapping[str, Any]:
        """manifest.json as parsed."""
        return self.version.manifest

    def samples(self) -> pl.LazyFrame:
        """One row per emitted sample (schemas.manifest_schema), sorted by shard and index."""
        return self.scan(self.version.tables("samples"))

    def ledger(self) -> pl.LazyFrame:
        """One row per candidate (schemas.LEDGER), sorted by key."""
        return self.scan(self.version.tables("ledger"))

    def shards(self) -> pl.LazyFrame:
        """One row per tar (schemas.SHARDS)."""
        return self.scan(["shards.parquet"])

    def funnel(self) -> pl.LazyFrame:
        """Candidates and rows by source, state, stage and reason (schemas.FUNNEL)."""
        return self.scan(["stats/funnel.parquet"])

    def histogram(self) -> pl.LazyFrame:
        """Scored and emitted samples by source, score and bin (schemas.HISTOGRAM)."""
        return self.scan(["stats/histogram.parquet"])

    def parts(self, name: str, schema: TableSchema, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns (in schema order) of the table `name`, part by part in order; a few are read ahead.

        Raises CorruptObject when a part is not such a table.
        """
        version = self.version
        paths = [version.locate(path) for path in version.tables(name)]
        num_threads = os.cpu_count() or 1 if version.is_local else _REQUESTS_AT_ONCE
        return map_ahead(lambda path: read_table(version.root, path, schema, columns), paths, num_threads, _PARTS_AHEAD)

    def score_names(self) -> list[str]:
        """The score columns of this version's samples table, in order."""
        fixed = set(manifest_schema(()).arrow.names)
        return [name for name in self.samples().collect_schema().names() if name not in fixed]

    def scan(self, paths: list[str]) -> pl.LazyFrame:
        """Some Parquet files of this version, by their paths in it, as one table."""
        root = self.version.root
        addresses = [root.address(self.version.locate(path)) for path in paths]
        return pl.scan_parquet(addresses, storage_options=dict(root.options) or None, glob=False)


def open_dataset(address: str | Path, options: Mapping[str, str] | None = None) -> Dataset:
    """The version at `address`: a manifest.json, a version folder, or a dataset folder (the latest version).

    Raises InputError when there is none, saying what was looked for. Tables are opened when asked for.
    """
    return Dataset(open_version(address, options))
