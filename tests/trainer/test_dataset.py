"""ShardDataset on real tars: what a view holds, what a sample holds, and errors that name what is broken."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dataengine.errors import ConfigError, CorruptObject, InputError, MissingObject
from dataengine.storage.store import Root
from dataengine.storage.tar import header
from dataengine.trainer import Buckets, Mixture, ShardDataset
from dataengine.trainer.samples import sample_rng
from dataengine.trainer.tarset import parse_sample
from tests.trainer.publishing import publish, read_rows, write_manifest, write_siblings


def keys(dataset: ShardDataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


@pytest.mark.parametrize("address", ["manifest.json", ".", ".."])
def test_opens_a_manifest_a_version_or_a_dataset(published: Path, address: str) -> None:
    dataset = ShardDataset((published / address).resolve(), decode="bytes")
    assert keys(dataset) == [row["key"] for row in read_rows(published)]


def test_a_sample_holds_what_the_tar_holds(published: Path) -> None:
    rows = read_rows(published)
    for row, sample in zip(rows, ShardDataset(published), strict=True):
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
    dataset = ShardDataset(published, parts=("txt",), transform=sorted)
    assert dataset[0] == ["__epoch__", "__key__", "__replaced__", "__shard__", "__source__", "txt"]
    raw = ShardDataset(published, parts=("json", "image"), decode="bytes")[3]
    assert raw["image"][:2] == b"\xff\xd8"
    assert json.loads(raw["json"])["key"] == raw["__key__"]


def test_pixels_and_own_decoders(published: Path) -> None:
    picture, pixels = (ShardDataset(published, parts=("image",), decode=how)[5]["image"] for how in ("pil", "rgb"))
    assert (pixels.shape, pixels.dtype) == ((12, 16, 3), np.uint8)
    assert np.abs(pixels.astype(int) - np.asarray(picture)).max() <= 3
    assert ShardDataset(published, parts=("image",), decode=len)[5]["image"] > 100


def test_indexing(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes")
    whole = keys(dataset)
    assert len(dataset) == 18
    assert [sample["__key__"] for sample in dataset.__getitems__([17, 0, 5, 5])] == [whole[at] for at in (17, 0, 5, 5)]
    assert dataset[-1]["__key__"] == whole[-1]
    for place in (18, -19):
        with pytest.raises(IndexError, match="18 samples"):
            dataset[place]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchs_own_loader_and_samplers(published: Path, num_workers: int) -> None:
    dataset = ShardDataset(published, parts=("txt",))
    sampler = torch.utils.data.RandomSampler(dataset)
    loader = torch.utils.data.DataLoader(dataset, 4, sampler=sampler, num_workers=num_workers, collate_fn=list)
    assert sorted(sample["__key__"] for batch in loader for sample in batch) == sorted(keys(dataset))


def test_repeats_and_splits(repeated: Path) -> None:
    rows = read_rows(repeated)
    wanted = Counter({row["key"]: row["repeat"] for row in rows if row["split"] == "train"})
    assert Counter(keys(ShardDataset(repeated, decode="bytes"))) == wanted
    assert Counter(keys(ShardDataset(repeated, decode="bytes", repeats=False))) == Counter(dict.fromkeys(wanted, 1))
    held = [row["key"] for row in rows if row["split"] == "holdout"]
    assert keys(ShardDataset(repeated, split="holdout", decode="bytes", repeats=False)) == held


def test_a_condition_chooses_rows(repeated: Path) -> None:
    chosen = ShardDataset(repeated, where="aesthetic > 5 and source = 'alpha'", decode="bytes")
    rows = [row for row in read_rows(repeated) if row["split"] == "train" and row["source"] == "alpha"]
    wanted = Counter({row["key"]: row["repeat"] for row in rows if (row["aesthetic"] or 0) > 5})
    assert Counter(keys(chosen)) == wanted
    assert 0 < len(wanted) < len(rows)


def test_a_mixture_names_sources_or_conditions(published: Path) -> None:
    rows = read_rows(published)
    only = ShardDataset(published, mixture={"beta": 1}, decode="bytes")
    assert set(keys(only)) == {row["key"] for row in rows if row["source"] == "beta"}
    where = {"fine": "aesthetic > 5", "rest": "aesthetic <= 5 or aesthetic is null"}
    streams = ShardDataset(published, mixture=Mixture({"fine": 1, "rest": 3}, where), decode="bytes")
    assert sorted(keys(streams)) == sorted(row["key"] for row in rows)
    assert streams.view.names == ("fine", "rest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ()}, "parts"),
        ({"parts": "image"}, "parts='image'"),
        ({"decode": "cv2"}, "decode='cv2'"),
        ({"decode": "scaled"}, "to cover which shape"),
        ({"split": "test"}, "split='test'"),
        ({"mixture": {"gamma": 1}}, r"\['gamma'\]; wanted some of \['alpha', 'beta'\]"),
        ({"mixture": {"alpha": -1, "beta": 1}}, "weights"),
        ({"where": "aesthetic >"}, "where='aesthetic >'"),
        ({"where": "width"}, "gives Float64, wanted true or false"),
        ({"mixture": Mixture({"x": 1}, {"x": "width >"})}, r"mixture.where\['x'\]"),
    ],
)
def test_bad_arguments_are_named(published: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardDataset(published, **options)


def test_a_view_without_rows_is_refused(published: Path) -> None:
    with pytest.raises(InputError, match="no samples of split 'holdout'"):
        ShardDataset(published, split="holdout")
    with pytest.raises(InputError, match="no samples of split 'train' where width > 99"):
        ShardDataset(published, where="width > 99")
    with pytest.raises(ConfigError, match=r"where='widht > 99': no column 'widht'; did you mean width\? columns are"):
        ShardDataset(published, where="widht > 99")


def test_survives_pickling(published: Path) -> None:
    dataset = ShardDataset(published, decode="bytes")
    assert keys(pickle.loads(pickle.dumps(dataset))) == keys(dataset)


def test_map_style_samples_differ_by_the_epoch_that_is_set(published: Path) -> None:
    def chance(sample: dict[str, Any], rng: np.random.Generator) -> tuple[str, int, float]:
        return sample["__key__"], sample["__epoch__"], rng.random()

    mixture = Mixture({"alpha": 1, "beta": 1})
    dataset = ShardDataset(published, parts=("txt",), seed=3, transform=chance, mixture=mixture)
    first = list(dataset)
    dataset.set_epoch(4)
    fifth = list(pickle.loads(pickle.dumps(ShardDataset(published, parts=("txt",), mixture=mixture))))
    assert [key for key, *_ in dataset] == [key for key, *_ in first] == [sample["__key__"] for sample in fifth]
    for key, epoch, number in dataset:
        assert (epoch, number) == (4, sample_rng(3, 4, key).random())
    with pytest.raises(ConfigError, match="epoch=-1"):
        dataset.set_epoch(-1)


def test_threads_may_share_a_dataset(published: Path) -> None:
    dataset = ShardDataset(published, parts=("txt",))
    wanted = [row["key"] for row in read_rows(published)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda place: dataset[place]["__key__"], [*range(18)] * 50))
    assert found == wanted * 50


def test_a_relative_path_stays_where_it_was(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(published.parent)
    dataset = ShardDataset(published.name, parts=("txt",))
    monkeypatch.chdir(tmp_path)
    assert len(keys(dataset)) == 18


def test_siblings_are_read_beside(published: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "v000001"))
    latents = write_siblings(folder, "latents/dcae")
    both = ShardDataset(folder, parts=("txt", "latent"), siblings={"latent": "latents/dcae"})
    for sample in both:
        assert sample["latent"].tolist() == latents[sample["__key__"]].tolist()
    shutil.rmtree(folder / "alpha")
    alone = ShardDataset(folder, parts=("latent",), siblings={"latent": str(folder / "latents/dcae")})
    assert [sample["__key__"] for sample in alone] == [row["key"] for row in read_rows(folder)]


def test_a_sibling_of_another_sample_is_noticed(published: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "v000001"))
    write_siblings(folder, "latents", rename=lambda key: key[::-1])
    with pytest.raises(CorruptObject, match="of latent: holds key"):
        ShardDataset(folder, parts=("txt", "latent"), siblings={"latent": "latents"})[0]


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Path:
    """A private copy, to break."""
    return Path(shutil.copytree(published, tmp_path / "v000001"))


def drain(folder: Path, **options: Any) -> None:
    for _ in ShardDataset(folder, **options):
        pass


def test_a_missing_shard_is_named(broken: Path) -> None:
    (broken / "alpha/alpha-000001.tar").unlink()
    with pytest.raises(MissingObject, match=r"shard alpha-000001, sample 0: .*copy the shard"):
        drain(broken)


def test_a_missing_index_is_named(broken: Path) -> None:
    (broken / "alpha/alpha-000001.tar.idx").unlink()
    with pytest.raises(MissingObject, match=r"shard alpha-000001, sample 0: .*tar.idx: no such object"):
        drain(broken)


def test_a_short_shard_is_named(broken: Path) -> None:
    tar = broken / "beta/beta-000000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(CorruptObject, match=r"shard beta-000000, sample 0: .*holds 9000 bytes, the manifest says"):
        drain(broken)


@pytest.mark.parametrize(
    ("suffixes", "check_hashes", "fault"),
    [
        ([".tar"], False, "the index says"),
        ([".tar", ".tar.idx"], False, "holds key .*, its shard keys from"),
        ([".tar", ".tar.idx"], True, "holds key"),
    ],
)
def test_swapped_shards_are_named(tmp_path: Path, suffixes: list[str], check_hashes: bool, fault: str) -> None:
    """Of one size: samples of other lengths do not fit the index; where that was swapped, too, keys tell."""
    sizes = {"alpha": (6, 6)}
    folder = publish(tmp_path / "datasets" / "pairs", sizes, picture_size=lambda number: (16 + 8 * number, 16))
    for suffix in suffixes:
        first, second = (folder / f"alpha/alpha-00000{number}{suffix}" for number in (0, 1))
        assert first.stat().st_size == second.stat().st_size
        first.rename(tmp_path / "first")
        second.rename(first)
        (tmp_path / "first").rename(second)
    with pytest.raises(CorruptObject, match=f"shard alpha-000000, sample 0: .*{fault}"):
        drain(folder, check_hashes=check_hashes)


def test_a_short_index_is_named(broken: Path) -> None:
    index = broken / "beta/beta-000000.tar.idx"
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(CorruptObject, match=r"shard beta-000000, sample 5: .*tar.idx: has no entry 5"):
        drain(broken)


def test_another_index_is_noticed(broken: Path) -> None:
    index = np.fromfile(broken / "beta/beta-000000.tar.idx", "<u8")
    cut, inside = index.copy(), index.copy()
    cut[1] -= 512
    inside[1] = index[2]
    for wrong, message in ((index + 512, "holds key|no ustar header"), (cut, "the index says"), (inside, "beside key")):
        wrong.astype("<u8").tofile(broken / "beta/beta-000000.tar.idx")
        with pytest.raises(CorruptObject, match=rf"shard beta-000000, sample 0: .*({message})"):
            drain(broken, mixture={"beta": 1})


def test_samples_may_be_read_again_and_again(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (300, 129)})
    dataset = ShardDataset(folder, parts=("txt",), decode="bytes")
    places = [*range(429), *range(428, -1, -1), *[127, 128, 299, 300, 428] * 200]
    by_place = [sample["__key__"] for sample in dataset]
    assert [sample["__key__"] for sample in dataset.__getitems__(places)] == [by_place[place] for place in places]


def test_an_index_that_is_mended_in_place_is_read_again(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (20,)})
    (index,) = folder.rglob("*.tar.idx")
    whole = index.read_bytes()
    keys = [sample["__key__"] for sample in ShardDataset(folder, parts=("txt",), decode="bytes")]
    for damaged in (whole[:64], whole[:56] + bytes(8) + whole[64:], whole[:56] + whole[48:56] + whole[64:]):
        index.write_bytes(damaged)
        dataset = ShardDataset(folder, parts=("txt",), decode="bytes")
        with pytest.raises(CorruptObject):
            dataset[7]
        index.write_bytes(whole)
        assert dataset[7]["__key__"] == keys[7]


def test_a_member_of_negative_size_is_no_endless_loop() -> None:
    head = bytearray(header("ab.txt", 0))
    head[124:135] = b"-0000001000"
    with pytest.raises(ValueError, match="of -512 bytes"):
        parse_sample(bytes(head) + bytes(512))


@pytest.mark.parametrize("entry", [0, 2**40, 2**63, 2**64 - 1])
def test_an_index_beyond_its_tar_is_named(broken: Path, entry: int) -> None:
    """Nothing of that size is read, or asked of the system."""
    index = np.fromfile(broken / "beta/beta-000000.tar.idx", "<u8")
    index[1] = entry
    index.tofile(broken / "beta/beta-000000.tar.idx")
    with pytest.raises(CorruptObject, match=rf"tar.idx: has sample 0 at bytes 0 to {entry} of \d+; copy the shard"):
        drain(broken, mixture={"beta": 1})


def test_a_picture_that_does_not_decode_is_named(broken: Path) -> None:
    row = overwrite(broken, 3, lambda content: bytes(40) + content[40:])
    with pytest.raises(CorruptObject, match=rf"key {row['key']}: .*does not decode"):
        drain(broken)


def test_hashes_are_compared_when_asked(broken: Path) -> None:
    drain(broken, check_hashes=True)
    row = overwrite(broken, 3, lambda content: content[:-3] + b"\0" + content[-2:])
    drain(broken, decode="bytes")
    with pytest.raises(
        CorruptObject, match=rf"shard {row['shard']}, sample {row['index_in_shard']}: holds key .* xxh3"
    ):
        drain(broken, decode="bytes", check_hashes=True)


def test_a_sample_in_another_ones_place_is_noticed_when_asked(broken: Path) -> None:
    """Two samples of one tar, exchanged whole: each is sound, and neither is what the table says."""
    index = np.fromfile(broken / "beta/beta-000000.tar.idx", "<u8")
    tar = broken / "beta/beta-000000.tar"
    content = tar.read_bytes()
    pieces = [content[begin:end] for begin, end in pairwise(index.tolist())]
    assert len(pieces[0]) == len(pieces[1])
    tar.write_bytes(b"".join([pieces[1], pieces[0], *pieces[2:]]) + content[index[-1] :])
    drain(broken)
    with pytest.raises(CorruptObject, match=r"shard beta-000000, sample 0: holds key"):
        drain(broken, check_hashes=True)


def test_a_bit_that_has_flipped_in_a_table_is_noticed(broken: Path) -> None:
    """Pages carry checksums: a flipped width or hash would otherwise choose other rows, or accuse a sound sample."""
    part = broken / "samples/part-000001.parquet"
    group = pq.ParquetFile(part).metadata.row_group(0)
    (column,) = (group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == "xxh3")
    content = bytearray(part.read_bytes())
    content[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"part-000001.parquet: not a readable Parquet file .*verify"):
        ShardDataset(broken, check_hashes=True)


def test_each_part_of_the_table_is_read_once_for_hashes(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    open_file = Root.open
    monkeypatch.setattr(Root, "open", lambda root, path: opened.update([path]) or open_file(root, path))
    dataset = ShardDataset(published, check_hashes=True)
    for _ in range(2):
        assert len(list(dataset)) == 18
    tables = {path: count for path, count in opened.items() if path.endswith(".parquet")}
    assert tables == {"shards.parquet": 1, "samples/part-000000.parquet": 1, "samples/part-000001.parquet": 1}


@pytest.mark.parametrize("wrong", ["", "0" * 15, "0" * 14 + "zz", "  " + "0" * 14])
def test_a_table_without_hashes_is_refused_when_they_are_asked_for(tmp_path: Path, wrong: str) -> None:
    folder = publish(tmp_path / "pairs")
    part = folder / "samples/part-000001.parquet"
    table = pq.read_table(part)
    place = table.schema.get_field_index("xxh3")
    hashes = [wrong, *table["xxh3"].to_pylist()[1:]]
    pq.write_table(table.set_column(place, table.schema.field("xxh3"), [hashes]), part)
    assert len(list(ShardDataset(folder))) == 18
    with pytest.raises(InputError, match=r"samples: a key or xxh3 is not 16 hexadecimal characters"):
        ShardDataset(folder, check_hashes=True)


def test_a_row_that_stands_for_another_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    part = folder / "samples/part-000001.parquet"
    table = pq.read_table(part)
    twice = [0, 0, *range(2, len(table))]
    pq.write_table(table.take(twice), part)
    with pytest.raises(InputError, match=r"has no row for sample 4 of shard alpha-000001, and another one twice"):
        ShardDataset(folder, where="width > 1")


def overwrite(folder: Path, number: int, change: Callable[[bytes], bytes]) -> dict[str, Any]:
    """Change the picture of a row, and return the row."""
    row = read_rows(folder)[number]
    tar = folder / row["source"] / f"{row['shard']}.tar"
    content = bytearray(tar.read_bytes())
    place = slice(row["image_offset"], row["image_offset"] + row["image_nbytes"])
    content[place] = change(bytes(content[place]))
    tar.write_bytes(content)
    return row


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


def relocate(folder: Path, move: Callable[[str], str]) -> None:
    rows = pq.read_table(folder / "shards.parquet")
    paths = [move(path) for path in rows["path"].to_pylist()]
    position = rows.schema.get_field_index("path")
    pq.write_table(rows.set_column(position, rows.schema.field("path"), [paths]), folder / "shards.parquet")


def test_buckets_are_assigned_without_opening_a_sample(tmp_path: Path) -> None:
    folder = publish(
        tmp_path / "pairs", picture_size=lambda number: ((16, 12), (12, 16), (20, 20), (64, 20))[number % 4]
    )
    for tar in folder.rglob("*.tar"):
        tar.rename(tar.with_suffix(".away"))
    buckets = Buckets(((24, 32), (32, 32), (32, 24), (40, 20)))
    dataset = ShardDataset(folder, parts=("image",), buckets=buckets)
    assert [stream.bucket for stream in dataset.view.streams] == [0, 1, 2, 3]
    assert [row["samples"] for row in dataset.view.fitting] == [5, 4, 5, 4]
    assert [round(row["crop_loss"], 3) for row in dataset.view.fitting] == [0, 0, 0, 0.375]
    for away in folder.rglob("*.away"):
        away.rename(away.with_suffix(".tar"))
    for sample in (*dataset, *ShardDataset(folder, parts=("image",), buckets=buckets, decode="scaled")):
        width, height = sample["__bucket__"]
        assert sample["image"].shape == (height, width, 3)


def test_bucket_shapes() -> None:
    shapes = Buckets.around(512, multiple=64).shapes
    assert (512, 512) in shapes
    assert all(width % 64 == height % 64 == 0 and 0.8 < width * height / 512**2 < 1.2 for width, height in shapes)
    for wrong in ((), ((0, 4),), ((4, 4), (8, 8)), ((8, 4), (4, 8))):
        with pytest.raises(ConfigError, match="buckets"):
            Buckets(wrong)
    assert Buckets(((4, 4), (8, 4)), max_batch_pixels=16 * 40).batch_size(1, 64) == 16
    with pytest.raises(ConfigError, match="raise it to 128"):
        Buckets(((4, 4),), max_batch_pixels=100).batch_size(0, 64)


def test_tables_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    part = folder / "samples/part-000001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-100])
    assert len(ShardDataset(folder)) == 18  # nobody asked about rows
    with pytest.raises(InputError, match=r"part-000001.parquet: not a readable Parquet file"):
        ShardDataset(folder, where="width > 1")
    part.write_bytes((folder / "samples/part-000000.parquet").read_bytes())
    part.with_name("part-000002.parquet").write_bytes(part.read_bytes())
    write_manifest(folder)
    with pytest.raises(InputError, match="counts 18 samples in 3 shards, the manifest says 30 in 3"):
        ShardDataset(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"] |= {"num_samples": 18, "num_draws": 18}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="holds 30 rows, the manifest says 18"):
        ShardDataset(folder, where="width > 1")
    (folder / "samples/part-000002.parquet").write_bytes((folder / "shards.parquet").read_bytes())
    with pytest.raises(InputError, match=r"lacks the columns \['index_in_shard', 'width'\]"):
        ShardDataset(folder, where="width > 1")
