"""MinHash signatures, and what is made of them: band hashes and sketches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.dedup.kernels.compiling import compiled, inlined
from dataengine.dedup.kernels.shingles import sha1_shingles, shingle_polynomials

_LARGEST = np.uint32(0xFFFFFFFF)


@inlined
def _hash32(polynomial: Any, salt: Any) -> Any:
    """The upper half of the splitmix64 finaliser of `polynomial` under `salt`."""
    mixed = polynomial ^ salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32))


@inlined
def _scramble(value: Any) -> Any:
    """The 32-bit finaliser of MurmurHash3 (Appleby), which datasketch applies before its permutations."""
    mixed = np.uint32((value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    mixed = np.uint32((mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(mixed ^ (mixed >> np.uint32(16)))


@compiled
def sign_captions(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    size: int,
    by_word: bool,
    by_sha1: bool,
    salt: np.uint64,
    multipliers: NDArray[np.uint32],
    increments: NDArray[np.uint32],
    signatures: NDArray[np.uint32],
    num_shingles: NDArray[np.int64],
) -> None:
    """Write the signature [rows, num_perm] and the number of shingles [rows] of each caption."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    points, places = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.int64)
    words, values = np.empty((longest // 2 + 1, 4), np.uint64), np.empty(longest + 1, np.uint64)
    hashes, schedule = np.empty(longest + 4, np.uint32), np.empty(80, np.uint32)
    message = np.empty(2 * longest + 2 * size, np.uint8)
    num_perm = len(multipliers)
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        if by_sha1:
            count = sha1_shingles(content, start, stop, size, by_word, points, places, words, message, schedule, hashes)
            for at in range(count):
                hashes[at] = _scramble(hashes[at])
        else:
            count = shingle_polynomials(content, start, stop, size, by_word, points, places, words, values)
            for at in range(count):
                hashes[at] = _scramble(_hash32(values[at], salt))
        num_shingles[row] = count
        minima = signatures[row]
        for slot in range(num_perm):
            minima[slot] = _LARGEST
        for at in range(count, (count + 3) // 4 * 4):
            hashes[at] = hashes[max(count - 1, 0)]  # once more changes no minimum
        # 32-bit multiplies, adds and minima, in vectors; four shingles a turn, so that minima are loaded less often.
        for at in range(0, count, 4):
            one, two, three, four = hashes[at], hashes[at + 1], hashes[at + 2], hashes[at + 3]
            for slot in range(num_perm):
                factor, offset = multipliers[slot], increments[slot]
                left = min(np.uint32(factor * one + offset), np.uint32(factor * two + offset))
                right = min(np.uint32(factor * three + offset), np.uint32(factor * four + offset))
                minima[slot] = min(minima[slot], min(left, right))


@compiled
def band_signatures(
    signatures: NDArray[np.uint32], rows_per_band: int, hashes: NDArray[np.uint64], sketches: NDArray[np.uint64]
) -> None:
    """Write the hash of each band [rows, num_bands], its number hashed in, and a sketch of one bit of each of 64 slots.

    Fewer slots give as many bits, and zeros before them.
    """
    num_perm = signatures.shape[1]
    num_bits = min(num_perm, 64)
    for row in range(len(signatures)):
        minima = signatures[row]
        for band in range(hashes.shape[1]):
            mixed = np.uint64(band + 1) * np.uint64(0x9E3779B97F4A7C15)
            for slot in range(band * rows_per_band, (band + 1) * rows_per_band):
                mixed = (mixed ^ np.uint64(minima[slot])) * np.uint64(0xBF58476D1CE4E5B9)
                mixed = mixed ^ (mixed >> np.uint64(31))
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            hashes[row, band] = mixed ^ (mixed >> np.uint64(31))
        sketch = np.uint64(0)
        for bit in range(num_bits):
            slot = minima[bit * num_perm // num_bits]
            sketch = (sketch << np.uint64(1)) | np.uint64(np.uint32(slot * np.uint32(0x9E3779B1)) >> np.uint32(31))
        sketches[row] = sketch


@compiled
def deal_bands(
    hashes: NDArray[np.uint64],
    sketches: NDArray[np.uint64],
    stands: NDArray[np.bool_],
    first_row: int,
    slot_bits: int,
    starts: NDArray[np.int64],
    records: NDArray[np.uint64],
) -> None:
    """Write a record per band and row that `stands`, ordered by the leading `slot_bits` of the band hash, then row.

    A record [records, 2] is the 32 bits of the hash after the slot's << 32 | row, counted from `first_row`, and the
    sketch; `starts` [2**slot_bits + 1] is zero on entry, and says where each slot begins on return.
    """
    shift = np.uint64(64 - slot_bits)
    rest = np.uint64(32 - slot_bits)
    for row in range(hashes.shape[0]):
        for band in range(hashes.shape[1] * stands[row]):
            starts[np.int64(hashes[row, band] >> shift) + 1] += 1
    for before in range(len(starts) - 1):
        starts[before + 1] += starts[before]
    places = starts[:-1].copy()
    for row in range(hashes.shape[0]):
        for band in range(hashes.shape[1] * stands[row]):
            value = hashes[row, band]
            slot = np.int64(value >> shift)
            place = places[slot]
            places[slot] = place + 1
            hash32 = (value >> rest) & np.uint64(0xFFFFFFFF)
            records[place, 0] = (hash32 << np.uint64(32)) | np.uint64(first_row + row)
            records[place, 1] = sketches[row]


@compiled
def unpack_records(
    records: NDArray[np.uint64],
    starts: NDArray[np.int64],
    first_slot: int,
    first_row: int,
    hashes: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
) -> None:
    """Write slot << 32 | hash, number and sketch of the records of some slots; `starts` says where each begins."""
    place = 0
    for at in range(len(starts) - 1):
        slot = np.uint64(first_slot + at) << np.uint64(32)
        for record in range(starts[at], starts[at + 1]):
            word = records[record, 0]
            hashes[place] = slot | (word >> np.uint64(32))
            rows[place] = np.uint32(word & np.uint64(0xFFFFFFFF)) + np.uint32(first_row)
            sketches[place] = records[record, 1]
            place += 1
