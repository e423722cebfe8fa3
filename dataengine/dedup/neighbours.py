"""Near-duplicate images: the pairs whose embeddings have a cosine of `min_similarity` or more.

The search is exact: float32 products only propose pairs, with room for their rounding, and sums in float64 decide, so
that a pair gets the same similarity in whatever block, order or cell it is met. Rows of one bucket of cells in, EDGE
rows out; it knows neither parts nor stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataengine.dedup.arrays import distinct, widened
from dataengine.dedup.bounded import kept
from dataengine.dedup.cells import unit_vectors
from dataengine.dedup.edges import Pairs, edge_table
from dataengine.dedup.products import FLOAT32_ERROR, Products, dots
from dataengine.dedup.witness import NO_DISTANCE, Hashes, confirmed
from dataengine.keys import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.dedup import ImageDedupConfig

KIND = "image_embedding"
NUM_AXES = 127  # a vector of 128 with the length of the rest
_BLOCK_FLOATS = 1 << 22  # 16 MiB of similarities at a time
_INT8_ROWS = 256  # with fewer, to round and scale takes what multiplying saves
_SQUARE_ROUNDING = np.float32(1e-5)  # more than float32 loses of the square of a rest
_SPREAD = 2_654_435_761  # a prime: multiples of it lie anywhere (Knuth, The Art of Computer Programming 3, 6.4)
_MAX_EXACT = 0.01  # to decide a pair by itself takes as long as 100 products in a matrix
_EXACT_PAIRS = 1 << 13  # at most two blocks of 16 MiB at 512 dimensions


@dataclass(frozen=True)
class ImageRows:
    """The images of a bucket or part, one row each."""

    keys: pa.Array
    """string [rows], distinct."""
    embeddings: NDArray[np.float16]
    """[rows, dim], of any length; zero or not finite where there is none."""
    phashes: pa.Array
    """SCORE's `phash`: string [rows], 16 hex characters or null."""

    def take(self, rows: NDArray[np.int64]) -> ImageRows:
        """These rows, in this order."""
        if len(rows) == len(self.keys) and (rows[1:] > rows[:-1]).all():
            return self
        places = pa.array(rows)
        return ImageRows(self.keys.take(places), self.embeddings[rows], self.phashes.take(places))

    @cached_property
    def hashes(self) -> Hashes:
        """The perceptual hashes as bits."""
        return Hashes.parse(self.phashes)

    @cached_property
    def units(self) -> NDArray[np.float32]:
        """The embeddings scaled to length 1: [rows, dim]."""
        return unit_vectors(self.embeddings)


@dataclass(frozen=True)
class Looks:
    """Into which cells rows look besides their home."""

    row: NDArray[np.int64]
    cell: NDArray[np.int32]
    rung: NDArray[np.int8]
    """0 for looks within the first border, 1 for those within the wider one: [looks] each."""

    def have(self, row: NDArray[np.int64], cell: NDArray[np.int32], below: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether `row` looks into `cell`, at a place in the order of (rung, cell) before `below`: bool [asked]."""
        if not len(self.row):
            return np.zeros(len(row), bool)
        wanted = row << 32 | cell
        place = np.minimum(np.searchsorted(self._codes, wanted), len(self._codes) - 1)
        mine = self.rung[self._sorted[place]].astype(np.int64) << 32 | cell
        return (self._codes[place] == wanted) & (mine < below)

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return np.lexsort((self.cell, self.row))

    @cached_property
    def _codes(self) -> NDArray[np.int64]:
        return (self.row << 32 | self.cell)[self._sorted]


@dataclass(frozen=True)
class Bucket:
    """The rows that live in some cells or look into them."""

    rows: ImageRows
    home: NDArray[np.int32]
    """[rows]"""
    looks: Looks
    """Every look of every row, into other buckets too."""


@dataclass(frozen=True)
class ImageEdges:
    """What one search found."""

    edges: pa.Table
    """EDGE rows of kind image_embedding."""
    num_refused: int
    """Pairs near enough in cosine that `confirm` refused."""
    bounded: pa.Array
    """Keys of rows that had more than `max_degree` neighbours in one cell, and kept so many: string."""


def image_edges(
    bucket: Bucket, cells: range, rung: int, config: ImageDedupConfig, seed: int, int8: bool = False
) -> ImageEdges:
    """The near-duplicate pairs that `cells` own at `rung`, out of the bucket's rows in any order.

    Rows that share a home are compared there, at rung 0. Rows of two homes meet where either looks into the other's;
    of two such looks, the one of the lower rung, then cell, owns the pair. `int8` makes it cheaper and changes
    nothing.
    """
    search = _Search(bucket, rung, config, seed, int8)
    found = [search.cell(cell) for cell in cells]
    pairs = Pairs.joined([item.pairs for item in found])
    bounded = distinct(np.concatenate([np.zeros(0, np.int64), *(item.bounded for item in found)]))
    num_refused = sum(item.num_refused for item in found)
    return ImageEdges(_edges(bucket.rows, bucket.rows, pairs), num_refused, bucket.rows.keys.take(pa.array(bounded)))


def cross_edges(
    sample: ImageRows,
    rows: ImageRows,
    config: ImageDedupConfig,
    axes: NDArray[np.float32] | None = None,
    int8: bool = False,
    max_pairs: int | None = None,
) -> pa.Table:
    """EDGE rows of the near-duplicate pairs of any sampled row with any of `rows`, confirmed; cells set aside.

    `axes` (orthonormal, float32 [dim, axes]) and `int8` make it cheaper and change nothing. Of a sampled row with more
    than `max_pairs` so many are given, from a place in `rows` that is the row's own: any of them where keys are random.
    """
    found = [Pairs.joined([])]
    for left, right in _compared(sample.units, rows.units, axes, config, int8):
        passed = confirmed(sample.hashes.distances(left, rows.hashes, right), config)
        pairs = _exact(sample, left[passed], rows, right[passed])
        pairs = pairs.where(pairs.similarity >= config.min_similarity)
        if max_pairs is not None:
            places = pairs.left * _SPREAD % max(len(rows.keys), 1)
            pairs = pairs.where(kept(pairs.left, places, pairs.right, max(len(rows.keys), 1), max_pairs)[0])
        found.append(pairs)
    return _edges(sample, rows, Pairs.joined(found))


def against_edges(
    rows: ImageRows,
    others: ImageRows,
    datasets: pa.Array,
    config: ImageDedupConfig,
    axes: NDArray[np.float32] | None = None,
    int8: bool = False,
) -> pa.Table:
    """EDGE rows of the near-duplicates of `rows` among the images of other datasets, named in `datasets`, row by row.

    Images that come without a perceptual hash, being given as embeddings, are matched without the second witness.
    """
    found = [Pairs.joined([])]
    for left, right in _compared(rows.units, others.units, axes, config, int8):
        passed = confirmed(rows.hashes.distances(left, others.hashes, right), config) | ~others.hashes.known[right]
        pairs = _exact(rows, left[passed], others, right[passed])
        found.append(pairs.where(pairs.similarity >= config.min_similarity))
    pairs = Pairs.joined(found)
    return _edges(rows, others, pairs, datasets.take(pa.array(pairs.right)))


def _compared(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    axes: NDArray[np.float32] | None,
    config: ImageDedupConfig,
    int8: bool,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs that may reach `min_similarity`, by what rows have along the axes where that tells most of them apart."""
    if axes is None or first.shape[1] < 2 * axes.shape[1]:
        yield from ((left, right) for left, right, _ in _proposed(first, second, config, int8))
        return
    brief, briefs = _along(first, axes), Products(_along(second, axes), int8)
    height = max(1, _BLOCK_FLOATS // max(len(second), 1))
    for top in range(0, len(first), height):
        run = slice(top, top + height)
        product, error = briefs.of(brief[run])
        near = np.flatnonzero(product >= _floor(config) - error)
        left, right = np.divmod(near, max(len(second), 1))
        if len(left) > _MAX_EXACT * len(brief[run]) * len(second):
            pairs = _proposed(first[run], second, config, int8)
            left, right = (np.concatenate(side) for side in list(zip(*pairs, strict=True))[:2])
        yield left + top, right


def _along(units: NDArray[np.float32], axes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Parts of unit vectors along the axes, and the length of what is left or a little more: float32 [rows, axes + 1].

    The product of two such rows is no less than that of the unit vectors: what is left of two vectors has a product of
    at most that of its lengths (Cauchy-Schwarz). What float32 loses of a square is much of a short length.
    """
    parts = units @ axes
    rest = np.einsum("rd,rd->r", units, units) - np.einsum("ra,ra->r", parts, parts)
    return np.column_stack([parts, np.sqrt(np.maximum(rest, 0) + _SQUARE_ROUNDING)])


@dataclass(frozen=True)
class _Found:
    pairs: Pairs
    num_refused: int
    bounded: NDArray[np.int64]


@dataclass(frozen=True)
class _Search:
    """The search through the cells of one bucket."""

    bucket: Bucket
    rung: int
    config: ImageDedupConfig
    seed: int
    int8: bool

    def cell(self, cell: int) -> _Found:
        """The pairs that `cell` owns."""
        members, lookers = self._members(cell), self._lookers(cell)
        callers = np.concatenate([members, lookers]) if self.rung == 0 else lookers
        codes, bounded, num_refused = [members[:0]], [members[:0]], 0
        if len(members) and len(callers):
            there = unit_vectors(self.bucket.rows.embeddings[members])
            here = unit_vectors(self.bucket.rows.embeddings[lookers])
            here = np.concatenate([there, here]) if self.rung == 0 else here
            for caller, member, similarity in _proposed(here, there, self.config, self.int8):
                left, right, refused = self._confirmed(callers[caller], members[member], similarity, cell)
                keep, dense = kept(
                    left, self._ranks[left], self._ranks[right], len(self._ranks), self.config.max_degree
                )
                left, right = left[keep], right[keep]
                codes.append(np.minimum(left, right) << 32 | np.maximum(left, right))
                bounded.append(dense)
                num_refused += refused
        code = distinct(np.concatenate(codes))
        pairs = _exact(self.bucket.rows, code >> 32, self.bucket.rows, code & 0xFFFFFFFF)
        return _Found(pairs, num_refused, np.concatenate(bounded))

    def _confirmed(
        self, caller: NDArray[np.int64], member: NDArray[np.int64], similarity: NDArray[np.float32], cell: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The pairs that belong to `cell` and pass the second witness, and how many of the others it refused."""
        mine = np.flatnonzero(self._owned(caller, member, cell))
        mine = mine[self._reach(caller[mine], member[mine], similarity[mine])]
        caller, member = caller[mine], member[mine]
        hashes = self.bucket.rows.hashes
        passed = confirmed(hashes.distances(caller, hashes, member), self.config)
        return caller[passed], member[passed], self._num_pairs(caller[~passed], member[~passed])

    def _owned(self, caller: NDArray[np.int64], member: NDArray[np.int64], cell: int) -> NDArray[np.bool_]:
        """Which pairs of a caller with a member of `cell` belong here, and are not one row with itself."""
        home = self.bucket.home[caller]
        below = np.full(len(caller), self.rung << 32 | cell, np.int64)
        elsewhere = self.bucket.looks.have(member, home, below)
        return (caller != member) & ((home == cell) | ~elsewhere)

    def _reach(
        self, caller: NDArray[np.int64], member: NDArray[np.int64], similarity: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Which of the proposed pairs do reach `min_similarity`; one that does not must take nobody's place."""
        reaches = np.ones(len(caller), bool)
        doubtful = np.flatnonzero(similarity < self.config.min_similarity + FLOAT32_ERROR)
        if not len(doubtful):
            return reaches
        exact = _exact(self.bucket.rows, caller[doubtful], self.bucket.rows, member[doubtful]).similarity
        reaches[doubtful] = exact >= self.config.min_similarity
        return reaches

    def _num_pairs(self, caller: NDArray[np.int64], member: NDArray[np.int64]) -> int:
        """How many pairs these are, each counted once."""
        home = self.bucket.home
        return int(np.count_nonzero((home[caller] != home[member]) | (caller < member)))

    def _members(self, cell: int) -> NDArray[np.int64]:
        first, last = np.searchsorted(self._homes, [cell, cell + 1])
        return self._by_home[first:last]

    def _lookers(self, cell: int) -> NDArray[np.int64]:
        cells, rows = self._looks
        first, last = np.searchsorted(cells, [cell, cell + 1])
        return rows[first:last]

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        """Place of each row in the order of a keyed hash."""
        order = np.argsort(draws(self.bucket.rows.keys, self.seed, "dedup neighbours"), kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return ranks

    @cached_property
    def _by_home(self) -> NDArray[np.int64]:
        return np.argsort(self.bucket.home, kind="stable")

    @cached_property
    def _homes(self) -> NDArray[np.int32]:
        return self.bucket.home[self._by_home]

    @cached_property
    def _looks(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Cell and row of the looks of this rung, by cell, then row."""
        looks = self.bucket.looks
        now = np.flatnonzero(looks.rung == self.rung)
        now = now[np.lexsort((looks.row[now], looks.cell[now]))]
        return looks.cell[now], looks.row[now]


def _proposed(
    first: NDArray[np.float32], second: NDArray[np.float32], config: ImageDedupConfig, int8: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Pairs (row of first, row of second) of unit vectors that may reach `min_similarity`, and about their cosine.

    All pairs of a row of first come together.
    """
    width = max(1, min(len(second), _BLOCK_FLOATS // 256))
    height = max(1, _BLOCK_FLOATS // max(len(second), 1))  # all of a block may be near each other
    int8 = int8 and len(second) >= _INT8_ROWS
    columns = [Products(second[start : start + width], int8) for start in range(0, len(second), width)]
    if not columns:
        return
    for top in range(0, len(first), height):
        found = [item.near(first[top : top + height], _floor(config)) for item in columns]
        left, right, similarity = (np.concatenate(side) for side in zip(*found, strict=True))
        right += np.repeat(np.arange(len(found)) * width, [len(item[0]) for item in found])
        order = np.argsort(left, kind="stable") if len(found) > 1 else slice(None)
        yield left[order] + top, right[order], similarity[order]


def _floor(config: ImageDedupConfig) -> float:
    return max(config.min_similarity - FLOAT32_ERROR, FLOAT32_ERROR)  # so that a zero row reaches nothing


def _exact(first: ImageRows, left: NDArray[np.int64], second: ImageRows, right: NDArray[np.int64]) -> Pairs:
    """The pairs with their cosine; identical rows have exactly 1.

    Products of two float16 numbers are exact, and their sum in float64 is the same in any order to within what float32
    shows; lengths are summed in the same order, so that identical rows have no other sum.
    """
    cosines = np.empty(len(left))
    for begin in range(0, len(left), _EXACT_PAIRS):
        run = slice(begin, begin + _EXACT_PAIRS)
        (rows, row), (others, other) = _once(first, left[run]), _once(second, right[run])
        product = dots(rows, row, others, other)
        squares = _squares(rows)[row] * _squares(others)[other]
        cosines[run] = np.minimum(product / np.sqrt(squares), 1.0)
    return Pairs(left, right, cosines)


def _once(rows: ImageRows, which: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The embeddings of `which`, each converted once, and where each is found."""
    wanted, places = np.unique(which, return_inverse=True)
    return widened(rows.embeddings[wanted]), places


def _squares(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    each = np.arange(len(rows))
    return dots(rows, each, rows, each)


def _edges(first: ImageRows, second: ImageRows, pairs: Pairs, against: pa.Array | None = None) -> pa.Table:
    distance = first.hashes.distances(pairs.left, second.hashes, pairs.right)
    return edge_table(
        first.keys.take(pa.array(pairs.left)),
        second.keys.take(pa.array(pairs.right)),
        KIND,
        pairs.similarity,
        pa.array(distance, pa.int16(), mask=distance == NO_DISTANCE),
        against,
    )
