"""Shingles of one caption, as numbers: code points decoded once, and a polynomial over each window of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined
from dataengine.dedup.kernels.sha1 import sha1_32

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@compiled
def decode(
    content: NDArray[np.uint8], start: int, stop: int, points: NDArray[np.uint32], places: NDArray[np.int64]
) -> int:
    """Write the code points of the UTF-8 `content[start:stop]` and the byte each begins at; their number.

    A sequence that is cut off at `stop` is read no further.
    """
    highest = np.uint8(0)
    for at in range(start, stop):
        highest |= content[at]
    if highest < 0x80:  # most captions: as many code points as bytes, which is a loop of vectors
        for at in range(stop - start):
            points[at] = content[start + at]
            places[at] = start + at
        places[stop - start] = stop
        return stop - start
    count = 0
    at = start
    while at < stop:
        byte = np.uint32(content[at])
        places[count] = at
        if byte < 0x80:
            points[count] = byte
            at += 1
        else:
            extra = 1 if byte < 0xE0 else (2 if byte < 0xF0 else 3)
            point = byte & np.uint32((0x3F >> extra) & 0xFF)
            for further in range(at + 1, min(at + 1 + extra, stop)):
                point = np.uint32((point << np.uint32(6)) | (np.uint32(content[further]) & np.uint32(0x3F)))
            points[count] = point
            at += 1 + extra
        count += 1
    places[count] = stop
    return count


@inlined
def _stands_alone(point: Any) -> Any:
    """Whether a character is of a script without spaces: Thai to Lao, Burmese, Khmer, kana, Han."""
    if point < 0x0E00:
        return False
    return (
        point < 0x0F00
        or (0x1000 <= point < 0x10A0)
        or (0x1780 <= point < 0x1800)
        or (0x3040 <= point < 0x3100)
        or (0x31F0 <= point < 0x3200)
        or (0x3400 <= point < 0x4DC0)
        or (0x4E00 <= point < 0xA000)
        or (0xF900 <= point < 0xFB00)
        or (0x20000 <= point < 0x40000)
    )


@compiled
def cut_words(points: NDArray[np.uint32], num_points: int, words: NDArray[np.uint64]) -> int:
    """Write what each word is to `words` [words, 4]; their number, at most half that of the bytes, and one.

    Its columns: the first and the last-plus-one code point, Σ c·M**k mod 2**64 over its code points, and M to the power
    of their number. A word is a run without spaces; each character of a script that is written without them is one of
    its own.
    """
    count = 0
    at = 0
    while at < num_points:
        point = points[at]
        if point == 32:
            at += 1
            continue
        first, value, power = at, np.uint64(point), _MULTIPLIER
        at += 1
        if not _stands_alone(point):
            while at < num_points and points[at] != 32 and not _stands_alone(points[at]):
                value = value * _MULTIPLIER + np.uint64(points[at])
                power *= _MULTIPLIER
                at += 1
        words[count, 0] = first
        words[count, 1] = at
        words[count, 2] = value
        words[count, 3] = power
        count += 1
    return count


@compiled
def polynomials(
    points: NDArray[np.uint32],
    num_points: int,
    words: NDArray[np.uint64],
    num_words: int,
    size: int,
    by_word: bool,
    out: NDArray[np.uint64],
) -> int:
    """Write Σ c·M**k mod 2**64 over the code points of each shingle, in reading order; the number of shingles.

    The words of a shingle count as joined by single spaces.
    """
    if not by_word:
        count = max(num_points - size + 1, 0)
        for at in range(count):
            out[at] = points[at]
        for step in range(1, size):  # Horner's rule over all windows at once
            for at in range(count):
                out[at] = out[at] * _MULTIPLIER + np.uint64(points[at + step])
        return count
    count = max(num_words - size + 1, 0)
    for first in range(count):
        value = words[first, 2]
        for word in range(first + 1, first + size):
            value = (value * _MULTIPLIER + np.uint64(32)) * words[word, 3] + words[word, 2]
        out[first] = value
    return count


@compiled
def shingle_polynomials(
    content: NDArray[np.uint8],
    start: int,
    stop: int,
    size: int,
    by_word: bool,
    points: NDArray[np.uint32],
    places: NDArray[np.int64],
    words: NDArray[np.uint64],
    out: NDArray[np.uint64],
) -> int:
    """`polynomials` of the caption `content[start:stop]`; the others are scratch of its length in bytes + 1.

    `words` is of half that length, as `cut_words` says.
    """
    num_points = decode(content, start, stop, points, places)
    num_words = cut_words(points, num_points, words) if by_word else 0
    return polynomials(points, num_points, words, num_words, size, by_word, out)


@compiled
def sha1_shingles(
    content: NDArray[np.uint8],
    start: int,
    stop: int,
    size: int,
    by_word: bool,
    points: NDArray[np.uint32],
    places: NDArray[np.int64],
    words: NDArray[np.uint64],
    message: NDArray[np.uint8],
    schedule: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> int:
    """Write the SHA-1 of each shingle's UTF-8 bytes, cut to 32 bits; the number of shingles."""
    num_points = decode(content, start, stop, points, places)
    num_words = cut_words(points, num_points, words) if by_word else 0
    count = max((num_words if by_word else num_points) - size + 1, 0)
    for first in range(count):
        length = 0
        for token in range(first, first + size):
            begin, end = np.int64(token), np.int64(token + 1)
            if by_word:
                begin, end = np.int64(words[token, 0]), np.int64(words[token, 1])
                if token > first:
                    message[length] = 32
                    length += 1
            for at in range(places[begin], places[end]):
                message[length] = content[at]
                length += 1
        out[first] = sha1_32(message, length, schedule)
    return count


@compiled
def count_shingles(
    content: NDArray[np.uint8], offsets: NDArray[np.int64], size: int, by_word: bool, out: NDArray[np.int64]
) -> None:
    """Write how many shingles each caption has, repeats included."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    words = np.empty((longest // 2 + 1, 4), np.uint64)
    for row in range(len(offsets) - 1):
        tokens = decode(content, offsets[row], offsets[row + 1], points, places)
        if by_word:
            tokens = cut_words(points, tokens, words)
        out[row] = max(tokens - size + 1, 0)
