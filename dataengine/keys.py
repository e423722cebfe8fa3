"""Keys: who a candidate is, and every random draw about it.

A key is the 128-bit BLAKE2b hash of (source, URL as given), or of (source, shard name, member key, occurrence) for a
sample that already lies in a tar, written as 32 hex characters. Keys are uniform, so sorting by key is a global
shuffle and a key's leading bits choose its part. Nothing here knows tables, stores or the clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_CHARS = 32
_SEPARATOR = b"\x1f"  # never part of a source's name, so ("a", "bc") and ("ab", "c") differ


def url_keys(source: str, urls: Iterable[str]) -> list[str]:
    """One key per URL of `source`.

    BLAKE2b rather than a faster checksum: URL lists are hostile, and a forged collision would merge two candidates.
    """
    prefix = hashlib.blake2b(source.encode() + _SEPARATOR, digest_size=16)
    keys = []
    for url in urls:
        digest = prefix.copy()
        digest.update(url.encode("utf-8", "surrogatepass"))
        keys.append(digest.hexdigest())
    return keys


def member_key(source: str, shard: str, member: str, occurrence: int) -> str:
    """The key of the `occurrence`-th sample called `member` in the tar `shard` of an in-place source."""
    fields = (source, shard, member, str(occurrence))
    return hashlib.blake2b(_SEPARATOR.join(field.encode() for field in fields), digest_size=16).hexdigest()


def key_characters(keys: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """The characters of each key: uint8 [rows, 32], without a copy where they lie side by side already.

    Raises ValueError when a key is null or not 32 characters long.
    """
    array = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not len(array):
        return np.zeros((0, KEY_CHARS), np.uint8)
    _, ends, texts = array.buffers()
    kind = np.int64 if pa.types.is_large_string(array.type) else np.int32
    offsets = np.frombuffer(ends, kind, len(array) + 1, array.offset * np.dtype(kind).itemsize)
    if array.null_count or (np.diff(offsets) != KEY_CHARS).any():
        raise ValueError(f"keys must be {KEY_CHARS} hex characters each")
    return np.frombuffer(texts, np.uint8, KEY_CHARS * len(array), int(offsets[0])).reshape(-1, KEY_CHARS)


def key_bits(keys: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """The leading 64 bits of each key: uint64 [rows], uniform over the whole range.

    Raises ValueError when a key is null or not 32 characters long.
    """
    return key_bytes(keys)[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)


def key_bytes(keys: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """The 16 bytes of each key: uint8 [rows, 16]. Raises ValueError when a key is null or not 32 characters long."""
    nibbles = _NIBBLES[key_characters(keys)]
    return np.left_shift(nibbles[:, ::2], np.uint8(4)) | nibbles[:, 1::2]


def hex_keys(key_bytes: NDArray[np.uint8]) -> pa.Array:
    """Keys as text, 32 hex characters each, from their bytes (uint8 [rows, 16])."""
    characters = _HEX_DIGITS[key_bytes]
    fixed = pa.Array.from_buffers(pa.binary(KEY_CHARS), len(key_bytes), [None, pa.py_buffer(characters)])
    return fixed.cast(pa.binary()).cast(pa.string())


_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_HEX_DIGITS = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)


def draws(keys: pa.ChunkedArray | pa.Array, seed: int, purpose: str) -> NDArray[np.float64]:
    """One uniform number in [0, 1) per key, a pure function of (seed, purpose, key): float64 [rows].

    The same row draws the same number whatever part, worker or order it is met in.
    """
    return draws_of_bits(key_bits(keys), seed, purpose)


def draws_of_bits(bits: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.float64]:
    """`draws` of keys that are known by their leading 64 bits: float64 [rows]."""
    mixed = mix64(bits, seed, purpose)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits: exactly a float64, never 1.0


def mix64(bits: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.uint64]:
    """`bits` re-hashed under (seed, purpose) by the splitmix64 finaliser (Steele et al. 2014): uint64 [rows]."""
    with np.errstate(over="ignore"):
        mixed = bits ^ salt64(seed, purpose)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def salt64(seed: int, purpose: str) -> np.uint64:
    """What `mix64` sets numbers apart by: a hash of (seed, purpose)."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest(), "big"))


def key_ranges(keys: Sequence[str] | pa.ChunkedArray | pa.Array, num_ranges: int) -> NDArray[np.int64]:
    """The range in 0..num_ranges-1 each key falls in when the key space is cut into equal ranges: int64 [rows]."""
    array = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys, pa.string())
    # 32 high bits suffice to place a key, and keep the product below 2**64 for up to 2**32 ranges.
    return (((key_bits(array) >> np.uint64(32)) * np.uint64(num_ranges)) >> np.uint64(32)).astype(np.int64)
