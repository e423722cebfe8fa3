from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.captions import _forms, _normalised, caption_hashes, normalise_captions, text_buffers
from dataengine.dedup.kernels.text import UNKNOWN


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


def test_a_caption_that_says_nothing_is_empty() -> None:
    assert normalise_captions(pa.chunked_array([["", None], [" ... "]])).to_pylist() == ["", "", ""]
    assert normalise_captions(pa.chunked_array([], pa.string())).to_pylist() == []


@given(st.lists(st.text(alphabet=st.characters(max_codepoint=0x600), max_size=20)))
def test_one_pass_normalises_as_arrow_does(texts: list[str]) -> None:
    wanted = _normalised(pa.array(texts, pa.large_string())).to_pylist()
    assert normalise_captions(pa.array(texts, pa.string())).to_pylist() == wanted


def test_what_is_read_off_the_table_is_what_arrow_makes_of_it() -> None:
    """Every code point below 65536, alone and amid others of any block, five times over."""
    points = np.array([point for point in range(1 << 16) if not 0xD800 <= point < 0xE000])
    rng = np.random.default_rng(1)
    texts = [chr(point) for point in points]
    for size in (2, 3, 5, 8, 13):
        rng.shuffle(points)
        texts += ["".join(map(chr, points[at : at + size])) for at in range(0, len(points), size)]
    in_table = points[_forms()[2][points] < UNKNOWN]
    for size in (2, 3, 5, 8, 13):
        rng.shuffle(in_table)
        texts += ["".join(map(chr, in_table[at : at + size])) for at in range(0, len(in_table), size)]
    assert normalise_captions(pa.array(texts)).equals(_normalised(pa.array(texts, pa.large_string())))


@given(st.lists(st.text(max_size=12)), st.integers(0, 3))
def test_normal_forms_stay_as_they_are(texts: list[str], skipped: int) -> None:
    normalised = normalise_captions(pa.array(texts, pa.string()).slice(skipped))
    assert len(normalised) == max(len(texts) - skipped, 0)
    assert [text != text.strip(" ") or "  " in text for text in normalised.to_pylist()] == [False] * len(normalised)
    for text, normal in zip(texts[skipped:], normalised.to_pylist(), strict=True):
        assert normalise_captions(pa.array([text], pa.string())).to_pylist() == [normal], "alone as among others"


@given(st.lists(st.text(max_size=300)), st.integers(0, 3))
def test_hashes_are_blake2b(texts: list[str], skipped: int) -> None:
    captions = pa.array(texts, pa.string()).slice(skipped)
    wanted = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts[skipped:]]
    assert [row.tobytes() for row in caption_hashes(captions)] == wanted


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 255, 256, 257, 1000])
def test_hashes_of_whole_blocks(size: int) -> None:
    text = "x" * size
    assert caption_hashes(pa.array([text]))[0].tobytes() == hashlib.blake2b(text.encode(), digest_size=16).digest()


def test_buffers_of_a_slice() -> None:
    content, offsets = text_buffers(pa.array(["ab", "cd", "é"]).slice(1))
    assert [content[a:b].tobytes().decode() for a, b in pairwise(offsets)] == ["cd", "é"]
