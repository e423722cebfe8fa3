"""Rows of a samples table move as the samples of their tar do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataengine.schemas import EXTRA_MEMBERS
from dataengine.storage.tar import BLOCK
from dataengine.versions.rewrite import Cut, moved

_ROWS = st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=12)


def table(shard: str, rows: list[tuple[bool, int, int]]) -> tuple[pa.Table, Cut]:
    """Samples of so many blocks each, with so many extra members, and how a tar of them is cut."""
    ends = np.cumsum([blocks * BLOCK for _, blocks, _ in rows])
    begins = np.concatenate([[0], ends[:-1]])
    columns: dict[str, Any] = {
        "shard": pa.array([shard] * len(rows)),
        "index_in_shard": pa.array(range(len(rows)), pa.int32()),
        **{f"{member}_offset": pa.array(begins + BLOCK, pa.int64()) for member in ("image", "txt", "json")},
        "extra_members": pa.array(
            [
                [(f"m{i}", {"offset": int(begin) + i, "nbytes": 1, "xxh3": f"{begin}"}) for i in range(num_extras)]
                for begin, (_, _, num_extras) in zip(begins, rows, strict=True)
            ],
            EXTRA_MEMBERS,
        ),
    }
    return pa.table(columns), Cut(begins, ends, np.array([stays for stays, _, _ in rows]))


@given(_ROWS, _ROWS)
def test_rows_move_by_what_is_cut_before_them(
    first: list[tuple[bool, int, int]], other: list[tuple[bool, int, int]]
) -> None:
    (cut_rows, cut), (whole_rows, _) = table("a", first), table("b", other)
    found = moved(pa.concat_tables([cut_rows, whole_rows]), {"a": cut, "c": cut}).to_pylist()
    wanted, end = [], 0
    for row, (stays, blocks, _) in zip(cut_rows.to_pylist(), first, strict=True):
        if not stays:
            continue
        shift = row["image_offset"] - BLOCK - end
        row |= {name: row[name] - shift for name in row if name.endswith("_offset")}
        row["index_in_shard"] = len(wanted)
        row["extra_members"] = [
            (name, place | {"offset": place["offset"] - shift}) for name, place in row["extra_members"]
        ]
        wanted.append(row)
        end += blocks * BLOCK
    assert found == wanted + whole_rows.to_pylist()
    assert cut.sample_offsets[-1] == end
