"""A purge deletes what the versions that stay do not need, when its time has come, and says so to readers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from dataengine.cli.inspect import print_why
from dataengine.errors import InputError
from dataengine.storage.store import Root
from dataengine.trainer.dataset import ShardDataset
from dataengine.versions.place import DatasetPlace
from dataengine.versions.purge import Purge, plan_purge, purge
from tests.emit.publishing import contents, publish
from tests.versions.test_takedown import TINY, assert_sound, emitted, keys, read_all, request, run_again, version

NOTHING = timedelta(0)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def purged(root: Root) -> tuple[DatasetPlace, Purge, list[str]]:
    """A dataset of which two samples were taken down, one after the other, then purged; and the keys left."""
    publish(root, TINY, shard_multiple=8)
    place = DatasetPlace.of(root.address("datasets/given"), dict(root.options))
    names = emitted(version(place, 1))["key"].to_list()
    request(place, keys(names[:1]))
    request(place, keys(names[-1:]))
    before = dict(contents(root, "datasets/given"))
    planned = plan_purge(place, NOTHING, LATER)
    assert contents(root, "datasets/given") == before
    purge(place, planned)
    return place, planned, names[1:-1]


def assert_purged(root: Root) -> None:
    place, planned, left = purged(root)
    assert planned.retired == (place.path(1), place.path(2))
    for number in (1, 2):
        with pytest.raises(InputError, match=r"was retired: .*read v000003 instead"):
            version(place, number)
        with pytest.raises(InputError, match="was retired"):
            ShardDataset(root.address(place.path(number)), storage_options=dict(root.options))
        assert not [path for path in contents(root, place.path(number)) if path.endswith(".parquet")]
    latest = place.latest()
    assert_sound(latest)
    assert read_all(latest) == set(left)
    num_tars = len([path for path in root.list("datasets/given") if path.endswith(".tar")])
    assert num_tars == latest.manifest["counts"]["num_shards"]
    again = plan_purge(place, NOTHING, LATER)
    assert (again.retired, again.files) == ((), ())


def test_parents_go_and_the_child_stays(tmp_path: Path) -> None:
    assert_purged(Root(str(tmp_path)))


def test_the_same_on_a_store(s3_server: dict[str, str], tmp_path: Path) -> None:
    assert_purged(Root(f"s3://lake/{tmp_path.name}", tuple(sorted(s3_server.items()))))


def test_nothing_goes_before_its_time(tmp_path: Path) -> None:
    publish(Root(str(tmp_path)), TINY)
    place = DatasetPlace.of(f"{tmp_path}/datasets/given", {})
    with pytest.raises(InputError, match="nothing was taken down"):
        plan_purge(place, NOTHING, LATER)
    request(place, keys(emitted(version(place, 1))["key"].to_list()[:1]))
    with pytest.raises(InputError, match="less than the grace period of 30 days"):
        plan_purge(place, timedelta(days=30), datetime.now(UTC))


def test_a_purge_that_was_killed_goes_on(tmp_path: Path) -> None:
    place, _, _ = purged(Root(str(tmp_path / "a")))
    root = Root(str(tmp_path / "b"))
    publish(root, TINY, shard_multiple=8)
    half = DatasetPlace.of(f"{tmp_path}/b/datasets/given", {})
    names = emitted(version(half, 1))["key"].to_list()
    request(half, keys(names[:1]))
    request(half, keys(names[-1:]))
    first = plan_purge(half, NOTHING, LATER)
    purge(half, replace(first, files=first.files[:5], raw=()))
    purge(half, plan_purge(half, NOTHING, LATER))
    assert contents(half.root, "datasets/given") == contents(place.root, "datasets/given")


def test_raw_parts_are_written_anew(quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their tars hold no such picture any more, and the run goes on from what is left."""
    root = tmp_path / "root"
    shutil.copytree(quickstart_run, root)
    place = DatasetPlace.of(f"{root}/datasets/quickstart", {})
    rows = emitted(place.latest())
    asked = [rows.filter(rows["source"] == source)["key"][0] for source in ("photos", "archive")]
    request(place, keys(asked))
    planned = plan_purge(place, NOTHING, LATER)
    assert any(path.endswith(".tar") for path in planned.outside)
    assert planned.raw
    old = [root / path for part in planned.raw for path in part.objects]
    assert all(path.exists() for path in old)
    purge(place, planned)
    assert not any(path.exists() for path in old)
    assert plan_purge(place, NOTHING, LATER).raw == ()
    tars = [tar for tar in root.glob("runs/*/download/*/data/*.raw.tar") if asked[0].encode() in tar.read_bytes()]
    assert not tars
    later = run_again(root, quickstart_run)
    assert_sound(later)
    assert not set(asked) & set(emitted(later)["key"])
    told = later.ledger().filter(pl.col("key") == asked[0]).collect().row(0, named=True)
    assert (told["stage"], told["reason"]) == ("download", "takedown")
    print_why(later.version.root.url, asked[0], [])
    assert "requests               1\n" in (said := capsys.readouterr().out)
    assert "reason                 takedown\n" in said
