"""What found pairs are worth: recall, precision, and what is left after one of each pair was dropped.

Every contender is judged on the distinct normalised texts of the corpus, with the same rule for who stays: greedy cover
in the order of texts, as the engine's select stage does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataengine.select.covering import in_order
from dataengine.select.keyed import ABSENT
from dataengine.select.relations import UNKNOWN_DISTANCE, Edges, Relation
from dataengine.select.survivors import Respect, cover


@dataclass(frozen=True)
class Truth:
    """All pairs of texts at or above the threshold."""

    num_texts: int
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def codes(self) -> NDArray[np.int64]:
        """One number per pair."""
        return coded(self.left, self.right)


@dataclass(frozen=True)
class Score:
    """How far found pairs are from the truth."""

    recall: float
    precision: float
    leak: float
    """Share of the true pairs of which both texts stay."""
    leak_above: int
    """True pairs 0.1 above the threshold of which both texts stay."""
    num_wrong: int
    """Texts dropped that resemble no other at the threshold."""
    num_kept: int


def score(truth: Truth, left: NDArray[np.int64], right: NDArray[np.int64], min_similarity: float) -> Score:
    """Judge found pairs of texts, which may come either way round and repeatedly."""
    apart = left != right
    found = np.unique(coded(left[apart], right[apart]))
    stays = kept(found, truth.num_texts)
    hits = np.isin(found, truth.codes())
    both = stays[truth.left] & stays[truth.right]
    above = truth.similarity >= min_similarity + 0.1 - 1e-9
    alike = np.zeros(truth.num_texts, np.bool_)
    alike[truth.left] = alike[truth.right] = True
    num_true = max(len(truth.left), 1)
    return Score(
        recall=float(hits.sum() / num_true),
        precision=float(hits.mean()) if len(found) else 1.0,
        leak=float(both.sum() / num_true),
        leak_above=int((both & above).sum()),
        num_wrong=int((~stays & ~alike).sum()),
        num_kept=int(stays.sum()),
    )


def kept(codes: NDArray[np.int64], num_texts: int) -> NDArray[np.bool_]:
    """Which texts stay when pairs are covered greedily."""
    left, right = (codes >> 32).astype(np.int32), (codes & 0xFFFFFFFF).astype(np.int32)
    edges = Edges(left, right, np.ones(len(left), np.float32), np.full(len(left), UNKNOWN_DISTANCE, np.int8))
    relation = Relation.build(num_texts, (Edges.none().left, Edges.none().right), edges)
    links = in_order(Respect(relation, 0.0, UNKNOWN_DISTANCE, 1).links, np.arange(num_texts, dtype=np.int32))
    found = cover([links], np.ones(num_texts, np.bool_))
    return found.leader == ABSENT


def coded(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs as lower << 32 | higher."""
    return (np.minimum(left, right).astype(np.int64) << 32) | np.maximum(left, right)
