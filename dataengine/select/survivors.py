"""Survivors: which of a set of duplicates stay.

Decides by greedy cover in a total order: rows are taken best first, and a row is dropped exactly when rows that stay
are its duplicates, as many as may stay of one image. So there are no chains, and every dropped row names a survivor it
really resembles. Which rows passed the rules and who is related comes in; it does not know where the edges came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.select.covering import Cover, Links, greedy_cover, smallest, unite_passed
from dataengine.select.keyed import ABSENT, Keys
from dataengine.select.relations import UNKNOWN_DISTANCE, Relation, both, flatten, unite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import SurvivorConfig

REASONS = {
    "image": ("duplicate_image",),
    "caption": ("duplicate_caption",),
    "pair": ("duplicate_pair",),
    "either": ("duplicate_image", "duplicate_caption"),
    "none": (),
}
"""By policy, the reason that each of its relations gives."""


@dataclass(frozen=True)
class Respect:
    """A relation in which a policy compares rows, and what counts in it."""

    relation: Relation
    min_similarity: float
    max_distance: int
    max_rows: int
    """Rows that may stay of one image."""

    @property
    def limits(self) -> dict[str, Any]:
        """What counts, for compiled code."""
        return {
            "min_similarity": np.float32(self.min_similarity),
            "max_distance": self.max_distance,
            "max_rows": self.max_rows,
        }

    @property
    def links(self) -> Links:
        """All of it for compiled code."""
        relation = self.relation
        columns = (relation.labels, relation.starts, relation.others, relation.similarity, relation.distance)
        return Links(*columns, **self.limits)


def respects(config: SurvivorConfig, images: Relation, captions: Relation, rows: NDArray[np.integer]) -> list[Respect]:
    """What the policy compares; `rows` are all that may ever pass the rules."""
    distance = UNKNOWN_DISTANCE if config.max_phash_distance is None else config.max_phash_distance
    image = Respect(images, config.min_image_similarity or 0.0, distance, config.max_rows_per_image)
    caption = Respect(captions, config.min_caption_similarity or 0.0, UNKNOWN_DISTANCE, 1)
    if config.policy == "pair":
        joined = both(_narrowed(image), _narrowed(caption), rows)
        return [Respect(joined, 0.0, UNKNOWN_DISTANCE, config.max_rows_per_image)]
    return {"image": [image], "caption": [caption], "either": [image, caption], "none": []}[config.policy]


def _narrowed(respect: Respect) -> Relation:
    """The relation without the edges that do not count."""
    relation = respect.relation
    counts = (relation.similarity >= np.float32(respect.min_similarity)) & (relation.distance <= respect.max_distance)
    kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Relation(
        relation.labels,
        kept[relation.starts],
        relation.others[counts],
        relation.similarity[counts],
        relation.distance[counts],
    )


def cover(compared: Sequence[Links], passed: NDArray[np.bool_]) -> Cover:
    """Who stays of the places that `passed` (bool [places]), taken in their order; `compared` is `in_order`.

    Among several surviving duplicates a row yields to the best; of two relations that name it, the more similar one
    says so.
    """
    num_places = len(passed)
    found = Cover(
        np.full(num_places, ABSENT, np.int32), np.zeros(num_places, np.float32), np.zeros(num_places, np.int8)
    )
    if compared:
        greedy_cover(passed, len(compared) > 1, compared[0], compared[-1], found)
    return found


def group_rows(compared: Sequence[Respect], passed: NDArray[np.bool_], keys: Keys) -> NDArray[np.int32]:
    """By passed row, the row of smallest key among those it is connected to, `ABSENT` where it is alone: int32 [rows].

    Connected are rows over any number of duplicates, whether or not any of them was dropped.
    """
    num_rows = len(passed)
    rows = np.flatnonzero(passed).astype(np.int32)
    labels = [respect.relation.labels + np.int32(number * num_rows) for number, respect in enumerate(compared)]
    parents = np.arange(num_rows * len(compared), dtype=np.int32)
    for number, respect in enumerate(compared):
        unite_passed(parents, number * num_rows, passed, respect.links)
        unite(parents, labels[0][rows], labels[number][rows])  # a row ties its labels in all respects together
    flatten(parents)
    return smallest(parents, labels[0], passed, keys.high, keys.low)
