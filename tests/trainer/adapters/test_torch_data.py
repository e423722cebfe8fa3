"""Under torch's and torchdata's loaders come the batches that the engine's own makes, and positions are exact."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset

from dataengine.errors import ConfigError, InputError
from dataengine.trainer import Caption, DataLoader, ShardDataset
from dataengine.trainer.adapters.torch_data import BatchDataset, DrawDataset, DrawSampler
from dataengine.trainer.collate import collate

BATCH = 4
LOADERS = [
    ("map", {"num_workers": 0}),
    ("map", {"num_workers": 2}),
    ("map", {"num_workers": 2, "persistent_workers": True}),
    ("iterable", {"num_workers": 0}),
    ("iterable", {"num_workers": 2}),
    ("iterable", {"num_workers": 2, "persistent_workers": True}),
]
LOADER_NAMES = [
    f"{style}-{more['num_workers']}" + ("-persistent" if "persistent_workers" in more else "")
    for style, more in LOADERS
]
every_loader = pytest.mark.parametrize(("style", "more"), LOADERS, ids=LOADER_NAMES)
with_workers = pytest.mark.parametrize(
    ("style", "more"),
    [one for one in LOADERS if one[1]["num_workers"]],
    ids=[name for name in LOADER_NAMES if "2" in name],
)


def opened(folder: Path, **more: Any) -> ShardDataset:
    return ShardDataset(folder, parts=("txt",), seed=3, **more)


def keys_of(batches: Any) -> list[list[str]]:
    return [list(batch["__key__"]) for batch in batches]


def own(folder: Path, epochs: int = 1, **more: Any) -> list[list[str]]:
    loader = DataLoader(opened(folder), global_batch_size=BATCH, **more)
    return [keys for _ in range(epochs) for keys in keys_of(loader)]


def made(style: str, folder: Path, kind: Any = TorchLoader, batch: int = BATCH, **more: Any) -> Any:
    """A loader of `kind`, and the sampler or dataset that its position is in."""
    dataset = opened(folder)
    if style == "iterable":
        batches = BatchDataset(dataset, batch)
        return kind(batches, batch_size=None, **more), batches
    sampler = DrawSampler(dataset, batch)
    draws: Dataset[Any] = DrawDataset(dataset, batch)
    return kind(draws, batch_sampler=sampler, collate_fn=collate, **more), sampler


def epochs_of(folder: Path, number: int, batch: int = BATCH) -> list[list[list[str]]]:
    """The batches of each epoch, as the engine's own loader gives them."""
    loader = DataLoader(opened(folder), global_batch_size=batch)
    return [keys_of(loader) for _ in range(number)]


def test_a_plain_sampler_of_torch_works_on_the_dataset_itself(published: Path) -> None:
    dataset: Any = opened(published)
    found = keys_of(TorchLoader(dataset, batch_size=4, shuffle=True, num_workers=1, collate_fn=collate))
    assert sorted(key for keys in found for key in keys) == sorted(sample["__key__"] for sample in dataset)


@every_loader
def test_loops_are_epochs(style: str, more: dict[str, Any], published: Path) -> None:
    loader, _ = made(style, published, **more)
    assert [keys_of(loader) for _ in range(3)] == epochs_of(published, 3)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_loops_are_epochs_of_workers_that_are_not_forked(method: str, published: Path) -> None:
    loader, batches = made("iterable", published, num_workers=1, multiprocessing_context=method)
    assert [keys_of(loader), keys_of(TorchLoader(batches, batch_size=None))] == epochs_of(published, 2)


@every_loader
def test_a_loop_that_is_left_goes_on_or_with_workers_starts_over(
    style: str, more: dict[str, Any], published: Path
) -> None:
    """Workers fetch ahead, each as far as it comes, and tell nobody what was handed out."""
    loader, _ = made(style, published, batch=1, **more)
    first, second = epochs_of(published, 2, batch=1)
    assert keys_of(islice(loader, 5)) == first[:5]
    assert keys_of(loader) == first[0 if more["num_workers"] else 5 :]
    assert keys_of(islice(loader, 4)) == second[:4]
    assert keys_of(islice(loader, 3)) == second[0 if more["num_workers"] else 4 :][:3]


@every_loader
def test_after_all_of_an_epoch_was_fetched_comes_the_next(style: str, more: dict[str, Any], published: Path) -> None:
    loader, _ = made(style, published, **more)
    first, second = epochs_of(published, 2)
    assert keys_of(islice(loader, len(first))) == first
    assert keys_of(loader) == second


def test_an_iteration_that_workers_had_no_time_to_begin_harms_none(published: Path) -> None:
    loader, _ = made("iterable", published, batch=1, num_workers=2, persistent_workers=True)
    for _ in range(3):
        next(iter(loader))
    assert [keys_of(loader) for _ in range(2)] == epochs_of(published, 2, batch=1)


def test_workers_of_equal_seeds_are_not_the_same(published: Path) -> None:
    torch = pytest.importorskip("torch")
    loader, _ = made("iterable", published, batch=1, num_workers=2)
    first, second = epochs_of(published, 2, batch=1)
    for taken, wanted in ((2, first[:2]), (None, first), (2, second[:2]), (None, second)):
        torch.manual_seed(7)
        assert keys_of(islice(loader, taken)) == wanted


def test_loaders_of_other_workers_share_the_position(published: Path) -> None:
    batches = BatchDataset(opened(published), BATCH)
    loaders = [TorchLoader(batches, batch_size=None, num_workers=workers) for workers in (2, 0, 3)]
    assert [keys_of(loader) for loader in loaders] == epochs_of(published, 3)


@every_loader
def test_set_epoch_goes_to_its_start(style: str, more: dict[str, Any], published: Path) -> None:
    loader, place = made(style, published, **more)
    epochs = epochs_of(published, 3)
    for epoch in (1, 1, 2, 0):
        place.set_epoch(epoch)
        length = len(loader)
        assert keys_of(loader) == epochs[epoch]
        assert length == len(epochs[epoch])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_iterable_gives_the_own_batches(workers: int, published: Path) -> None:
    batches = BatchDataset(opened(published), BATCH)
    loader = TorchLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    assert len(batches) == len(own(published))
    assert [keys for _ in range(2) for keys in keys_of(loader)] == own(published, epochs=2)


@pytest.mark.parametrize("style", ["map", "iterable"])
def test_ranks_share_global_batches(style: str, published: Path) -> None:
    of_ranks = []
    for rank in range(2):
        place: Any = {"rank": rank, "world_size": 2}
        if style == "map":
            sampler = DrawSampler(opened(published), BATCH, **place)
            draws: Any = DrawDataset(opened(published), BATCH)
            of_ranks.append(keys_of(TorchLoader(draws, batch_sampler=sampler, collate_fn=collate)))
        else:
            batches = BatchDataset(opened(published), BATCH, **place)
            of_ranks.append(keys_of(TorchLoader(batches, batch_size=None)))
    assert [left + right for left, right in zip(*of_ranks, strict=True)] == own(published)


def test_captions_differ_by_epoch_as_in_the_own_loader(published: Path) -> None:
    """An epoch's number goes with each draw; a plain index would always mean the first."""
    caption = Caption({"caption": 1, "alt": 1})
    dataset = opened(published, caption=caption)
    sampled = TorchLoader(DrawDataset(dataset, BATCH), batch_sampler=DrawSampler(dataset, BATCH), collate_fn=collate)
    found = [batch["caption"] for _ in range(2) for batch in sampled]
    loader = DataLoader(opened(published, caption=caption), global_batch_size=BATCH)
    assert found == [batch["caption"] for _ in range(2) for batch in loader]


def test_what_does_not_fit_is_refused(published: Path) -> None:
    with pytest.raises(ConfigError, match="3 ranks do not divide"):
        DrawSampler(opened(published), BATCH, rank=0, world_size=3)
    state = DrawSampler(opened(published), 2).state_dict()
    with pytest.raises(InputError, match="global batches of 2"):
        DrawSampler(opened(published), BATCH).load_state_dict(state)
    with pytest.raises(InputError, match="seed"):
        DrawSampler(ShardDataset(published, seed=4), BATCH).load_state_dict(state)


def test_states_of_workers_are_checked(published: Path) -> None:
    batches = BatchDataset(opened(published), BATCH)
    state = batches.state_dict()
    for change, said in (({"done": 1}, "done is 1, wanted true or false"), ({"position": {}}, "state_dict: lacks")):
        with pytest.raises(InputError, match=said):
            batches.load_state_dict(state | change)
    with pytest.raises(InputError, match="wanted position, begin and done, as the state_dict"):
        batches.load_state_dict(DrawSampler(opened(published), BATCH).state_dict())


@pytest.mark.parametrize("style", ["map", "iterable"])
def test_samples_say_whether_they_pad(style: str, published: Path) -> None:
    dataset = opened(published)
    if style == "map":
        sampler = DrawSampler(dataset, BATCH, tail="pad")
        draws: Any = DrawDataset(dataset, BATCH, tail="pad")
        loader: Any = TorchLoader(draws, batch_sampler=sampler, collate_fn=collate, num_workers=1)
    else:
        loader = TorchLoader(BatchDataset(dataset, BATCH, tail="pad"), batch_size=None)
    found = [(batch["__key__"], batch["__pad__"].tolist()) for batch in loader]
    wanted = DataLoader(dataset, global_batch_size=BATCH, tail="pad")
    assert found == [(batch["__key__"], batch["__pad__"].tolist()) for batch in wanted]
    assert sum(sum(pads) for _, pads in found) == 2


Take = Callable[[Any, int], list[list[str]]]
"""Takes batches of a loader whose first epoch has so many, up to where a state is wanted."""


def whole(loader: Any, length: int) -> list[list[str]]:
    return keys_of(loader)


def into_the_second(loader: Any, length: int) -> list[list[str]]:
    return keys_of(loader) + keys_of(islice(loader, 2))


TAKES: dict[str, Take] = {
    "before": lambda loader, length: [],
    "first": lambda loader, length: keys_of(islice(loader, 1)),
    "middle": lambda loader, length: keys_of(islice(loader, 2)),
    "last": lambda loader, length: keys_of(islice(loader, length)),
    "after": whole,
    "second": into_the_second,
    "second, after": lambda loader, length: keys_of(loader) + keys_of(loader),
}


@pytest.fixture
def stateful() -> Any:
    module = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return module.StatefulDataLoader


@every_loader
def test_loops_of_torchdata_are_epochs(style: str, more: dict[str, Any], stateful: Any, published: Path) -> None:
    loader, _ = made(style, published, stateful, **more)
    assert [keys_of(loader) for _ in range(3)] == epochs_of(published, 3)


@every_loader
@pytest.mark.parametrize("batch", [2, 6], ids=["long", "short"])
@pytest.mark.parametrize("take", TAKES)
def test_torchdata_goes_on(
    take: str, batch: int, style: str, more: dict[str, Any], stateful: Any, published: Path
) -> None:
    """What follows is exactly what was not handed out, over two further loops, also where all of an epoch is ahead."""
    epochs = epochs_of(published, 6, batch=batch)
    flat = [keys for epoch in epochs for keys in epoch]
    first, _ = made(style, published, stateful, batch=batch, **more)
    taken = len(TAKES[take](first, len(epochs[0])))
    later, _ = made(style, published, stateful, batch=batch, **more)
    later.load_state_dict(first.state_dict())
    del first
    loops = [keys_of(later) for _ in range(3)]
    found = [keys for loop in loops for keys in loop]
    assert found == flat[taken : taken + len(found)]
    assert [len(loop) > 0 for loop in loops] == [not (take == "last" and more["num_workers"]), True, True]


@with_workers
def test_torchdata_goes_on_from_rare_snapshots(
    style: str, more: dict[str, Any], stateful: Any, published: Path
) -> None:
    """torchdata takes the batches since the last snapshot again, and throws them away."""
    epochs = epochs_of(published, 2, batch=2)
    for taken in (5, None):
        first, _ = made(style, published, stateful, batch=2, snapshot_every_n_steps=4, **more)
        before = keys_of(islice(first, taken))
        later, _ = made(style, published, stateful, batch=2, snapshot_every_n_steps=4, **more)
        later.load_state_dict(first.state_dict())
        found = before + keys_of(later) + (keys_of(later) if taken else [])
        assert found == epochs[0] + epochs[1]


@with_workers
def test_a_loop_that_went_on_and_is_left_goes_on_there_again(
    style: str, more: dict[str, Any], stateful: Any, published: Path
) -> None:
    first, _ = made(style, published, stateful, batch=1, **more)
    keys_of(islice(first, 5))
    later, _ = made(style, published, stateful, batch=1, **more)
    later.load_state_dict(first.state_dict())
    (epoch,) = epochs_of(published, 1, batch=1)
    assert keys_of(islice(later, 3)) == epoch[5:8]
    assert keys_of(later) == epoch[5:]


@with_workers
def test_torchdata_goes_back_in_one_process(style: str, more: dict[str, Any], stateful: Any, published: Path) -> None:
    loader, _ = made(style, published, stateful, batch=2, **more)
    first, second = epochs_of(published, 2, batch=2)
    keys_of(islice(loader, 5))
    state = loader.state_dict()
    for _ in range(2):
        loader.load_state_dict(state)
        assert [keys_of(loader), keys_of(loader)] == [first[5:], second]


def test_a_sampler_goes_on_in_the_own_loader(published: Path) -> None:
    """One kind of position: what a sampler saves, the engine's loader takes, on other ranks and workers."""
    sampler = DrawSampler(opened(published), BATCH, rank=0, world_size=2)
    iterator = iter(sampler)
    next(iterator), next(iterator)
    loader = DataLoader(opened(published), global_batch_size=BATCH)
    loader.load_state_dict(sampler.state_dict())
    assert keys_of(loader) == own(published)[2:]
