"""The shards of a version, and which row of the dataset lies in which: from shards.parquet alone.

A row is a number: the samples of the first shard, of the second, and so on, each shard's in the order of its tar. So
opening a dataset costs the same for a thousand samples as for 24 million, and nothing is held per sample; places in a
tar come from its `.tar.idx` when a sample is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataengine.errors import InputError
from dataengine.schemas import SHARDS, manifest_schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.trainer.manifest import Version

_HOLDOUT = "holdout/"
_MADE_SHARDS = 1024  # kept: those that one process reads at a time
_TRIES = 3  # of a table in a store: wires err
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: its name, its source, the path that the version's root opens, its size, and the range of its keys."""

    name: str
    source: str
    path: str
    nbytes: int
    split: str
    min_key: str
    max_key: str


class _Texts:
    """Texts in one piece of memory."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __getitem__(self, number: int) -> str:
        begin = self._ends[number - 1] if number else 0
        return self._content[begin : self._ends[number]].decode()


class ShardTable(Sequence[Shard]):
    """Shards by the column, each made when it is asked for.

    Objects that are there already are copied, page by page, into every worker that was forked and looks at some: of
    3,072 shards 2 MB, into each of eight.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        rows = list(shards)
        self._names, self._paths, self._min_keys, self._max_keys = (
            _Texts(getattr(row, name) for row in rows) for name in ("name", "path", "min_key", "max_key")
        )
        # Few texts, which all shards share.
        self.sources, self.splits = [intern(row.source) for row in rows], [intern(row.split) for row in rows]
        self._nbytes = np.array([row.nbytes for row in rows], dtype=np.int64)
        self._remember()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "at"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self.at = lru_cache(maxsize=_MADE_SHARDS)(self._make)
        """As `[]`, and half a call cheaper."""

    def __len__(self) -> int:
        return len(self._nbytes)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self._make(one) for one in range(*number.indices(len(self)))]
        return self.at(number)

    def __iter__(self) -> Iterator[Shard]:
        return map(self._make, range(len(self)))

    def names(self) -> list[str]:
        """The name of each."""
        return [self._names[number] for number in range(len(self))]

    def _make(self, number: int) -> Shard:
        number = range(len(self))[number]
        return Shard(
            self._names[number],
            self.sources[number],
            self._paths[number],
            int(self._nbytes[number]),
            self.splits[number],
            self._min_keys[number],
            self._max_keys[number],
        )


@dataclass(frozen=True)
class Shards:
    """Every shard of a version, in the order of its table; `first_rows` int64 [shards + 1] ends with the row count."""

    shards: ShardTable
    first_rows: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each shard, int64 [shards]."""
        return np.diff(self.first_rows)

    @property
    def num_rows(self) -> int:
        """Samples of all shards."""
        return int(self.first_rows[-1])

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number of the shard, place in it) of each row: int64, as `rows`."""
        shard = np.searchsorted(self.first_rows, rows, side="right") - 1
        return shard, rows - self.first_rows[shard]

    def of_source(self, source: str) -> NDArray[np.bool_]:
        """Which shards hold samples of `source`, bool [shards]."""
        return np.array([one == source for one in self.shards.sources], dtype=np.bool_)

    def of_split(self, split: str) -> NDArray[np.bool_]:
        """Which shards hold samples of `split`, going by their folder, bool [shards]."""
        return np.array([one == split for one in self.shards.splits], dtype=np.bool_)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source, in order of its first shard."""
        return tuple(dict.fromkeys(self.shards.sources))


def load_shards(version: Version) -> Shards:
    """The shards of `version`.

    Raises InputError when the table is not what was published, or holds other counts than the manifest.
    """
    names = ["shard", "source", "path", "nbytes", "min_key", "max_key"]
    table = read_table(version, "shards.parquet", [*names, "num_samples"])
    columns = (table.column(name).to_pylist() for name in names)
    shards = ShardTable(
        Shard(name, source, version.locate(path), nbytes, "holdout" if _is_holdout(path) else "train", low, high)
        for name, source, path, nbytes, low, high in zip(*columns, strict=True)
    )
    sizes = table.column("num_samples").to_numpy().astype(np.int64)
    first_rows = np.concatenate([[0], np.cumsum(sizes)])
    counts = version.manifest["counts"]
    if sizes.min(initial=0) < 0 or (first_rows[-1], len(shards)) != (counts["num_samples"], counts["num_shards"]):
        raise InputError(
            f"{version.root.address('shards.parquet')}: counts {first_rows[-1]} samples in {len(shards)} shards, the "
            f"manifest says {counts['num_samples']} in {counts['num_shards']}; run `dataengine verify` on it"
        )
    _check_names(version, shards.names())
    del table, columns
    pa.default_memory_pool().release_unused()  # 7 MB that every rank would keep for one small table
    return Shards(shards, first_rows)


def _check_names(version: Version, names: list[str]) -> None:
    """Raises InputError unless each name is a file's, and one shard's: siblings and rows are found by it."""
    strange = [name for name in names if not name or "/" in name or "\0" in name]
    strange += [name for name, count in Counter(names).items() if count > 1]
    if strange:
        raise InputError(
            f"{version.root.address('shards.parquet')}: shard {strange[0]!r} is no file's name, or there twice; run "
            "`dataengine verify` on it"
        )


def read_table(version: Version, path: str, columns: list[str]) -> pa.Table:
    """The named columns of one Parquet file, as they were published.

    Raises InputError when it cannot be read, or lacks a column, or holds another type or nulls in one.
    """
    table: pa.Table = _read(version, path, lambda parquet: parquet.read(columns=columns, use_threads=False))
    where = version.root.address(path)
    missing = set(columns) - set(table.column_names)
    if missing:
        raise InputError(f"{where}: lacks the columns {sorted(missing)}; was another tool here?")
    return pa.table({name: _as_published(table.column(name), name, where) for name in table.column_names})


def read_schema(version: Version, path: str) -> pa.Schema:
    """The columns of one Parquet file, of the types that `read_table` gives; raises InputError like it."""
    found: pa.Schema = _read(version, path, lambda parquet: parquet.schema_arrow)
    return pa.schema([_published_fields().get(field.name, field) for field in found])


@cache
def _published_fields() -> dict[str, pa.Field]:
    return {field.name: field for table in (manifest_schema(()), SHARDS) for field in table.arrow}


def _as_published(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    field = _published_fields().get(name)
    if field is None:  # a score, or what a later version added
        return column
    if column.null_count and not field.nullable:
        raise InputError(f"{where}: column {name} holds nulls, wanted {field.type}; run `dataengine verify` on it")
    if column.type == field.type:
        return column
    kinds = (column.type, field.type)
    fault = f"{where}: column {name} holds {column.type}, wanted {field.type}; was another tool here?"
    if not (all(map(pa.types.is_integer, kinds)) or all(map(_is_text, kinds))):
        raise InputError(fault)
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise InputError(f"{fault} ({error})") from error


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _read(version: Version, path: str, read: Callable[[pq.ParquetFile], Found]) -> Found:
    """What `read` takes from a file, pages checked by their checksums; from a store again when it is damaged."""
    fault: Exception | None = None
    for _ in range(1 if version.is_local else _TRIES):
        with version.root.open(version.locate(path)) as file:
            try:
                return read(pq.ParquetFile(file, page_checksum_verification=True))
            except (pa.ArrowException, OSError, ValueError) as error:
                fault = error
    where = version.root.address(path)
    raise InputError(f"{where}: not a readable Parquet file ({fault}); run `dataengine verify` on it") from fault


def _is_holdout(path: str) -> bool:
    # A child version names its parents' tars by ../v000001/holdout/...
    return path.startswith(_HOLDOUT) or f"/{_HOLDOUT}" in path
