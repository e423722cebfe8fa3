"""Reading many small ranges: the stored bytes of images, by (object, offset, size)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from dataengine.storage.store import Root

Place = tuple[str, int, int]
"""Object, offset, number of bytes."""

_PARALLEL_READS = 16
_WINDOW = 64  # ranges held at once: 64 images of 1 MB are 64 MB


def read_located(root: Root, places: Sequence[Place | None]) -> Iterator[bytes | None]:
    """The bytes at each place in order, None for None; read ahead of the consumer by a bounded window."""
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for start in range(0, len(places), _WINDOW):
            yield from pool.map(lambda place: place and root.get_range(*place), places[start : start + _WINDOW])


def places_of(columns: dict[str, list[object]]) -> list[Place | None]:
    """Places from the columns object, offset and nbytes; None where there is no object."""
    rows = zip(columns["object"], columns["offset"], columns["nbytes"], strict=True)
    return [(str(path), int(str(offset)), int(str(nbytes))) if path else None for path, offset, nbytes in rows]
