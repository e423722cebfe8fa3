"""The shards of a version, and which row of the dataset lies in which: from shards.parquet alone.

A row is a number: the samples of the first shard, of the second, and so on, each shard's in the order of its tar. So
opening a dataset costs the same for a thousand samples as for 24 million, and nothing is held per sample; places in a
tar come from its `.tar.idx` when a sample is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataengine.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.trainer.manifest import Version

_HOLDOUT = "holdout/"


@dataclass(frozen=True)
class Shard:
    """One tar: its name, its source, the path that the version's root opens, its size, and the range of its keys."""

    name: str
    source: str
    path: str
    nbytes: int
    split: str
    min_key: str
    max_key: str


@dataclass(frozen=True)
class Shards:
    """Every shard of a version, in the order of its table; `first_rows` int64 [shards + 1] ends with the row count."""

    shards: tuple[Shard, ...]
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
        return np.array([shard.source == source for shard in self.shards], dtype=np.bool_)

    def of_split(self, split: str) -> NDArray[np.bool_]:
        """Which shards hold samples of `split`, going by their folder, bool [shards]."""
        return np.array([shard.split == split for shard in self.shards], dtype=np.bool_)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source, in order of its first shard."""
        return tuple(dict.fromkeys(shard.source for shard in self.shards))


def load_shards(version: Version) -> Shards:
    """The shards of `version`.

    Raises InputError when the table lacks a column or holds other counts than the manifest.
    """
    names = ["shard", "source", "path", "nbytes", "min_key", "max_key"]
    table = read_table(version, "shards.parquet", [*names, "num_samples"])
    columns = (table.column(name).to_pylist() for name in names)
    shards = tuple(
        Shard(name, source, version.locate(path), nbytes, "holdout" if _is_holdout(path) else "train", low, high)
        for name, source, path, nbytes, low, high in zip(*columns, strict=True)
    )
    sizes = table.column("num_samples").to_numpy().astype(np.int64)
    first_rows = np.concatenate([[0], np.cumsum(sizes)])
    expected = int(version.manifest["counts"]["num_samples"])
    if sizes.min(initial=0) < 0 or first_rows[-1] != expected:
        raise InputError(
            f"{version.root.address('shards.parquet')}: counts {first_rows[-1]} samples, the manifest says {expected}; "
            "run `dataengine verify` on it"
        )
    return Shards(shards, first_rows)


def read_table(version: Version, path: str, columns: list[str]) -> pa.Table:
    """The named columns of one Parquet file; raises InputError when it cannot be read or lacks one."""
    with version.root.open(version.locate(path)) as file:
        try:
            parquet = pq.ParquetFile(file)
            table = parquet.read(columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            where = version.root.address(path)
            raise InputError(
                f"{where}: not a readable Parquet file ({error}); run `dataengine verify` on it"
            ) from error
    missing = set(columns) - set(table.column_names)
    if missing:
        raise InputError(f"{version.root.address(path)}: lacks the columns {sorted(missing)}; was another tool here?")
    return table


def _is_holdout(path: str) -> bool:
    # A child version names its parents' tars by ../v000001/holdout/...
    return path.startswith(_HOLDOUT) or f"/{_HOLDOUT}" in path
