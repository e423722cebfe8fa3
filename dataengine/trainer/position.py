"""The position of a training run in its dataset: what a checkpoint stores, and how it is checked.

A `Point` of the schedule, the mixture in force, and the view that both count in make one JSON object below 4 KB, the
same on every rank. Loading it reads nothing and replays nothing. It knows no order and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataengine.errors import InputError
from dataengine.trainer.schedule import Point

FORMAT = "dataengine-position/2"  # raise it when the order of an epoch changes
_COUNTERS = ("step", "drawn", "order_batch")
_LISTS = ("cursors", "owed_groups", "owed_streams")


@dataclass(frozen=True)
class Position:
    """`point`, under the mixture `weights` (None: the view's own).

    `order_batch` is the global batch size that lanes were laid out for, which a run keeps when it goes on with another.
    """

    point: Point
    order_batch: int
    weights: Mapping[str, float] | None = None


def save(position: Position, identity: Mapping[str, Any], tail: str) -> dict[str, Any]:
    """Everything a checkpoint needs, as plain JSON."""
    point = position.point
    return {
        "format": FORMAT,
        "view": dict(identity),
        "tail": tail,
        "weights": None if position.weights is None else dict(position.weights),
        "order_batch": position.order_batch,
        "step": point.step,
        "drawn": point.drawn,
        **{name: list(getattr(point, name)) for name in _LISTS},
    }


def load(state: Mapping[str, Any], identity: Mapping[str, Any], tail: str, lengths: tuple[int, int]) -> Position:
    """The position that `state` holds; `lengths` are the numbers of groups and of streams.

    Raises InputError that names every difference when it counts in another view, and the field when one is misshapen.
    """
    if state.get("format") != FORMAT:
        raise InputError(f"state_dict: format is {state.get('format')!r}, this dataengine reads {FORMAT!r}")
    view = state.get("view")
    found = {**(view if isinstance(view, Mapping) else {}), "tail": state.get("tail")}
    wanted = {**identity, "tail": tail}
    different = [
        f"{name} is {found.get(name)!r}, this dataset has {wanted.get(name)!r}"
        for name in dict.fromkeys([*wanted, *found])
        if found.get(name) != wanted.get(name)
    ]
    if different:
        raise InputError(
            f"state_dict: {'; '.join(different)}. A position means nothing there: open the dataset with the arguments "
            "the state was saved under, or begin anew without it"
        )
    for name in _COUNTERS:
        if not _is_count(state.get(name)):
            raise InputError(f"state_dict: {name} is {state.get(name)!r}, wanted a whole number from 0")
    for name, length in zip(_LISTS, (lengths[1], *lengths), strict=True):
        numbers = state.get(name)
        if (
            not isinstance(numbers, list)
            or len(numbers) != length
            or not all(type(number) is int for number in numbers)
        ):
            raise InputError(f"state_dict: {name} is {numbers!r}, wanted {length} whole numbers")
    point = Point(state["step"], state["drawn"], *(tuple(state[name]) for name in _LISTS))
    return Position(point, state["order_batch"], state.get("weights"))


def _is_count(number: Any) -> bool:
    return type(number) is int and number >= 0
