"""The json members are what Python's own encoder writes, field by field."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.emit.jsons import NUMBER_FIELDS, TEXT_FIELDS, contents_of, encode_jsons
from dataengine.schemas import CAPTIONS

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
MAPS = st.dictionaries(st.sampled_from(["alt", "long", 'q"', "merged_1"]), st.none() | TEXTS, max_size=4)
ROW = st.fixed_dictionaries(
    {name: st.none() | TEXTS for name in TEXT_FIELDS}
    | {name: st.none() | st.integers(-(2**31), 2**31 - 1) for name in NUMBER_FIELDS}
    | dict.fromkeys(("captions", "extra"), MAPS)
    | {"clip_score": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)}
)
NAMES = st.lists(st.sampled_from(["alt", "long", "licence"]), unique=True)


def reference(row: dict, caption_names: list[str], extra_names: list[str]) -> str:
    """The object as `json` writes it."""
    found = {name: row[name] or "" for name in TEXT_FIELDS}
    found |= {name: -1 if row[name] is None else row[name] for name in NUMBER_FIELDS}
    for name, names in (("captions", caption_names), ("extra", extra_names)):
        found[name] = dict.fromkeys(names, "") | {key: text or "" for key, text in row[name].items()}
    score = -1.0 if row["clip_score"] is None else np.float64(np.float32(row["clip_score"]))
    found["clip_score"] = float(np.round(score, 6) + 0.0)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def table_of(rows: list[dict]) -> pa.Table:
    """`rows` as emit has them."""
    types = dict.fromkeys(TEXT_FIELDS, pa.string()) | dict.fromkeys(NUMBER_FIELDS, pa.int32())
    types |= dict.fromkeys(("captions", "extra"), CAPTIONS) | {"clip_score": pa.float32()}
    plain = [row | {name: list(row[name].items()) for name in ("captions", "extra")} for row in rows]
    return pa.table({name: pa.array([row[name] for row in plain], kind) for name, kind in types.items()})


@given(st.lists(ROW, max_size=5), NAMES, NAMES, st.integers(0, 3))
def test_they_are_what_python_writes(rows: list[dict], caption_names: list, extra_names: list, skipped: int) -> None:
    found = encode_jsons(table_of(rows).slice(skipped), caption_names, extra_names)
    kept = rows[skipped:]
    texts = [found[i].decode() for i in range(len(kept))]
    assert list(map(json.loads, texts)) == [json.loads(reference(row, caption_names, extra_names)) for row in kept]
    assert texts == [reference(row, caption_names, extra_names) for row in kept]
    assert found.sizes.tolist() == [len(text.encode()) for text in texts]


def test_a_score_that_is_no_number_is_refused() -> None:
    blank = dict.fromkeys(TEXT_FIELDS, "") | dict.fromkeys(NUMBER_FIELDS, 1) | {"captions": {}, "extra": {}}
    with pytest.raises(ValueError, match="no number"):
        encode_jsons(table_of([blank | {"clip_score": float("inf")}]), [], [])


def test_contents_are_those_of_the_rows_alone() -> None:
    column = pa.chunked_array([["a", "bé"], ["", "xyz"]]).slice(1)
    found = contents_of(column)
    assert [found[i] for i in range(3)] == ["bé".encode(), b"", b"xyz"]
    assert found.sizes.tolist() == [3, 0, 3]
