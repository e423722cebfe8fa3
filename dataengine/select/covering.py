"""Greedy cover and connected groups over labels, row by row in compiled code.

Both take time in proportion to rows and edges: a label is gone through once for each row of it that stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataengine.select.compiled import compiled


class Links(NamedTuple):
    """A relation (see `relations.Relation`), the pairs of it that count, and how many rows may stay of one image."""

    labels: NDArray[np.int32]
    starts: NDArray[np.int64]
    others: NDArray[np.int32]
    similarity: NDArray[np.float32]
    distance: NDArray[np.int8]
    min_similarity: np.float32
    max_distance: int
    max_rows: int


class Cover(NamedTuple):
    """The verdict on each row: [rows]."""

    survivor: NDArray[np.int32]
    """The row that it yields to; -1 where it stays or was not asked about."""
    similarity: NDArray[np.float32]
    respect: NDArray[np.int8]
    """Which of the policy's relations says so."""


class _Tally(NamedTuple):
    """Who covers each label so far: [labels]."""

    first: NDArray[np.int32]
    """Place in the order of the first row that stays and covers it; -1 for none."""
    last: NDArray[np.int32]
    alike: NDArray[np.float32]
    """Similarity to the first."""
    num_rows: NDArray[np.int32]


@compiled
def _tally(size: int) -> _Tally:
    return _Tally(
        np.full(size, -1, np.int32), np.full(size, -1, np.int32), np.zeros(size, np.float32), np.zeros(size, np.int32)
    )


@compiled
def _counts(links: Links, at: int) -> bool:
    return bool(links.similarity[at] >= links.min_similarity and links.distance[at] <= links.max_distance)


@compiled
def _spread(links: Links, tally: _Tally, label: int, place: int) -> None:
    """Note at a label, and at those joined to it, that the row at `place` of the order stays."""
    if tally.first[label] < 0:
        tally.first[label], tally.alike[label] = place, np.float32(1)
    tally.last[label] = place
    tally.num_rows[label] += 1
    for at in range(links.starts[label], links.starts[label + 1]):
        if not _counts(links, at):
            continue
        other = links.others[at]
        if tally.last[other] != place:
            tally.last[other] = place
            tally.num_rows[other] += 1
            if tally.first[other] < 0:
                tally.first[other], tally.alike[other] = place, links.similarity[at]
        elif tally.first[other] == place:  # several edges may join two labels
            tally.alike[other] = max(tally.alike[other], links.similarity[at])


@compiled
def greedy_cover(
    order: NDArray[np.int32], passed: NDArray[np.bool_], two: bool, one: Links, other: Links, found: Cover
) -> None:
    """Fill `found` by walking the passed rows of `order`; `other` counts only when there are `two` relations."""
    tally = _tally(len(one.labels))
    tally_2 = _tally(len(other.labels) if two else 0)
    for place in range(len(order)):
        row = order[place]
        if not passed[row]:
            continue
        label, label_2 = one.labels[row], other.labels[row]
        leader, alike, said = -1, np.float32(-1), 0
        if tally.num_rows[label] >= one.max_rows:
            leader, alike = tally.first[label], tally.alike[label]
        if two and tally_2.num_rows[label_2] >= other.max_rows:
            leader_2, alike_2 = tally_2.first[label_2], tally_2.alike[label_2]
            if leader < 0 or leader_2 < leader or (leader_2 == leader and alike_2 > alike):
                leader, alike, said = leader_2, alike_2, 1
        if leader >= 0:
            found.survivor[row], found.similarity[row], found.respect[row] = order[leader], alike, said
            continue
        _spread(one, tally, label, place)
        if two:
            _spread(other, tally_2, label_2, place)


@compiled
def unite_passed(parents: NDArray[np.int32], offset: int, passed: NDArray[np.bool_], links: Links) -> None:
    """Join in `parents`, from `offset` on, the labels that an edge joins, where both have a row that passed."""
    present = np.zeros(len(links.labels), np.bool_)
    for row in range(len(links.labels)):
        if passed[row]:
            present[links.labels[row]] = True
    for label in range(len(links.labels)):
        if not present[label]:
            continue
        for at in range(links.starts[label], links.starts[label + 1]):
            if links.others[at] < label or not present[links.others[at]] or not _counts(links, at):
                continue
            left, right = np.int64(label + offset), np.int64(links.others[at] + offset)
            while parents[left] != left:
                parents[left] = parents[parents[left]]
                left = np.int64(parents[left])
            while parents[right] != right:
                parents[right] = parents[parents[right]]
                right = np.int64(parents[right])
            if left < right:
                parents[right] = left
            else:
                parents[left] = right


@compiled
def smallest(
    roots: NDArray[np.int32],
    labels: NDArray[np.int32],
    passed: NDArray[np.bool_],
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
) -> NDArray[np.int32]:
    """By passed row, the row of smallest key under the same root; -1 where it is the only one."""
    leader, size = np.full(len(roots), -1, np.int32), np.zeros(len(roots), np.int32)
    for row in range(len(labels)):
        if passed[row]:
            root = roots[labels[row]]
            known = leader[root]
            if known < 0 or high[row] < high[known] or (high[row] == high[known] and low[row] < low[known]):
                leader[root] = row
            size[root] += 1
    groups = np.full(len(labels), -1, np.int32)
    for row in range(len(labels)):
        if passed[row] and size[roots[labels[row]]] > 1:
            groups[row] = leader[roots[labels[row]]]
    return groups
