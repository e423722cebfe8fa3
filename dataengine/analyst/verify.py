"""Verifies a published version against its manifest: every file, every table, every tar.

In goes a dataset and how thorough to be; out come faults, none for a sound version. What is sampled follows
from the manifest's hash, so that two verifications of one version look at the same objects. It repairs and
renders nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.faults import UNREADABLE, Fault, Progress
from dataengine.analyst.listing_checks import check_listing
from dataengine.analyst.table_checks import check_tables
from dataengine.analyst.tar_checks import Row, check_hashes, check_index, check_members, check_pictures
from dataengine.errors import DataEngineError, InputError, StorageError
from dataengine.storage.tar import TarFault, walk
from dataengine.trainer.manifest import PublishedFile

_AT_ONCE = 8  # files: hashing holds no interpreter, and a remote store answers late
READ_BYTES = 8 * 2**20
SHARDS_AT_ONCE = 32  # rows of 32 shards of 8,000 samples are about 100 MB
_COLUMNS = ("key", "shard", "format", "width", "height", "xxh3", "extra_members")
_PLACES = [f"{member}_{what}" for member in ("image", "txt", "json") for what in ("offset", "nbytes")]


def verify(dataset: Dataset, *, full: bool, sample: int, progress: Progress) -> list[Fault]:
    """Every fault found, in the order of the checks.

    Always checked: that all files are listed and have their size, that no other tars and tables lie among them, that
    every tar begins with its first sample, and that all tables agree. `full` hashes every file and image and walks
    every tar; else `sample` files are hashed and `sample` tars walked with `sample` images each hashed. Of every tar
    that is walked, the index is compared with the rows. In both cases up to `sample` pictures of each of `sample` tars
    are decoded.
    """
    faults = list(_check_files(dataset, full, sample, progress))
    faults += _check_beginnings(dataset, progress)
    faults += check_tables(dataset, progress)
    faults += _check_tars(dataset, full, sample, progress)
    return faults


def _check_files(dataset: Dataset, full: bool, sample: int, progress: Progress) -> Iterator[Fault]:
    files = {file.path: file for file in dataset.version.files}
    shards = _published_shards(dataset)
    yield from check_listing(dataset, shards)
    for shard in shards:
        listed = files.setdefault(shard.path, shard)
        if listed != shard:
            yield Fault(shard.path, "shards.parquet and manifest.json agree", str(listed), str(shard))
    hashed = set(files if full else _choose(dataset, files, sample))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        checked = threads.map(lambda file: list(_check_file(dataset, file, file.path in hashed)), files.values())
        for done, faults in enumerate(checked, 1):
            yield from faults
            progress("files", done, len(files))


def _check_beginnings(dataset: Dataset, progress: Progress) -> Iterator[Fault]:
    """Tars that begin with another sample than theirs: one read each tells shards that were swapped or cut."""
    try:
        rows = dataset.shards().select("path", "format", "min_key").collect().to_dicts()
    except UNREADABLE:
        return  # the check of tables says so
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for done, fault in enumerate(threads.map(lambda row: _check_beginning(dataset, **row), rows), 1):
            if fault is not None:
                yield fault
            progress("first samples", done, len(rows))


def _check_beginning(dataset: Dataset, path: str, format: str, min_key: str) -> Fault | None:
    wanted = f"{min_key}.{format}"
    try:
        with dataset.version.root.open(dataset.version.locate(path)) as file:
            found = next(walk(file, path), None)
    except (DataEngineError, TarFault, OSError) as error:
        return Fault(path, "first member", wanted, str(error))
    name = found.name if found else "end of the tar"
    return None if name == wanted else Fault(path, "first member", wanted, name)


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
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for batch in _rows_of(dataset, shards):
                picked = [
                    set(_choose(dataset, [row["key"] for row in rows], sample)) if shard in chosen else set()
                    for shard, rows in batch
                ]
                check = partial(_check_tar, dataset, full)
                names = [paths[shard] for shard, _ in batch]
                yield from chain.from_iterable(threads.map(check, names, (rows for _, rows in batch), picked))
                progress("tars", shards.index(batch[-1][0]), len(shards))
    except UNREADABLE as error:
        yield Fault("samples", "readable", "tables that can be read", f"{type(error).__name__}: {error}")
    else:
        progress("tars", len(shards), len(shards))


def _rows_of(dataset: Dataset, shards: Sequence[str]) -> Iterator[list[tuple[str, list[Row]]]]:
    """(shard, its rows in order) for each of `shards`, as many together as may be in memory at a time."""
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        batch = shards[first : first + SHARDS_AT_ONCE]
        asked = dataset.samples().filter(pl.col("shard").is_in(batch)).sort("shard", "index_in_shard")
        rows = asked.select(*_COLUMNS, *_PLACES).collect().partition_by("shard", as_dict=True)
        yield [(shard, rows[(shard,)].to_dicts() if (shard,) in rows else []) for shard in batch]


def _check_tar(dataset: Dataset, full: bool, path: str, rows: list[Row], picked: set[str]) -> list[Fault]:
    return list(_tar_faults(dataset, full, path, rows, picked))


def _tar_faults(dataset: Dataset, full: bool, path: str, rows: list[Row], picked: set[str]) -> Iterator[Fault]:
    some = [row for row in rows if row["key"] in picked]
    try:
        yield from check_index(dataset.version.root.get(dataset.version.locate(f"{path}.idx")), f"{path}.idx", rows)
    except (DataEngineError, OSError) as error:
        yield Fault(f"{path}.idx", "readable", f"the places of {len(rows)} samples", str(error))
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
