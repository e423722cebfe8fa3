"""Pairs of rows that share a band hash: runs of equal hashes, and who is compared within each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined
from dataengine.dedup.kernels.counting import popcount


@inlined
def _mix(value: Any) -> Any:
    mixed = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@compiled
def gather_runs(
    ordered: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    num_own: int,
    place_bits: int,
    out_rows: NDArray[np.uint32],
    out_sketches: NDArray[np.uint64],
    out_hashes: NDArray[np.uint64],
    out_starts: NDArray[np.int64],
) -> int:
    """Collect the runs of at least two rows, one of them below `num_own`, that share a band hash; their number.

    `ordered` holds band hash << `place_bits` | place in `rows`, ascending by hash. Run i is `out_rows[out_starts[i] :
    out_starts[i + 1]]`, ascending.
    """
    shift, mask = np.uint64(place_bits), np.uint64((1 << place_bits) - 1)
    num_runs, num_members, at = 0, 0, 0
    out_starts[0] = 0
    while at < len(ordered):
        value = ordered[at] >> shift
        stop = at + 1
        while stop < len(ordered) and ordered[stop] >> shift == value:
            stop += 1
        if stop - at > 1:
            has_own, ascends = False, True
            for place in range(at, stop):
                index = np.int64(ordered[place] & mask)
                member = num_members + place - at
                out_rows[member] = rows[index]
                out_sketches[member] = sketches[index]
                has_own |= rows[index] < num_own
                ascends &= place == at or out_rows[member - 1] <= rows[index]
            if has_own:
                if not ascends:  # stored parts come in row order; any other order must give the same
                    first, last = num_members, num_members + stop - at
                    order = np.argsort(out_rows[first:last], kind="mergesort")
                    out_rows[first:last] = out_rows[first:last][order]
                    out_sketches[first:last] = out_sketches[first:last][order]
                num_members += stop - at
                out_hashes[num_runs] = value & np.uint64(0xFFFFFFFF)
                num_runs += 1
                out_starts[num_runs] = num_members
        at = stop
    return num_runs


@compiled
def order_dense_runs(
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
    max_degree: int,
    salt: np.uint64,
    is_dense: NDArray[np.bool_],
) -> None:
    """Put the rows of each run that is too long to be compared in full in an order keyed by (salt, hash, sketch)."""
    for run in range(len(starts) - 1):
        start, stop = starts[run], starts[run + 1]
        if stop - start <= max_degree + 1:
            continue
        is_dense[run] = True
        keys = np.empty(stop - start, np.uint64)
        for place in range(stop - start):
            keys[place] = _mix(sketches[start + place] ^ _mix(hashes[run] ^ salt))
        order = np.argsort(keys, kind="mergesort")  # stable: equal sketches stay in row order
        rows[start:stop] = rows[start:stop][order]
        sketches[start:stop] = sketches[start:stop][order]


@compiled
def join_neighbours(
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    starts: NDArray[np.int64],
    is_dense: NDArray[np.bool_],
    num_own: int,
    width: int,
    turn: int,
    max_differ: int,
    state: NDArray[np.int64],
    pairs: NDArray[np.uint64],
) -> int:
    """As `join_runs`, for dense runs alone: every row meets the `width` before it by sketch rotated by `turn` bits.

    Rows whose sketches agree in the leading bits stand close together, and the more so the more alike they are.
    """
    count = 0
    run, place = state[0], state[1]
    while run < len(starts) - 1:
        start, size = starts[run], starts[run + 1] - starts[run]
        if is_dense[run]:
            turned = np.empty(size, np.uint64)
            by_row = np.argsort(rows[start : start + size], kind="mergesort")
            for at in range(size):
                sketch = sketches[start + by_row[at]]
                turned[at] = (sketch << np.uint64(turn)) | (sketch >> np.uint64((64 - turn) & 63))
            order = by_row[np.argsort(turned, kind="mergesort")]  # equal sketches stay in row order
            place = max(place, 1)
            while place < size:
                if count + width > len(pairs):
                    state[0], state[1] = run, place
                    return count
                row, sketch = rows[start + order[place]], sketches[start + order[place]]
                for before in range(max(place - width, 0), place):
                    state[2] += 1
                    if popcount(sketches[start + order[before]] ^ sketch) <= max_differ:
                        other = rows[start + order[before]]
                        low, high = min(row, other), max(row, other)
                        if low < num_own and low != high:
                            pairs[count] = (np.uint64(low) << np.uint64(32)) | np.uint64(high)
                            count += 1
                place += 1
        run += 1
        place = 0
    state[0], state[1] = run, 0
    return count


@compiled
def join_runs(
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    starts: NDArray[np.int64],
    is_dense: NDArray[np.bool_],
    num_own: int,
    max_degree: int,
    num_anchors: int,
    max_differ: int,
    state: NDArray[np.int64],
    pairs: NDArray[np.uint64],
) -> int:
    """Write lower row << 32 | higher row of each pair whose sketches differ in at most `max_differ` bits.

    Every row of a run meets the first `max_degree` before it (`num_anchors` in a dense run), unless both are at or
    above `num_own`. Stops when `pairs` could overflow; `state` = [run, place] says where to go on, [number of runs, 0]
    that all is done. `state[2]` counts comparisons. Returns the number of pairs written.
    """
    count = 0
    run, place = state[0], state[1]
    while run < len(starts) - 1:
        start, stop = starts[run], starts[run + 1]
        place = max(place, start + 1)
        most = num_anchors if is_dense[run] else max_degree
        while place < stop:
            anchors = min(place - start, most)
            if count + anchors > len(pairs):
                state[0], state[1] = run, place
                return count
            row, sketch = rows[place], sketches[place]
            state[2] += anchors
            for anchor in range(start, start + anchors):
                if popcount(sketches[anchor] ^ sketch) <= max_differ:
                    other = rows[anchor]
                    low, high = min(row, other), max(row, other)
                    if low < num_own and low != high:
                        pairs[count] = (np.uint64(low) << np.uint64(32)) | np.uint64(high)
                        count += 1
            place += 1
        run += 1
        place = 0
    state[0], state[1] = run, 0
    return count


@compiled
def audit_runs(
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    starts: NDArray[np.int64],
    is_dense: NDArray[np.bool_],
    num_own: int,
    num_anchors: int,
    max_differ: int,
    max_audited: int,
    pairs: NDArray[np.uint64],
) -> int:
    """Write pairs that dense runs leave out, for a sample of their rows against all others; their number.

    One row in 64 (at least one, at most `max_audited`) of each run, those that come after its anchors. Ends early when
    `pairs` is full.
    """
    count = 0
    for run in range(len(starts) - 1):
        if not is_dense[run]:
            continue
        first, stop = starts[run] + num_anchors, starts[run + 1]
        audited = min(max((stop - first) // 64, 1), max_audited)
        for place in range(first, first + audited):
            row, sketch = rows[place], sketches[place]
            for other_place in range(first, stop):
                other = rows[other_place]
                low, high = min(row, other), max(row, other)
                near = popcount(sketches[other_place] ^ sketch) <= max_differ
                if near and low < num_own and low != high:
                    if count == len(pairs):
                        return count
                    pairs[count] = (np.uint64(low) << np.uint64(32)) | np.uint64(high)
                    count += 1
    return count
