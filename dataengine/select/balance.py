"""The mixture: how many draws each source gets, and which of its rows are drawn how often.

Decides quotas by largest remainder, so that they sum to the target exactly, and spreads a source's draws so
evenly that two of its rows never differ by more than one. Counts and keys in, draws out; it does not know
why a row survived. Repeats are a count per row, never copies of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import ConfigError
from dataengine.keys import draws, key_bits

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from dataengine.config.select import BalanceConfig


@dataclass(frozen=True)
class Mixture:
    """Draws per source; every source of the run is named in each."""

    available: dict[str, int]
    """Survivors, each counted once."""
    asked: dict[str, int]
    """Draws the config asks for."""
    realised: dict[str, int]
    """Draws given: fewer than asked only with `if_short: all`."""


def apportion(available: Mapping[str, int], config: BalanceConfig) -> Mixture:
    """The draws of each source (name → survivors).

    Without a target every survivor is drawn once. Raises ConfigError when weights come without a target or
    fit no source, and when a source falls short under `if_short: error`; the message names the largest
    target that fits. No survivors at all is a shortage like any other.
    """
    rows = dict(sorted(available.items()))
    if config.target is None:
        if config.weights:
            shares = _shares(rows, config)
            feasible = _feasible(rows, shares, config)
            raise ConfigError(f"select.balance.weights: set select.balance.target too; {feasible}")
        return Mixture(rows, dict(rows), dict(rows))
    if config.if_short == "all" and not config.weights and not any(rows.values()):
        return Mixture(rows, dict(rows), dict(rows))
    shares = _shares(rows, config)
    asked = _quotas(shares, config.target)
    realised = {name: min(quota, rows[name] * config.max_repeat) for name, quota in asked.items()}
    short = [name for name in asked if realised[name] < asked[name]]
    if short and config.if_short == "error":
        faults = ", ".join(f"{name} can give {realised[name]} of {asked[name]} draws" for name in short)
        raise ConfigError(
            f"select.balance.target: {config.target} draws, but {faults} "
            f"(at most {config.max_repeat} of each sample); "
            f"{_feasible(rows, shares, config)}, or set if_short: all"
        )
    return Mixture(rows, asked, realised)


def _shares(rows: Mapping[str, int], config: BalanceConfig) -> dict[str, Fraction]:
    """What part of the mixture each source is to be; they sum to 1."""
    weights = {name: Fraction(config.weights.get(name, 0)) for name in rows}
    if not config.weights:
        weights = {name: Fraction(count) for name, count in rows.items()}
    total = sum(weights.values())
    if not total:
        why = (
            "every weight is 0" if config.weights else "no row survived; set if_short: all to publish an empty dataset"
        )
        raise ConfigError(f"select.balance: nothing to draw from, {why}; survivors by source are {dict(rows)}")
    return {name: weight / total for name, weight in weights.items()}


def _quotas(shares: Mapping[str, Fraction], target: int) -> dict[str, int]:
    """Shares of `target` as whole numbers by largest remainder (Hamilton's method), ties by name."""
    quotas = {name: int(share * target) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (quotas[name] - shares[name] * target, name))
    for name in by_remainder[: target - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _feasible(rows: Mapping[str, int], shares: Mapping[str, Fraction], config: BalanceConfig) -> str:
    limits = {name: rows[name] * config.max_repeat for name in rows}
    largest = min(int(limits[name] / share) for name, share in shares.items() if share)
    while any(quota > limits[name] for name, quota in _quotas(shares, largest).items()):
        largest -= 1  # rounding up gave a source one draw too many
    return f"the largest target these survivors and weights can fill is {largest}"


def draw_rows(
    keys: pa.Array, num_draws: int, max_repeat: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """How often each row of a source is drawn, and the number that decided: int32, float64 [rows] in [0, 1).

    Repeats sum to `num_draws` and differ by at most 1; the rows of smallest number get the extra draw,
    whatever the order of `keys`. Raises ValueError when `num_draws` needs more than `max_repeat` of a row.
    """
    if num_draws > len(keys) * max_repeat:
        raise ValueError(f"{num_draws} draws from {len(keys)} rows need more than {max_repeat} repeats")
    numbers = draws(keys, seed, "balance")
    each, extra = divmod(num_draws, max(len(keys), 1))
    repeats = np.full(len(keys), each, np.int32)
    repeats[np.lexsort((key_bits(keys), numbers))[:extra]] += 1
    return repeats, numbers
