"""Greedy cover and connected groups over labels, row by row in compiled code.

Both take time in proportion to rows and edges: a label is gone through once for each row of it that stays. The cover
works on places in the order of preference, and its labels are numbered as the order meets them, because what costs is
memory: labels and their edges are then read one after another.
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
    """The verdict on each place of an order: [places]."""

    leader: NDArray[np.int32]
    """The place that it yields to; -1 where it stays or was not asked about."""
    similarity: NDArray[np.float32]
    respect: NDArray[np.int8]
    """Which of the policy's relations says so."""


class _Tally(NamedTuple):
    """Who covers each label so far: [labels]; the last two are kept only where several rows may stay of an image."""

    first: NDArray[np.int32]
    """Place of the first row that stays and covers it; -1 for none."""
    alike: NDArray[np.float32]
    """Similarity to the first."""
    last: NDArray[np.int32]
    num_rows: NDArray[np.int32]


def in_order(links: Links, order: NDArray[np.int32]) -> Links:
    """`links` with a label by place of `order`, and labels numbered by their first place.

    Left out are labels without a place, and edges to labels of which every row comes before the first of this one: the
    cover looks only forwards, so that is nearly half of all edges.
    """
    labels, numbers, olds, first, last = _number(order, links.labels)
    starts, at = _carried(olds, numbers, first, last, links.starts, links.others)
    return links._replace(
        labels=labels,
        starts=starts,
        others=numbers[links.others[at]],
        similarity=links.similarity[at],
        distance=links.distance[at],
    )


@compiled
def _number(
    order: NDArray[np.int32], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The new label by place, the new label by old one (-1 for none), and by new one: the old, first and last place."""
    found, numbers = np.empty(len(order), np.int32), np.full(len(labels), -1, np.int32)
    olds, first, last = np.empty(len(order), np.int32), np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    count = 0
    for place in range(len(order)):
        label = labels[order[place]]
        if numbers[label] < 0:
            numbers[label], olds[count], first[count] = count, label, place
            count += 1
        found[place] = numbers[label]
        last[numbers[label]] = place
    return found, numbers, olds[:count].copy(), first, last


@compiled
def _carried(
    olds: NDArray[np.int32],
    numbers: NDArray[np.int32],
    first: NDArray[np.int32],
    last: NDArray[np.int32],
    starts: NDArray[np.int64],
    others: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts by new label, and which of the edges are carried over: those to a label with a place after its first."""
    new_starts, at = np.zeros(len(olds) + 1, np.int64), np.empty(len(others), np.int64)
    count = 0
    for label in range(len(olds)):
        for edge in range(starts[olds[label]], starts[olds[label] + 1]):
            number = numbers[others[edge]]
            if number >= 0 and last[number] > first[label]:
                at[count] = edge
                count += 1
        new_starts[label + 1] = count
    return new_starts, at[:count].copy()


@compiled
def _tally(size: int, counted: bool) -> _Tally:
    few = size if counted else 0
    return _Tally(
        np.full(size, -1, np.int32), np.zeros(size, np.float32), np.full(few, -1, np.int32), np.zeros(few, np.int32)
    )


@compiled
def _counts(links: Links, at: int) -> bool:
    return bool(links.similarity[at] >= links.min_similarity and links.distance[at] <= links.max_distance)


@compiled
def _full(links: Links, tally: _Tally, label: int) -> bool:
    """Whether as many rows as may stay cover a label."""
    return bool(tally.first[label] >= 0 if links.max_rows == 1 else tally.num_rows[label] >= links.max_rows)


@compiled
def _note(links: Links, tally: _Tally, label: int, place: int, similarity: np.float32) -> None:
    """Note that the row at `place` stays and covers a label; several edges may say so."""
    if tally.first[label] < 0:
        tally.first[label], tally.alike[label] = place, similarity
    elif tally.first[label] == place:
        tally.alike[label] = max(tally.alike[label], similarity)
    if links.max_rows > 1 and tally.last[label] != place:
        tally.last[label] = place
        tally.num_rows[label] += 1


@compiled
def _spread(links: Links, tally: _Tally, label: int, place: int) -> None:
    """Note at a label, and at those joined to it, that the row at `place` stays."""
    _note(links, tally, label, place, np.float32(1))
    for at in range(links.starts[label], links.starts[label + 1]):
        if _counts(links, at):
            _note(links, tally, links.others[at], place, links.similarity[at])


@compiled
def greedy_cover(passed: NDArray[np.bool_], two: bool, one: Links, other: Links, found: Cover) -> None:
    """Fill `found` by walking the places that passed; `other` counts only when there are `two` relations.

    The relations are `in_order`.
    """
    tally = _tally(len(one.starts) - 1, one.max_rows > 1)
    tally_2 = _tally(len(other.starts) - 1 if two else 0, other.max_rows > 1)
    for place in range(len(passed)):
        if not passed[place]:
            continue
        label, label_2 = one.labels[place], other.labels[place]
        leader, alike, said = -1, np.float32(-1), 0
        if _full(one, tally, label):
            leader, alike = tally.first[label], tally.alike[label]
        if two and _full(other, tally_2, label_2):
            leader_2, alike_2 = tally_2.first[label_2], tally_2.alike[label_2]
            if leader < 0 or leader_2 < leader or (leader_2 == leader and alike_2 > alike):
                leader, alike, said = leader_2, alike_2, 1
        if leader >= 0:
            found.leader[place], found.similarity[place], found.respect[place] = leader, alike, said
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
