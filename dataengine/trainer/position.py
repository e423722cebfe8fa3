"""The position of a training run in its dataset: what a checkpoint stores, and how it is checked.

A `Point` of the schedule, the mixture in force, and the view that both count in make one JSON object below 4 KB, the
same on every rank. Loading it reads nothing and replays nothing. It knows no order and no files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from dataengine.errors import ConfigError, InputError
from dataengine.trainer import arguments
from dataengine.trainer.ranks import MAX_BATCH
from dataengine.trainer.schedule import Point, Schedule

FORMAT = "dataengine-position/3"  # raise it when the order of an epoch changes
_COUNTERS = ("step", "drawn")
_LISTS = ("cursors", "owed_groups", "owed_streams")
_CHECK = "check"
_FIELDS = ("format", "view", "tail", "weights", "order_batch", *_COUNTERS, *_LISTS, _CHECK)
_MAX_COUNT = 2**53  # beyond it the order's arithmetic is not exact; a million samples a second take 285 years

ScheduleOf = Callable[[Mapping[str, float] | None], Schedule]
"""The view's schedule under a mixture's weights; None: the view's own."""


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
    state = {
        "format": FORMAT,
        "view": dict(identity),
        "tail": tail,
        "weights": None if position.weights is None else dict(position.weights),
        "order_batch": position.order_batch,
        **{name: getattr(point, name) for name in _COUNTERS},
        **{name: list(getattr(point, name)) for name in _LISTS},
    }
    return {**state, _CHECK: _check(state)}


def load(
    state: Mapping[str, Any], identity: Mapping[str, Any], tail: str, schedule_of: ScheduleOf
) -> tuple[Position, Schedule]:
    """The position that `state` holds, and the schedule under its weights.

    Raises InputError that names every difference when it counts in another view, and the field when one is not what
    `save` writes: missing, unknown, of another type, out of range, or at odds with the others, by sums or by `check`.
    """
    _check_fields(state)
    _check_view(state, identity, tail)
    weights = _weights(state["weights"], has_mixture=identity["streams"] is not None)
    try:
        schedule = schedule_of(weights)
    except ConfigError as error:
        raise _refused("weights", weights, f"those of this dataset's mixture ({error})") from error
    order_batch = _number("order_batch", state["order_batch"], 1, MAX_BATCH)
    step, drawn = (_number(name, state[name], 0, _MAX_COUNT) for name in _COUNTERS)
    cursors = _numbers("cursors", state["cursors"], len(schedule.num_rows), 0, _MAX_COUNT)
    owed_groups = _numbers("owed_groups", state["owed_groups"], len(schedule.groups), -_MAX_COUNT, _MAX_COUNT)
    owed_streams = _numbers("owed_streams", state["owed_streams"], len(cursors), -_MAX_COUNT, _MAX_COUNT)
    point = Point(step, drawn, cursors, owed_groups, owed_streams)
    _check_sums(point, schedule)
    position = Position(point, order_batch, weights)
    if state[_CHECK] != save(position, identity, tail)[_CHECK]:
        raise InputError(
            "state_dict: check is not that of the other fields: one of them was changed, and numbers changed by hand "
            "lose samples and draw others twice; give what state_dict() returned"
        )
    return Position(schedule.settled(point), order_batch, weights), schedule


def _check(state: Mapping[str, Any]) -> str:
    """Of a state's other fields: a number changed by hand leads to samples lost and others twice."""
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())


def _check_fields(state: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping):
        raise InputError(f"state_dict: is {arguments.shown(state)}, wanted the dict that state_dict() returned")
    if "format" in state and state["format"] != FORMAT:
        raise InputError(f"state_dict: format is {arguments.shown(state['format'])}, this dataengine reads {FORMAT!r}")
    missing = [name for name in _FIELDS if name not in state]
    unknown = sorted(str(name) for name in state if name not in _FIELDS)
    if missing or unknown:
        raise InputError(
            f"state_dict: lacks {missing}, and holds the unknown {arguments.shown(unknown)}; wanted just "
            f"{list(_FIELDS)}: give what state_dict() returned, not the checkpoint around it"
        )


def _check_view(state: Mapping[str, Any], identity: Mapping[str, Any], tail: str) -> None:
    view = state["view"]
    found = {**(view if isinstance(view, Mapping) else {}), "tail": state["tail"]}
    wanted = {**identity, "tail": tail}
    different = [
        f"{name} is {arguments.shown(found.get(name))}, this dataset has {arguments.shown(wanted.get(name))}"
        for name in dict.fromkeys([*wanted, *found])
        # The type first: True is not the seed 1, and arrays do not compare to one truth.
        if type(found.get(name)) is not type(wanted.get(name)) or found.get(name) != wanted.get(name)
    ]
    if different:
        raise InputError(
            f"state_dict: {'; '.join(different)}. A position means nothing there: open the dataset with the arguments "
            "the state was saved under, or begin anew without it"
        )


def _weights(weights: Any, *, has_mixture: bool) -> dict[str, float] | None:
    if weights is None:
        return None
    if not has_mixture:
        raise _refused("weights", weights, "null, since this dataset was opened without a mixture")
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and type(weight) in (int, float) for name, weight in weights.items()
    ):
        raise _refused("weights", weights, "null or an object of numbers by name")
    return dict(weights)


def _check_sums(point: Point, schedule: Schedule) -> None:
    """Raises InputError when what a point counts twice differs, or what streams are owed is not theirs."""
    if sum(point.cursors) != point.drawn:
        raise _refused("drawn", point.drawn, f"the sum of cursors, {sum(point.cursors)}")
    if point.step > point.drawn or (point.drawn > 0) != (point.step > 0):
        raise _refused("step", point.step, f"1 to {point.drawn}, the samples drawn" if point.drawn else "0, as drawn")
    _check_owed("owed_groups", point.owed_groups, schedule.weights.groups)
    for group in schedule.groups:
        owed = [point.owed_streams[stream] for stream in group.streams]
        _check_owed("owed_streams", owed, [schedule.weights.streams[stream] for stream in group.streams])


def _check_owed(name: str, owed: Sequence[int], weights: Sequence[int]) -> None:
    # A stream is a seat ahead at most, so behind by as many as there are others; twice that when another batch size
    # has changed the unit.
    most = 2 * len(owed) * sum(weights)
    if sum(owed) or max(map(abs, owed)) > most:
        raise _refused(name, list(owed), f"numbers from {-most} to {most} that sum to 0")


def _numbers(name: str, numbers: Any, length: int, least: int, most: int) -> tuple[int, ...]:
    if not isinstance(numbers, list | tuple) or len(numbers) != length:
        raise _refused(name, numbers, f"{length} whole numbers")
    return tuple(_number(f"{name}[{place}]", number, least, most) for place, number in enumerate(numbers))


def _number(name: str, number: Any, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise _refused(name, number, f"a whole number from {least} to {most}")
    return number


def _refused(name: str, value: Any, wanted: str) -> InputError:
    return InputError(
        f"state_dict: {name} is {arguments.shown(value)}, wanted {wanted}; give what state_dict() returned, unchanged"
    )
