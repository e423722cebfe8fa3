"""Captions of a part: each text once, every row led back to it, and exact cosines."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.schemas import CAPTIONS
from dataengine.score.captions import cosine, gather_captions

TEXT = st.sampled_from(["", " ", "a", "b", "é"])
ROW = st.tuples(TEXT, st.dictionaries(st.sampled_from(["alt", "recap", "other"]), TEXT))


def table(rows: list[tuple[str, dict[str, str]]]) -> pa.Table:
    captions = pa.array([list(named.items()) for _, named in rows], CAPTIONS)
    return pa.table({"caption": pa.array([text for text, _ in rows], pa.string()), "captions": captions})


@given(st.lists(ROW, max_size=12))
def test_rows_lead_back_to_their_texts(rows: list[tuple[str, dict[str, str]]]) -> None:
    found = gather_captions(table(rows), ["caption", "alt", "recap"])
    assert len(set(found.unique)) == len(found.unique)
    assert all(text.strip() for text in found.unique)
    for name in ("caption", "alt", "recap"):
        texts = [primary if name == "caption" else named.get(name, "") for primary, named in rows]
        back = [found.unique[place] if place >= 0 else "" for place in found.rows[name]]
        assert back == [text if text.strip() else "" for text in texts]


def test_chunked_tables_and_no_names() -> None:
    rows = table([("a", {"alt": "b"}), ("b", {})])
    chunked = pa.concat_tables([rows.slice(1), rows])
    found = gather_captions(chunked, ["alt", "caption"])
    assert found.unique == ["b", "a"]
    assert found.rows["alt"].tolist() == [-1, 0, -1]
    assert found.rows["caption"].tolist() == [0, 1, 0]
    assert gather_captions(rows, []).unique == []


def test_cosine_is_row_by_row_float32_and_bounded() -> None:
    rng = np.random.default_rng(0)
    left, right = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in rng.normal(size=(2, 50, 64)))
    left, right = left.astype(np.float32), right.astype(np.float32)
    found = cosine(left, right)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.sum(left.astype(np.float64) * right, axis=1), abs=1e-7)
    same = cosine(left, left)
    assert same == pytest.approx(1)
    assert same.max() <= 1
    assert cosine(left[7:8], right[7:8])[0] == found[7]
    assert cosine(left[:0], right[:0]).shape == (0,)
