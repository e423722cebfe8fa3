"""The DataLoader with real worker processes: exactly once, and a position that ignores what is prefetched."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from dataengine.errors import ConfigError
from dataengine.trainer.dataset import ShardDataset
from dataengine.trainer.loader import DataLoader
from tests.trainer.publishing import read_rows


def loaders(folder: Path, world_size: int, num_workers: int, batch_size: int = 2, **options: Any) -> list[DataLoader]:
    return [
        DataLoader(
            ShardDataset(folder, parts=("txt",), rank=rank, world_size=world_size, seed=9),
            batch_size=batch_size,
            num_workers=num_workers,
            **options,
        )
        for rank in range(world_size)
    ]


def batches(loader: Any) -> list[list[str]]:
    return [[sample["__key__"] for sample in batch] for batch in loader]


def flat(drawn: list[list[Any]]) -> list[Any]:
    return [key for batch in drawn for key in batch]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_draw_once(repeated: Path, world_size: int, num_workers: int) -> None:
    wanted = Counter({row["key"]: row["repeat"] for row in read_rows(repeated) if row["split"] == "train"})
    ranks = loaders(repeated, world_size, num_workers)
    drawn = [batches(rank) for rank in ranks]
    assert Counter(flat(flat(drawn))) == wanted
    assert [len(rank) for rank in ranks] == [len(share) for share in drawn]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_plain_torch_loader_draws_every_sample_once(published: Path, num_workers: int) -> None:
    dataset = ShardDataset(published, parts=("txt",))
    plain = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=list)
    assert sorted(flat(batches(plain))) == sorted(row["key"] for row in read_rows(published))


def test_the_number_of_workers_changes_nothing(repeated: Path) -> None:
    orders = [batches(loaders(repeated, 1, num_workers)[0]) for num_workers in (0, 1, 2)]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
def test_resumes_after_every_batch(repeated: Path, before: int, after: int) -> None:
    whole = batches(loaders(repeated, 1, 0)[0])
    for steps in range(len(whole) + 1):
        loader = loaders(repeated, 1, before)[0]
        head = [[sample["__key__"] for sample in batch] for _, batch in zip(range(steps), loader, strict=False)]
        state = json.loads(json.dumps(loader.state_dict()))
        again = loaders(repeated, 1, after)[0]
        again.load_state_dict(state)
        rest = batches(again) if state["epoch"] == 0 else []
        assert head + rest == whole
        assert again.epoch == 1


def test_resumes_on_other_ranks_and_batches(repeated: Path) -> None:
    whole = Counter(flat(batches(loaders(repeated, 1, 0)[0])))
    head: list[str] = []
    states = []
    for loader in loaders(repeated, 2, 2, batch_size=3):
        stream = iter(loader)
        head += flat([[sample["__key__"] for sample in next(stream)] for _ in range(2)])
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert states[0]["num_consumed"] == 12
    rest: list[str] = []
    for loader in loaders(repeated, 3, 1, batch_size=2):
        loader.load_state_dict(states[0])
        rest += flat(batches(loader))
    assert Counter(head + rest) == whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_drop_last_gives_every_rank_as_many_whole_batches(published: Path, world_size: int) -> None:
    drawn = [batches(loader) for loader in loaders(published, world_size, 2, batch_size=4, drop_last=True)]
    assert {len(share) for share in drawn} == {18 // (4 * world_size)}
    assert all(len(batch) == 4 for share in drawn for batch in share)
    assert len(set(flat(flat(drawn)))) == 18 // (4 * world_size) * 4 * world_size


def test_epochs_follow_each_other(published: Path) -> None:
    loader = loaders(published, 1, 2)[0]
    first, second = batches(loader), batches(loader)
    assert (first != second, loader.epoch) == (True, 2)
    loader.set_epoch(0)
    assert batches(loader) == first


def test_workers_that_are_not_forked_read_the_same(repeated: Path) -> None:
    forked, spawned = (loaders(repeated, 2, 1, multiprocessing_context=method)[1] for method in ("fork", "forkserver"))
    assert batches(forked) == batches(spawned)


def test_collates_tensors(published: Path) -> None:
    dataset = ShardDataset(published, transform=lambda sample: torch.tensor(sample["image"].size))
    loader = DataLoader(dataset, batch_size=6, collate_fn=torch.utils.data.default_collate)
    assert [tuple(batch.shape) for batch in loader] == [(6, 2)] * 3


def test_a_worker_does_not_answer_for_the_position(published: Path) -> None:
    dataset = ShardDataset(published, parts=("txt",))
    dataset._transform = lambda sample: dataset.state_dict()
    with pytest.raises(ConfigError, match="worker process"):
        batches(torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=list))


def test_options_that_would_break_the_order_are_refused(published: Path) -> None:
    dataset = ShardDataset(published)
    for options in ({"persistent_workers": True}, {"shuffle": True}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            DataLoader(dataset, batch_size=2, **options)
    with pytest.raises(ConfigError, match="batch_size=0"):
        DataLoader(dataset, batch_size=0)
