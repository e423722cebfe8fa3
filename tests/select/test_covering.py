"""What the cover is given: edges that it can still use, in the order of preference."""

from __future__ import annotations

import numpy as np

from dataengine.select.covering import in_order
from dataengine.select.relations import Edges, Relation
from dataengine.select.survivors import Respect


def ordered_edges(labels_joined: list[tuple[int, int]], copies: list[tuple[int, int]], order: list[int]) -> int:
    """The number of edge ends that are left for a cover that takes rows in `order`."""
    left, right = (np.array(ends, np.int32) for ends in zip(*labels_joined, strict=True))
    same = tuple(np.array([pair[end] for pair in copies], np.int32) for end in (0, 1))
    edges = Edges(left, right, np.ones(len(left), np.float32), np.zeros(len(left), np.int8))
    relation = Relation.build(len(order), (same[0], same[1]), edges)
    return len(in_order(Respect(relation, 0.0, 127, 1).links, np.array(order, np.int32)).others)


def test_edges_are_kept_only_forwards() -> None:
    assert ordered_edges([(0, 1), (1, 2), (0, 3)], [], [2, 0, 3, 1]) == 3  # each at one of its two ends


def test_an_edge_back_to_a_label_with_a_later_row_is_kept() -> None:
    assert ordered_edges([(0, 1)], [(0, 2)], [0, 1, 2]) == 2
    assert ordered_edges([(0, 1)], [(0, 2)], [0, 2, 1]) == 1
