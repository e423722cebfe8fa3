"""Checks that the tables of a version agree with each other and with its manifest.

In goes a dataset; out come faults about counts, keys and the ledger. It reads narrow columns only, and no
tar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.faults import UNREADABLE, Fault, Progress
from dataengine.errors import DataEngineError
from dataengine.schemas import FUNNEL, HISTOGRAM, LEDGER, SHARDS, TableSchema, manifest_schema

_FUNNEL_LINE = ("source", "state", "stage", "reason")
_TRAINING_DRAWS = pl.col("repeat").filter(pl.col("split") == "train").sum()
_TOTALS = ("num_rows", "num_candidates", "num_emitted", "num_draws")


def check_tables(dataset: Dataset, progress: Progress) -> Iterator[Fault]:
    """Faults of the samples, shards, ledger and funnel tables; a table that cannot be read is one.

    Rows are looked at only when every table has its columns.
    """
    faults = list(_check_columns(dataset))
    yield from faults
    if faults:
        return
    checks: tuple[Callable[[Dataset], Iterator[Fault]], ...]
    checks = (_check_counts, _check_keys, _check_shards, _check_ledger, _check_totals, _check_funnel)
    for done, check in enumerate(checks):
        progress("tables", done, len(checks))
        try:
            yield from check(dataset)
        except UNREADABLE as error:
            where = check.__name__.removeprefix("_check_")
            yield Fault(f"tables ({where})", "readable", "tables that can be read", f"{type(error).__name__}: {error}")
    progress("tables", len(checks), len(checks))


def _check_columns(dataset: Dataset) -> Iterator[Fault]:
    for path, schema in _schemas(dataset):
        wanted = {field.name: field.type for field in schema.arrow}
        try:
            with dataset.version.root.open(dataset.version.locate(path)) as file:
                found = {field.name: field.type for field in pq.ParquetFile(file).schema_arrow}
        except (pa.ArrowException, DataEngineError, OSError, ValueError) as error:
            yield Fault(path, "readable", "a Parquet file", f"{type(error).__name__}: {error}")
            continue
        for name in wanted | found:
            if wanted.get(name) != found.get(name):
                yield Fault(path, f"column {name}", str(wanted.get(name)), str(found.get(name)))


def _schemas(dataset: Dataset) -> Iterator[tuple[str, TableSchema]]:
    try:
        samples = manifest_schema(dataset.score_names())
    except UNREADABLE:
        samples = manifest_schema(())  # the first part is unreadable, which the check of columns will say
    yield from ((path, samples) for path in dataset.version.tables("samples"))
    yield from ((path, LEDGER) for path in dataset.version.tables("ledger"))
    yield from (
        ("shards.parquet", SHARDS),
        ("stats/funnel.parquet", FUNNEL),
        ("stats/histogram.parquet", HISTOGRAM),
    )


def _check_counts(dataset: Dataset) -> Iterator[Fault]:
    totals = dataset.samples().select(num_samples=pl.len(), num_draws=_TRAINING_DRAWS)
    shards = dataset.shards().select(num_shards=pl.len(), num_samples=pl.col("num_samples").sum())
    found = {**shards.collect().row(0, named=True), **totals.collect().row(0, named=True)}
    for name, value in found.items():
        yield from _compare("manifest.json", f"counts.{name}", dataset.manifest["counts"][name], value)


def _check_keys(dataset: Dataset) -> Iterator[Fault]:
    for name, table in (("samples", dataset.samples()), ("ledger", dataset.ledger())):
        copies = table.group_by("key").len().filter(pl.col("len") > 1)
        yield from _stray(name, "keys are unique", copies.select("key"))


def _check_shards(dataset: Dataset) -> Iterator[Fault]:
    index = pl.col("index_in_shard")
    found = (
        dataset.samples()
        .group_by("shard")
        .agg(
            pl.len().alias("num_samples"),
            pl.col("key").min().alias("min_key"),
            pl.col("key").max().alias("max_key"),
            pl.col("source").unique().sort().str.join(",").alias("source"),
            pl.col("format").unique().sort().str.join(",").alias("format"),
            index.n_unique().alias("num_indices"),
            index.min().alias("first_index"),
            index.max().alias("last_index"),
        )
    )
    num_samples = pl.col("num_samples")
    asked = dataset.shards().with_columns(num_indices=num_samples, first_index=pl.lit(0), last_index=num_samples - 1)
    columns = found.collect_schema().names()[1:]
    joined = asked.join(found, on="shard", how="full", coalesce=True, suffix="_found").sort("shard").collect()
    for row in joined.iter_rows(named=True):
        for column in columns:
            yield from _compare(f"shard {row['shard']}", column, row[column], row[f"{column}_found"])


def _check_ledger(dataset: Dataset) -> Iterator[Fault]:
    ledger, keys = dataset.ledger(), dataset.samples().select("key")
    emitted = ledger.filter(pl.col("state") == "emitted").select("key")
    survivors = ledger.filter(pl.col("survivor_key").is_not_null()).select(key="survivor_key")
    odd = ledger.filter(~pl.col("state").is_in(["emitted", "dropped"])).select("key")
    unexplained = ledger.filter((pl.col("state") == "dropped") & pl.col("reason").is_null()).select("key")
    yield from _stray("ledger", "emitted rows are samples", emitted.join(keys, on="key", how="anti"))
    yield from _stray("samples", "samples are emitted rows of the ledger", keys.join(emitted, on="key", how="anti"))
    # Balance, caps and take-downs come after duplicates: they may leave out a survivor, but nothing else may.
    left_out = pl.col("reason").is_in(["balance", "takedown"]) | pl.col("reason").str.starts_with("cap_")
    left = ledger.filter((pl.col("state") == "emitted") | left_out).select("key")
    yield from _stray("ledger", "survivors are left", survivors.unique().join(left, on="key", how="anti"))
    yield from _stray("ledger", "states are emitted or dropped", odd)
    yield from _stray("ledger", "dropped rows have a reason", unexplained)


def _check_totals(dataset: Dataset) -> Iterator[Fault]:
    entered = (
        dataset.ledger()
        .group_by("source")
        .agg(
            pl.col("num_rows").sum(),
            pl.len().alias("num_candidates"),
            (pl.col("state") == "emitted").sum().alias("num_emitted"),
        )
    )
    drawn = dataset.samples().group_by("source").agg(num_draws=_TRAINING_DRAWS)
    joined = entered.join(drawn, on="source", how="full", coalesce=True).fill_null(0).collect()
    found = {row["source"]: row for row in joined.iter_rows(named=True)}
    stated = dataset.manifest["sources"]
    for source in sorted(found.keys() | stated.keys()):
        for name in _TOTALS:
            asked = stated.get(source, {}).get(name, 0)
            yield from _compare("manifest.json", f"sources.{source}.{name}", asked, found.get(source, {}).get(name, 0))


def _check_funnel(dataset: Dataset) -> Iterator[Fault]:
    counted = (
        dataset.ledger()
        .group_by(_FUNNEL_LINE)
        .agg(pl.len().cast(pl.Int64).alias("num_candidates"), pl.col("num_rows").cast(pl.Int64).sum())
    )
    joined = dataset.funnel().join(
        counted, on=_FUNNEL_LINE, how="full", coalesce=True, nulls_equal=True, suffix="_found"
    )
    for row in joined.sort(_FUNNEL_LINE).collect().iter_rows(named=True):
        line = "/".join(str(row[name]) for name in _FUNNEL_LINE if row[name] is not None)
        for name in ("num_candidates", "num_rows"):
            yield from _compare("stats/funnel.parquet", f"{line} {name}", row[name] or 0, row[f"{name}_found"] or 0)


def _compare(where: str, check: str, expected: object, found: object) -> Iterator[Fault]:
    if expected != found:
        yield Fault(where, check, str(expected), "nothing" if found is None else str(found))


def _stray(where: str, check: str, keys: pl.LazyFrame) -> Iterator[Fault]:
    strays = keys.select(num=pl.len(), first=pl.col("key").min()).collect().row(0)
    if strays[0]:
        yield Fault(where, check, "no exception", f"{strays[0]} exceptions, the first is key {strays[1]}")
