"""Reading many small ranges: the stored bytes of images, by (object, offset, size).

Ranges that lie close together in one object, as members of a tar do, are read in one request, and requests are made
ahead of the consumer, a bounded number of bytes of them: as bytes in order (`read_located`), or straight into the
buffers of a consumer that knows where they go (`LocatedReads`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dataengine.storage.store import Root

Place = tuple[str, int, int]
"""Object, offset, number of bytes."""

_PARALLEL_READS = 16
_PARALLEL_LOCAL_READS = 2  # one copies out of the page cache while another waits for the disk; more only contend
_AHEAD_BYTES = 64 * 2**20
# Read and thrown away: the headers, caption and JSON between two images of a tar take 3 to 8 KB, and a ranged GET costs
# about as much as 4 MiB of transfer. Larger holes mean a place chosen at random.
_MAX_GAP_BYTES = 64 * 2**10
_MAX_RUN_BYTES = 4 * 2**20
_GAP = memoryview(bytearray(_MAX_GAP_BYTES))
"""Where the bytes between two places go, of all threads at once: nobody looks at them."""


@dataclass
class _Run:
    """Consecutive places, by number, that are read in one request."""

    path: str
    start: int
    end: int
    num_places: int = 1

    def takes(self, place: Place) -> bool:
        """Whether `place` follows closely enough to be read along."""
        path, offset, nbytes = place
        gap, total = offset - self.end, offset + nbytes - self.start
        return path == self.path and 0 <= gap <= _MAX_GAP_BYTES and total <= _MAX_RUN_BYTES


def read_located(root: Root, places: Sequence[Place | None]) -> Iterator[bytes | None]:
    """The bytes at each place in order, None for None; read ahead of the consumer by a bounded number of bytes.

    Places in the order of their objects are read in few requests; any order is served.
    """
    runs = deque(_runs(places))
    waiting: deque[tuple[_Run, Future[bytes]]] = deque()
    ahead, next_place = 0, 0
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        while runs or waiting:
            while runs and (ahead < _AHEAD_BYTES or not waiting) and len(waiting) < 2 * _PARALLEL_READS:
                run = runs.popleft()
                waiting.append((run, pool.submit(root.get_range, run.path, run.start, run.end - run.start)))
                ahead += run.end - run.start
            run, future = waiting.popleft()
            content = future.result()
            ahead -= run.end - run.start
            num_left = run.num_places
            while num_left:
                place = places[next_place]
                yield None if place is None else _cut(content, run, place)
                num_left -= place is not None
                next_place += 1
    yield from (None for _ in places[next_place:])


class LocatedReads:
    """Reads places into views, many requests at once; a context manager that waits for what was begun."""

    def __init__(self, root: Root, *, is_local: bool) -> None:
        self._root = root
        self.num_parallel = _PARALLEL_LOCAL_READS if is_local else _PARALLEL_READS
        self._pool = ThreadPoolExecutor(self.num_parallel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def begin(
        self, places: Sequence[Place], views: Sequence[memoryview], check: Callable[[int], None]
    ) -> Callable[[], None]:
        """Begin to read the bytes at each place into the view beside it; what is returned waits for all of them.

        `check(i)` is called in the reading thread once view `i` is full; what it raises is raised by the wait.
        """
        order = sorted(range(len(places)), key=places.__getitem__)
        runs, begin = list(_runs([places[i] for i in order])), 0
        begun: list[Future[None]] = []
        for run in runs:
            members = order[begin : begin + run.num_places]
            begun.append(self._pool.submit(self._read, run, members, places, views, check))
            begin += run.num_places

        def wait() -> None:
            for future in begun:
                future.result()

        return wait

    def _read(
        self,
        run: _Run,
        members: Sequence[int],
        places: Sequence[Place],
        views: Sequence[memoryview],
        check: Callable[[int], None],
    ) -> None:
        wanted, end = [], run.start
        for i in members:
            gap = places[i][1] - end
            if gap:
                wanted.append(_GAP[:gap])
            wanted.append(views[i])
            end += gap + places[i][2]
        self._root.read_into(run.path, run.start, wanted)
        for i in members:
            check(i)


def _cut(content: bytes, run: _Run, place: Place) -> bytes:
    _, offset, nbytes = place
    return content if run.num_places == 1 else content[offset - run.start : offset - run.start + nbytes]


def _runs(places: Sequence[Place | None]) -> Iterator[_Run]:
    run: _Run | None = None
    for place in places:
        if place is None:
            continue
        if run is not None and run.takes(place):
            run.end, run.num_places = place[1] + place[2], run.num_places + 1
            continue
        if run is not None:
            yield run
        run = _Run(place[0], place[1], place[1] + place[2])
    if run is not None:
        yield run


def places_of(columns: dict[str, list[object]]) -> list[Place | None]:
    """Places from the columns object, offset and nbytes; None where there is no object."""
    rows = zip(columns["object"], columns["offset"], columns["nbytes"], strict=True)
    return [(str(path), int(str(offset)), int(str(nbytes))) if path else None for path, offset, nbytes in rows]
