from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.shingles import has_shingles, hash_shingles, jaccard, shingle_sets
from dataengine.keys import mix64

TEXTS = st.lists(st.text(alphabet="ab 語🔥é", max_size=12), max_size=8)


def shingle_hash(shingle: str) -> int:
    polynomial = 0
    for character in shingle:
        polynomial = (polynomial * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
    return int(mix64(np.array([polynomial], np.uint64), 0, "shingle")[0])


def ngrams(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(len(text) - size + 1)]


@given(TEXTS, st.integers(2, 5))
def test_hashes_are_those_of_the_documented_function(texts: list[str], size: int) -> None:
    shingles = hash_shingles(pa.array(texts, pa.string()), size)
    assert shingles.hashes.tolist() == [shingle_hash(gram) for text in texts for gram in ngrams(text, size)]
    assert np.diff(shingles.offsets).tolist() == [len(ngrams(text, size)) for text in texts]


def test_a_slice_of_an_array_reads_only_its_rows() -> None:
    whole = pa.array(["héllo", "語語語語", "world!"])
    assert hash_shingles(whole.slice(1), 3).hashes.tolist() == [
        shingle_hash(gram) for text in ("語語語語", "world!") for gram in ngrams(text, 3)
    ]


def test_short_captions_have_no_shingle() -> None:
    captions = pa.array(["", "abcd", "abcde", "語語語語語"])
    assert has_shingles(captions, 5).tolist() == [False, False, True, True]


@given(TEXTS, st.integers(2, 4))
def test_jaccard_is_that_of_sets(texts: list[str], size: int) -> None:
    sets = shingle_sets(pa.array(texts, pa.string()), size)
    left, right = (grid.ravel().astype(np.int64) for grid in np.indices((len(texts), len(texts))))
    for a, b, similarity in zip(left, right, jaccard(sets, left, right), strict=True):
        one, other = set(ngrams(texts[a], size)), set(ngrams(texts[b], size))
        assert similarity == pytest.approx(len(one & other) / max(len(one | other), 1))
