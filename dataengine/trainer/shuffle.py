"""Permutations that are computed, not stored: of chunks by Philox, of positions by a keyed bijection.

In go seeds, lengths and positions; out come positions. Both are pure functions of integers, the same on every machine
and under every version of NumPy, because a resumed run must meet the order that it was saved in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Philox

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UINT64 = 2**64 - 1
_TURNS = tuple(np.uint64(bits) for bits in (44, 31, 17, 8))  # each round's part of the key; 20 bits are new in each
# Odd, with bits spread evenly; those of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
# generators", OOPSLA 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_ODD = tuple(
    np.uint64(number) for number in (0xC2B2AE3D27D4EB4F, 0x9FB21C651E98DF25, 0xD6E8FEB86659FD93, 0xA24BAED4963EE407)
)


def philox_permutation(length: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """A permutation of range(length), int64, by the ranks of Philox 4x64-10 numbers (Salmon et al., SC 2011).

    `seed` and `epoch` are the key, `stream` is the counter's last word. Sorted raw numbers rather than
    `Generator.permutation`: NumPy promises the raw stream of Philox for ever, and not the algorithm on top.
    """
    key = np.array([seed & _UINT64, epoch & _UINT64], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.argsort(Philox(key=key, counter=counter).random_raw(length), kind="stable")


def mixed(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit hash of the words, elementwise where some are arrays: splitmix64's finaliser, chained."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        number = word if isinstance(word, np.ndarray) else np.uint64(word & _UINT64)
        state = _finalise(state + _GAMMA ^ number)
    return state


def permuted(places: NDArray[np.uint64], lengths: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where each of `places` goes in the permutation of range(length) that its key chooses: uint64, as `places`.

    All three broadcast; a place is below its length. Each round multiplies by an odd number, folds the high half onto
    the low half and adds a key, all modulo the next power of two and so each a bijection; a result beyond the length
    goes through again until it falls within (cycle walking: Black and Rogaway, CT-RSA 2002).
    """
    places, lengths, keys = np.broadcast_arrays(places, lengths, keys)
    masks, shifts = _masks(lengths)
    found = _rounds(places, masks, shifts, keys)
    outside = np.flatnonzero(found >= lengths)
    while outside.size:
        found[outside] = _rounds(found[outside], masks[outside], shifts[outside], keys[outside])
        outside = outside[found[outside] >= lengths[outside]]
    return found


def _masks(lengths: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(the least 2^bits - 1 that holds every place, bits / 2), each as `lengths`."""
    # Exact below 2^53, and no stream has more rows than that.
    bits = np.frexp((lengths - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
    one = np.uint64(1)
    return (one << bits) - one, np.maximum(one, (bits + one) >> one)


def _rounds(
    places: NDArray[np.uint64], masks: NDArray[np.uint64], shifts: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    found = places
    for odd, turn in zip(_ODD, _TURNS, strict=True):
        found = ((found ^ (keys >> turn)) * odd) & masks
        found ^= found >> shifts
    return (found + keys) & masks


def _finalise(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return words ^ (words >> np.uint64(31))
