"""Byte pairs: open_clip's own tokens of a word, in a time that its length bounds.

open_clip searches a whole word again after every merge, which takes the square of its length: half a second for a word
of 4,096 letters, and captions are hostile. Here the pairs wait in a heap. What comes out is the same, token for token.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_REMEMBERED = 1_000_000
"""Words whose tokens are kept: about 250 MB."""
_MAX_REMEMBERED_CHARS = 32
"""Longer words seldom come twice."""
_END = "</w>"


@dataclass
class BytePairs:
    """An open_clip SimpleTokenizer's way from text to tokens."""

    clean: Callable[[str], str]
    find_words: Callable[[str], list[str]]
    byte_names: Mapping[int, str]
    numbers: Mapping[str, int]
    """Symbol → token."""
    ranks: Mapping[tuple[str, str], int]
    special: frozenset[str]
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any) -> BytePairs:
        """What an open_clip.SimpleTokenizer does."""
        special = frozenset(tokenizer.decoder[number] for number in tokenizer.all_special_ids)
        return cls(
            tokenizer.clean_fn,
            tokenizer.pat.findall,
            tokenizer.byte_encoder,
            tokenizer.encoder,
            tokenizer.bpe_ranks,
            special,
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without ends."""
        tokens: list[int] = []
        for word in self.find_words(self.clean(text)):
            tokens += self._known.get(word) or self._read(word)
        return tokens

    def _read(self, word: str) -> tuple[int, ...]:
        name = "".join([self.byte_names[byte] for byte in word.encode()])
        symbols = [name] if name in self.special else merge([*name[:-1], name[-1] + _END], self.ranks)
        found = tuple([self.numbers[symbol] for symbol in symbols])
        if len(word) <= _MAX_REMEMBERED_CHARS:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[word] = found
        return found


def merge(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """`symbols` after all merges: the pair of the lowest rank first, everywhere, from left to right.

    (Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016, section 3.2.)
    """
    chain = _Chain(list(symbols), ranks)
    chain.look(range(len(symbols) - 1))
    while chain.waiting:
        rank = chain.waiting[0][0]
        merged: list[int] = []
        # A merge may bring about a pair of lower rank, which must not be merged before this one is everywhere.
        while chain.waiting and chain.waiting[0][0] == rank:
            _, place, pair = heapq.heappop(chain.waiting)
            if chain.join(place, pair):
                merged.append(place)
        chain.look(sorted({near for place in merged for near in (chain.before[place], place) if near >= 0}))
    return [symbol for symbol in chain.symbols if symbol]


@dataclass
class _Chain:
    """Symbols in a row, each at the place of its first one; a place that was merged into another is empty."""

    symbols: list[str]
    ranks: Mapping[tuple[str, str], int]
    before: list[int] = field(init=False)
    after: list[int] = field(init=False)
    waiting: list[tuple[int, int, tuple[str, str]]] = field(default_factory=list)
    """A heap of (rank, place, pair)."""

    def __post_init__(self) -> None:
        self.before = list(range(-1, len(self.symbols) - 1))
        self.after = list(range(1, len(self.symbols) + 1))

    def look(self, places: Any) -> None:
        """Let the pairs wait that begin at `places`."""
        for place in places:
            following = self.after[place]
            if self.symbols[place] and following < len(self.symbols):
                pair = (self.symbols[place], self.symbols[following])
                if (rank := self.ranks.get(pair)) is not None:
                    heapq.heappush(self.waiting, (rank, place, pair))

    def join(self, place: int, pair: tuple[str, str]) -> bool:
        """Merge `pair` at `place`, when it still is there."""
        following = self.after[place]
        if following >= len(self.symbols) or (self.symbols[place], self.symbols[following]) != pair:
            return False
        self.symbols[place], self.symbols[following] = "".join(pair), ""
        self.after[place] = self.after[following]
        if self.after[place] < len(self.symbols):
            self.before[self.after[place]] = place
        return True
