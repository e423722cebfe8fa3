"""Mixtures: what a user says about how often to draw from what.

A `Mixture` gives wanted shares of batches, `Repeats` the times that everything is drawn per epoch. Both name sources
of the dataset, or streams of their own by SQL conditions on the samples table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dataengine.errors import ConfigError
from dataengine.trainer import arguments

Per = Literal["sample", "batch"]


@dataclass(frozen=True)
class Mixture:
    """Wanted shares by name, of any sum. A stream begins again when it is through, each time in another order.

    Names are sources, or keys of `where`: SQL conditions on the samples table, as `{"sharp": "aesthetic > 6"}`. What is
    not named is not drawn. `per="sample"` mixes every batch; with `per="batch"` each batch is of one stream, and shares
    are of batches.
    """

    weights: Mapping[str, float]
    where: Mapping[str, str] = field(default_factory=dict)
    per: Per = "sample"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _checked("weights", self.weights, self.where, self.per))


@dataclass(frozen=True)
class Repeats:
    """Times each name is drawn per epoch: 2 is twice, 0.5 one half of it, and the other half in the next epoch.

    Names, `where` and `per` as for `Mixture`.
    """

    times: Mapping[str, float]
    where: Mapping[str, str] = field(default_factory=dict)
    per: Per = "sample"

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", _checked("times", self.times, self.where, self.per))

    @property
    def weights(self) -> Mapping[str, float]:
        """The numbers, as those of a mixture."""
        return self.times


def _checked(what: str, numbers: Mapping[str, float], where: Mapping[str, str], per: str) -> dict[str, float]:
    arguments.one_of("mixture: per", per, ("sample", "batch"))
    found = arguments.weights(f"mixture: {what}", numbers)
    arguments.texts("mixture: where", where)
    unused = sorted(set(where) - set(numbers))
    if unused:
        raise ConfigError(f"mixture: where names {unused}, {what} does not; give each a number")
    return found
