"""Captions with planted copies, for measuring: pseudo-words by Zipf's law, a stream of Parquet files of any length.

A share of the rows are exact copies (a few of them of the same twenty captions), a share near copies (one to six words
replaced, put in or left out), and, when asked for, a share is boilerplate: one of 400 templates with other words in its
blanks, the hard negatives of caption dedup. A row depends on the seed and the rows before it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

FILE_ROWS = 250_000
_POOL_ROWS = 400_000  # captions that later ones may be copies of
_COMMON = [
    "the",
    "a",
    "of",
    "in",
    "and",
    "with",
    "on",
    "for",
    "to",
    "at",
    "by",
    "an",
    "is",
    "from",
    "this",
    "that",
    "photo",
    "image",
    "picture",
    "view",
    "illustration",
    "vector",
    "white",
    "black",
    "red",
    "blue",
    "green",
    "woman",
    "man",
    "girl",
    "boy",
    "people",
    "young",
    "old",
    "new",
    "beautiful",
    "background",
    "hand",
    "house",
    "city",
    "street",
    "dog",
    "cat",
    "car",
    "tree",
    "water",
    "sky",
    "sea",
    "beach",
    "mountain",
    "flower",
    "table",
    "chair",
    "room",
    "kitchen",
    "food",
    "cake",
    "wedding",
    "dress",
    "party",
    "summer",
    "winter",
    "day",
    "night",
    "happy",
    "smiling",
    "holding",
    "wearing",
    "standing",
    "sitting",
    "walking",
    "looking",
    "large",
    "small",
    "wooden",
    "modern",
    "vintage",
    "design",
    "pattern",
    "isolated",
    "free",
    "stock",
    "premium",
    "download",
    "high",
    "resolution",
    "art",
    "print",
    "poster",
    "wall",
    "canvas",
    "set",
    "collection",
    "best",
    "home",
    "decor",
]
_ONSETS = [
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "br",
    "cl",
    "cr",
    "dr",
    "fl",
    "gr",
    "pl",
    "pr",
    "sh",
    "sl",
    "sp",
    "st",
    "th",
    "tr",
]
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ee", "ou", "é", "ü"]
_CODAS = ["", *["n", "r", "s", "t", "l", "m", "d", "k", "ck", "nd", "ng", "nt", "st", "rd", "ll"]]
_NUM_WORDS = 40_000
_NUM_TEMPLATES = 400
_BLANK = -1


@dataclass(frozen=True)
class Shares:
    """What part of the rows is planted."""

    exact: float = 0.10
    near: float = 0.05
    templates: float = 0.30


def write_corpus(folder: Path, num_rows: int, seed: int, shares: Shares) -> list[Path]:
    """Write `key` (32 hex characters) and `caption` as Parquet files of `FILE_ROWS` rows; their paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, captions in enumerate(_captions(num_rows, seed, shares)):
        paths.append(folder / f"captions-{number:05d}.parquet")
        digits = np.random.default_rng([seed, number, 1]).integers(0, 256, (len(captions), 16), dtype=np.uint8)
        keys = pa.array([row.hex() for row in digits.view("V16")[:, 0].tolist()], pa.string())
        pq.write_table(pa.table({"key": keys, "caption": captions}), paths[-1], row_group_size=50_000)
    return paths


def _captions(num_rows: int, seed: int, shares: Shares) -> Iterator[pa.Array]:
    rng = np.random.default_rng([seed, 0])
    maker = _Maker(rng)
    pool: list[NDArray[np.int64]] = []
    favourites: list[NDArray[np.int64]] = []
    for start in range(0, num_rows, FILE_ROWS):
        size = min(FILE_ROWS, num_rows - start)
        num_exact, num_near = int(size * shares.exact), int(size * shares.near)
        made = maker.fresh(size - num_exact - num_near, shares.templates)
        favourites = favourites or made[:20]
        pool = (pool + made)[-_POOL_ROWS:]
        choices = rng.integers(0, len(pool), num_exact)
        copies = [pool[at] for at in choices[num_exact // 7 :]]
        copies += [favourites[at % len(favourites)] for at in range(num_exact - len(copies))]
        edits = rng.choice([1, 1, 1, 2, 2, 3, 4, 6], num_near).tolist()
        near = [
            maker.edited(pool[at], count) for at, count in zip(rng.integers(0, len(pool), num_near), edits, strict=True)
        ]
        yield maker.text([*made, *copies, *near])


class _Maker:
    """Makes captions as word numbers, and text of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words = pa.array(_vocabulary(rng), pa.string())
        weights = 1.0 / np.arange(3, _NUM_WORDS + 3) ** 1.02
        self._cumulated = np.cumsum(weights / weights.sum())
        self._templates = [self._template() for _ in range(_NUM_TEMPLATES)]
        popularity = 1.0 / np.arange(1, _NUM_TEMPLATES + 1) ** 0.8
        self._popularity = popularity / popularity.sum()

    def _drawn(self, count: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(self._cumulated, self._rng.random(count)), _NUM_WORDS - 1)

    def _template(self) -> NDArray[np.int64]:
        fixed = self._drawn(int(self._rng.integers(3, 10)))
        blanks = self._rng.integers(0, len(fixed) + 1, int(self._rng.integers(2, 7)))
        return np.insert(fixed, blanks, _BLANK)

    def fresh(self, count: int, templates: float) -> list[NDArray[np.int64]]:
        """Captions that are copies of nothing; a share of them from templates."""
        lengths = np.clip(np.round(np.exp(self._rng.normal(2.52, 0.48, count))), 3, 60).astype(np.int64)
        words = np.split(self._drawn(int(lengths.sum())), np.cumsum(lengths)[:-1])
        chosen = np.flatnonzero(self._rng.random(count) < templates)
        kinds = self._rng.choice(_NUM_TEMPLATES, len(chosen), p=self._popularity)
        for row, kind in zip(chosen.tolist(), kinds.tolist(), strict=True):
            filled = self._templates[kind].copy()
            blanks = np.flatnonzero(filled == _BLANK)
            filled[blanks] = np.resize(words[row], len(blanks))
            words[row] = filled
        return words

    def edited(self, words: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """A near copy, `count` words away."""
        edited = words.tolist()
        for kind, place, word in zip(
            self._rng.random(count).tolist(), self._rng.random(count).tolist(), self._drawn(count).tolist(), strict=True
        ):
            at = int(place * len(edited))
            if kind < 0.5:
                edited[at] = word
            elif kind < 0.75 or len(edited) < 3:
                edited.insert(at, word)
            else:
                del edited[at]
        return np.array(edited, np.int64)

    def text(self, captions: list[NDArray[np.int64]]) -> pa.Array:
        """Captions in random order; some begin with a capital, some end with a full stop."""
        order = self._rng.permutation(len(captions))
        lengths = np.array([len(words) for words in captions], np.int64)[order]
        words = self._words.take(pa.array(np.concatenate([captions[at] for at in order])))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32)
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words), " ")
        dressed = pa.array(self._rng.random(len(captions)) < 0.3)
        capital = pc.binary_join_element_wise(pc.utf8_capitalize(joined), ".", "")
        return pc.if_else(dressed, capital, joined)


def _vocabulary(rng: np.random.Generator) -> list[str]:
    words = dict.fromkeys(_COMMON)
    while len(words) < _NUM_WORDS:
        syllables = int(rng.choice([1, 1, 2, 2, 2, 3]))
        parts = [
            str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS, p=_VOWEL_SHARES)) + str(rng.choice(_CODAS))
            for _ in range(syllables)
        ]
        words.setdefault("".join(parts))
    return list(words)


_VOWEL_SHARES = np.array([1.0] * (len(_VOWELS) - 2) + [0.04, 0.04])
_VOWEL_SHARES /= _VOWEL_SHARES.sum()
