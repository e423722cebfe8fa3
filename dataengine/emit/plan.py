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
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa

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
class _Run:
    """All rows of one source, split and format: rows `begin` to `end` of the sorted table."""

    source: str
    split: str
    format: str
    begin: int
    end: int
    nbytes: int


def plan_shards(rows: pa.Table, config: EmitConfig) -> list[ShardPlan]:
    """The shards of the kept `rows` [key, source, split, format, nbytes], by source and number; none of none.

    Shards of a source number on over its splits (train first) and formats. Counts within one format differ by
    one at most.
    """
    last = pl.col("split") == HOLDOUT
    # One sort by five columns takes 9 s per million rows, a sort by key and a stable one by the rest 2 s.
    by_key = pl.DataFrame(pl.from_arrow(rows)).sort("key")
    table = by_key.sort("source", last, "split", "format", maintain_order=True)
    runs = list(_runs(table))
    plans: list[ShardPlan] = []
    for _, of_source in groupby(runs, key=lambda run: run.source):
        counts: list[tuple[_Run, int]] = []
        for _, of_split in groupby(of_source, key=lambda run: run.split):
            counts += _share_shards(list(of_split), config)
        plans += _cut(table, counts)
    return plans


def count_shards(num_samples: int, nbytes: int, config: EmitConfig) -> int:
    """How many shards hold `num_samples` > 0: the multiple (one at least) that is nearest to the target size.

    When that exceeds the samples, the largest power of two that does not: as many ranks as can be fed divide
    it.
    """
    multiples = max(1, round(nbytes / config.target_shard_bytes / config.shard_multiple))
    wanted = multiples * config.shard_multiple
    return wanted if wanted <= num_samples else 2 ** (num_samples.bit_length() - 1)


def _runs(table: pl.DataFrame) -> Iterator[_Run]:
    columns = ["source", "split", "format"]
    groups = table.group_by(columns, maintain_order=True).agg(pl.len(), pl.col("nbytes").sum())
    begin = 0
    for source, split, form, num_samples, nbytes in groups.iter_rows():
        yield _Run(source, split, form, begin, begin + num_samples, nbytes)
        begin += num_samples


def _share_shards(runs: Sequence[_Run], config: EmitConfig) -> list[tuple[_Run, int]]:
    """Each format's number of shards: one each, then again one to the format of the largest shards."""
    samples = np.array([run.end - run.begin for run in runs])
    total = count_shards(int(samples.sum()), sum(run.nbytes for run in runs), config)
    counts = np.ones(len(runs), dtype=np.int64)
    for _ in range(total - len(runs)):
        counts[np.argmax(samples / counts)] += 1
    return list(zip(runs, counts.tolist(), strict=True))


def _cut(table: pl.DataFrame, counts: Iterable[tuple[_Run, int]]) -> Iterator[ShardPlan]:
    """The plans of one source, numbered from 0."""
    number = 0
    for run, num_shards in counts:
        bounds = run.begin + np.arange(num_shards + 1) * (run.end - run.begin) // num_shards
        first, last = table["key"].gather(bounds[:-1]), table["key"].gather(bounds[1:] - 1)
        sizes = np.add.reduceat(table["nbytes"][run.begin : run.end].to_numpy(), bounds[:-1] - run.begin)
        for place, (min_key, max_key) in enumerate(zip(first, last, strict=True)):
            yield ShardPlan(
                name=f"{run.source}-{number:06d}",
                source=run.source,
                split=run.split,
                format=run.format,
                min_key=min_key,
                max_key=max_key,
                num_samples=int(bounds[place + 1] - bounds[place]),
                nbytes=int(sizes[place]),
            )
            number += 1
