"""What arguments may be: of which type, within which range; each refusal names the argument, what it is and what is
wanted.

In go values that a user gave; out come the same as plain Python values, so that a NumPy integer in a position is JSON.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from dataengine.errors import ConfigError

MAX_SECONDS = 1e6  # what every clock of the system takes; eleven days
_SHOWN = 200  # characters of a value in a message
Kind = TypeVar("Kind")


def shown(value: Any) -> str:
    """`value` as a message shows it: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__} of {value.bit_length()} bits" if type(value) is int else type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`, NumPy's included. Raises ConfigError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        span = f"from {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name}={shown(value)}: wanted a whole number {span}")
    return number


def number(name: str, value: Any, least: float, most: float, *, above: bool = False) -> float:
    """A number from `least`, or `above` it, to `most`. Raises ConfigError."""
    found = _finite(value)
    if found is None or not least <= found <= most or (above and found == least):
        raise ConfigError(
            f"{name}={shown(value)}: wanted a number {'above' if above else 'from'} {least:g} to {most:g}"
        )
    return found


def flag(name: str, value: Any) -> bool:
    """True or False. Raises ConfigError: a text such as 'no' would count as true."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}: wanted True or False")
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raises ConfigError unless `value` is one of the texts."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name}={shown(value)}: wanted one of {tuple(allowed)}")


def instance(name: str, value: Any, kind: type[Kind]) -> Kind | None:
    """An object of `kind`, or None. Raises ConfigError."""
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name}={shown(value)}: wanted a {kind.__name__} of dataengine.trainer, or None")
    return value


def function(name: str, value: Any) -> Callable[..., Any] | None:
    """Something that can be called, or None. Raises ConfigError."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name}={shown(value)}: wanted a function, or None")
    found: Callable[..., Any] | None = value
    return found


def texts(name: str, value: Any) -> dict[str, str]:
    """A mapping of names to texts that are not empty. Raises ConfigError."""
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) and text for entry in value.items() for text in entry
    ):
        raise ConfigError(f"{name}={shown(value)}: wanted a dict of names and texts")
    return dict(value)


def weights(name: str, value: Any) -> dict[str, float]:
    """A mapping of names to finite numbers from 0, one of them above 0, as plain numbers. Raises ConfigError."""
    numbers = [_finite(one) for one in value.values()] if isinstance(value, Mapping) else []
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if not named or None in numbers or any(one < 0 for one in numbers if one is not None) or not any(numbers):
        raise ConfigError(f"{name} {shown(value)}: wanted a dict of names and numbers from 0, one of them above 0")
    return {key: _plain(one) for key, one in value.items()}


def _plain(value: Any) -> float:
    return operator.index(value) if isinstance(value, Integral) else float(value)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
