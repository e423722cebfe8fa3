"""Checks that a version's manifest lists what it holds: every tar once, with its index, and no stranger beside them.

In go a dataset, its tars, and a listing of its folder; out come faults. It opens no file.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.faults import Fault
from dataengine.errors import StorageError
from dataengine.trainer.manifest import PublishedFile

_READ_BY_GLOB = (".tar", ".parquet")


def check_listing(dataset: Dataset, shards: Sequence[PublishedFile]) -> Iterator[Fault]:
    """Files listed twice or not at all, and files that a reader of `*/*.tar` or `ledger/*.parquet` would meet too."""
    listed = Counter(file.path for file in dataset.version.files)
    for path, times in sorted(listed.items()):
        if times > 1:
            yield Fault(path, "listed in manifest.json", "once", f"{times} times")
    for path in (name for shard in shards for name in (shard.path, f"{shard.path}.idx")):
        if path not in listed:
            yield Fault(path, "listed in manifest.json", "once", "not at all")
    yield from _check_strangers(dataset, {*listed, *(shard.path for shard in shards)})


def _check_strangers(dataset: Dataset, own: set[str]) -> Iterator[Fault]:
    folders = {posixpath.dirname(path) for path in own}
    try:
        there = dataset.version.root.list("")
    except StorageError as error:
        yield Fault(dataset.version.root.url, "listed", "a folder that can be listed", str(error))
        return
    for path in there:
        if path.endswith(_READ_BY_GLOB) and path not in own and posixpath.dirname(path) in folders:
            yield Fault(path, "belongs to the version", "files that manifest.json lists", "another; move it away")
