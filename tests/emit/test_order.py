"""Tables of many parts in key order."""

from __future__ import annotations

import pyarrow as pa

from dataengine.emit.order import sorted_by_key


def test_parts_become_one_table_whose_texts_may_exceed_two_gibibytes() -> None:
    parts = [pa.table({"key": keys, "rank": ranks}) for keys, ranks in ((["b", "d"], [2, 4]), (["a", "c"], [1, 3]))]
    found = sorted_by_key(parts)
    assert found.to_pydict() == {"key": ["a", "b", "c", "d"], "rank": [1, 2, 3, 4]}
    assert found.schema.field("key").type == pa.large_string()
