"""A loader for loops that count steps: epochs of one length, and batches made ahead across their ends.

The engine's epochs differ in length by a batch where tails are carried; trainers that multiply epochs by steps want one
length. Nothing here imports more than the loader does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataengine.trainer.dataset import ShardDataset
from dataengine.trainer.loader import DataLoader


class Stream:
    """`loader`, cut into epochs of `len(stream)` batches: as many as its first epoch has.

    An iteration goes on where the stream stands, to the end of such an epoch; `endless` never ends. There is no
    `set_epoch`, since a loop's idea of the epoch must not move the position. Loops mostly call models with a batch's
    entries as arguments: let a `transform` or `collate_fn` make those that the model takes, and no others.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self._length = loader.plan(1).epoch()["steps"]
        self._batches = self._endless()

    @property
    def dataset(self) -> ShardDataset:
        """What loops look at to name the dataset and count it."""
        return self.loader.dataset

    def __len__(self) -> int:
        """Batches of an epoch, on every rank."""
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._length - self.loader.step % self._length):
            yield next(self._batches)

    @property
    def endless(self) -> Iterator[Any]:
        """The batches from the position on."""
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        """The loader's position: a small JSON object, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Batches made ahead are dropped, and no sample is read."""
        self.loader.load_state_dict(state)

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader
