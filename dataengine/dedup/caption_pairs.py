"""Which captions are worth comparing: pairs of rows that share a band hash and look alike in their sketches.

One slot of band records in, pairs of row numbers out: pure, and independent of the order in which records come. A row
number is the row's place among all class representatives by caption hash, so it depends on no part and no bucket.

A run of rows that share a band hash is compared in full when it is short. In a dense one (boilerplate) a row meets
about `max_degree` others only: half of them anchors, those that come first by a hash keyed by seed, band and sketch;
half its neighbours when the run is ordered by sketch, four times by other leading bits, which is where those that are
most alike stand. `audited_pairs` draws some of the pairs this leaves out, so that what it costs can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataengine.keys import salt64

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SLOTS = 64
"""Slots whose records may be sorted at once."""
_PLACE_BITS = 26
MAX_RECORDS = 1 << _PLACE_BITS
_TURNS = (0, 16, 32, 48)  # bits that sketches are rotated by
_MOST_AUDITED_ROWS = 64  # of one dense run; each is compared with all the others
_MOST_AUDITED_PAIRS = 1 << 16  # of one slot


@dataclass(frozen=True)
class Comparison:
    """How rows of a run are compared."""

    max_degree: int
    max_differ: int
    """Sketch bits in which a candidate pair may differ."""
    seed: int

    @property
    def num_anchors(self) -> int:
        """Rows that every row of a dense run meets."""
        return max(self.max_degree // 2, 1)

    @property
    def width(self) -> int:
        """Neighbours that a row of a dense run meets in each of its orders."""
        return self.max_degree // (2 * len(_TURNS))


@dataclass(frozen=True)
class Runs:
    """Rows of one slot that share a band hash, run after run."""

    rows: NDArray[np.uint32]
    sketches: NDArray[np.uint64]
    starts: NDArray[np.int64]
    """Run i is `starts[i] : starts[i + 1]`: [runs + 1]."""
    is_dense: NDArray[np.bool_]
    """Runs of more than `max_degree` + 1 rows, in the order of their anchors: [runs]."""
    num_own: int
    """Rows from here on lie in other datasets, and are not compared with each other."""

    def dense_rows(self) -> NDArray[np.uint32]:
        """Rows of this dataset that stand in a dense run, ascending, each once."""
        inside = np.repeat(self.is_dense, np.diff(self.starts))
        found = self.rows[inside]
        return np.unique(found[found < self.num_own])


def find_runs(
    hashes: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    num_own: int,
    comparison: Comparison,
) -> Runs:
    """The runs of some slots' records, in any order; those without a row of this dataset are left out.

    `hashes` are slot << 32 | hash, of at most 64 slots in a row. Raises ValueError for more, or for 2**26 records.
    """
    from dataengine.dedup.kernels.pairs import gather_runs, order_dense_runs
    from dataengine.dedup.kernels.sorting import radix_sorted

    first_slot = hashes.min() >> np.uint64(32) if len(hashes) else np.uint64(0)
    within = hashes - (first_slot << np.uint64(32))
    if len(hashes) > MAX_RECORDS or (len(within) and within.max() >> np.uint64(64 - _PLACE_BITS)):
        raise ValueError(f"{len(hashes)} records of slots from {first_slot} on are too many to be sorted at once")
    places = np.arange(len(hashes), dtype=np.uint64)
    ordered = radix_sorted((within << np.uint64(_PLACE_BITS)) | places, _PLACE_BITS)
    out_rows, out_sketches = np.empty_like(rows), np.empty_like(sketches)
    out_hashes, starts = np.empty(len(rows) // 2 + 1, np.uint64), np.empty(len(rows) // 2 + 2, np.int64)
    num_runs = gather_runs(ordered, rows, sketches, num_own, _PLACE_BITS, out_rows, out_sketches, out_hashes, starts)
    starts = starts[: num_runs + 1]
    is_dense = np.zeros(num_runs, np.bool_)
    salt = salt64(comparison.seed, "anchor")
    order_dense_runs(out_rows, out_sketches, out_hashes, starts, comparison.max_degree, salt, is_dense)
    return Runs(out_rows[: starts[-1]], out_sketches[: starts[-1]], starts, is_dense, num_own)


def candidate_pairs(runs: Runs, comparison: Comparison, num_at_once: int) -> Iterator[tuple[NDArray[np.uint64], int]]:
    """Pairs as lower row << 32 | higher row, a pair once for each run it stands in, and the comparisons they took.

    At most `num_at_once` pairs come at a time, and at least `max_degree` must be allowed.
    """
    from dataengine.dedup.kernels.pairs import join_neighbours, join_runs

    bound = int(np.minimum(np.diff(runs.starts), comparison.max_degree) @ np.diff(runs.starts))
    room = np.empty(min(bound, max(num_at_once, comparison.max_degree)), np.uint64)
    members, limits = (runs.rows, runs.sketches, runs.starts, runs.is_dense, runs.num_own), comparison

    def anchored(state: NDArray[np.int64]) -> int:
        return join_runs(*members, limits.max_degree, limits.num_anchors, limits.max_differ, state, room)

    def neighbouring(turn: int) -> Callable[[NDArray[np.int64]], int]:
        return lambda state: join_neighbours(*members, limits.width, turn, limits.max_differ, state, room)

    turns = _TURNS if limits.width and runs.is_dense.any() else ()
    for join in (anchored, *map(neighbouring, turns)):
        state = np.zeros(3, np.int64)
        while state[0] < len(runs.is_dense):
            before = int(state[2])
            count = join(state)
            yield room[:count].copy(), int(state[2]) - before


def audited_pairs(runs: Runs, comparison: Comparison) -> NDArray[np.uint64]:
    """A sample of the pairs that dense runs leave out, ascending, each once: uint64 as in `candidate_pairs`."""
    from dataengine.dedup.kernels.pairs import audit_runs

    if not runs.is_dense.any():
        return np.zeros(0, np.uint64)
    room = np.empty(_MOST_AUDITED_PAIRS, np.uint64)
    count = audit_runs(
        runs.rows, runs.sketches, runs.starts, runs.is_dense, runs.num_own, comparison.max_degree,
        comparison.max_differ, _MOST_AUDITED_ROWS, room,
    )  # fmt: skip
    return distinct_pairs(room[:count])


def distinct_pairs(pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The different pairs, ascending; the array given is used as scratch."""
    from dataengine.dedup.kernels.sorting import drop_repeats, radix_sorted

    ordered = radix_sorted(pairs, 0)
    return ordered[: drop_repeats(ordered)]


def ends(pairs: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lower and the higher row of each pair."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def stands_in(wanted: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `wanted` are among the ascending pairs."""
    if not len(ordered):
        return np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[places] == wanted
