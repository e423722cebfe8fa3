"""The DataLoader with real workers: exactly once on any ranks and workers, and a position that ignores prefetching."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import ConfigError, CorruptObject, InputError, TryAgainError
from dataengine.trainer import Buckets, DataLoader, Mixture, Repeats, ShardDataset
from tests.trainer.publishing import publish, read_rows
from tests.trainer.test_dataset import overwrite

WORKERS = [(0, "process"), (1, "process"), (3, "process"), (2, "thread")]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 samples in 5 shards of 2 sources; never written to."""
    return publish(tmp_path_factory.mktemp("many") / "datasets/pairs", {"alpha": (40, 40, 30), "beta": (20, 20)})


def dataset_of(folder: Path, **options: Any) -> ShardDataset:
    return ShardDataset(folder, **{"parts": ("txt",), "seed": 5, **options})


def keys_of(batch: dict[str, Any]) -> list[tuple[int, str]]:
    return list(zip(batch["__epoch__"].tolist(), batch["__key__"], strict=True))


def stream(loaders: list[DataLoader], num_steps: int) -> Iterator[list[tuple[int, str]]]:
    """Global batches: what all ranks get, in the order of ranks, over as many epochs as it takes."""

    def endless(loader: DataLoader) -> Iterator[dict[str, Any]]:
        while True:
            yield from loader

    ranks = [endless(loader) for loader in loaders]
    for _ in range(num_steps):
        yield [key for rank in ranks for key in keys_of(next(rank))]


def ranks_of(
    dataset: ShardDataset, world_size: int, num_workers: int = 0, batch: int = 12, **options: Any
) -> list[DataLoader]:
    return [
        DataLoader(
            dataset, global_batch_size=batch, num_workers=num_workers, rank=rank, world_size=world_size, **options
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("num_workers", "kind"), WORKERS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    many: Path, world_size: int, num_workers: int, kind: str
) -> None:
    dataset = dataset_of(many)
    wanted = list(stream(ranks_of(dataset, 1), 30))
    assert list(stream(ranks_of(dataset, world_size, num_workers, workers=kind), 30)) == wanted
    drawn = Counter(key for batch in wanted for key in batch)
    assert set(drawn.values()) == {1}
    first_two = [key for key in drawn if key[0] < 2]
    assert Counter(key for _, key in first_two) == dict.fromkeys((row["key"] for row in read_rows(many)), 2)


@given(st.data())
@settings(max_examples=15)
def test_any_stops_and_worlds_draw_every_sample_once(many: Path, data: st.DataObject) -> None:
    """Saved and loaded between any two steps, under any ranks, the stream of global batches is the one of no stop."""
    dataset = dataset_of(many)
    wanted = list(stream(ranks_of(dataset, 1), 40))
    got: list[list[tuple[int, str]]] = []
    state = None
    while len(got) < 40:
        loaders = ranks_of(dataset, data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])))
        for loader in loaders if state else []:
            loader.load_state_dict(state)
            loader.load_state_dict(state)
            loader.set_epoch(loader.epoch)
        got += stream(loaders, data.draw(st.integers(1, 15)))
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert got[:40] == wanted


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("before", "after"), [((0, "process"), (3, "process")), ((3, "process"), (2, "thread"))])
def test_resumes_with_other_workers_twice(many: Path, before: Any, after: Any, persistent: bool) -> None:
    dataset = dataset_of(many)
    wanted = list(stream(ranks_of(dataset, 1), 26))
    for stop in (1, 12, 13, 25):
        (first,) = ranks_of(dataset, 1, before[0], workers=before[1], persistent_workers=persistent)
        got = list(stream([first], stop))
        state = first.state_dict()
        for _ in range(2):
            (again,) = ranks_of(dataset, 1, after[0], workers=after[1], persistent_workers=persistent)
            again.load_state_dict(state)
            rest = list(stream([again], 26 - stop))
            assert got + rest == wanted
            again.close()
        first.close()


def test_a_position_is_small_and_names_its_view(many: Path) -> None:
    mixture = Mixture(
        {f"stream {number}": 1 for number in range(60)}, {f"stream {n}": f"width > {n % 16}" for n in range(60)}
    )
    loader = DataLoader(dataset_of(many, mixture=mixture), global_batch_size=64)
    for _ in loader:
        pass
    assert len(json.dumps(loader.state_dict())) < 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 6}, "seed is 5, this dataset has 6"),
        ({"where": "width > 3"}, "where is None, this dataset has 'width > 3'"),
        ({"repeats": False, "shuffle": False}, "shuffle is True, .*repeats is True"),
        ({"mixture": {"alpha": 1}}, "streams is None"),
    ],
)
def test_a_state_of_another_view_is_refused(many: Path, options: dict[str, Any], message: str) -> None:
    state = DataLoader(dataset_of(many), global_batch_size=4).state_dict()
    with pytest.raises(InputError, match=message):
        DataLoader(dataset_of(many, **options), global_batch_size=4).load_state_dict(state)


def test_a_state_of_another_snapshot_or_shape_is_refused(many: Path, published: Path) -> None:
    loader = DataLoader(dataset_of(many), global_batch_size=4)
    state = loader.state_dict()
    with pytest.raises(InputError, match="snapshot is"):
        DataLoader(dataset_of(published), global_batch_size=4).load_state_dict(state)
    for wrong, message in (
        ({"format": "x"}, "format is 'x'"),
        ({"step": -1}, "step is -1"),
        ({"cursors": [1, 2]}, r"cursors is \[1, 2\], wanted 1 whole numbers"),
        ({"cursors": ["1"]}, "cursors"),
        ({"view": None}, "dataset is None"),
        ({"tail": "pad"}, "tail is 'pad'"),
    ):
        with pytest.raises(InputError, match=message):
            loader.load_state_dict(state | wrong)


def test_another_batch_size_goes_on_in_the_same_order(many: Path) -> None:
    dataset = dataset_of(many)
    wanted = [key for batch in stream(ranks_of(dataset, 1), 12) for key in batch]
    (first,) = ranks_of(dataset, 1)
    got = [key for batch in stream([first], 5) for key in batch]
    (again,) = ranks_of(dataset, 1, batch=7)
    again.load_state_dict(first.state_dict())
    got += [key for batch in stream([again], 12) for key in batch]
    assert got == wanted[:144]


@pytest.mark.parametrize("world_size", [1, 4])
def test_tails(many: Path, world_size: int) -> None:
    dataset = dataset_of(many)
    dropped = [list(loader) for loader in ranks_of(dataset, world_size, batch=64, tail="drop")]
    assert [len(batches) for batches in dropped] == [2] * world_size
    drawn = [key for rank in dropped for batch in rank for key in batch["__key__"]]
    assert len(set(drawn)) == len(drawn) == 128
    padded = [list(loader) for loader in ranks_of(dataset, world_size, batch=64, tail="pad")]
    real = [
        key
        for rank in padded
        for batch in rank
        for key, pad in zip(batch["__key__"], batch["__pad__"].tolist(), strict=True)
        if not pad
    ]
    assert sorted(real) == sorted(row["key"] for row in read_rows(many))
    assert {len(batch["__key__"]) for rank in padded for batch in rank} == {64 // world_size}
    (loader,) = ranks_of(dataset, 1, batch=64, tail="pad", collate_fn=list)
    assert [sum(sample["__pad__"] for sample in samples) for samples in loader] == [0, 0, 42]
    (loader,) = ranks_of(dataset, 1, batch=64, tail="pad")
    assert [len(list(loader)), len(list(loader)), loader.epoch, len(loader)] == [3, 3, 2, 3]


def test_epochs_and_lengths(many: Path) -> None:
    (loader,) = ranks_of(dataset_of(many), 1)
    lengths = []
    for epoch in range(3):
        assert loader.epoch == epoch
        expected = len(loader)
        lengths.append(sum(1 for _ in loader))
        assert lengths[-1] == expected
    assert lengths == [13, 12, 13]  # 150 samples by 12, tails carried
    loader.set_epoch(1)
    first = next(iter(loader))
    (straight,) = ranks_of(dataset_of(many), 1)
    for _ in straight:
        pass
    assert keys_of(next(iter(straight))) == keys_of(first)


def test_unshuffled_batches_come_in_the_order_of_the_tars(many: Path) -> None:
    loaders = ranks_of(dataset_of(many, shuffle=False), 3, 1, tail="pad")
    drawn = [key for batch in stream(loaders, 13) for _, key in batch]
    assert drawn[:150] == [row["key"] for row in read_rows(many)]


@pytest.mark.parametrize("world_size", [1, 4])
def test_mixtures_by_weights_change_live(many: Path, world_size: int) -> None:
    dataset = dataset_of(many, mixture={"alpha": 0.7, "beta": 0.3})
    loaders = ranks_of(dataset, world_size, 1)
    sources = {row["key"]: row["source"] for row in read_rows(many)}
    wanted, drawn, seen = 0.0, 0, Counter[tuple[int, str]]()
    endless = stream(loaders, 60)
    for step in range(60):
        if step in (20, 41):
            for loader in loaders:
                loader.set_mixture({"alpha": 1, "beta": 3} if step == 20 else {"beta": 1})
        share = 0.3 if step < 20 else 0.75 if step < 41 else 1.0
        batch = next(endless)
        seen.update(batch)
        wanted += 12 * share
        drawn += sum(sources[key] == "beta" for _, key in batch)
        assert abs(drawn - wanted) < 1
    assert set(seen.values()) == {1}  # each pass of a source draws each sample once, whatever the weights
    with pytest.raises(ConfigError, match=r"\['gamma'\]"):
        loaders[0].set_mixture({"gamma": 1})
    with pytest.raises(ConfigError, match="without a mixture"):
        DataLoader(dataset_of(many), global_batch_size=4).set_mixture({"alpha": 1})


def test_a_change_of_mixture_ignores_what_lies_prefetched(many: Path) -> None:
    def run(num_workers: int, stop: int | None) -> list[list[tuple[int, str]]]:
        dataset = dataset_of(many, mixture={"alpha": 0.5, "beta": 0.5})
        (loader,) = ranks_of(dataset, 1, num_workers, prefetch_batches=3)
        got: list[list[tuple[int, str]]] = []
        for batch in loader:
            got.append(keys_of(batch))
            if len(got) == 4:
                loader.set_mixture({"alpha": 0.9, "beta": 0.1})
            if len(got) == stop:
                state = loader.state_dict()
                (loader,) = ranks_of(dataset, 1, 0)
                loader.load_state_dict(state)
                return got + [keys_of(batch) for batch in loader]
        return got

    assert run(0, None) == run(2, None) == run(2, 7) == run(0, 5)


def test_repeats_and_half_a_source(many: Path) -> None:
    dataset = dataset_of(many, mixture=Repeats({"alpha": 2, "beta": 0.5}))
    loader = DataLoader(dataset, global_batch_size=20)
    sources = {row["key"]: row["source"] for row in read_rows(many)}
    epochs = []
    for _ in range(2):
        epochs.append(Counter(key for batch in loader for key in batch["__key__"]))
        assert Counter(sources[key] for key in epochs[-1].elements()) == {"alpha": 220, "beta": 20}
        assert {times for key, times in epochs[-1].items() if sources[key] == "alpha"} == {2}
    halves = [{key for key in epoch if sources[key] == "beta"} for epoch in epochs]
    assert not halves[0] & halves[1]


def test_batches_of_one_stream(many: Path) -> None:
    mixture = Mixture({"alpha": 3, "beta": 1}, per="batch")
    loader = DataLoader(dataset_of(many, mixture=mixture), global_batch_size=10)
    turns = [set(batch["__source__"]) for batch in loader]
    assert all(len(turn) == 1 for turn in turns)
    assert [turn == {"beta"} for turn in turns].count(True) == len(turns) // 4


@pytest.mark.parametrize("world_size", [1, 2])
def test_buckets_give_batches_of_one_shape_on_all_ranks(tmp_path: Path, world_size: int) -> None:
    sizes = ((16, 12), (12, 16), (20, 20), (40, 20))
    folder = publish(tmp_path / "pairs", {"alpha": (60, 40)}, picture_size=lambda number: sizes[number % 7 % 4])
    buckets = Buckets(((12, 16), (16, 16), (16, 12), (24, 12)), max_batch_pixels=16 * 12 * 8, batch_multiple=2)
    dataset = dataset_of(folder, parts=("image",), buckets=buckets)
    loaders = ranks_of(dataset, world_size, 1, batch=8)
    drawn: Counter[tuple[int, str]] = Counter()
    for batches in zip(*loaders, strict=True):
        shapes = {batch["image"].shape for batch in batches}
        assert len(shapes) == 1
        count, height, width, _ = shapes.pop()
        assert count * world_size == {16 * 16: 6, 24 * 12: 4}.get(height * width, 8)
        for batch in batches:
            drawn.update(keys_of(batch))
    assert set(drawn.values()) == {1}
    assert sum(drawn.values()) >= 100
    report = loaders[0].plan().report()
    assert "24x12" in report
    assert "crop_loss" in report


def test_a_corrupt_sample_is_replaced_flagged_and_told(
    many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    folder = Path(shutil.copytree(many, tmp_path / "v000001"))
    bad = overwrite(folder, 17, lambda content: bytes(len(content)))["key"]
    dataset = dataset_of(folder, parts=("image",))
    replacements = set()
    for num_workers in (0, 2):
        loader = DataLoader(dataset, global_batch_size=10, num_workers=num_workers)
        batches = list(loader)
        keys = [key for batch in batches for key in batch["__key__"]]
        flags = np.concatenate([batch["__replaced__"] for batch in batches])
        assert bad not in keys
        assert flags.sum() == len(loader.skipped) == 1
        assert bad in loader.skipped[0].error
        replacements.add(keys[int(np.flatnonzero(flags)[0])])
        told = DataLoader(dataset, global_batch_size=10, num_workers=num_workers, collate_fn=list)
        replacements |= {sample["__key__"] for samples in told for sample in samples if sample["__replaced__"]}
    assert len(replacements) == 1
    assert f"key {bad}" in caplog.text
    with pytest.raises(CorruptObject, match=bad):
        list(DataLoader(dataset, global_batch_size=10, on_corrupt="raise"))
    with pytest.raises(CorruptObject, match="1 corrupt samples on this rank, 0 are allowed"):
        list(DataLoader(dataset, global_batch_size=10, max_skipped=0))


def test_a_shard_that_is_corrupt_throughout_ends_the_run(many: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(many, tmp_path / "v000001"))
    for tar in folder.rglob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(CorruptObject, match="16 reserves for it were corrupt, too"):
        list(DataLoader(dataset_of(folder), global_batch_size=10))


def test_transforms_and_collate(many: Path) -> None:
    dataset = dataset_of(many, parts=("image",), transform=lambda sample: torch.tensor(sample["image"].size))
    (batch, *_) = DataLoader(dataset, global_batch_size=6, num_workers=1, tail="drop")
    assert (type(batch), tuple(batch.shape)) == (torch.Tensor, (6, 2))
    pairs = dataset_of(many, transform=lambda sample, rng: (rng.random(4, np.float32), sample["txt"]))
    arrays, texts = next(iter(DataLoader(pairs, global_batch_size=6, num_workers=1)))
    assert (arrays.shape, arrays.dtype, len(texts)) == ((6, 4), np.float32, 6)
    assert len(next(iter(DataLoader(dataset_of(many), global_batch_size=6, collate_fn=tuple)))) == 6
    own = {"texts": 6}
    assert list(DataLoader(dataset_of(many), global_batch_size=75, tail="pad", collate_fn=lambda _: own)) == [own, own]
    assert own == {"texts": 6}
    raw = next(iter(DataLoader(dataset_of(many, decode="bytes"), global_batch_size=6, num_workers=1)))
    assert all(isinstance(text, bytes) for text in raw["txt"])


def test_large_arrays_come_through_shared_memory_and_stay(many: Path) -> None:
    def noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"noise": rng.normal(size=(40, 50)), "tensor": torch.arange(300), "text": sample["txt"]}

    dataset = dataset_of(many, transform=noise)
    here, there = (list(DataLoader(dataset, global_batch_size=10, num_workers=count)) for count in (0, 2))
    for ours, theirs in zip(here, there, strict=True):
        assert np.array_equal(ours["noise"], theirs["noise"])
        assert torch.equal(ours["tensor"], theirs["tensor"])
        assert ours["text"] == theirs["text"]
        theirs["noise"][0] = 0
    own = DataLoader(dataset, global_batch_size=10, num_workers=1, collate_fn=lambda samples: OrderedDict(samples[0]))
    batch = next(iter(own))
    assert type(batch) is OrderedDict
    assert batch["noise"].shape == (40, 50)


@pytest.mark.parametrize(("num_workers", "kind"), WORKERS[1:])
def test_an_error_in_a_worker_reaches_the_loop(many: Path, num_workers: int, kind: str) -> None:
    def fails(sample: dict[str, Any]) -> None:
        raise ZeroDivisionError(sample["__key__"])

    loader = DataLoader(dataset_of(many, transform=fails), global_batch_size=10, num_workers=num_workers, workers=kind)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        list(loader)


def test_a_worker_that_hangs_is_an_error(many: Path) -> None:
    import time

    for kind in ("process", "thread"):
        dataset = dataset_of(many, transform=lambda sample: time.sleep(20))
        loader = DataLoader(dataset, global_batch_size=10, num_workers=1, workers=kind, timeout_seconds=0.3)  # type: ignore[arg-type]
        with pytest.raises(TryAgainError, match=r"batch 0 was not made within 0.3 s; it reads shards alpha-0"):
            list(loader)
        loader.close()


def test_bad_arguments_are_named(many: Path) -> None:
    dataset = dataset_of(many)
    for options, message in (
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"global_batch_size": 4, "num_workers": -1}, "num_workers=-1"),
        ({"global_batch_size": 4, "workers": "fiber"}, "workers='fiber'"),
        ({"global_batch_size": 4, "tail": "keep"}, "tail='keep'"),
        ({"global_batch_size": 4, "rank": 0}, "world_size"),
        (
            {"global_batch_size": 4096, "rank": 0, "world_size": 96},
            r"\[16, 32, 64, 128, 256, 512\] do, and batches of 4032",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            DataLoader(dataset, **options)  # type: ignore[arg-type]
