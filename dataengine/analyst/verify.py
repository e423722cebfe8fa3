"""Verifies a published version against its manifest: every file, every table, every tar.

In goes a dataset and how thorough to be; out come faults, none for a sound version. What is sampled follows
from the manifest's hash, so that two verifications of one version look at the same objects. It repairs and
renders nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.faults import UNREADABLE, Fault, Progress
from dataengine.analyst.table_checks import check_tables
from dataengine.analyst.tar_checks import Row, check_hashes, check_members, check_pictures
from dataengine.errors import DataEngineError, InputError, StorageError
from dataengine.trainer.manifest import PublishedFile

READ_BYTES = 8 * 2**20
SHARDS_AT_ONCE = 32  # rows of 32 shards of 8,000 samples are about 100 MB
_COLUMNS = ("key", "shard", "format", "width", "height", "xxh3")
_PLACES = [f"{member}_{what}" for member in ("image", "txt", "json") for what in ("offset", "nbytes")]


def verify(dataset: Dataset, *, full: bool, sample: int, progress: Progress) -> list[Fault]:
    """Every fault found, in the order of the checks.

    Always checked: that all files have their size, and all tables agree. `full` hashes every file and image
    and walks every tar; else `sample` files are hashed and `sample` tars walked with `sample` images each
    hashed. In both cases up to `sample` pictures of each of `sample` tars are decoded.
    """
    faults = list(_check_files(dataset, full, sample, progress))
    faults += check_tables(dataset, progress)
    faults += _check_tars(dataset, full, sample, progress)
    return faults


def _check_files(dataset: Dataset, full: bool, sample: int, progress: Progress) -> Iterator[Fault]:
    files = {file.path: file for file in dataset.version.files}
    for shard in _published_shards(dataset):
        listed = files.setdefault(shard.path, shard)
        if listed != shard:
            yield Fault(shard.path, "shards.parquet and manifest.json agree", str(listed), str(shard))
    hashed = set(files if full else _choose(dataset, files, sample))
    for done, file in enumerate(files.values()):
        progress("files", done, len(files))
        yield from _check_file(dataset, file, file.path in hashed)
    progress("files", len(files), len(files))


def _published_shards(dataset: Dataset) -> list[PublishedFile]:
    """The tars as shards.parquet states them; none when it is unreadable, which the check of tables says."""
    try:
        rows = dataset.shards().select("path", "nbytes", "sha256").collect().iter_rows()
    except UNREADABLE:
        return []
    return [PublishedFile(*row) for row in rows]


def _check_file(dataset: Dataset, file: PublishedFile, hashed: bool) -> Iterator[Fault]:
    root = dataset.version.root
    try:
        path = dataset.version.locate(file.path)
        nbytes = root.size(path)
        if nbytes is None:
            yield Fault(file.path, "exists", f"{file.nbytes} bytes", "no such object")
        elif nbytes != file.nbytes:
            yield Fault(file.path, "size", f"{file.nbytes} bytes", f"{nbytes} bytes")
        elif hashed and (found := _sha256(dataset, path)) != file.sha256:
            yield Fault(file.path, "sha256", file.sha256, found)
    except (InputError, StorageError) as error:
        yield Fault(file.path, "readable", f"{file.nbytes} bytes", str(error))


def _sha256(dataset: Dataset, path: str) -> str:
    digest = hashlib.sha256()
    with dataset.version.root.open(path) as file:
        while content := file.read(READ_BYTES):
            digest.update(content)
    return digest.hexdigest()


def _check_tars(dataset: Dataset, full: bool, sample: int, progress: Progress) -> Iterator[Fault]:
    try:
        paths = dict(dataset.shards().select("shard", "path").sort("shard").collect().iter_rows())
        chosen = set(_choose(dataset, paths, sample))
        shards = [shard for shard in paths if full or shard in chosen]
        for done, (shard, rows) in enumerate(_rows_of(dataset, shards)):
            progress("tars", done, len(shards))
            picked = set(_choose(dataset, [row["key"] for row in rows], sample)) if shard in chosen else set()
            yield from _check_tar(dataset, paths[shard], rows, picked, full)
    except UNREADABLE as error:
        yield Fault("samples", "readable", "tables that can be read", f"{type(error).__name__}: {error}")
    else:
        progress("tars", len(shards), len(shards))


def _rows_of(dataset: Dataset, shards: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    """(shard, its rows in order) for each of `shards`, some shards' rows in memory at a time."""
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        batch = shards[first : first + SHARDS_AT_ONCE]
        asked = dataset.samples().filter(pl.col("shard").is_in(batch)).sort("shard", "index_in_shard")
        rows = asked.select(*_COLUMNS, *_PLACES).collect().partition_by("shard", as_dict=True)
        for shard in batch:
            yield shard, rows[(shard,)].to_dicts() if (shard,) in rows else []


def _check_tar(dataset: Dataset, path: str, rows: list[Row], picked: set[str], full: bool) -> Iterator[Fault]:
    some = [row for row in rows if row["key"] in picked]
    try:
        with dataset.version.root.open(dataset.version.locate(path)) as file:
            yield from check_members(file, path, rows)
            yield from check_hashes(file, path, rows if full else some)
            if can_decode():
                yield from check_pictures(file, path, some)
    except (DataEngineError, OSError, ValueError) as error:  # ValueError: a negative offset
        yield Fault(path, "readable", f"a tar of {len(rows)} samples", str(error))


def can_decode() -> bool:
    """Whether pictures can be decoded: the base install has no Pillow, and verifies everything else."""
    return importlib.util.find_spec("PIL") is not None


def _choose(dataset: Dataset, names: Iterable[str], num: int) -> list[str]:
    """`num` of `names`, drawn by a hash keyed with the version: the same for every verification of it."""
    key = bytes.fromhex(dataset.version.sha256)
    drawn = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), key=key, digest_size=8).digest())
    return drawn[:num]
