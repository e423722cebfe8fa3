"""Epochs of one length over epochs that differ by a batch, and positions in the middle of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.trainer import DataLoader, ShardDataset
from dataengine.trainer.adapters.stream import Stream


def stream(folder: Path, workers: int = 0) -> Stream:
    dataset = ShardDataset(folder, parts=("txt",), seed=3)
    return Stream(DataLoader(dataset, global_batch_size=4, num_workers=workers, workers="thread"))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_have_one_length_and_miss_nothing(workers: int, published: Path) -> None:
    """18 samples in batches of 4: the loader's epochs have 5, 4, 5, 4 batches, the stream's 5 each."""
    loader = DataLoader(ShardDataset(published, parts=("txt",), seed=3), global_batch_size=4)
    assert [len([*loader]) for _ in range(4)] == [5, 4, 5, 4]
    wanted = DataLoader(ShardDataset(published, parts=("txt",), seed=3), global_batch_size=4)
    keys = [batch["txt"] for _ in range(4) for batch in wanted][:15]
    found = stream(published, workers)
    assert len(found) == 5
    assert [[batch["txt"] for batch in found] for _ in range(3)] == [keys[:5], keys[5:10], keys[10:]]


def test_a_position_is_gone_on_from_to_the_end_of_the_epoch(published: Path) -> None:
    first, later = stream(published), stream(published)
    whole = [batch["txt"] for _ in range(2) for batch in first]
    third = stream(published)
    batches = third.endless
    for _ in range(7):
        next(batches)
    later.load_state_dict(third.state_dict())
    assert [batch["txt"] for batch in later] == whole[7:]
    first.load_state_dict(third.state_dict())  # also where one was in the midst of iterating
    assert [batch["txt"] for batch in first] == whole[7:]


@pytest.mark.parametrize("workers", [0, 2])
def test_models_are_fed_what_transform_and_collate_made(workers: int, published: Path) -> None:
    """Loops call models with a batch's entries as arguments: the reader adds none."""
    plain = ShardDataset(published, parts=("txt",))
    for dataset, collate in (
        (ShardDataset(published, parts=("txt",), transform=lambda sample: {"text": sample["txt"]}), None),
        (plain, lambda samples: {"text": [sample["txt"] for sample in samples]}),
    ):
        loader = DataLoader(dataset, global_batch_size=4, num_workers=workers, workers="thread", collate_fn=collate)
        assert [list(batch) for batch in Stream(loader)] == [["text"]] * 5
    assert "__key__" in next(iter(Stream(DataLoader(plain, global_batch_size=4))))
