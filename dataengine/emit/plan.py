"""Which rows go to which shard: equal runs of key order that are pure in source, split and image format.

The kept rows go in, one plan per shard comes out; a shard is then a pure function of its rows. Equal counts
in a multiple of `shard_multiple` shards let ranks × workers divide a source without a remainder. Bytes of
images and where they lie are nobody's business here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.keys import key_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dataengine.config.run import EmitConfig

HOLDOUT = "holdout"
"""The split kept out of training, and the folder of its shards."""


@dataclass(frozen=True)
class ShardPlan:
    """The rows of one tar: those of `source`, `split` and `format` from `min_key` to `max_key`, inclusive."""

    name: str
    source: str
    split: str
    format: str
    min_key: str
    max_key: str
    num_samples: int
    nbytes: int
    """Bytes of the images; the tar adds headers, captions and padding, about 4 kB a sample."""

    @property
    def path(self) -> str:
        """Where the tar lies in a dataset version; `*/*.tar` meets every shard for training and no other."""
        path = f"{self.source}/{self.name}.tar"
        return f"{HOLDOUT}/{path}" if self.split == HOLDOUT else path


@dataclass(frozen=True)
class Pure:
    """What the samples of one tar have in common."""

    source: str
    split: str
    format: str


@dataclass(frozen=True)
class Kept:
    """Rows as planning sees them, 24 bytes each: of their keys the `high` and `low` 64 bits, and their image's size.

    uint64, uint64 and int64, [rows] each, in any order.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    nbytes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: pa.Table) -> Kept:
        """Those of `rows` [key, nbytes]. Raises ValueError when a key is not 32 hex characters."""
        halves = key_bytes(rows.column("key")).view(">u8").astype(np.uint64)
        return cls(halves[:, 0].copy(), halves[:, 1].copy(), rows.column("nbytes").to_numpy().astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """The rows of `parts`, in key order."""
        high, low, nbytes = (np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__)
        order = np.argsort(high, kind="stable")
        if (high[order[1:]] == high[order[:-1]]).any():  # about once in 100,000 sets of 24 million
            order = np.lexsort((low, high))
        return cls(high[order], low[order], nbytes[order])

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """The keys of some rows, as text."""
        return [
            f"{high:016x}{low:016x}"
            for high, low in zip(self.high[rows].tolist(), self.low[rows].tolist(), strict=True)
        ]


def split_rows(rows: pa.Table) -> dict[Pure, Kept]:
    """`rows` [key, source, split, format, nbytes] apart, by what a tar must be pure in."""
    keys = ["source", "split", "format"]
    found = {}
    for pure in (Pure(**row) for row in rows.group_by(keys).aggregate([]).to_pylist()):
        same = [pc.equal(rows.column(name), getattr(pure, name)) for name in keys]
        found[pure] = Kept.of(rows.filter(pc.and_(pc.and_(same[0], same[1]), same[2])))
    return found


def plan_shards(kept: Mapping[Pure, Sequence[Kept]], config: EmitConfig) -> list[ShardPlan]:
    """The shards of the kept rows (of each kind in parts, in any order), by source and number; none of none.

    Shards of a source number on over its splits (train first) and formats. Counts within one format differ by
    one at most.
    """
    ordered = sorted(kept, key=lambda pure: (pure.source, pure.split == HOLDOUT, pure.split, pure.format))
    plans: list[ShardPlan] = []
    for _, of_source in groupby(ordered, key=lambda pure: pure.source):
        first = len(plans)
        for _, of_split in groupby(of_source, key=lambda pure: pure.split):
            runs = {pure: Kept.joined(kept[pure]) for pure in of_split}
            for (pure, run), num_shards in zip(runs.items(), _share_shards(list(runs.values()), config), strict=True):
                plans += _cut(pure, run, num_shards, len(plans) - first)
    return plans


def count_shards(num_samples: int, nbytes: int, config: EmitConfig) -> int:
    """How many shards hold `num_samples` > 0: the multiple (one at least) that is nearest to the target size.

    When that exceeds the samples, the largest power of two that does not: as many ranks as can be fed divide
    it.
    """
    multiples = max(1, round(nbytes / config.target_shard_bytes / config.shard_multiple))
    wanted = multiples * config.shard_multiple
    return wanted if wanted <= num_samples else 2 ** (num_samples.bit_length() - 1)


def _share_shards(runs: Sequence[Kept], config: EmitConfig) -> list[int]:
    """Each format's number of shards: one each, then again one to the format of the largest shards."""
    samples = np.array([len(run.nbytes) for run in runs])
    total = count_shards(int(samples.sum()), sum(int(run.nbytes.sum()) for run in runs), config)
    counts = np.ones(len(runs), dtype=np.int64)
    for _ in range(total - len(runs)):
        counts[np.argmax(samples / counts)] += 1
    return [int(count) for count in counts]


def _cut(pure: Pure, run: Kept, num_shards: int, number: int) -> Iterator[ShardPlan]:
    """The plans of one kind of rows, numbered from `number`."""
    bounds = np.arange(num_shards + 1) * len(run.nbytes) // num_shards
    sizes = np.add.reduceat(run.nbytes, bounds[:-1]).tolist()
    counts = np.diff(bounds).tolist()
    ends = zip(run.keys(bounds[:-1]), run.keys(bounds[1:] - 1), strict=True)
    for i, (min_key, max_key) in enumerate(ends):
        name = f"{pure.source}-{number + i:06d}"
        yield ShardPlan(name, pure.source, pure.split, pure.format, min_key, max_key, counts[i], sizes[i])
