from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.shingles import Shingling, count_shingles, jaccard
from tests.dedup.reference import shingles_of, similarity, words_of

TEXTS = st.lists(st.text(alphabet="ab 語🔥éก", max_size=12), max_size=8)
SHINGLINGS = [Shingling("char", 2), Shingling("char", 5), Shingling("word", 1), Shingling("word", 3)]


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert words_of("a red 赤い納屋 barn") == ["a", "red", "赤", "い", "納", "屋", "barn"]
    assert count_shingles(pa.array(["a red 赤い納屋 barn"]), Shingling("word", 1)).tolist() == [7]


@pytest.mark.parametrize("shingling", SHINGLINGS, ids=str)
@given(TEXTS, st.integers(0, 2))
def test_shingles_are_counted(shingling: Shingling, texts: list[str], skipped: int) -> None:
    captions = pa.array(texts, pa.string()).slice(skipped)
    assert count_shingles(captions, shingling).tolist() == [len(shingles_of(t, shingling)) for t in texts[skipped:]]


def test_short_captions_have_no_shingle() -> None:
    captions = pa.array(["", "abcd", "abcde", "語語語語語"])
    assert count_shingles(captions, Shingling("char", 5)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("min_similarity", [0.0, 0.5])
@pytest.mark.parametrize("shingling", SHINGLINGS, ids=str)
@given(TEXTS)
def test_jaccard_is_that_of_sets(shingling: Shingling, min_similarity: float, texts: list[str]) -> None:
    left, right = (grid.ravel().astype(np.int64) for grid in np.indices((len(texts), len(texts))))
    found = jaccard(pa.array(texts, pa.string()), left, right, shingling, min_similarity)
    for a, b, value in zip(left, right, found, strict=True):
        wanted = similarity(texts[a], texts[b], shingling)
        assert value == (wanted if wanted >= min_similarity else -1.0)


def test_jaccard_of_long_captions_in_any_order_on_threads() -> None:
    rng = np.random.default_rng(3)
    words = [f"word{number}" for number in range(300)]
    long = [" ".join(rng.choice(words, 2000)) for _ in range(3)]
    texts = [*long, long[0] + " more", "short one", "短い説明", "🔥" * 10_000]
    left, right = (grid.ravel().astype(np.int64) for grid in np.indices((len(texts), len(texts))))
    order = rng.permutation(len(left))
    found = jaccard(pa.array(texts), left[order], right[order], Shingling("char", 5), 0.0, num_threads=3)
    wanted = [similarity(texts[a], texts[b], Shingling("char", 5)) for a, b in zip(left, right, strict=True)]
    assert found.tolist() == np.array(wanted)[order].tolist()
