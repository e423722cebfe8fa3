"""What the manifest says a sample's key and image hash are, for readers that check every sample.

In goes the samples table, each part read once when the dataset is opened; out come eight bytes a row, 192 MB for 24
million, which forked workers share. They decide about key and image together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from dataengine.errors import InputError
from dataengine.trainer.columns import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.trainer.index import Shards
    from dataengine.trainer.manifest import Version

_KEY_BYTES, _HASH_BYTES = 16, 8


@dataclass(frozen=True)
class Hashes:
    """`digests` uint64 [rows]: both halves of the key and the XXH3-64 of the image, joined by exclusive or.

    A digest changes with the key alone and with the image alone, and given a key it tells the image's hash.
    """

    digests: NDArray[np.uint64] = field(repr=False)

    def fault(self, row: int, key: str, image: bytes) -> str | None:
        """What is wrong with the sample that was read as `row`; None when it is the manifest's."""
        try:
            number = int(key, 16)
        except ValueError:
            return f"holds key {key!r}, which no manifest has"
        found = xxhash.xxh3_64_intdigest(image)
        wanted = int(self.digests[row]) ^ number >> 64 ^ number & 2**64 - 1
        if found == wanted:
            return None
        return f"holds key {key} with xxh3 {found:016x}, the manifest says {wanted:016x} for that key in that place"


def load_hashes(version: Version, shards: Shards) -> Hashes:
    """The hashes of every row of `version`.

    Raises InputError when the table is damaged, or a key or hash in it is none.
    """
    where = version.root.address("samples")
    found = scan(version, shards, ["key", "xxh3"], {"digest": lambda table: _digests(table, where)})
    return Hashes(found["digest"])


def _digests(table: pa.Table, where: str) -> NDArray[np.uint64]:
    keys = _words(table.column("key"), _KEY_BYTES, where)
    return keys[:, 0] ^ keys[:, 1] ^ _words(table.column("xxh3"), _HASH_BYTES, where)[:, 0]


def _words(column: pa.ChunkedArray, nbytes: int, where: str) -> NDArray[np.uint64]:
    """Hexadecimal texts of `nbytes` each as words, uint64 [rows, nbytes / 8]."""
    texts = column.to_numpy()
    try:
        content = bytes.fromhex("".join(texts))
        if set(map(len, texts)) - {2 * nbytes} or len(content) != nbytes * len(texts):
            raise ValueError("the length differs")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: a key or xxh3 is not {2 * nbytes} hexadecimal characters ({error}); run `dataengine verify` on "
            "it, or read without check_hashes"
        ) from error
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, nbytes // 8)
