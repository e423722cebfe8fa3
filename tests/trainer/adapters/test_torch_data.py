"""Under torch's and torchdata's loaders come the batches that the engine's own makes, and positions are exact."""

from __future__ import annotations

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


def opened(folder: Path, **more: Any) -> ShardDataset:
    return ShardDataset(folder, parts=("txt",), seed=3, **more)


def keys_of(batches: Any) -> list[list[str]]:
    return [list(batch["__key__"]) for batch in batches]


def own(folder: Path, epochs: int = 1, **more: Any) -> list[list[str]]:
    loader = DataLoader(opened(folder), global_batch_size=BATCH, **more)
    return [keys for _ in range(epochs) for keys in keys_of(loader)]


def map_style(folder: Path, workers: int, kind: Any = TorchLoader, **more: Any) -> tuple[Any, DrawSampler]:
    dataset = opened(folder)
    sampler = DrawSampler(dataset, BATCH, **more)
    draws: Dataset[Any] = DrawDataset(dataset, BATCH)
    return kind(draws, batch_sampler=sampler, num_workers=workers, collate_fn=collate), sampler


def test_a_plain_sampler_of_torch_works_on_the_dataset_itself(published: Path) -> None:
    dataset: Any = opened(published)
    found = keys_of(TorchLoader(dataset, batch_size=4, shuffle=True, num_workers=1, collate_fn=collate))
    assert sorted(key for keys in found for key in keys) == sorted(sample["__key__"] for sample in dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_map_style_gives_the_own_batches_epoch_after_epoch(workers: int, published: Path) -> None:
    loader, _ = map_style(published, workers)
    assert [keys for _ in range(2) for keys in keys_of(loader)] == own(published, epochs=2)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_iterable_gives_the_own_batches(workers: int, published: Path) -> None:
    batches = BatchDataset(opened(published), BATCH)
    loader = TorchLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    assert len(batches) == len(own(published))
    assert [keys for _ in range(2) for keys in keys_of(loader)] == own(published, epochs=2)


def test_new_workers_need_to_be_told_the_epoch(published: Path) -> None:
    batches = BatchDataset(opened(published), BATCH)
    loader = TorchLoader(batches, batch_size=None, num_workers=2)
    found = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        found += keys_of(loader)
    assert found == own(published, epochs=2)


@pytest.mark.parametrize("style", ["map", "iterable"])
def test_ranks_share_global_batches(style: str, published: Path) -> None:
    of_ranks = []
    for rank in range(2):
        place = {"rank": rank, "world_size": 2}
        if style == "map":
            of_ranks.append(keys_of(map_style(published, 0, **place)[0]))
        else:
            batches = BatchDataset(opened(published), BATCH, **place)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("style", ["map", "iterable"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 3])
def test_stateful_data_loader_goes_on(style: str, workers: int, taken: int, published: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def made() -> Any:
        if style == "map":
            return map_style(published, workers, stateful.StatefulDataLoader)[0]
        batches = BatchDataset(opened(published), BATCH)
        return stateful.StatefulDataLoader(batches, batch_size=None, num_workers=workers)

    first = made()
    iterator = iter(first)
    before = [list(next(iterator)["__key__"]) for _ in range(taken)]
    state = first.state_dict()
    later = made()
    later.load_state_dict(state)
    assert before + keys_of(later) == own(published)


def test_a_sampler_goes_on_in_the_own_loader(published: Path) -> None:
    """One kind of position: what a sampler saves, the engine's loader takes, on other ranks and workers."""
    sampler = DrawSampler(opened(published), BATCH, rank=0, world_size=2)
    iterator = iter(sampler)
    next(iterator), next(iterator)
    loader = DataLoader(opened(published), global_batch_size=BATCH)
    loader.load_state_dict(sampler.state_dict())
    assert keys_of(loader) == own(published)[2:]
