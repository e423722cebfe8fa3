"""The mixture: how many draws each source gets, and which of its rows are drawn how often.

Decides quotas by largest remainder, so that they sum to the target exactly, within the bounds of each source, and
spreads a source's draws so evenly that two of its rows never differ by more than one. Counts and keys in, draws out; it
does not know why a row survived. Repeats are a count per row, never copies of the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from dataengine.errors import ConfigError
from dataengine.keys import draws_of_bits
from dataengine.select.ranks import best

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import BalanceConfig
    from dataengine.select.keyed import Keys


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

    Without a target every survivor is drawn once, within `min` and `max`. Raises ConfigError when weights come without
    a target or fit no source, when `min` and `max` leave no room for the target, and when a source falls short under
    `if_short: error`; the message names the largest target that fits. No survivors at all is a shortage like any other.
    """
    rows = dict(sorted(available.items()))
    if config.if_short == "all" and not config.weights and not any(rows.values()):
        return Mixture(rows, dict(rows), dict(rows))
    if config.target is None:
        if config.weights:
            fits = _feasible(rows, _shares(rows, config), config)
            raise ConfigError(f"select.balance.weights: set select.balance.target too; {fits}")
        asked = {name: _clamp(count, config, name) for name, count in rows.items()}
    else:
        asked = _quotas(_shares(rows, config), config.target, config)
    realised = {name: min(quota, rows[name] * config.max_repeat) for name, quota in asked.items()}
    short = [name for name in asked if realised[name] < asked[name]]
    if short and config.if_short == "error":
        faults = ", ".join(f"{name} can give {realised[name]} of {asked[name]} draws" for name in short)
        fits = "lower select.balance.min" if config.target is None else _feasible(rows, _shares(rows, config), config)
        raise ConfigError(
            f"select.balance.target: {sum(asked.values())} draws, but {faults} (at most {config.max_repeat} of each "
            f"sample); {fits}, or set if_short: all"
        )
    return Mixture(rows, asked, realised)


def _clamp(count: int, config: BalanceConfig, name: str) -> int:
    return min(max(count, config.min.get(name, 0)), config.max.get(name, max(count, config.min.get(name, 0))))


def _shares(rows: Mapping[str, int], config: BalanceConfig) -> dict[str, Fraction]:
    """What part of the mixture each source is to be; they sum to 1."""
    if config.weights:
        weights = {name: Fraction(config.weights.get(name, 0)) for name in rows}
    elif config.temperature == 1:
        weights = {name: Fraction(count) for name, count in rows.items()}
    else:
        weights = {name: Fraction(count ** (1 / config.temperature)) for name, count in rows.items()}
    total = sum(weights.values())
    if not total:
        why = (
            "every weight is 0" if config.weights else "no row survived; set if_short: all to publish an empty dataset"
        )
        raise ConfigError(f"select.balance: nothing to draw from, {why}; survivors by source are {dict(rows)}")
    return {name: weight / total for name, weight in weights.items()}


def _quotas(shares: Mapping[str, Fraction], target: int, config: BalanceConfig) -> dict[str, int]:
    """`target` as whole numbers, in proportion to `shares` within `min` and `max`, by largest remainder (Hamilton's
    method), ties by name. Raises ConfigError when the bounds leave no room."""
    exact = _within_bounds(shares, target, config)
    quotas = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: target - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _within_bounds(shares: Mapping[str, Fraction], target: int, config: BalanceConfig) -> dict[str, Fraction]:
    """Shares of `target` that sum to it: those out of bounds are set to the bound, and the others share the rest.

    In each round the bounds that are broken by more in total are set first, because setting them may heal the others.
    """
    set_to: dict[str, Fraction] = {}
    while True:
        free = {name: share for name, share in shares.items() if name not in set_to}
        rest, total = target - sum(set_to.values()), sum(free.values())
        if rest < 0 or (rest and not total):
            raise ConfigError(_no_room(shares, target, config))
        wanted = {name: rest * share / total if total else Fraction(0) for name, share in free.items()}
        low = {name: config.min[name] - want for name, want in wanted.items() if want < config.min.get(name, 0)}
        high = {name: want - config.max[name] for name, want in wanted.items() if want > config.max.get(name, want)}
        if not low and not high:
            return set_to | wanted
        if sum(low.values()) >= sum(high.values()):
            set_to |= {name: Fraction(config.min[name]) for name in low}
        else:
            set_to |= {name: Fraction(config.max[name]) for name in high}


def check_bounds(sources: Iterable[str], config: BalanceConfig) -> None:
    """Refuse a target that `min` and `max` leave no room for, whatever survives. Raises ConfigError."""
    shares = {name: Fraction(config.weights.get(name, 0) if config.weights else 1) for name in sources}
    least, most = _room(shares, config)
    if config.target is not None and not least <= config.target <= (config.target if most is None else most):
        raise ConfigError(_no_room(shares, config.target, config))


def _room(shares: Mapping[str, Fraction], config: BalanceConfig) -> tuple[int, int | None]:
    """The least and the greatest target within bounds; None: there is no greatest."""
    least = sum(config.min.get(name, 0) for name in shares)
    unbounded = [name for name, share in shares.items() if share and name not in config.max]
    most = sum(config.max.get(name, 0) if share else config.min.get(name, 0) for name, share in shares.items())
    return least, None if unbounded else most


def _no_room(shares: Mapping[str, Fraction], target: int, config: BalanceConfig) -> str:
    least, most = _room(shares, config)
    range_ = f"at least {least}" if most is None else f"from {least} to {most}"
    return f"select.balance.target: {target} draws do not fit select.balance.min and max, which allow {range_}"


def _feasible(rows: Mapping[str, int], shares: Mapping[str, Fraction], config: BalanceConfig) -> str:
    """The largest target that no source falls short of, in words."""
    limits = {name: count * config.max_repeat for name, count in rows.items()}

    def fits(target: int) -> bool:
        try:
            return all(quota <= limits[name] for name, quota in _quotas(shares, target, config).items())
        except ConfigError:
            return False

    low, high = sum(config.min.get(name, 0) for name in rows), sum(limits.values())
    if not fits(low):
        return "no target can be filled from these survivors; lower select.balance.min"
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return f"the largest target these survivors and weights can fill is {low}"


def draw_rows(keys: Keys, num_draws: int, max_repeat: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """How often each row of a source is drawn, and the number that decided: int32, float64 [rows] in [0, 1).

    Repeats sum to `num_draws` and differ by at most 1; the rows of smallest number get the extra draw,
    whatever the order of `keys`. Raises ValueError when `num_draws` needs more than `max_repeat` of a row.
    """
    if num_draws > len(keys) * max_repeat:
        raise ValueError(f"{num_draws} draws from {len(keys)} rows need more than {max_repeat} repeats")
    numbers = draws_of_bits(keys.high, seed, "balance")
    each, extra = divmod(num_draws, max(len(keys), 1))
    repeats = np.full(len(keys), each, np.int32)
    repeats[best(-numbers, extra, keys)] += 1
    return repeats, numbers
