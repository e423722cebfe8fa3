"""The position of a training run in its dataset: what a checkpoint stores, and how it is moved.

A position is an epoch and the number of its draws that all ranks together have been handed. With the view
that it counts in (dataset, seed, split, repeats, shuffle) it is a JSON object of a few hundred bytes, the
same on every rank, and loads under any number of ranks and workers. It knows no order and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataengine.errors import InputError

FORMAT = "dataengine-position/1"  # raise it when the order of an epoch changes


@dataclass(frozen=True)
class View:
    """What fixes the order of every epoch; a position means nothing under another view."""

    dataset: str
    seed: int
    split: str
    repeats: bool
    shuffle: bool


@dataclass(frozen=True)
class Position:
    """`num_consumed` draws of `epoch` have been handed out by all ranks together."""

    epoch: int = 0
    num_consumed: int = 0

    def at_epoch(self, epoch: int) -> Position:
        """The start of `epoch`; this very position when already in it, so that resuming loops may ask."""
        if epoch < 0:
            raise InputError(f"epoch {epoch}: wanted 0 or more")
        return self if epoch == self.epoch else Position(epoch)

    def state(self, view: View) -> dict[str, Any]:
        """Everything a checkpoint needs, as plain JSON."""
        return {"format": FORMAT, **asdict(view), "epoch": self.epoch, "num_consumed": self.num_consumed}

    @classmethod
    def load(cls, state: Mapping[str, Any], view: View) -> Position:
        """The position that `state` holds.

        Raises InputError when it is of another format, or counts in another view.
        """
        for name, wanted in {"format": FORMAT, **asdict(view)}.items():
            if state.get(name) != wanted:
                raise InputError(
                    f"state_dict: {name} is {state.get(name)!r}, this dataset has {wanted!r}; open it "
                    "with the arguments the state was saved under, or begin anew without it"
                )
        epoch, num_consumed = state.get("epoch"), state.get("num_consumed")
        if not isinstance(epoch, int) or not isinstance(num_consumed, int) or min(epoch, num_consumed) < 0:
            raise InputError(f"state_dict: epoch {epoch!r}, num_consumed {num_consumed!r}: wanted whole numbers from 0")
        return cls(epoch, num_consumed)
