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
from dataengine.trainer import arguments
from dataengine.trainer.index import Shards, read_schema, read_table

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
    names = pa.array(shards.shards.names(), pa.string())
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


def predicate(text: str, version: Version, where: str) -> tuple[list[str], Callable[[pa.Table], NDArray[np.bool_]]]:
    """(columns that the SQL condition `text` reads, whether each row of a table meets it); null counts as not met.

    Raises ConfigError, naming the argument `where`, when it is no condition on the columns of one row.
    """
    import polars as pl

    from dataengine.sql import as_numbers, compile_condition, first_line

    about = f"{where}={arguments.shown(text)}"
    if not isinstance(text, str):
        raise ConfigError(f"{about}: wanted a condition in SQL, such as 'aesthetic > 5.5'")
    schema = pl.DataFrame(pl.from_arrow(read_schema(version, version.tables("samples")[0]).empty_table())).schema
    condition, columns = compile_condition(text, schema, about)

    def meets(table: pa.Table) -> NDArray[np.bool_]:
        rows = pl.DataFrame(pl.from_arrow(table.select(columns)))
        try:
            met = as_numbers(rows.lazy()).select(condition.alias("met")).collect()["met"]
        except pl.exceptions.PolarsError as error:
            raise ConfigError(f"{about}: {first_line(error)}; docs/tables.md lists the columns") from error
        return met.fill_null(value=False).to_numpy()

    return list(columns), meets


def integers(name: str, least: int, most: int, version: Version) -> Callable[[pa.Table], NDArray[np.int32]]:
    """The whole numbers of one column; raises InputError for one that is not within `least` to `most`."""

    def found(table: pa.Table) -> NDArray[np.int32]:
        numbers: NDArray[np.int32] = table.column(name).to_numpy()
        wrong = numbers[(numbers < least) | (numbers > most)]
        if wrong.size:
            raise InputError(
                f"{version.root.address('samples')}: holds a {name} of {wrong[0]}, wanted {least} to {most}; run "
                "`dataengine verify` on it"
            )
        return numbers

    return found


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
