"""Byte pairs: open_clip's own tokens for any text, in a number of steps that the length bounds."""

from __future__ import annotations

import functools
import itertools
import string
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.score import byte_pairs
from dataengine.score.byte_pairs import BytePairs, merge

LETTERS = ["a", "e", "th", "the", "ing", "er", "'s", "'LL", "1", "42", "ß", "é", "中", "🙂", "İ", "ﬁ", "Ã©", "\u0301"]
SIGNS = ["&amp;", "&lt;", "<", ">", "<end_of_text>", "<START_OF_TEXT>", "_", "-", "...", " ", "\t", "\u200d"]
PIECES = st.sampled_from(LETTERS + SIGNS)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=200).map("".join),
    st.text(max_size=80),
    st.text(st.sampled_from(string.ascii_lowercase), min_size=40, max_size=300),
    st.tuples(st.sampled_from(["a", "ab", "the", "中", "🙂", "!?"]), st.integers(1, 300)).map(lambda it: it[0] * it[1]),
)


@functools.cache
def tokenizer() -> Any:
    return open_clip.SimpleTokenizer()


@functools.cache
def pairs() -> BytePairs:
    return BytePairs.of(tokenizer())


@given(TEXTS)
@settings(deadline=None, max_examples=300)
def test_tokens_are_open_clips(text: str) -> None:
    assert pairs().encode(text) == tokenizer().encode(text)


def naive(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The definition: as long as a pair has a rank, merge the one of the lowest everywhere."""
    while present := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
        best, merged = min(present, key=ranks.__getitem__), []
        while symbols:
            size = 2 if tuple(symbols[:2]) == best else 1
            merged.append("".join(symbols[:size]))
            symbols = symbols[size:]
        symbols = merged
    return symbols


PARTS = st.text("abc", min_size=1, max_size=3)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.tuples(PARTS, PARTS), max_size=30, unique=True))
def test_merges_follow_any_table_whatever_its_order(symbols: list[str], table: list[tuple[str, str]]) -> None:
    ranks = {pair: rank for rank, pair in enumerate(table)}
    assert merge(symbols, ranks) == naive(symbols, ranks)


class Counted(dict[tuple[str, str], int]):
    """Counts how often it is asked."""

    asked = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


def test_an_endless_word_is_looked_at_a_few_times_and_not_a_few_times_squared() -> None:
    rng = np.random.default_rng(0)
    word = list(rng.choice(list(string.ascii_lowercase), 4096))
    ranks = Counted(tokenizer().bpe_ranks)
    assert len(merge(word, ranks)) < 3000
    assert ranks.asked < 4 * len(word)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_pairs, "_MAX_REMEMBERED", 10)
    fresh = BytePairs.of(tokenizer())
    for number in range(25):
        word = "".join(string.ascii_lowercase[(number * 7 + place) % 26] for place in range(number + 20))
        assert fresh.encode(word) == tokenizer().encode(word)
        assert len(fresh._known) <= 10
    assert all(len(word) <= 32 for word in fresh._known)
