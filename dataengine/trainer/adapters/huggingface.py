"""Hugging Face Trainer over a loader: batches by the loader, its position in every checkpoint, no skipping on resume.

Accelerate needs no adapter: `Accelerator.prepare` leaves a `dataengine.trainer.DataLoader` as it is, and
`register_for_checkpointing(loader)` saves its position.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dataengine.errors import ConfigError, InputError
from dataengine.trainer.adapters.stream import Stream
from dataengine.trainer.loader import DataLoader

POSITION = "dataengine.json"


class ReadsShards:
    """Put before Trainer: `class MyTrainer(ReadsShards, Trainer)`, made with `loader=` instead of `train_dataset=`.

    The loader has global batches; `per_device_train_batch_size` times the ranks must be its `global_batch_size`, for
    what Trainer logs to be true. Training resumed from a checkpoint goes on at its position at once.

    Raises ConfigError when a train_dataset is given, too, or `loader` is none.
    """

    def __init__(self, *args: Any, loader: DataLoader, **kwargs: Any) -> None:
        if kwargs.get("train_dataset") is not None:
            raise ConfigError("ReadsShards: give either loader or train_dataset; the loader has a dataset")
        if not isinstance(loader, DataLoader):
            raise ConfigError(f"loader is a {type(loader).__name__}, wanted a dataengine.trainer.DataLoader")
        self._stream = Stream(loader)
        super().__init__(*args, train_dataset=loader.dataset, **kwargs)  # type: ignore[call-arg]
        self.args: Any
        self.args.ignore_data_skip = True  # Trainer would read and drop everything up to the checkpoint
        self.add_callback(PositionCallback(self._stream))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Stream:
        """The loader, in epochs of one length."""
        return self._stream

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's `train`. Raises InputError when the checkpoint has no position."""
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            self._stream.load_state_dict(read_position(Path(str(folder))))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]


class PositionCallback(TrainerCallback):
    """Writes the position into each checkpoint folder, on the first process alone: it is the same on all."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / POSITION
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(self._stream.state_dict()))
            partial.replace(path)


def read_position(folder: Path) -> dict[str, Any]:
    """The position that a checkpoint folder holds. Raises InputError when there is none."""
    path = folder / POSITION
    try:
        position: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"{path}: no position of the dataset ({type(error).__name__}); was this checkpoint written without "
            "ReadsShards? Load the model alone from it to begin the data anew"
        ) from error
    return position
