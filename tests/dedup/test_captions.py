from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.captions import caption_hashes, normalise_captions


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A Red Barn!", "a red barn"),
        ("  tea\t\n—  cups ", "tea cups"),
        ("ﬁne “art”", "fine art"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("soft\u00adware", "software"),
        ("cafe\u0301", "CAFÉ"),
        ("全角ＡＢＣ。", "全角abc"),
    ],
)
def test_differences_of_writing_do_not_count(one: str, other: str) -> None:
    first, second = normalise_captions(pa.array([one, other])).to_pylist()
    assert first == second


def test_emoji_and_symbols_stay_and_differ() -> None:
    assert normalise_captions(pa.array(["🔥🔥", "🔥", "€5", "$5"])).to_pylist() == ["🔥🔥", "🔥", "€5", "$5"]


def test_a_caption_that_says_nothing_has_no_hash() -> None:
    captions = normalise_captions(pa.chunked_array([["", None], [" ... "]]))
    assert captions.to_pylist() == ["", "", ""]
    assert caption_hashes(captions).null_count == 3


@given(st.lists(st.text(max_size=12)))
def test_equal_hash_means_equal_normalised_caption(texts: list[str]) -> None:
    normalised = normalise_captions(pa.array(texts, pa.string()))
    hashes = caption_hashes(normalised).to_pylist()
    assert [text != text.strip() or "  " in text for text in normalised.to_pylist()] == [False] * len(texts)
    for text, digest in zip(normalised.to_pylist(), hashes, strict=True):
        assert (digest is None) == (text == "")
    named = {digest for digest in hashes if digest}
    assert len(named) == len(set(normalised.to_pylist()) - {""})
