"""A published version is whole and the same, whoever publishes it, where, and however often it is interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.emit import shard
from dataengine.engine.runner import Executor
from dataengine.errors import CorruptObject, InputError
from dataengine.storage.store import Root
from dataengine.testing.given import GivenSource
from tests.crashes import Clock, Crash, clock
from tests.emit.publishing import MACHINES, SMALL, contents, publish

__all__ = ["clock"]
TINY = (GivenSource("birds", 6, 6, image_bytes=700, formats=("jpg",)),)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, str]:
    """A root in which SMALL was published serially, and the version's folder."""
    root = Root(str(tmp_path_factory.mktemp("published")))
    return root, publish(root)


def faults_of(root: Root, folder: str) -> list[object]:
    dataset = open_dataset(root.address(folder), dict(root.options))
    return list(verify(dataset, full=True, sample=2, progress=lambda *_: None))


def test_a_version_is_sound(published: tuple[Root, str]) -> None:
    assert published[1] == "datasets/given/v000001"
    assert faults_of(*published) == []


def test_a_store_publishes_the_bytes_of_a_disk(
    published: tuple[Root, str], s3_server: dict[str, str], tmp_path: Path
) -> None:
    root = Root(f"s3://lake/{tmp_path.name}", tuple(sorted(s3_server.items())))
    assert contents(root, publish(root)) == contents(*published)
    assert faults_of(root, published[1]) == []


def test_a_large_shard_goes_to_a_store_in_parts(s3_server: dict[str, str], tmp_path: Path) -> None:
    """More than the store takes in one request, in more pieces than there are buffers."""
    given = (GivenSource("birds", 110, 40, image_bytes=400_000),)
    remote = Root(f"s3://lake/{tmp_path.name}", tuple(sorted(s3_server.items())))
    local = Root(str(tmp_path))
    folder = publish(remote, given, shard_multiple=1, target_shard_bytes=2**30)
    assert publish(local, given, shard_multiple=1, target_shard_bytes=2**30) == folder
    found = contents(remote, folder)
    assert len(found["birds/birds-000000.tar"]) > 17 * shard.PIECE_BYTES
    assert found == contents(local, folder)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_ray_publishes_the_same_bytes(
    published: tuple[Root, str], ray_cluster: None, tmp_path: Path, num_workers: int
) -> None:
    from dataengine.engine.cluster import RayExecutor

    machines = {stage: replace(machine, num_cpus=0.5, num_workers=num_workers) for stage, machine in MACHINES.items()}
    start: Callable[[], Executor] = lambda: RayExecutor(machines, task_retries=1)  # noqa: E731
    root = Root(str(tmp_path))
    assert contents(root, publish(root, start=start)) == contents(*published)


def test_parts_of_other_sizes_hold_the_same_shards(published: tuple[Root, str], tmp_path: Path) -> None:
    """How rows came in parts is in the plan's hash, and so in the claim; shards and samples are those of the rows."""
    root = Root(str(tmp_path))
    other = tuple(replace(source, part_rows=source.num_rows) for source in SMALL[1:])
    first, second = publish(Root(f"{root.url}/a"), SMALL[1:]), publish(Root(f"{root.url}/b"), other)
    mine, theirs = (open_dataset(f"{root.url}/{path}") for path in (f"a/{first}", f"b/{second}"))
    placed = ["key", "shard", "index_in_shard", "sha256"]
    rows = mine.samples().select(placed).collect()
    assert rows["shard"].n_unique() == 4
    assert rows.equals(theirs.samples().select(placed).collect())


def test_drivers_at_once_publish_one_version(published: tuple[Root, str], tmp_path: Path) -> None:
    root, together = Root(str(tmp_path)), Barrier(3)

    def drive(_: int) -> str:
        together.wait()
        return publish(root)

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(drive, range(3))) == {published[1]}
    assert contents(root, published[1]) == contents(*published)
    assert not root.list("datasets/given/v000002")


def test_another_plan_takes_the_next_version(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    first = publish(root, TINY)
    before = contents(root, first)
    second = publish(root, (replace(TINY[0], seed=1),), run="other")
    assert (first, second) == ("datasets/given/v000001", "datasets/given/v000002")
    assert contents(root, first) == before
    assert publish(root, TINY) == first


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A root where everything before emit is done for TINY, and what a publication of it holds."""
    folder = tmp_path_factory.mktemp("selected")
    root = Root(str(folder))
    wanted = contents(root, publish(root, TINY, shard_multiple=2))
    shutil.rmtree(folder / "datasets")
    shutil.rmtree(folder / "runs" / "run" / "emit")
    return folder, dict(wanted)


def crash_everywhere(selected: tuple[Path, dict[str, bytes]], clock: Clock, tmp_path: Path, step: int) -> None:
    """Publish TINY, dying at every `step`th operation; after each death, publish again."""
    folder, wanted = selected
    clock.reset()
    publish(Root(str(shutil.copytree(folder, tmp_path / "undisturbed"))), TINY, shard_multiple=2)
    num_operations = clock.now
    assert num_operations > 100
    for crash_at in range(1, num_operations + 1, step):
        root = Root(str(shutil.copytree(folder, tmp_path / str(crash_at))))
        clock.reset(crash_at)
        with pytest.raises(Crash):
            publish(root, TINY, shard_multiple=2)
        clock.reset()
        assert_nothing_partial(root, wanted, crash_at)
        version = publish(root, TINY, shard_multiple=2)
        assert version.endswith("v000001"), crash_at
        assert contents(root, version) == wanted, f"crash at operation {crash_at}"


def assert_nothing_partial(root: Root, wanted: dict[str, bytes], crash_at: int) -> None:
    """There is no version to be read, or the whole one."""
    try:
        dataset = open_dataset(root.address("datasets/given"))
    except InputError:
        return
    assert contents(root, "datasets/given/v000001") == wanted, crash_at
    assert not verify(dataset, full=True, sample=1, progress=lambda *_: None)


def test_a_crash_now_and_then(selected: tuple[Path, dict[str, bytes]], clock: Clock, tmp_path: Path) -> None:
    crash_everywhere(selected, clock, tmp_path, step=13)


@pytest.mark.slow
def test_a_crash_at_every_operation(selected: tuple[Path, dict[str, bytes]], clock: Clock, tmp_path: Path) -> None:
    crash_everywhere(selected, clock, tmp_path, step=1)


def test_a_flipped_bit_in_stored_bytes_is_named_and_publishes_nothing(
    selected: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    root = Root(str(shutil.copytree(selected[0], tmp_path / "work")))
    (raw,) = (tmp_path / "work").rglob("*.raw.tar")
    content = bytearray(raw.read_bytes())
    place = content.rfind(b"ustar") + 700  # within the last image
    content[place] ^= 1
    raw.write_bytes(content)
    with pytest.raises(CorruptObject, match=r"emit/shards part-00000\d: sample [0-9a-f]{32}: .*changed after download"):
        publish(root, TINY, shard_multiple=2)
    with pytest.raises(InputError):
        open_dataset(root.address("datasets/given"))


def test_a_stored_object_cut_short_is_named(selected: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    root = Root(str(shutil.copytree(selected[0], tmp_path / "work")))
    (raw,) = (tmp_path / "work").rglob("*.raw.tar")
    raw.write_bytes(raw.read_bytes()[:2000])
    with pytest.raises(CorruptObject, match=r"raw\.tar: wanted .* the file ends after"):
        publish(root, TINY, shard_multiple=2)
