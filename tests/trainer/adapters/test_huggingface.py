"""Accelerate and Hugging Face Trainer, as installed: resumed training sees the batches that were to come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed")

import accelerate
import torch

from dataengine.errors import ConfigError, InputError
from dataengine.trainer import DataLoader, ShardDataset

pytestmark = pytest.mark.slow  # both import for many seconds
STEPS = 13


def numbered(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Keys as two int64 numbers of 62 bits, since trainers feed tensors to models."""
    keys = [[int(sample["__key__"][:15], 16), int(sample["__key__"][15:30], 16)] for sample in samples]
    return {"keys": torch.tensor(keys)}


def loader(folder: Path, workers: int = 0, **more: Any) -> DataLoader:
    dataset = ShardDataset(folder, parts=("txt",), seed=3)
    return DataLoader(dataset, global_batch_size=4, num_workers=workers, collate_fn=numbered, **more)


def wanted(folder: Path) -> list[Any]:
    found: list[Any] = []
    own = loader(folder)
    while len(found) < STEPS:
        found += [batch["keys"].tolist() for batch in own]
    return found[:STEPS]


class Seeing(torch.nn.Module):
    """A model of one weight that writes down what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Any] = []

    def forward(self, keys: Any) -> dict[str, Any]:
        self.seen.append(keys.tolist())
        return {"loss": (self.weight - 1).square().sum()}


def trainer(folder: Path, out: Path, model: Seeing, workers: int = 0, **more: Any) -> Any:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    from dataengine.trainer.adapters.huggingface import ReadsShards

    class Training(ReadsShards, transformers.Trainer):  # type: ignore[misc]
        pass

    options = {"max_steps": STEPS, "save_steps": 3, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True}
    arguments = transformers.TrainingArguments(str(out), disable_tqdm=True, **(options | more))
    return Training(model=model, args=arguments, loader=loader(folder, workers))


@pytest.mark.parametrize("saved", [3, 6, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_resumes_at_once(saved: int, workers: int, published: Path, tmp_path: Path) -> None:
    first, later = Seeing(), Seeing()
    trainer(published, tmp_path, first, workers).train()
    assert first.seen == wanted(published)
    checkpoint = tmp_path / f"checkpoint-{saved}"
    assert len(json.loads((checkpoint / "dataengine.json").read_text())) > 3
    trainer(published, tmp_path / "later", later).train(str(checkpoint))
    assert later.seen == wanted(published)[saved:]


def test_trainer_counts_epochs_and_accumulates(published: Path, tmp_path: Path) -> None:
    """Two epochs of 5 batches, two to a step: 3 steps an epoch; a checkpoint of step 4 is 7 batches in."""
    options = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_steps": 4}
    first, later = Seeing(), Seeing()
    done = trainer(published, tmp_path, first, **options).train()
    assert (done.global_step, first.seen) == (6, wanted(published)[:10])
    trainer(published, tmp_path / "later", later, **options).train(str(tmp_path / "checkpoint-4"))
    assert later.seen == wanted(published)[7:10]


def test_trainer_says_what_does_not_fit(published: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(InputError, match="no position of the dataset"):
        trainer(published, tmp_path, Seeing()).train(str(tmp_path / "checkpoint-3"))
    from dataengine.trainer.adapters.huggingface import ReadsShards

    with pytest.raises(ConfigError, match="either loader or train_dataset"):
        ReadsShards(loader=loader(published), train_dataset=[1])


def test_accelerate_leaves_the_loader_and_saves_its_position(published: Path, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    own = accelerator.prepare(loader(published))
    assert isinstance(own, DataLoader)
    accelerator.register_for_checkpointing(own)
    iterator = iter(own)
    before = [next(iterator)["keys"].tolist() for _ in range(2)]
    accelerator.save_state(str(tmp_path / "state"))

    another = accelerate.Accelerator(cpu=True)
    later = another.prepare(loader(published, 2))
    another.register_for_checkpointing(later)
    another.load_state(str(tmp_path / "state"))
    assert before + [batch["keys"].tolist() for batch in later] == wanted(published)[:5]
