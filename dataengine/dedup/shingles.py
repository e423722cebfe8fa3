"""What a shingle is: consecutive characters, or consecutive words, of a normalised caption.

Characters are Unicode code points, so that scripts without spaces work as well as any other; among words, each
character of such a script (Han, kana, Thai, Khmer ...) is one of its own, and the words of a shingle are joined by
single spaces. A caption shorter than a shingle has none, and only exact copies.

A shingle is known by a polynomial of 64 bits, whose scrambled upper half is what a signature is made of::

    def shingle_hash32(shingle: bytes) -> int:
        polynomial = 0
        for character in shingle.decode():
            polynomial = (polynomial * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
        return int(mix64(np.array([polynomial], np.uint64), 0, "shingle")[0]) >> 32
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dataengine.dedup.captions import text_buffers

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Shingling:
    """How a caption is cut into shingles."""

    unit: Literal["char", "word"]
    size: int
    """Characters or words of a shingle."""

    @property
    def by_word(self) -> bool:
        """Whether shingles are made of words."""
        return self.unit == "word"


def count_shingles(captions: pa.Array, shingling: Shingling) -> NDArray[np.int64]:
    """How many shingles each normalised caption has, repeats included: int64 [rows]."""
    from dataengine.dedup.kernels.shingles import count_shingles as count

    content, offsets = text_buffers(captions)
    found = np.empty(len(offsets) - 1, np.int64)
    count(content, offsets, shingling.size, shingling.by_word, found)
    return found


def jaccard(
    captions: pa.Array,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    shingling: Shingling,
    min_similarity: float,
    num_threads: int = 1,
) -> NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| of the shingles of each pair of rows: float64 [pairs], -1 where below `min_similarity`.

    `captions` are normalised. Fastest when equal `left` follow each other. Pairs are screened by maps of
    512 bits and marks of 13 bits a shingle, which let every pair through that is alike and cost a hundredth and a tenth
    of what comparing texts does.
    """
    from dataengine.dedup.kernels.jaccard import mark_shingles, screen, similarities

    content, offsets = text_buffers(captions)
    wanted, starts = np.zeros(len(captions), np.bool_), np.empty(len(captions) + 1, np.int64)
    wanted[left] = wanted[right] = True
    maps = np.zeros((len(captions), 8), np.uint64)
    marks = mark_shingles(content, offsets, wanted, shingling.size, shingling.by_word, starts, maps)
    found = np.full(len(left), -1.0)

    def compare(begin: int, end: int) -> None:
        # The kernels hold no lock.
        passes = np.empty(end - begin, np.bool_)
        screen(marks, starts, maps, left[begin:end], right[begin:end], min_similarity, passes)
        chosen = np.flatnonzero(passes) + begin
        exact = np.empty(len(chosen), np.float64)
        similarities(
            content, offsets, left[chosen], right[chosen], shingling.size, shingling.by_word, min_similarity, exact
        )
        found[chosen] = exact

    cuts = np.linspace(0, len(left), num_threads + 1).astype(int).tolist()
    if num_threads == 1:
        compare(0, len(left))
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(compare, cuts[:-1], cuts[1:]))
    return found
