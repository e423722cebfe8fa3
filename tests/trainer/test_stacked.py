"""Arrays that are read stacked are those read one by one, and whatever is wrong is left to the other reader."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import CorruptObject
from dataengine.storage.store import Root
from dataengine.trainer import DataLoader, ShardDataset, reader
from dataengine.trainer.arrays import array_layout, decode_array
from dataengine.trainer.index import Shard, ShardTable
from dataengine.trainer.reader import SampleReader
from dataengine.trainer.stacked import StackedReader, _Pattern
from dataengine.trainer.tarset import LocalTars, Tars
from tests.trainer.publishing import publish, read_rows, write_siblings

Member = tuple[str, bytes]
COUNT = 6
PLACES = [(0, place) for place in range(COUNT)]
HEAD = 512 + 128  # of a tar's header and an npy file's


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def keys(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def write(folder: Path, samples: Sequence[Sequence[Member]], **fields: int) -> Path:
    """`folder`/one.tar and its index."""
    path, starts = folder / "one.tar", []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples):
            starts.append(tar.offset)
            for name, content in sample:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                for field, value in fields.items():
                    setattr(entry, field, value + number)
                tar.addfile(entry, io.BytesIO(content))
        starts.append(tar.offset)
    (folder / "one.tar.idx").write_bytes(np.array(starts, "<u8").tobytes())
    return path


def opened(folder: Path) -> LocalTars:
    shard = Shard("one", "one", "one.tar", 0, "train", "", "\x7f" * 99)
    return LocalTars(Root(str(folder)), Tars(ShardTable([shard]), "latent"))


def one_by_one(folder: Path, places: Sequence[tuple[int, int]] = PLACES) -> list[tuple[str, np.ndarray]] | None:
    found = list(opened(folder).read(places))
    if not all(isinstance(sample, tuple) for sample in found):
        return None
    return [(key, decode_array(members["latent"])) for key, members in found]  # type: ignore[misc]


def check_same(found: tuple[list[str], np.ndarray] | None, wanted: list[tuple[str, np.ndarray]] | None) -> None:
    assert found is not None
    assert wanted is not None
    assert found[0] == [key for key, _ in wanted]
    assert found[1].dtype == wanted[0][1].dtype
    np.testing.assert_array_equal(found[1], np.stack([array for _, array in wanted]))


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "|u1", "<i8", "|b1", "<c8"])
@pytest.mark.parametrize("shape", [(2, 3), (4,), (), (1, 128), (3, 1, 5)])
def test_arrays_alike_are_stacked_as_they_lie_there(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    arrays = [np.asarray(rng.integers(0, 2, shape)).astype(dtype) for _ in range(COUNT)]
    write(tmp_path, [[(f"{key}.npy", npy(one))] for key, one in zip(keys(COUNT), arrays, strict=True)], mtime=9, uid=5)
    reader = StackedReader(opened(tmp_path), "latent")
    for places in (PLACES, PLACES[::-1], PLACES[2:3]):
        found = reader.read(places)
        check_same(found, one_by_one(tmp_path, places))
        assert found[1].flags.writeable  # type: ignore[index]
        assert found[1].flags.c_contiguous  # type: ignore[index]


FLOATS = np.arange(6, dtype=np.float32)
UNLIKE: dict[str, Sequence[Member]] = {
    "another dtype": [("{key}.npy", npy(FLOATS.view(np.int32)))],
    "another shape of as many bytes": [("{key}.npy", npy(FLOATS.reshape(2, 3)))],
    "another size": [("{key}.npy", npy(FLOATS.astype(np.float64)))],
    "another ending": [("{key}.bin", npy(FLOATS))],
    "a member more": [("{key}.npy", npy(FLOATS)), ("{key}.txt", b"x")],
    "a shorter key": [("{key:.30}.npy", npy(FLOATS))],
    "a dot in its key": [("{key:.30}.x.npy", npy(FLOATS))],
    "a letter that is none in its key": [("\xe9{key:.30}.npy", npy(FLOATS))],
    "no array": [("{key}.npy", b"PK" + npy(FLOATS)[2:])],
    "an empty member": [("{key}.npy", b"")],
}


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("unlike", UNLIKE.values(), ids=UNLIKE)
def test_what_is_not_alike_is_left_to_the_other_reader(tmp_path: Path, unlike: Sequence[Member], place: int) -> None:
    samples = [[(f"{key}.npy", npy(FLOATS))] for key in keys(COUNT)]
    samples[place] = [(name.format(key=keys(COUNT)[place]), content) for name, content in unlike]
    write(tmp_path, samples)
    reader = StackedReader(opened(tmp_path), "latent")
    assert reader.read(PLACES) is None
    sound = [one for one in PLACES if one[1] != place]
    check_same(reader.read(sound), one_by_one(tmp_path, sound))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4"),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.zeros((0, 3), np.float32),
        np.array(["a", "b"]),
        np.array(["2026-01-01"], "M8[D]"),
        np.zeros(3, [("a", "<f4"), ("b", "<i4")]),
    ],
)
def test_arrays_that_lie_otherwise_in_memory_are_not_stacked(tmp_path: Path, array: np.ndarray) -> None:
    write(tmp_path, [[(f"{key}.npy", npy(array))] for key in keys(COUNT)])
    assert StackedReader(opened(tmp_path), "latent").read(PLACES) is None


@pytest.mark.parametrize("shape", ["(-2, -3)", "(6.0,)", f"({2**40}, {2**40})", "6", "'ab'"])
def test_a_shape_that_no_array_has_takes_no_memory(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)
    write(tmp_path, [[(f"{key}.npy", content)] for key in keys(COUNT)])
    assert StackedReader(opened(tmp_path), "latent").read(PLACES) is None


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alike")
    write(folder, [[(f"{key}.npy", npy(FLOATS + number))] for number, key in enumerate(keys(COUNT))])
    return folder


@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, COUNT - 1), at=st.integers(0, HEAD + 23), value=st.integers(0, 255), before=st.booleans())
def test_a_damaged_byte_is_never_taken_for_a_sound_one(
    alike: Path, place: int, at: int, value: int, *, before: bool
) -> None:
    """Before the first batch, or between two."""
    path, sound = alike / "one.tar", (alike / "one.tar").read_bytes()
    reader = StackedReader(opened(alike), "latent")
    if before:
        assert reader.read(PLACES) is not None
    damaged = bytearray(sound)
    damaged[int.from_bytes((alike / "one.tar.idx").read_bytes()[place * 8 :][:8], "little") + at] = value
    path.write_bytes(damaged)
    try:
        found = reader.read(PLACES)
        if found is not None:
            check_same(found, one_by_one(alike))
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize("cut", ["index", "tar", "both"])
def test_what_ends_early_is_left_to_the_other_reader(tmp_path: Path, cut: str) -> None:
    path = write(tmp_path, [[(f"{key}.npy", npy(FLOATS))] for key in keys(COUNT)])
    reader = StackedReader(opened(tmp_path), "latent")
    assert reader.read(PLACES[:2]) is not None
    paths = {"index": [tmp_path / "one.tar.idx"], "tar": [path], "both": [path, tmp_path / "one.tar.idx"]}
    for one in paths[cut]:
        with one.open("r+b") as file:
            file.truncate(40 if one.suffix == ".idx" else 3000)
    fresh = StackedReader(opened(tmp_path), "latent")
    assert fresh.read(PLACES) is None
    assert cut == "index" or reader.read(PLACES) is None  # whose entries were read before


def counted(reader: StackedReader, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What grows by one with each batch that is tried."""
    tried: list[object] = []
    learn = reader._learnt
    monkeypatch.setattr(reader, "_learnt", lambda place: tried.append(place) or learn(place))
    return tried


def test_batches_that_are_never_alike_are_tried_less_and_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [npy(FLOATS), npy(FLOATS.view(np.int32))]
    write(tmp_path, [[(f"{key}.npy", arrays[number % 2])] for number, key in enumerate(keys(COUNT))])
    reader = StackedReader(opened(tmp_path), "latent")
    tried = counted(reader, monkeypatch)
    for _ in range(1000):
        assert reader.read(PLACES) is None
    assert 9 <= len(tried) <= 12
    alike = PLACES[::2]
    assert sum(reader.read(alike) is None for _ in range(1000)) <= 255
    assert reader.read(PLACES) is None
    assert reader.read(alike) is not None  # the next after a single one


def test_batches_alike_by_turns_are_all_stacked(tmp_path: Path) -> None:
    arrays = [npy(FLOATS), npy(FLOATS.view(np.int32))]
    write(tmp_path, [[(f"{key}.npy", arrays[number % 2])] for number, key in enumerate(keys(COUNT))])
    reader = StackedReader(opened(tmp_path), "latent")
    for turn in range(20):
        check_same(reader.read(PLACES[turn % 2 :: 2]), one_by_one(tmp_path, PLACES[turn % 2 :: 2]))


@pytest.mark.parametrize(
    "large", [np.broadcast_to(np.uint8(0), 2**60), np.zeros((1,) * 64, np.uint8)], ids=["an exbibyte", "64 axes"]
)
def test_an_array_too_large_to_stack_ends_in_no_error(
    tmp_path: Path, large: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first sample of a batch is large, and the others are not."""
    tars = opened(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(large))
    write(tmp_path, [[(f"{key}.npy", npy(FLOATS))] for key in keys(COUNT)])
    layout = array_layout(header.getvalue())
    assert layout is not None
    head = np.zeros(512, np.uint8)
    reader = StackedReader(tars, "latent")
    monkeypatch.setattr(reader, "_learnt", lambda place: _Pattern(head, head, 32, layout, 1024))
    assert reader.read(PLACES) is None


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = publish(tmp_path_factory.mktemp("latents") / "pairs", {"alpha": (40, 30), "beta": (20,)})
    return folder, write_siblings(folder, "latents")


def dataset_of(folder: Path, **options: object) -> ShardDataset:
    return ShardDataset(folder, parts=("latent",), siblings={"latent": "latents"}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", ["process", "thread"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_latents_reads_them_stacked(
    latents: tuple[Path, dict[str, np.ndarray]], num_workers: int, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, arrays = latents

    def gathered(*_: object) -> None:
        raise AssertionError("sample by sample")

    monkeypatch.setattr(reader, "_gathered", gathered)
    loader = DataLoader(dataset_of(folder), global_batch_size=9, num_workers=num_workers, workers=workers)  # type: ignore[arg-type]
    seen = {}
    for batch in loader:
        assert isinstance(batch["latent"], np.ndarray)
        assert not batch["__replaced__"].any()
        seen |= dict(zip(batch["__key__"], batch["latent"], strict=True))
    assert seen.keys() == arrays.keys()
    assert all(np.array_equal(seen[key], array) for key, array in arrays.items())


def test_batches_are_the_same_as_sample_by_sample(latents: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = latents
    stacked = DataLoader(dataset_of(folder), global_batch_size=16, tail="pad")
    single = DataLoader(dataset_of(folder, transform=lambda sample: sample), global_batch_size=16, tail="pad")
    for one, other in zip(stacked, single, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_corrupt_latent_is_replaced_and_the_rest_is_read_stacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (40, 30), "beta": (20,)})
    arrays = write_siblings(folder, "latents")
    path = next((folder / "latents").glob("alpha*.tar"))
    content = bytearray(path.read_bytes())
    content[257] ^= 1  # of the first sample's header
    path.write_bytes(content)
    found = []
    read = StackedReader.read
    monkeypatch.setattr(StackedReader, "read", lambda self, places: found.append(read(self, places)) or found[-1])
    loader = DataLoader(dataset_of(folder), global_batch_size=9)
    batches = list(loader)
    replaced = [index for index, batch in enumerate(batches) if batch["__replaced__"].any()]
    assert [index for index, stacked in enumerate(found) if stacked is None] == replaced
    assert len(replaced) == 1
    assert all(
        np.array_equal(array, arrays[key])
        for batch in batches
        for key, array in zip(batch["__key__"], batch["latent"], strict=True)
    )


def test_latents_of_other_samples_are_noticed(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (40,)})
    write_siblings(folder, "latents", rename=lambda key: "f" * 32)
    assert SampleReader(dataset_of(folder).source).columns(np.arange(4), {"latent"}) is None
    with pytest.raises(CorruptObject, match="holds key 'fff"):
        next(iter(DataLoader(dataset_of(folder), global_batch_size=4)))


@pytest.mark.parametrize("parts", [("txt", "latent"), ("latent", "image", "json"), ("latent", "other")])
def test_siblings_are_stacked_beside_other_parts(
    latents: tuple[Path, dict[str, np.ndarray]], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, arrays = latents
    siblings = {"latent": "latents"} | ({"other": str(folder / "latents")} if "other" in parts else {})
    found = []
    read = StackedReader.read
    monkeypatch.setattr(StackedReader, "read", lambda self, places: found.append(read(self, places)) or found[-1])
    plain = ShardDataset(folder, parts=parts, siblings=siblings, decode="rgb")
    single = ShardDataset(folder, parts=parts, siblings=siblings, decode="rgb", transform=lambda sample: sample)
    batches = list(DataLoader(plain, global_batch_size=9))
    assert found
    assert all(found)
    for one, other in zip(batches, DataLoader(single, global_batch_size=9), strict=True):
        assert list(one) == list(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert sorted(key for batch in batches for key in batch["__key__"]) == sorted(arrays)


def test_siblings_of_shifted_samples_are_told_as_one_by_one(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (40,)})
    rows = [row["key"] for row in read_rows(folder)]
    rows[3:5] = rows[4:2:-1]
    turned = dict(zip(sorted(rows), rows, strict=True))
    write_siblings(folder, "latents", rename=turned.__getitem__)
    dataset = ShardDataset(folder, parts=("txt", "latent"), siblings={"latent": "latents"}, shuffle=False)
    loader = DataLoader(dataset, global_batch_size=8, on_corrupt="raise")
    with pytest.raises(CorruptObject, match="sample 3 of latent: holds key"):
        next(iter(loader))
    kept = list(DataLoader(dataset, global_batch_size=8))
    assert sum(int(batch["__replaced__"].sum()) for batch in kept) == 2
