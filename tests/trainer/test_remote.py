"""Reading from a real S3 server, late and faulty: every sample right, within bounds of time, requests and disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.errors import ConfigError, MissingObject, StorageError
from dataengine.storage.store import Root
from dataengine.trainer import Cache, DataLoader, Patience, ShardDataset
from dataengine.trainer.fetch import Fetcher
from tests.trainer.faulty_store import FaultyStore, before
from tests.trainer.publishing import publish, read_rows, write_siblings

QUICK = Patience(timeout_seconds=10, tries=5, pause_seconds=0.01)


@pytest.fixture(scope="module")
def remote(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(the address in the store, the same on disk) of 300 samples in 6 shards."""
    folder = publish(tmp_path_factory.mktemp("remote") / "pairs", {"alpha": (60, 60, 60), "beta": (40, 40, 40)})
    address = "s3://lake/reader/pairs/v000001"
    root = Root(address, tuple(sorted(s3_server.items())))
    for path in folder.rglob("*"):
        if path.is_file():
            root.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return address, folder


def batches(dataset: ShardDataset, num_workers: int = 0, kind: Any = "process") -> list[dict[str, Any]]:
    loader = DataLoader(dataset, global_batch_size=30, num_workers=num_workers, workers=kind, on_corrupt="raise")
    return list(loader)


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "process"), (2, "process"), (2, "thread")])
def test_remote_and_local_batches_are_equal(
    remote: tuple[str, Path], s3_server: dict[str, str], num_workers: int, kind: str
) -> None:
    address, folder = remote
    far = batches(ShardDataset(address, decode="bytes", storage_options=s3_server), num_workers, kind)
    near = batches(ShardDataset(folder, decode="bytes"))
    for ours, theirs in zip(far, near, strict=True):
        assert all(list(ours[name]) == list(theirs[name]) for name in ours)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kinds", [("refuse", "cut"), ("refuse", "cut", "flip")])
def test_a_late_and_faulty_store_gives_no_wrong_sample(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path, kinds: tuple[str, ...], cached: bool
) -> None:
    """20 ms and a fault in 1 of 20 answers. Bits that flip in transit are found where there is a hash: in images."""
    address, folder = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**20, block_bytes=2**14) if cached else None
    with before(s3_server["endpoint"], FaultyStore(0.02, 0.0, kinds)) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(
            address,
            decode="bytes",
            check_hashes="flip" in kinds,
            storage_options=options,
            patience=QUICK,
            cache=cache,
        )
        store.faults = 0.05
        loader = DataLoader(dataset, global_batch_size=30, num_workers=1, workers="thread")
        got = list(loader)
        assert sum(store.counts[kind] for kind in kinds) > 0
    parts = ("image",) if "flip" in kinds else ("image", "txt", "json")
    near = batches(ShardDataset(folder, decode="bytes"))
    assert len(loader.skipped) == 0
    for ours, theirs in zip(got, near, strict=True):
        assert all(ours[name] == theirs[name] for name in ("__key__", *parts))


def test_near_ranges_are_read_in_one_request(remote: tuple[str, Path], s3_server: dict[str, str]) -> None:
    address, _ = remote
    with before(s3_server["endpoint"], FaultyStore()) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(address, decode="bytes", shuffle=False, storage_options=options)
        before_reading = store.counts["answers"]
        assert len(list(dataset)) == 300
        # 6 shards, read 64 samples at a time: index entries and a run of samples from each that these touch.
        assert store.counts["answers"] - before_reading <= 2 * 12


def test_a_table_with_a_bit_that_flips_is_read_again(remote: tuple[str, Path], s3_server: dict[str, str]) -> None:
    address, _ = remote
    with before(s3_server["endpoint"], FaultyStore(spoiled=".parquet")) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(address, where="width > 1", check_hashes=True, storage_options=options)
        assert store.counts["flip"] == 3
        assert len(list(dataset)) == 300


@pytest.mark.parametrize("ending", [".idx", ".tar"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_bit_that_flips_once_costs_another_read_and_no_sample(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path, ending: str, cached: bool
) -> None:
    """The last byte of each index, or one of each tar, is wrong the first time: index, cache and tar are read anew."""
    address, folder = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14) if cached else None
    with before(s3_server["endpoint"], FaultyStore(spoiled=ending)) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(address, decode="bytes", check_hashes=True, storage_options=options, cache=cache)
        far = batches(dataset)
        assert store.counts["flip"] == 6
    near = batches(ShardDataset(folder, decode="bytes"))
    assert [batch["image"] for batch in far] == [batch["image"] for batch in near]


@pytest.mark.parametrize(("emptied", "parts"), [("alpha-000001.tar.idx", ("txt",)), ("alpha-000001.tar", ("latent",))])
def test_a_size_that_is_told_wrong_once_costs_no_sample(
    beside: tuple[str, dict[str, Any]],
    s3_server: dict[str, str],
    tmp_path: Path,
    emptied: str,
    parts: tuple[str, ...],
) -> None:
    address, latents = beside
    with before(s3_server["endpoint"], FaultyStore(emptied=emptied)) as store:
        dataset = ShardDataset(
            address,
            parts=parts,
            siblings={"latent": "latents"} if parts == ("latent",) else {},
            storage_options=s3_server | {"endpoint": store.endpoint},
            cache=Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14),
        )
        assert sorted(key for batch in batches(dataset) for key in batch["__key__"]) == sorted(latents)
        assert store.counts["empty"] == 1


@pytest.mark.parametrize("transform", [None, dict])
def test_a_picture_that_was_damaged_in_the_cache_is_fetched_again(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path, transform: Any
) -> None:
    """Only decoding tells that it is."""
    address, _ = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14)
    options: dict[str, Any] = {"parts": ("image",), "decode": "rgb", "storage_options": s3_server, "cache": cache}
    sound = batches(ShardDataset(address, **options))
    damaged = 0
    for file in (tmp_path / "cache").rglob("*.block"):
        content = file.read_bytes()
        damaged += content.count(b"\xff\xd8\xff")
        file.write_bytes(content.replace(b"\xff\xd8\xff", bytes(3)))
    assert damaged > 50
    loader = DataLoader(ShardDataset(address, transform=transform, **options), global_batch_size=30)
    for ours, theirs in zip(loader, sound, strict=True):
        assert ours["__key__"] == theirs["__key__"]
        assert all(np.array_equal(*two) for two in zip(ours["image"], theirs["image"], strict=True))
    assert loader.skipped == []


def test_a_picture_that_does_not_decode_is_replaced_alike_from_afar_and_from_a_disk(
    s3_server: dict[str, str], tmp_path: Path
) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (30, 30)})
    for path in folder.rglob("*.tar"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\xff\xd8\xff", bytes(3), 9))
    address = "s3://lake/reader/damaged/v000001"
    root = Root(address, tuple(sorted(s3_server.items())))
    for path in folder.rglob("*"):
        if path.is_file():
            root.put(path.relative_to(folder).as_posix(), path.read_bytes())
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14)
    far = DataLoader(ShardDataset(address, storage_options=s3_server, cache=cache), global_batch_size=30)
    near = DataLoader(ShardDataset(folder), global_batch_size=30)
    for ours, theirs in zip(far, near, strict=True):
        assert ours["__key__"] == theirs["__key__"]
    assert far.skipped == near.skipped
    assert len(near.skipped) == 18


def test_samples_of_one_block_fetch_it_once(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path
) -> None:
    address, folder = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**15)
    num_blocks = sum(-(-path.stat().st_size // 2**15) for path in folder.rglob("*.tar"))
    with before(s3_server["endpoint"], FaultyStore(latency_seconds=0.01)) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(address, decode="bytes", storage_options=options, cache=cache)
        opened = store.counts["GET"]
        assert len(batches(dataset)) == 10
        assert store.counts["GET"] - opened <= num_blocks + 6  # and an index of each tar


@pytest.fixture
def beside(s3_server: dict[str, str], tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """(the address in the store, key → latent) of 60 samples in 2 shards with tars of latents beside them."""
    folder = publish(tmp_path / "pairs", {"alpha": (30, 30)})
    latents = write_siblings(folder, "latents")
    address = "s3://lake/reader/siblings/v000001"
    root = Root(address, tuple(sorted(s3_server.items())))
    for path in folder.rglob("*"):
        if path.is_file():
            root.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return address, latents


def test_the_size_of_a_sibling_tar_is_asked_once(
    beside: tuple[str, dict[str, Any]], s3_server: dict[str, str], tmp_path: Path
) -> None:
    address, latents = beside
    with before(s3_server["endpoint"], FaultyStore()) as store:
        options = s3_server | {"endpoint": store.endpoint}
        dataset = ShardDataset(
            address,
            parts=("latent",),
            siblings={"latent": "latents"},
            storage_options=options,
            cache=Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14),
        )
        opened = store.counts["HEAD"]
        got = {sample["__key__"]: sample["latent"].tolist() for sample in dataset}
        assert store.counts["HEAD"] - opened <= 4  # two tars, two indexes
    assert got == {key: array.tolist() for key, array in latents.items()}


def test_siblings_that_were_computed_anew_are_not_read_out_of_an_old_cache(
    beside: tuple[str, dict[str, Any]], s3_server: dict[str, str], tmp_path: Path
) -> None:
    """Under the same address, and as large: the store's ETag tells."""
    address, latents = beside
    options: dict[str, Any] = {"parts": ("latent",), "siblings": {"latent": "latents"}, "storage_options": s3_server}
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14)
    assert sum(abs(sample["latent"]).sum() for sample in ShardDataset(address, cache=cache, **options)) > 0
    root = Root(f"{address}/latents", tuple(sorted(s3_server.items())))
    for path in [path for path in root.list("") if path.endswith(".tar")]:
        content = root.get(path)
        for array in latents.values():
            content = content.replace(array.tobytes(), bytes(array.nbytes))
        root.put(path, content)
    assert sum(abs(sample["latent"]).sum() for sample in ShardDataset(address, cache=cache, **options)) == 0


def test_two_stores_with_one_bucket_name_share_no_block(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path
) -> None:
    address, _ = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**14)
    batches(ShardDataset(address, decode="bytes", storage_options=s3_server, cache=cache))
    size = used(tmp_path / "cache")
    with before(s3_server["endpoint"], FaultyStore()) as store:
        options = s3_server | {"endpoint": store.endpoint}
        batches(ShardDataset(address, decode="bytes", storage_options=options, cache=cache))
    assert used(tmp_path / "cache") == 2 * size > 0


def test_siblings_in_a_store_beside_a_local_dataset(s3_server: dict[str, str], tmp_path: Path) -> None:
    """Then the dataset is not local: its workers may not be forks."""
    folder = publish(tmp_path / "pairs", {"alpha": (30, 30)})
    latents = write_siblings(folder, "latents")
    root = Root("s3://lake/reader/far/latents", tuple(sorted(s3_server.items())))
    for path in (folder / "latents").iterdir():
        root.put(path.name, path.read_bytes())
    siblings = {"latent": "s3://lake/reader/far/latents"}
    dataset = ShardDataset(folder, parts=("txt", "latent"), siblings=siblings, storage_options=s3_server)
    assert not dataset.is_local
    assert len(dataset[0]["latent"]) == 4
    loader = DataLoader(dataset, global_batch_size=20, num_workers=1)
    got = {
        key: array.tolist() for batch in loader for key, array in zip(batch["__key__"], batch["latent"], strict=True)
    }
    assert got == {key: array.tolist() for key, array in latents.items()}


def test_the_cache_reads_once_keeps_to_its_limit_and_deletes_only_its_own(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path
) -> None:
    address, folder = remote
    place = tmp_path / "cache"
    large = Cache(place, max_bytes=2**24, block_bytes=2**14)
    (place / "ab").mkdir()
    with before(s3_server["endpoint"], FaultyStore()) as store:
        options = s3_server | {"endpoint": store.endpoint}
        first = batches(ShardDataset(address, decode="bytes", storage_options=options, cache=large))
        asked = store.counts["answers"]
        dataset = ShardDataset(address, decode="bytes", storage_options=options, cache=large)
        opened = store.counts["answers"] - asked
        assert [batch["__key__"] for batch in batches(dataset)] == [batch["__key__"] for batch in first]
        again = store.counts["answers"] - asked - opened
        assert again <= 12  # blocks of index entries, which a new process has to ask for
    total = sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert used(place) <= total + 2**14
    small = Cache(tmp_path / "small", max_bytes=5 * 2**14, block_bytes=2**14)
    kept = tmp_path / "small" / "mine.txt"
    kept.write_text("kept")
    batches(ShardDataset(address, decode="bytes", storage_options=s3_server, cache=small))
    assert 0 < used(tmp_path / "small") <= 5 * 2**14
    assert kept.read_text() == "kept"
    for path in place.glob("*/*.block"):
        path.write_bytes(path.read_bytes()[:-1])
    assert len(batches(ShardDataset(address, decode="bytes", storage_options=s3_server, cache=large))) == 10


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.block"))


def test_a_folder_of_others_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that no cache wrote"):
        Cache(tmp_path, max_bytes=2**20)
    with pytest.raises(ConfigError, match="wanted a whole number from 1048576"):
        Cache(tmp_path / "new", max_bytes=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "5"}, "storage_options do not fit this store"),
        ({"bogus": "1"}, "storage_options do not fit this store: Configuration key: 'bogus'"),
        ({"endpoint": "not a url"}, "endpoint='not a url': wanted http:// or https:// and a host"),
    ],
)
def test_options_that_no_store_has_are_named(
    remote: tuple[str, Path], s3_server: dict[str, str], options: dict[str, str], message: str
) -> None:
    """Some of them make the store's client panic, which ends a process that does not expect it."""
    with pytest.raises(ConfigError, match=message):
        ShardDataset(remote[0], storage_options=s3_server | options)


def test_a_missing_shard_and_a_silent_store_are_errors(remote: tuple[str, Path], s3_server: dict[str, str]) -> None:
    address, _ = remote
    root = Root(address, tuple(sorted(s3_server.items())))
    fetcher = Fetcher(root, Patience(timeout_seconds=0.2, tries=2, pause_seconds=0.01))
    (missing,) = fetcher.ranges([("alpha/none.tar", 0, 5)], [None])
    assert isinstance(missing, MissingObject)
    with before(s3_server["endpoint"], FaultyStore(latency_seconds=1.0)) as store:
        slow = Root(address, tuple(sorted((s3_server | {"endpoint": store.endpoint}).items())))
        fetcher = Fetcher(slow, Patience(timeout_seconds=0.2, tries=2, pause_seconds=0.01))
        (silent,) = fetcher.ranges([("alpha/alpha-000000.tar", 0, 5)], [None])
    assert isinstance(silent, StorageError)
    assert "no answer within 0.2 s (2 tries)" in str(silent)


def test_reads_that_hang_hold_up_no_others(remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path) -> None:
    """The first 40 requests for tars, more than are read at once, are not answered."""
    address, folder = remote
    cache = Cache(tmp_path / "cache", max_bytes=2**24, block_bytes=2**12)
    with before(s3_server["endpoint"], FaultyStore()) as store:
        root = Root(address, tuple(sorted((s3_server | {"endpoint": store.endpoint}).items())))
        fetcher = Fetcher(root, Patience(timeout_seconds=1, tries=4, pause_seconds=0.01), cache)
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
        ranges = [(path, begin, 1000) for path in paths for begin in range(0, 50 * 2**10, 10 * 2**10)]
        fetcher.entries([(f"{path}.idx", 0, 16) for path in paths])
        store.hanging = 40
        start = monotonic()
        found = fetcher.ranges(ranges, [(folder / path).stat().st_size for path, _, _ in ranges])
        assert monotonic() - start < 15
        for (path, begin, nbytes), content in zip(ranges, found, strict=True):
            assert content == (folder / path).read_bytes()[begin : begin + nbytes]


STALLED = """
import json, logging, sys
from dataengine.errors import StorageError
from dataengine.trainer import DataLoader, Patience, ShardDataset

logging.disable()
address, options, num_workers, kind = sys.argv[1:]
if __name__ == "__main__":
    patience = Patience(timeout_seconds=0.5, tries=2, pause_seconds=0.01)
    dataset = ShardDataset(address, storage_options=json.loads(options), patience=patience)
    print("open", flush=True)
    sys.stdin.readline()
    try:
        list(DataLoader(dataset, global_batch_size=10, num_workers=int(num_workers), workers=kind))
    except StorageError:
        print("failed", flush=True)
"""


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "process"), (2, "thread"), (2, "process")])
def test_a_process_ends_after_its_error_however_long_a_store_is_silent(
    remote: tuple[str, Path], s3_server: dict[str, str], tmp_path: Path, num_workers: int, kind: str
) -> None:
    script = tmp_path / "stalled.py"
    script.write_text(STALLED)
    with before(s3_server["endpoint"], FaultyStore()) as store:
        options = json.dumps(s3_server | {"endpoint": store.endpoint})
        command = [sys.executable, str(script), remote[0], options, str(num_workers), kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdin is not None
            assert run.stdout is not None
            assert run.stdout.readline() == "open\n"
            store.latency_seconds = 60
            run.stdin.write("go\n")
            run.stdin.flush()
            assert run.stdout.readline() == "failed\n"
            assert run.wait(10) == 0


@pytest.mark.parametrize("touched", [False, True])
def test_torchs_loader_forks_no_client(remote: tuple[str, Path], s3_server: dict[str, str], touched: bool) -> None:
    """A fork would wait for ever for threads that it does not have."""
    address, _ = remote
    dataset: Any = ShardDataset(address, parts=("txt",), storage_options=s3_server)
    if touched:
        dataset[0]
    options: dict[str, Any] = {"num_workers": 1, "collate_fn": list, "timeout": 60}
    forked = torch.utils.data.DataLoader(dataset, 100, multiprocessing_context="fork", **options)
    with pytest.raises(ConfigError, match="multiprocessing_context='forkserver'"):
        next(iter(forked))
    served = torch.utils.data.DataLoader(dataset, 100, multiprocessing_context="forkserver", **options)
    assert [len(samples) for samples in served] == [100, 100, 100]


def test_rows_by_condition_come_from_the_store(remote: tuple[str, Path], s3_server: dict[str, str]) -> None:
    address, folder = remote
    chosen = ShardDataset(address, where="aesthetic > 6", decode="bytes", storage_options=s3_server)
    wanted = {row["key"] for row in read_rows(folder) if (row["aesthetic"] or 0) > 6}
    assert {sample["__key__"] for sample in chosen} == wanted
