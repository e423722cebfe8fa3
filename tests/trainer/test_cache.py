"""The node-local cache on real disks that have no room or refuse: it steps aside, and every byte is still right."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from dataengine.errors import ConfigError
from dataengine.storage.store import Root
from dataengine.trainer import Cache, DataLoader, ShardDataset
from dataengine.trainer.blocks import Block, Pieces, Wanted, read_through
from dataengine.trainer.cache import Stored
from tests.trainer.publishing import publish

BLOCK = 2**14
OBJECT = np.random.default_rng(1).bytes(40 * BLOCK)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """One object of 40 blocks."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "object").write_bytes(OBJECT)
    return Root(str(folder))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, which 15 blocks fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def stored(root: Root, tag: str = "") -> Stored:
    return Stored(root.address("object"), len(OBJECT), tag)


def read_all(cache: Cache, root: Root) -> None:
    """Every block, twice, checked."""

    def fetch(blocks: Sequence[Block]) -> list[Pieces]:
        found = []
        for block in blocks:
            content = root.get_range(block.stored.address, *cache.extent(block.stored, block.number))
            cache.keep(block.stored, block.number, content)
            found.append(block.cut(content))
        return found

    for _ in range(2):
        for begin in range(0, len(OBJECT), BLOCK):
            (content,) = read_through(cache, [Wanted(stored(root), begin, BLOCK)], fetch)
            assert content == OBJECT[begin : begin + BLOCK]


def blocks(folder: Path) -> list[Path]:
    return list(folder.rglob("*.block"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def fill(file: Path) -> None:
    """Write to `file` until its disk is full."""
    with open(file, "wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(2**12))


def test_a_disk_smaller_than_the_limit_holds_what_fits(
    disk: Path, root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(disk / "cache", max_bytes=2**30, block_bytes=BLOCK)
    read_all(cache, root)
    kept = blocks(disk)
    assert 8 <= len(kept) <= 15
    assert all(file.stat().st_size == BLOCK for file in kept)
    assert not list(disk.rglob(".*"))  # nothing half written
    assert warnings(caplog) == []


def test_others_files_on_a_full_disk_are_left_and_reading_goes_on(
    disk: Path, root: Root, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(disk / "cache", max_bytes=2**30, block_bytes=BLOCK)
    other = disk / "checkpoint"
    fill(other)
    size = other.stat().st_size
    assert size > 200_000
    read_all(cache, root)
    read_all(cache, root)
    assert blocks(disk) == []
    assert other.stat().st_size == size
    (message,) = warnings(caplog)
    assert f"cache {disk}/cache: cannot keep what is read (No space left on device)" in message
    other.unlink()
    monkeypatch.setattr("dataengine.trainer.cache._aside_until", {disk / "cache": 0.0})  # a minute later
    read_all(cache, root)
    assert len(blocks(disk)) >= 8
    assert len(warnings(caplog)) == 1


def test_a_disk_that_fills_up_makes_the_cache_smaller(disk: Path, root: Root, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(disk / "cache", max_bytes=2**30, block_bytes=BLOCK)
    (disk / "cache" / "ab").mkdir()
    mine = disk / "cache" / "ab" / "mine.txt"
    mine.write_text("no block of the cache")
    read_all(cache, root)
    full = blocks(disk)
    for file in full[:8]:
        file.unlink()
    (disk / "checkpoint").write_bytes(bytes(8 * BLOCK))
    read_all(cache, root)
    assert 1 < len(blocks(disk)) <= len(full) - 7
    assert (disk / "checkpoint").stat().st_size == 8 * BLOCK
    assert mine.read_text() == "no block of the cache"
    assert warnings(caplog) == []


def test_a_cache_may_be_opened_on_a_full_disk(disk: Path, root: Root, caplog: pytest.LogCaptureFixture) -> None:
    fill(disk / "checkpoint")
    cache = Cache(disk / "cache", max_bytes=2**20, block_bytes=BLOCK)
    read_all(cache, root)
    assert len(warnings(caplog)) == 1


LIMITED = """
import json, logging, resource, signal, sys
from dataengine.trainer import Cache, DataLoader, ShardDataset

logging.basicConfig(level=logging.WARNING)
address, folder, options = sys.argv[1:]
dataset = ShardDataset(address, decode="bytes", storage_options=json.loads(options),
                       cache=Cache(folder, max_bytes=2**24, block_bytes=2**14))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, 2**12))
loader = DataLoader(dataset, global_batch_size=30, num_workers=2, workers="thread", on_corrupt="raise")
print(json.dumps([key for batch in loader for key in batch["__key__"]]))
"""


def test_training_goes_on_where_no_file_may_be_written(s3_server: dict[str, str], tmp_path: Path) -> None:
    """RLIMIT_FSIZE refuses every block; the run ends well, says so once, and has every sample."""
    version = publish(tmp_path / "pairs", {"alpha": (60, 60)})
    address = "s3://lake/cache/pairs/v000001"
    store = Root(address, tuple(sorted(s3_server.items())))
    for path in version.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(version).as_posix(), path.read_bytes())
    command = [sys.executable, "-c", LIMITED, address, str(tmp_path / "cache"), json.dumps(s3_server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    wanted = [key for batch in DataLoader(ShardDataset(version), global_batch_size=30) for key in batch["__key__"]]
    assert json.loads(done.stdout) == wanted
    assert done.stderr.count("cannot keep what is read (File too large)") == 1
    assert [file for file in (tmp_path / "cache").rglob("*") if "block" in file.name] == []


def test_a_process_that_stands_still_with_the_lock_costs_seconds(
    root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=BLOCK)
    with open(tmp_path / "cache" / "dataengine-cache.json") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        start = monotonic()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: read_all(cache, root), range(4)))
        assert monotonic() - start < 6
    assert blocks(tmp_path) == []
    (message,) = warnings(caplog)
    assert "cannot keep what is read (another process has kept it locked for 3 s)" in message
    monkeypatch.setattr("dataengine.trainer.cache._aside_until", {})  # a minute later
    read_all(cache, root)
    assert len(blocks(tmp_path)) == 40


def test_a_damaged_count_is_counted_again(root: Root, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=10 * BLOCK, block_bytes=BLOCK)
    read_all(cache, root)
    (tmp_path / "cache" / "usage").write_text("many")
    read_all(cache, root)
    assert 0 < len(blocks(tmp_path)) <= 10


def test_a_block_that_cannot_be_read_is_fetched(root: Root, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=2**20, block_bytes=BLOCK)
    read_all(cache, root)
    for file in blocks(tmp_path):
        file.unlink()
        file.mkdir()
    read_all(cache, root)
    cache.forget(stored(root), 0, len(OBJECT))


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("file", {}, "is no folder to write to"),
        ("file/below", {}, "is no folder to write to"),
        ("new", {"max_bytes": "10GB"}, "max_bytes='10GB': wanted a whole number from 1048576"),
        ("new", {"max_bytes": 1e9}, "max_bytes=1000000000.0: "),
        ("new", {"block_bytes": 0}, "block_bytes=0"),
        ("new", {"max_bytes": 5}, "max_bytes=5: wanted a whole number from 1048576"),
    ],
)
def test_arguments_that_are_none_are_named(tmp_path: Path, folder: str, options: dict[str, int], message: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        Cache(tmp_path / folder, **{"max_bytes": 2**30} | options)


def open_cache(folder: str) -> bool:
    return isinstance(Cache(folder, max_bytes=2**20), Cache)


@pytest.mark.skipif(os.cpu_count() == 1, reason="nothing runs at once")
def test_the_ranks_of_a_node_open_one_cache_at_once(tmp_path: Path) -> None:
    # Not forked: the suite's process has threads and handlers of Ray's, which a child would inherit and hang on.
    with ProcessPoolExecutor(4, get_context("forkserver")) as pool:
        for number in range(20):
            assert all(pool.map(open_cache, [str(tmp_path / str(number))] * 8))
