"""What captions are made of, in plain Python: the definition that kernels are held to."""

from __future__ import annotations

import numpy as np

from dataengine.dedup.shingles import Shingling
from dataengine.keys import mix64


def words_of(text: str) -> list[str]:
    """Words, each character of a script without spaces being one."""
    words: list[str] = []
    for run in text.split(" "):
        begins = True
        for character in run:
            if begins or _is_alone(character):
                words.append(character)
            else:
                words[-1] += character
            begins = _is_alone(character)
    return words


def _is_alone(character: str) -> bool:
    point = ord(character)
    spans = [(0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100), (0x31F0, 0x3200)]
    spans += [(0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000)]
    return any(start <= point < stop for start, stop in spans)


def shingles_of(text: str, shingling: Shingling) -> list[str]:
    """The shingles of a normalised caption, repeats included."""
    tokens = words_of(text) if shingling.by_word else list(text)
    glue = " " if shingling.by_word else ""
    return [glue.join(tokens[at : at + shingling.size]) for at in range(len(tokens) - shingling.size + 1)]


def shingle_hash32(shingle: bytes) -> int:
    """As `dataengine.dedup.shingles` documents it."""
    polynomial = 0
    for character in shingle.decode():
        polynomial = (polynomial * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
    return int(mix64(np.array([polynomial], np.uint64), 0, "shingle")[0]) >> 32


def similarity(one: str, other: str, shingling: Shingling) -> float:
    """|A ∩ B| / |A ∪ B|, 0 where both are empty."""
    first, second = set(shingles_of(one, shingling)), set(shingles_of(other, shingling))
    return len(first & second) / len(first | second) if first | second else 0.0
