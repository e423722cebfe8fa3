"""Columns of the samples table as arrays over all rows: what predicates, repeats and buckets are decided by.

Nothing is read unless a view asks for it. In go a version and column names or SQL; out come arrays of one value per
row, in the numbering of `Shards`, whatever order the table's parts are in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.errors import ConfigError, InputError
from dataengine.trainer.index import Shards, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.trainer.manifest import Version

_PARALLEL_READS = 4
_PLACE = ["shard", "index_in_shard"]


def scan(
    version: Version, shards: Shards, columns: Sequence[str], found: Mapping[str, Callable[[pa.Table], NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """One array [rows] per name of `found`, made from each part of the samples table.

    `columns` are read; each function takes a part's table to one value per row of it. Raises InputError when the table
    names an unknown shard, or has not one row for each sample.
    """
    names = pa.array([shard.name for shard in shards.shards], pa.string())
    paths = version.tables("samples")

    def read(path: str) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        table = read_table(version, path, list(dict.fromkeys([*_PLACE, *columns])))
        rows = _rows(table, names, shards, version.root.address(path))
        return rows, {name: make(table) for name, make in found.items()}

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        parts = list(pool.map(read, paths))
    num_rows = sum(len(rows) for rows, _ in parts)
    if num_rows != shards.num_rows:
        raise InputError(
            f"{version.root.address('samples')}: holds {num_rows} rows, the manifest says {shards.num_rows}; run "
            "`dataengine verify` on it"
        )
    met = np.zeros(num_rows, dtype=np.bool_)
    for rows, _ in parts:
        met[rows] = True
    if not met.all():
        shard, place = shards.locate(np.flatnonzero(~met)[:1])
        raise InputError(
            f"{version.root.address('samples')}: has no row for sample {place[0]} of shard "
            f"{shards.shards[shard[0]].name}, and another one twice; run `dataengine verify` on it"
        )
    arrays: dict[str, NDArray[Any]] = {}
    for name in found:
        arrays[name] = np.zeros(num_rows, dtype=parts[0][1][name].dtype)
        for rows, values in parts:
            arrays[name][rows] = values[name]
    return arrays


def predicate(text: str, where: str) -> tuple[list[str], Callable[[pa.Table], NDArray[np.bool_]]]:
    """(columns that the SQL condition `text` reads, whether each row of a table meets it); null counts as not met.

    Raises ConfigError, naming the argument `where`, when it is no SQL condition.
    """
    import polars as pl

    try:
        condition = pl.sql_expr(text)
        columns = sorted(set(condition.meta.root_names()))
    except (pl.exceptions.PolarsError, AttributeError) as error:
        raise ConfigError(
            f"{where}={text!r}: not a condition in SQL: {error}; wanted such as 'aesthetic > 5.5'"
        ) from error

    def meets(table: pa.Table) -> NDArray[np.bool_]:
        try:
            found = pl.DataFrame(pl.from_arrow(table.select(columns))).select(condition.alias("met"))["met"]
        except pl.exceptions.PolarsError as error:
            raise ConfigError(f"{where}={text!r}: {error}; docs/tables.md lists the columns") from error
        if found.dtype != pl.Boolean:
            raise ConfigError(f"{where}={text!r}: gives {found.dtype}, wanted true or false")
        met = found.fill_null(value=False).to_numpy()
        return np.broadcast_to(met, len(table)).copy()

    return columns, meets


def integers(name: str) -> Callable[[pa.Table], NDArray[np.int32]]:
    """The whole numbers of one column."""
    return lambda table: table.column(name).to_numpy().astype(np.int32)


def equals(name: str, value: str) -> Callable[[pa.Table], NDArray[np.bool_]]:
    """Whether a text column holds `value`."""
    return lambda table: pc.equal(table.column(name), value).to_numpy()


def _rows(table: pa.Table, names: pa.Array, shards: Shards, where: str) -> NDArray[np.int64]:
    # Runs of one shard: a part is sorted by it, so a dictionary is small and the texts are compared once each.
    column = table.column("shard").combine_chunks().dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    number = pc.index_in(column.dictionary, value_set=names)
    if number.null_count:
        stray = column.dictionary.filter(pc.is_null(number))[0].as_py()
        raise InputError(f"{where}: names shard {stray!r}, which shards.parquet lacks; run `dataengine verify` on it")
    shard = number.to_numpy().astype(np.int64)[column.indices.to_numpy()]
    within = table.column("index_in_shard").to_numpy().astype(np.int64)
    if len(within) and (within.min() < 0 or (within >= shards.sizes[shard]).any()):
        raise InputError(f"{where}: holds an index_in_shard beyond its shard; run `dataengine verify` on it")
    found: NDArray[np.int64] = shards.first_rows[shard] + within
    return found
