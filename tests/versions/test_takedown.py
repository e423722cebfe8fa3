"""What is taken down is gone from the latest version and stays out; everything else is as it was."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import load_config
from dataengine.errors import ConfigError, CorruptObject, InputError, TryAgainError
from dataengine.job import run_job
from dataengine.storage.store import Root
from dataengine.storage.takedowns import register_list
from dataengine.testing.given import GivenSource
from dataengine.trainer.dataset import ShardDataset
from dataengine.versions.lists import Entry
from dataengine.versions.materialize import materialize
from dataengine.versions.place import DatasetPlace
from dataengine.versions.takedown import Done, survey, take_down
from tests.conftest import REPOSITORY, SMALL
from tests.crashes import Clock, Crash, clock
from tests.emit.publishing import contents, publish

__all__ = ["clock"]
GIVEN = (
    GivenSource("birds", 1400, 500, image_bytes=900, holdout_every=9, max_repeat=2),
    GivenSource("cats", 800, 400, formats=("jpg", "png"), seed=1),
)
TINY = (GivenSource("birds", 30, 30, image_bytes=700, formats=("jpg",)),)


def request(place: DatasetPlace, entries: list[Entry], reason: str = "asked", distance: int = 0) -> Done:
    """Take `entries` down."""
    return take_down(place, entries, reason, distance, survey(place, entries, distance).match)


def keys(names: list[str]) -> list[Entry]:
    return [Entry("key", name) for name in names]


def emitted(dataset: Dataset) -> pl.DataFrame:
    return dataset.samples().sort("key").collect()


def version(place: DatasetPlace, number: int) -> Dataset:
    return open_dataset(place.root.address(place.path(number)), dict(place.root.options))


def assert_sound(*datasets: Dataset) -> None:
    for dataset in datasets:
        assert verify(dataset, full=True, sample=2, progress=lambda *_: None) == []


def read_all(dataset: Dataset) -> set[str]:
    """Keys that the reader yields, of both splits."""
    found = set()
    splits = set(emitted(dataset)["split"])
    for split in splits:
        options = dict(dataset.version.root.options)
        reader = ShardDataset(dataset.version.root.url, split=split, decode="bytes", storage_options=options)
        found |= {sample["__key__"] for sample in reader}
    return found


def assert_taken_down(root: Root, num_keys: int, given: tuple[GivenSource, ...], **how: int) -> None:
    """Take every so many-th sample of `given` down, and look at everything that can be seen of it."""
    folder = publish(root, given, **how)
    before = contents(root, folder)
    place = DatasetPlace.of(root.address("datasets/given"), dict(root.options))
    parent = version(place, 1)
    rows = emitted(parent)
    asked = rows[:: len(rows) // num_keys][:num_keys]
    gone = rows.filter(pl.col("sha256").is_in(asked["sha256"].implode()))  # a picture may be in two sources
    done = request(place, keys(asked["key"].to_list()))
    child = version(place, 2)
    touched = set(gone["shard"])
    assert (done.num_removed, done.num_shards) == (len(gone), len(touched))
    assert contents(root, folder) == before
    assert_sound(parent, child)
    left = set(rows["key"]) - set(gone["key"])
    assert set(emitted(child)["key"]) == left == read_all(child)
    for row in child.shards().collect().iter_rows(named=True):
        assert row["path"].startswith("../v000001/") == (row["shard"] not in touched)
        old = parent.shards().filter(pl.col("shard") == row["shard"]).collect().row(0, named=True)
        assert (row["sha256"] == old["sha256"]) == (row["shard"] not in touched)
    written = {path for path in contents(root, place.path(2)) if path.endswith(".tar")}
    assert len(written) == len(touched)
    stones = child.ledger().filter(pl.col("reason") == "takedown").collect()
    assert set(stones["key"]) == set(gone["key"])
    assert set(stones["stage"]) == {"takedown"}
    assert all(said.startswith("takedowns/000001.txt: asked; ") for said in stones["rule_value"])
    assert read_all(parent) == set(rows["key"])


def test_keys_are_taken_down(tmp_path: Path) -> None:
    assert_taken_down(Root(str(tmp_path)), 12, GIVEN, shard_multiple=32)


def test_keys_are_taken_down_on_a_store(s3_server: dict[str, str], tmp_path: Path) -> None:
    root = Root(f"s3://lake/{tmp_path.name}", tuple(sorted(s3_server.items())))
    assert_taken_down(root, 5, GIVEN[1:], shard_multiple=16)


@pytest.mark.slow
def test_a_hundred_keys_of_fifty_thousand(tmp_path: Path) -> None:
    given = (GivenSource("birds", 56_000, 5000, image_bytes=500, holdout_every=50),)
    assert_taken_down(Root(str(tmp_path)), 100, given, shard_multiple=256)


def test_a_shard_that_loses_all_is_gone(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    publish(root, TINY)
    place = DatasetPlace.of(f"{tmp_path}/datasets/given", {})
    rows = emitted(version(place, 1))
    request(place, keys(rows.filter(pl.col("shard") == "birds-000001")["key"].to_list()))
    child = version(place, 2)
    assert "birds-000001" not in set(child.shards().collect()["shard"])
    assert_sound(child)
    whole = request(place, keys(rows["key"].to_list()))
    assert version(place, 3).manifest["counts"]["num_samples"] == 0
    assert whole.version.endswith("v000003")
    assert_sound(version(place, 3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which TINY is published; to be copied."""
    folder = tmp_path_factory.mktemp("tiny")
    publish(Root(str(folder)), TINY, shard_multiple=4)
    return folder


def place_in(folder: Path, original: Path) -> tuple[DatasetPlace, list[str]]:
    shutil.copytree(original, folder)
    place = DatasetPlace.of(f"{folder}/datasets/given", {})
    return place, emitted(version(place, 1))["key"].to_list()


def test_asking_again_makes_nothing_new(tiny: Path, tmp_path: Path) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    first = request(place, keys(names[:2]))
    again = request(place, keys(names[:2]))
    assert (again.version, again.list_path, again.num_removed) == (first.version, first.list_path, 0)
    assert not place.root.list("datasets/given/v000003")


def test_a_list_that_names_nobody_does_nothing(tiny: Path, tmp_path: Path) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    with pytest.raises(InputError, match="none of the 1 entries names a candidate"):
        survey(place, keys(["0" * 32]), 0)
    found = survey(place, [*keys([names[0], "0" * 32]), Entry("url", "http://no.test/")], 0).match
    assert list(map(str, found.unmatched)) == ["key " + "0" * 32, "url http://no.test/"]
    assert not place.root.list("takedowns")


def test_two_at_once_leave_a_version_without_either(tiny: Path, tmp_path: Path) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    together = Barrier(4)

    def drive(number: int) -> Done:
        together.wait()
        return request(place, keys([names[number % 2]]))

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(drive, range(4)))
    assert len({item.list_path for item in done}) == 2
    assert set(emitted(place.latest())["key"]) == set(names[2:])
    assert_sound(place.latest())


def kill_and_ask_again(tiny: Path, tmp_path: Path, clock: Clock, step: int) -> None:
    """Die at every `step`th operation of a store; ask again after each death."""
    place, names = place_in(tmp_path / "undisturbed", tiny)
    clock.reset()
    request(place, keys(names[:2]))
    num_operations = clock.now
    wanted = contents(place.root, place.path(2))
    assert num_operations > 100
    for crash_at in range(1, num_operations, step):
        place, _ = place_in(tmp_path / str(crash_at), tiny)
        clock.reset(crash_at)
        with pytest.raises(Crash):
            request(place, keys(names[:2]))
        clock.reset()
        number = int(place.latest().manifest["version"])
        assert number == 1 or contents(place.root, place.path(2)) == wanted, crash_at
        assert request(place, keys(names[:2])).version.endswith("v000002"), crash_at
        assert contents(place.root, place.path(2)) == wanted, crash_at
        assert len(place.root.list("takedowns")) == 1


def test_killed_now_and_then_it_makes_one_version(tiny: Path, tmp_path: Path, clock: Clock) -> None:
    kill_and_ask_again(tiny, tmp_path, clock, step=37)


@pytest.mark.slow
def test_killed_anywhere_it_makes_one_version(tiny: Path, tmp_path: Path, clock: Clock) -> None:
    kill_and_ask_again(tiny, tmp_path, clock, step=1)


def test_a_version_elsewhere_has_no_children(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="got no <root>/datasets/<name>"):
        DatasetPlace.of(str(tiny), {})


@pytest.mark.parametrize("address", ["v000009", "v000009/manifest.json"])
def test_a_version_that_is_not_there_is_no_other_one(address: str, tiny: Path, tmp_path: Path) -> None:
    place, _ = place_in(tmp_path / "work", tiny)
    folder = place.root.address(place.folder)
    assert DatasetPlace.of(f"{folder}/v000001", {}) == place
    with pytest.raises(InputError, match=r"v000009.*no such version"):
        DatasetPlace.of(f"{folder}/{address}", {})


def test_a_materialised_child_needs_nobody(tiny: Path, tmp_path: Path) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    done = request(place, keys(names[:1]))
    materialize(done.version, str(tmp_path / "whole"), {})
    materialize(done.version, str(tmp_path / "whole"), {})  # the same again finds it done
    shutil.rmtree(tmp_path / "work")
    dataset = open_dataset(tmp_path / "whole")
    assert_sound(dataset)
    assert read_all(dataset) == set(names[1:])
    assert "../" not in "".join(path.read_text() for path in (tmp_path / "whole").rglob("urls.txt"))


def test_a_folder_that_holds_something_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds mine\.txt already"):
        materialize(str(tiny / "datasets" / "given"), str(tmp_path), {})


@pytest.mark.parametrize("path", ["samples/part-000000.parquet", "ledger/part-000000.parquet", "shards.parquet"])
def test_an_edited_table_gets_no_sound_looking_child(tiny: Path, tmp_path: Path, path: str) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    table = tmp_path / "work" / place.path(1) / path
    sound, rows = table.read_bytes(), pq.read_table(table)
    text = "path" if path == "shards.parquet" else "source"
    edited = pa.array([f"{value}" for value in reversed(rows.column(text).to_pylist())], rows.schema.field(text).type)
    place_of = rows.schema.get_field_index(text)
    pq.write_table(rows.set_column(place_of, rows.schema.field(text), edited), table, write_page_checksum=True)
    with pytest.raises(CorruptObject, match=f"{path}: has sha256 .*; restore the file"):
        request(place, keys(names[:1]))
    assert int(place.latest().manifest["version"]) == 1
    table.write_bytes(sound)
    request(place, keys(names[:1]))
    assert_sound(place.latest())


def test_a_list_that_was_overwritten_is_named(tiny: Path, tmp_path: Path) -> None:
    place, names = place_in(tmp_path / "work", tiny)
    request(place, keys(names[:1]))
    (tmp_path / "work/takedowns/000001.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"000001\.txt: not UTF-8 text"):
        request(place, keys(names[1:2]))


@pytest.mark.parametrize("where", ["v000002", "v000001/whole", "shards/../v000002", "v000002/"])
def test_a_whole_folder_is_no_version(tiny: Path, tmp_path: Path, where: str) -> None:
    """It would be the latest, and bring back what was taken down since."""
    place, _ = place_in(tmp_path / "work", tiny)
    before = contents(place.root, place.folder)
    with pytest.raises(InputError, match="the place of a numbered version"):
        materialize(place.root.address(place.path(1)), f"{place.root.address(place.folder)}/{where}", {})
    assert contents(place.root, place.folder) == before


def test_a_bucket_without_a_name_is_no_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names no bucket"):
        materialize(str(tiny / "datasets" / "given"), "s3://", {})
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_size_is_no_file_of_the_copy(tiny: Path, tmp_path: Path) -> None:
    tar = tmp_path / "whole" / "birds" / "birds-000000.tar"
    tar.parent.mkdir(parents=True)
    tar.write_bytes(b"half")
    with pytest.raises(InputError, match=r"holds birds/birds-000000\.tar of 4 bytes, wanted \d+; delete it"):
        materialize(str(tiny / "datasets" / "given"), str(tmp_path / "whole"), {})


@pytest.fixture(scope="module")
def every_copy(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart again, with no duplicate left out."""
    root = tmp_path_factory.mktemp("copies") / "root"
    shutil.copytree(quickstart_run, root)
    run_again(root, quickstart_run, "select.survivors.policy=none")
    return root


def run_again(root: Path, inputs: Path, *more: str) -> Dataset:
    """What the quickstart's config publishes in `root` now, its inputs as they lay at first."""
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL, "sample_web=null", *more])
    sources = {
        name: source.model_copy(update={"paths": tuple(p.replace("{root}", str(inputs)) for p in source.paths)})
        for name, source in config.sources.items()
    }
    finished = run_job(config.model_copy(update={"sources": sources}), console=Console(quiet=True))
    assert finished.dataset is not None
    return open_dataset(finished.dataset)


def test_copies_go_with_it_and_stay_out(every_copy: Path, quickstart_run: Path, tmp_path: Path) -> None:
    """A sample of a class and its near-duplicates: by the run's own tables, in the child and in every later run."""
    root = tmp_path / "root"
    shutil.copytree(every_copy, root)
    place = DatasetPlace.of(f"{root}/datasets/quickstart", {})
    edges = pl.concat(pl.read_parquet(path) for path in root.glob("runs/*/dedup/images-*/data/*.edge.parquet"))
    there = set(emitted(place.latest())["key"])
    pairs = edges.filter(pl.col("left_key").is_in(there) & pl.col("right_key").is_in(there))
    assert len(pairs)
    key = pairs["left_key"][0]
    near = {key, *pairs.filter(pl.col("left_key") == key)["right_key"]}
    before = int(place.latest().manifest["version"])
    request(place, keys([key]))
    child = place.latest()
    assert int(child.manifest["version"]) == before + 1
    assert not near & set(emitted(child)["key"])
    assert_sound(child)
    stones = child.ledger().filter(pl.col("reason") == "takedown").collect()
    assert near <= set(stones["key"])
    # The run as it was, whose survivors would be others now that the best copy is gone.
    for policy in ("image", "none"):
        later = run_again(root, quickstart_run, f"select.survivors.policy={policy}")
        assert int(later.manifest["version"]) > before + 1
        assert not set(stones["key"]) & set(emitted(later)["key"])
        dropped = later.ledger().filter(pl.col("key").is_in(near)).collect()
        assert set(dropped["reason"]) == {"takedown"}
        assert_sound(later)


def test_without_the_run_the_version_tells_of_copies(quickstart_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_run / "datasets", tmp_path / "datasets")
    place = DatasetPlace.of(f"{tmp_path}/datasets/quickstart", {})
    dropped = place.latest().ledger().filter(pl.col("reason") == "duplicate_image").collect()
    present = dropped.filter(pl.col("survivor_key").is_in(set(emitted(place.latest())["key"])))
    key, survivor = present.row(0, named=True)["key"], present.row(0, named=True)["survivor_key"]
    found = survey(place, keys([key]), 0)
    assert not found.has_duplicates
    assert survivor in set(found.match.found["key"])
    request(place, keys([key]))
    assert survivor not in set(emitted(place.latest())["key"])
    assert_sound(place.latest())


def test_a_run_that_did_not_see_a_takedown_publishes_nothing(
    quickstart_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataengine.select.stage import Select

    root = tmp_path / "root"
    shutil.copytree(quickstart_run, root)
    real = Select.run

    def late(self: Select, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]
        register_list(Root(str(root)), "# late", lambda: "domain photos.test\n")

    monkeypatch.setattr(Select, "run", late)
    with pytest.raises(TryAgainError, match=r"000001\.txt: taken down while this run was selecting"):
        run_again(root, quickstart_run, "select.balance.target=50")
    monkeypatch.setattr(Select, "run", real)
    later = run_again(root, quickstart_run, "select.balance.target=50")
    assert not later.samples().filter(pl.col("url").str.contains("photos.test")).collect().height
