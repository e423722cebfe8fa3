"""Which caption a sample is trained with: chosen among named ones by weight, or dropped for guidance.

In go a sample's key, its captions and a seed; out come the caption and its name, a pure function of both, so the choice
is the same whatever worker makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from dataengine.trainer import arguments

PRIMARY = "caption"
DROPPED = ""


@dataclass(frozen=True)
class Caption:
    """Names of captions with the weights that they are chosen by; `caption` is the primary one.

    Names that a sample lacks, or has empty, are left out and the other weights scaled up; with none left it is the
    primary one. `drop` is the probability of the empty caption, for classifier-free guidance (Ho and Salimans, 2021).
    """

    weights: Mapping[str, float]
    drop: float = 0.0

    def __post_init__(self) -> None:
        arguments.number("caption: drop", self.drop, 0, 1)
        object.__setattr__(self, "weights", arguments.weights("caption: weights", self.weights))

    def choose(self, record: Mapping[str, Any], key: str, seed: int, epoch: int) -> tuple[str, str]:
        """(caption, its name) for the sample of `key` with the json `record`; ("", "") when it is dropped."""
        if self.drop and _uniform(f"{epoch}/drop/{key}", seed) < self.drop:
            return DROPPED, DROPPED
        captions = {**record.get("captions", {}), PRIMARY: record.get(PRIMARY, "")}
        there = {name: weight for name, weight in self.weights.items() if weight and captions.get(name)}
        if not there:
            return captions[PRIMARY], PRIMARY
        place = _uniform(f"{epoch}/caption/{key}", seed) * sum(there.values())
        for name, weight in there.items():
            place -= weight
            if place < 0:
                return captions[name], name
        return captions[name], name


def _uniform(text: str, seed: int) -> float:
    """A number in [0, 1) that the text and the seed choose."""
    return float(xxhash.xxh3_64_intdigest(text.encode(), seed=seed & (2**64 - 1)) >> 11) * 2.0**-53
