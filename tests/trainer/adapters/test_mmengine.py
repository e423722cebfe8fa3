"""mmengine's Runner, as installed: a config names the dataset, and resuming reads nothing that was trained on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine", reason="mmengine is not installed")

import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.runner import IterBasedTrainLoop, Runner

from dataengine.errors import ConfigError, InputError
from dataengine.trainer import DataLoader, ShardDataset, batches
from dataengine.trainer.adapters.mmengine import ResumableTrainLoop, build_loader

pytestmark = pytest.mark.slow
STEPS = 13


class Seeing(BaseModel):
    """A model of one weight that writes down what it is fed."""

    seen: list[list[str]]

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, inputs: list[str], mode: str = "loss") -> dict[str, Any]:
        self.seen.append(list(inputs))
        return {"loss": (self.weight - 1).square().sum()}


def keys_only(samples: list[dict[str, Any]], name: str = "inputs") -> dict[str, Any]:
    return {name: [sample["__key__"] for sample in samples]}


FUNCTIONS.register_module(name="keys_only", module=keys_only, force=True)


def train(
    folder: Path, out: Path, *, steps: int = STEPS, resume: Path | None = None, weights: Path | None = None, **more: Any
) -> list[list[str]]:
    """The keys of each batch that a Runner's model was fed."""
    runner = Runner(
        model=Seeing(),
        work_dir=str(out),
        train_dataloader={
            "batch_size": 4,
            "num_workers": 1,
            "dataset": {"type": "ShardDataset", "manifest": str(folder), "parts": ("txt",), "seed": 3},
            "collate_fn": {"type": "keys_only", "name": "inputs"},
        }
        | more.pop("train_dataloader", {}),
        train_cfg={"type": "ResumableTrainLoop", "max_iters": steps} | more.pop("train_cfg", {}),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False}},
        load_from=str(resume or weights) if resume or weights else None,
        resume=resume is not None,
        default_scope="mmengine",
        experiment_name=f"{out.parent.name}-{out.name}".replace(".", "-"),
        log_level="ERROR",
        **more,
    )
    runner.train()
    return list(runner.model.seen)


def wanted(folder: Path) -> list[list[str]]:
    own = DataLoader(ShardDataset(folder, parts=("txt",), seed=3), global_batch_size=4)
    found: list[list[str]] = []
    while len(found) < STEPS:
        found += [batch["__key__"] for batch in own]
    return found[:STEPS]


@pytest.fixture(autouse=True)
def trusting_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's checkpoints hold more than weights, which torch since 2.6 refuses to load unasked."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    logging.getLogger("mmengine").setLevel(logging.ERROR)


@pytest.mark.parametrize("saved", [3, 6, 12])
def test_a_resumed_run_goes_on_and_reads_nothing_twice(
    saved: int, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(published, tmp_path / "first") == wanted(published)
    made: list[int] = []
    make = batches.BatchMaker.make
    monkeypatch.setattr(batches.BatchMaker, "make", lambda self, ticket: made.append(ticket.step) or make(self, ticket))
    later = train(
        published,
        tmp_path / "later",
        resume=tmp_path / "first" / f"iter_{saved}.pth",
        train_dataloader={"num_workers": 0},
    )
    assert later == wanted(published)[saved:]
    assert made[0] == saved


def test_weights_alone_begin_the_data_anew(published: Path, tmp_path: Path) -> None:
    train(published, tmp_path / "first", steps=3)
    path = tmp_path / "first" / "iter_3.pth"
    assert train(published, tmp_path / "later", steps=3, weights=path) == wanted(published)[:3]


def test_epochs_are_counted_in_batches(published: Path, tmp_path: Path) -> None:
    """Two epochs of 18 samples in batches of 4: five batches each."""
    found = train(published, tmp_path / "epochs", train_cfg={"max_iters": None, "max_epochs": 2})
    assert found == wanted(published)[:10]


def test_a_checkpoint_of_another_loop_is_refused(published: Path, tmp_path: Path) -> None:
    train(published, tmp_path / "first", steps=3)
    path = tmp_path / "first" / "iter_3.pth"
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["dataengine"]
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="iteration 3 has no entry 'dataengine'"):
        train(published, tmp_path / "later", resume=path)


def test_configs_that_do_not_fit_are_refused(published: Path) -> None:
    dataset = {"type": "ShardDataset", "manifest": str(published)}
    with pytest.raises(ConfigError, match="sampler given"):
        build_loader({"dataset": dataset, "batch_size": 4, "sampler": {"type": "DefaultSampler"}})
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        build_loader({"dataset": dataset, "batch_size": 4, "collate_fn": {"type": "nothing"}})
    assert isinstance(DATASETS.build(dataset), ShardDataset)
    assert issubclass(ResumableTrainLoop, IterBasedTrainLoop)
