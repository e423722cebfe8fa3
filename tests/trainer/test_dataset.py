"""ShardDataset on real tars: every draw once, resume at every position, errors that name what is broken."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataengine.errors import ConfigError, CorruptObject, InputError, MissingObject
from dataengine.trainer.dataset import ShardDataset
from tests.trainer.publishing import publish, read_rows


def keys(dataset: ShardDataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def joined(shares: Iterable[list[Any]]) -> list[Any]:
    return [entry for share in shares for entry in share]


def ranks_of(folder: Path, world_size: int, **options: Any) -> list[ShardDataset]:
    return [
        ShardDataset(folder, decode="bytes", rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_draw_every_sample_once(published: Path, world_size: int) -> None:
    ranks = ranks_of(published, world_size)
    drawn = [keys(rank) for rank in ranks]
    assert sorted(joined(drawn)) == sorted(row["key"] for row in read_rows(published))
    assert [len(rank) for rank in ranks] == [len(share) for share in drawn]


@pytest.mark.parametrize("address", ["manifest.json", ".", ".."])
def test_opens_a_manifest_a_version_or_a_dataset(published: Path, address: str) -> None:
    dataset = ShardDataset((published / address).resolve(), decode="bytes")
    assert len(keys(dataset)) == 18


def test_a_sample_holds_what_the_tar_holds(published: Path) -> None:
    rows = read_rows(published)
    samples = list(ShardDataset(published, shuffle=False))
    for row, sample in zip(rows, samples, strict=True):
        assert isinstance(sample["image"], Image.Image)
        assert sample["image"].size == (row["width"], row["height"])
        assert sample["txt"] == row["caption"]
        assert sample["json"]["url"] == row["url"]
        assert (sample["__key__"], sample["__source__"], sample["__shard__"]) == (
            row["key"],
            row["source"],
            row["shard"],
        )


def test_parts_and_transform(published: Path) -> None:
    dataset = ShardDataset(published, parts=("txt",), transform=lambda sample: sorted(sample))
    assert next(iter(dataset)) == ["__key__", "__shard__", "__source__", "txt"]
    raw = next(iter(ShardDataset(published, parts=("json", "image"), decode="bytes")))
    assert raw["image"][:2] == b"\xff\xd8"
    assert json.loads(raw["json"])["key"] == raw["__key__"]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeats_draw_a_sample_again(repeated: Path, world_size: int) -> None:
    wanted = Counter({row["key"]: row["repeat"] for row in read_rows(repeated) if row["split"] == "train"})
    drawn = Counter(joined(keys(rank) for rank in ranks_of(repeated, world_size)))
    assert drawn == wanted
    once = Counter(joined(keys(rank) for rank in ranks_of(repeated, world_size, repeats=False)))
    assert once == Counter(dict.fromkeys(wanted, 1))


def test_a_split_is_read_alone(repeated: Path) -> None:
    held = [row["key"] for row in read_rows(repeated) if row["split"] == "holdout"]
    assert sorted(keys(ShardDataset(repeated, split="holdout", decode="bytes", repeats=False))) == sorted(held)


def test_epochs_differ_and_advance_by_themselves(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes", seed=3)
    first, second = keys(dataset), keys(dataset)
    assert first != second
    assert sorted(first) == sorted(second)
    assert dataset.epoch == 2
    dataset.set_epoch(0)
    assert keys(dataset) == first
    other = ShardDataset(published, decode="bytes", seed=3)
    other.set_epoch(1)
    assert keys(other) == second


def test_resumes_at_every_position(repeated: Path) -> None:
    whole = keys(ShardDataset(repeated, decode="bytes", seed=5))
    for position in range(len(whole)):
        dataset = ShardDataset(repeated, decode="bytes", seed=5)
        samples = iter(dataset)
        head = [next(samples)["__key__"] for _ in range(position)]
        state = json.loads(json.dumps(dataset.state_dict()))
        again = ShardDataset(repeated, decode="bytes", seed=5)
        again.load_state_dict(state)
        again.load_state_dict(state)
        again.set_epoch(0)
        assert head + keys(again) == whole
        assert len(json.dumps(state)) < 4096


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2), (2, 2)])
def test_a_state_loads_under_another_world_size(repeated: Path, before: int, after: int) -> None:
    whole = keys(ShardDataset(repeated, decode="bytes"))
    for steps in range(len(whole) // before):
        ranks = ranks_of(repeated, before)
        iterators = [iter(rank) for rank in ranks]
        head = [next(iterator)["__key__"] for _ in range(steps) for iterator in iterators]
        states = [rank.state_dict() for rank in ranks]
        assert all(state == states[0] for state in states)
        resumed = ranks_of(repeated, after)
        for rank in resumed:
            rank.load_state_dict(states[0])
        assert head == whole[: len(head)]
        assert Counter(head + joined(keys(rank) for rank in resumed)) == Counter(whole)


def test_the_end_of_an_epoch_is_the_start_of_the_next(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes")
    keys(dataset)
    state = dataset.state_dict()
    assert (state["epoch"], state["num_consumed"]) == (1, 0)
    again = ShardDataset(published, decode="bytes")
    again.load_state_dict(state)
    assert keys(again) == keys(dataset)


def test_breaking_off_continues(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes")
    head = [next(iter(dataset))["__key__"] for _ in range(4)]
    assert head + keys(dataset) == keys(ShardDataset(published, decode="bytes"))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"seed": 1}, "seed"), ({"repeats": False}, "repeats"), ({"shuffle": False}, "shuffle")],
)
def test_a_state_of_another_view_is_refused(published: Path, options: dict[str, Any], named: str) -> None:
    state = ShardDataset(published).state_dict()
    with pytest.raises(InputError, match=named):
        ShardDataset(published, **options).load_state_dict(state)


def test_a_state_of_another_dataset_is_refused(published: Path, repeated: Path) -> None:
    with pytest.raises(InputError, match="dataset"):
        ShardDataset(published).load_state_dict(ShardDataset(repeated).state_dict())
    with pytest.raises(InputError, match="num_consumed"):
        ShardDataset(published).load_state_dict(ShardDataset(published).state_dict() | {"num_consumed": -1})


def test_survives_pickling_and_copying(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes")
    assert keys(pickle.loads(pickle.dumps(dataset))) == keys(copy.copy(dataset))


def test_bad_arguments_are_named(published: Path) -> None:
    with pytest.raises(ConfigError, match="parts"):
        ShardDataset(published, parts=("jpg",))
    with pytest.raises(ConfigError, match="decode"):
        ShardDataset(published, decode="cv2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="world_size"):
        ShardDataset(published, rank=0)
    with pytest.raises(InputError, match="holdout"):
        ShardDataset(published, split="holdout")


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Path:
    """A private copy, to break."""
    return Path(shutil.copytree(published, tmp_path / "v000001"))


def drain(folder: Path) -> None:
    for _ in ShardDataset(folder, shuffle=False):
        pass


def test_a_missing_shard_is_named(broken: Path) -> None:
    (broken / "alpha/alpha-000001.tar").unlink()
    key = next(row["key"] for row in read_rows(broken) if row["shard"] == "alpha-000001")
    with pytest.raises(MissingObject, match=rf"shard alpha-000001, key {key}, offset 512: .*copy the shard"):
        drain(broken)


def test_a_short_shard_is_named(broken: Path) -> None:
    tar = broken / "beta/beta-000000.tar"
    row = read_rows(broken)[-1]
    tar.write_bytes(tar.read_bytes()[: row["image_offset"] + 9])
    with pytest.raises(CorruptObject, match=rf"key {row['key']}, offset {row['image_offset']}: .*ends after"):
        drain(broken)


def test_another_tar_under_the_name_is_noticed(broken: Path) -> None:
    shutil.copy(broken / "alpha/alpha-000000.tar", broken / "beta/beta-000000.tar")
    with pytest.raises(CorruptObject, match="the tar holds member"):
        drain(broken)


def test_a_picture_that_does_not_decode_is_named(broken: Path) -> None:
    row = read_rows(broken)[3]
    tar = broken / row["shard"].split("-")[0] / f"{row['shard']}.tar"
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] : row["image_offset"] + 40] = bytes(40)
    tar.write_bytes(content)
    with pytest.raises(CorruptObject, match=rf"key {row['key']}, .*does not decode"):
        drain(broken)


def test_a_child_version_reads_its_parents_shards(tmp_path: Path) -> None:
    parent = publish(tmp_path / "pairs")
    child = publish(tmp_path / "pairs", version=2)
    whole = keys(ShardDataset(child, decode="bytes"))
    shutil.rmtree(child / "alpha")
    relocate(child, lambda path: path.replace("alpha/", f"../{parent.name}/alpha/"))
    assert keys(ShardDataset(child, decode="bytes")) == whole
    relocate(child, lambda path: "../../elsewhere.tar")
    with pytest.raises(InputError, match="outside its dataset"):
        ShardDataset(child)


def relocate(folder: Path, move: Any) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "shards.parquet")
    paths = [move(path) for path in rows["path"].to_pylist()]
    position = rows.schema.get_field_index("path")
    pq.write_table(rows.set_column(position, rows.schema.field("path"), [paths]), folder / "shards.parquet")
