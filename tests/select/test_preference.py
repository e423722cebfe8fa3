from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import ConfigError
from dataengine.keys import url_keys
from dataengine.select.keyed import Keys
from dataengine.select.preference import best_first, preference

FLOATS = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, -1.5]), st.floats(width=32, allow_nan=False))
KINDS = {
    pl.Float32: FLOATS,
    pl.Float64: FLOATS,
    pl.Int32: st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1)),
    pl.Boolean: st.one_of(st.none(), st.booleans()),
    pl.String: st.one_of(st.none(), st.sampled_from(["", "a", "ab", "ä"])),
}


@given(st.data(), st.integers(0, 12), st.lists(st.sampled_from(list(KINDS)), max_size=4))
def test_best_first_is_the_order_that_the_columns_say(data: st.DataObject, num_rows: int, kinds: list[type]) -> None:
    columns = pl.DataFrame(
        {
            f"c{number}": pl.Series(data.draw(st.lists(KINDS[kind], min_size=num_rows, max_size=num_rows)), dtype=kind)
            for number, kind in enumerate(kinds)
        }
    )
    order = [(f"c{number}", data.draw(st.booleans())) for number in range(len(kinds))]
    texts = url_keys("s", [str(row) for row in range(num_rows)])
    keys = Keys.parse(pa.array(texts, pa.string()))
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)))
    found = best_first(order, columns, keys, rows).tolist()
    wanted = sorted(rows.tolist(), key=lambda row: texts[row])
    for name, downwards in reversed(order):
        there = [row for row in wanted if columns[name][row] is not None]
        there.sort(key=lambda row: columns[name][row], reverse=downwards)
        if downwards:  # `reverse` keeps equal ones in their order, so this is stable
            there = sorted(
                (row for row in wanted if columns[name][row] is not None),
                key=lambda row: columns[name][row],
                reverse=True,
            )
        wanted = there + [row for row in wanted if columns[name][row] is None]
    assert found == wanted


@pytest.mark.parametrize("prefer", ["clip_scor desc", "clip_score", "clip_score upwards", " desc"])
def test_a_preference_that_does_not_fit_is_named(prefer: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.survivors\.prefer"):
        preference([prefer], ["clip_score"])
