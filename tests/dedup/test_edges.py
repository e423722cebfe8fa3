from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataengine.dedup.edges import Pairs, edge_table


def test_pairs_are_ordered_sorted_and_never_of_one_key() -> None:
    first, second = pa.array(["d", "c", "a"]), pa.array(["b", "c", "b"])
    edges = edge_table(first, second, "image_embedding", np.array([0.9, 1.0, 0.8]))
    assert edges.select(["left_key", "right_key"]).to_pylist() == [
        {"left_key": "a", "right_key": "b"},
        {"left_key": "b", "right_key": "d"},
    ]


def test_no_parts_join_to_no_pairs() -> None:
    assert len(Pairs.joined([]).left) == 0
