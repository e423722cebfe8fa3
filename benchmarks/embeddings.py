"""Generates embeddings as CLIP makes them, with near-duplicates planted: float16 `.npy`, a pure function of its seed.

What is imitated: unrelated images have a cosine of about 0.5 (all share a direction); topics of Zipf sizes hold images
of 0.6 to 0.85, along a few directions of their own; series of shots lie at 0.8 to 0.97, so that no gap surrounds a
threshold. What is planted: 6 % near-copies at 0.97 and more, in groups of two to eight and a few of hundreds, and 2 %
borderline pairs at 0.88 to 0.96.

python -m benchmarks.embeddings /tmp/vectors.npy --rows 100000
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
_BLOCK_ROWS = 20_000
_ROWS_PER_GIANT = 50_000


@dataclass
class _Writer:
    """Rows in the order they are made, and who is whose near-copy."""

    vectors: NDArray[np.float32]
    group: NDArray[np.int32]
    num_rows: int = 0
    sources: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, rows: NDArray[np.float32]) -> slice:
        place = slice(self.num_rows, self.num_rows + len(rows))
        self.vectors[place] = rows
        self.num_rows += len(rows)
        return place


def generate(num_rows: int, dim: int, seed: int) -> tuple[NDArray[np.float16], NDArray[np.int32], int]:
    """Vectors [rows, dim], the planted group of each row or NOBODY [rows], and how many groups are giants.

    Groups are numbered, giants first.
    """
    rng = np.random.default_rng(seed)
    num_copies, num_borderline = round(0.06 * num_rows), round(0.02 * num_rows)
    made = _Writer(np.empty((num_rows, dim), np.float32), np.full(num_rows, NOBODY, np.int32))
    num_plain = num_rows - num_copies - num_borderline
    _add_topics(made, num_plain, rng)
    _make_series(made, round(0.15 * num_plain), rng)
    made.sources = rng.permutation(num_plain)
    num_giants = max(1, num_rows // _ROWS_PER_GIANT)
    used = _add_copies(made, num_copies, num_giants, rng)
    originals = made.vectors[made.sources[used : used + num_borderline]]
    made.add(_at_cosine(originals, rng.uniform(0.88, 0.96, num_borderline), rng))
    order = rng.permutation(num_rows)
    vectors = np.empty((num_rows, dim), np.float16)
    for begin in range(0, num_rows, _BLOCK_ROWS):
        vectors[begin : begin + _BLOCK_ROWS] = made.vectors[order[begin : begin + _BLOCK_ROWS]]
    return vectors, made.group[order], num_giants


def _add_topics(made: _Writer, num_rows: int, rng: np.random.Generator) -> None:
    dim = made.vectors.shape[1]
    num_topics, num_directions = max(40, round(num_rows**0.5)), 24
    shared = _unit(rng.standard_normal(dim))
    centres = _unit(rng.standard_normal((num_topics, dim))).astype(np.float32)
    directions = (rng.standard_normal((num_topics, num_directions, dim)) / dim**0.5).astype(np.float32)
    strength = np.arange(1, num_directions + 1) ** -0.5
    popularity = np.arange(1, num_topics + 1) ** -0.6
    topics = rng.choice(num_topics, num_rows, p=popularity / popularity.sum())
    for begin in range(0, num_rows, _BLOCK_ROWS):
        topic = np.sort(topics[begin : begin + _BLOCK_ROWS])
        along = rng.standard_normal((len(topic), num_directions)) * strength
        noise = rng.standard_normal((len(topic), dim), np.float32) / dim**0.5
        rows = shared + 0.62 * centres[topic] + 0.52 * noise
        for number, first, last in _runs(topic):
            rows[first:last] += 0.3 * along[first:last] @ directions[number]
        made.add(_unit(rows))


def _runs(ordered: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(number, first, last) of each run of equal numbers."""
    firsts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return [
        (int(ordered[first]), int(first), int(last))
        for first, last in zip(firsts, np.append(firsts[1:], len(ordered)), strict=True)
    ]


def _make_series(made: _Writer, num_rows: int, rng: np.random.Generator) -> None:
    """Turn rows into series of 3 to 40 shots, each at 0.90 to 0.985 of one of them."""
    chosen, begin = rng.permutation(made.num_rows)[:num_rows], 0
    while begin < num_rows:
        rows = chosen[begin : begin + min(40, 2 + int(rng.geometric(0.2)))]
        first = np.repeat(made.vectors[rows[:1]], len(rows), axis=0)
        made.vectors[rows] = _at_cosine(first, rng.uniform(0.90, 0.985, len(rows)), rng)
        begin += len(rows)


def _add_copies(made: _Writer, num_rows: int, num_giants: int, rng: np.random.Generator) -> int:
    """Add groups of near-copies; the number of sources that they took."""
    end, number = made.num_rows + num_rows, 0
    while made.num_rows < end:
        giant = number < num_giants
        size = int(rng.integers(500, 900)) if giant else int(rng.choice([1, 1, 1, 2, 3, 7]))
        size = min(size, end - made.num_rows)
        source = made.sources[number]
        low, high = (0.985, 0.9975) if giant else (0.97, 0.995)
        original = np.repeat(made.vectors[source : source + 1], size, axis=0)
        made.group[made.add(_at_cosine(original, rng.uniform(low, high, size), rng))] = number
        made.group[source] = number
        number += 1
    return number


def _at_cosine(rows: NDArray[np.float32], cosine: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors that have these cosines with `rows`, each in a direction of its own."""
    away = rng.standard_normal(rows.shape, np.float32)
    away -= np.einsum("rd,rd->r", away, rows)[:, None] * rows
    away *= (np.sqrt(1 - cosine**2) / np.linalg.norm(away, axis=1))[:, None].astype(np.float32)
    return _unit(rows * cosine[:, None].astype(np.float32) + away)


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def main() -> None:
    """Write one set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    vectors, group, num_giants = generate(asked.rows, asked.dim, asked.seed)
    np.save(asked.path, vectors)
    np.savez(asked.path.with_suffix(".groups.npz"), group=group, num_giants=num_giants)


if __name__ == "__main__":
    main()
