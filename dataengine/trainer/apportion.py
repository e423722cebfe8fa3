"""Shares in whole samples: how many of a batch come from each stream, so that no stream is ever a sample off.

In go integer weights and what each stream is owed; out come counts and what is owed then. All in integers, so the
hundred-thousandth batch is as exact as the first, and the same on every machine.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MAX_EXACT = 2**40
UNIT_BITS = 32  # weights sum to at least 2^32: a share is exact to 2e-10, and times a batch of 2^20 fits int64


def whole_weights(weights: Sequence[float | int]) -> tuple[int, ...]:
    """The weights as integers of the same ratios, whose sum is 2^32 to 2^33.

    Whole numbers of a sum up to 2^40 keep their ratios exactly (repeats rely on it), and may sum to more than 2^33;
    others are rounded to 1 part in 2^32. Raises
    ConfigError when one is negative or not finite, or none is positive.
    """
    numbers = np.array(weights, dtype=np.float64)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise ConfigError(f"weights {list(weights)}: wanted finite numbers from 0, one of them above 0")
    if all(isinstance(weight, int) for weight in weights) and sum(weights) <= _MAX_EXACT:
        whole = [int(weight) for weight in weights]
    else:
        total = sum(Fraction(float(weight)) for weight in weights)
        whole = [round(Fraction(float(weight)) / total * 2**UNIT_BITS) for weight in weights]
    factor = max(0, UNIT_BITS - (sum(whole).bit_length() - 1))
    return tuple(weight << factor for weight in whole)


def apportion(
    seats: int, weights: NDArray[np.int64], owed: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(seats of each stream, what each is owed afterwards), int64 [streams], summing to `seats` and to 0.

    `owed` is wanted minus given so far, in units of 1 / weights.sum(). While weights do not change, every |owed| stays
    below one seat. For each seat of a stream there is a first batch that may give it (one seat ahead at most) and a
    last one that must (one seat behind at most); giving those with the earliest last batch first meets every last batch
    whenever that can be done at all, and R. Tijdeman, "The chairman assignment problem" (Discrete Mathematics 32,
    1980), shows that it can. A change of weights may put a stream up to a seat further off, until it has caught up.
    """
    unit = int(weights.sum())
    due = owed + seats * weights
    given = np.maximum(0, due // unit)
    rest = due - given * unit
    free = seats - int(given.sum())
    if free > 0:
        may = np.flatnonzero(rest > 0)
        batches_left = (unit - rest[may]) / np.maximum(weights[may], 1e-9)
        given[may[np.argsort(batches_left, kind="stable")[:free]]] += 1
    elif free < 0:
        # Streams that were ahead lost their weight, so that the others are due more than there is.
        may = np.flatnonzero(given > 0)
        given[may[np.argsort(rest[may], kind="stable")[:-free]]] -= 1
    return given, due - given * unit


def converted(owed: NDArray[np.int64], unit: int, new_unit: int) -> NDArray[np.int64]:
    """`owed` in units of 1 / new_unit, still summing to 0."""
    found = np.array([int(number) * new_unit // unit for number in owed.tolist()], dtype=np.int64)
    found[: -int(found.sum())] += 1  # rounding down lost less than one each
    return found
