"""One part of images that already lie somewhere: candidates with places in, their SAMPLE rows out.

The bytes are read once, hashed and decoded, and stay where they are. What they cannot be used for is a row with its
reason. Nothing is fetched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dataengine.config.download import DownloadConfig
from dataengine.contract import Machine
from dataengine.download.blocklist import Blocklist
from dataengine.download.decoder import Decoded, DecoderPool
from dataengine.download.rows import Row, algorithms_for, failed, judged, unfetched
from dataengine.storage.located import Place, read_located
from dataengine.storage.store import Root

_PLACE = ("object", "offset", "nbytes")
_AHEAD = 4  # images per decoder that are read before they are needed


def inspect_part(
    candidates: list[Row], config: DownloadConfig, blocklist: Blocklist, root: Root, machine: Machine
) -> list[Row]:
    """The SAMPLE row of each candidate, in order."""
    rows = [_unread(candidate, config, blocklist) for candidate in candidates]
    places: list[Place | None] = [
        None if row is not None else (str(candidate["object"]), int(candidate["offset"]), int(candidate["nbytes"]))
        for row, candidate in zip(rows, candidates, strict=True)
    ]
    algorithms = algorithms_for(candidates, blocklist)
    with DecoderPool(machine.num_threads, None, config.limits, algorithms) as decoders:
        for i, decoded in _decode(root, places, decoders, machine.num_threads):
            row = judged(candidates[i], decoded, blocklist, config.integrity)
            place = {name: candidates[i][name] for name in _PLACE} if row["status"] == "ok" else {}
            rows[i] = row | place
    return [row for row in rows if row is not None]


def _unread(candidate: Row, config: DownloadConfig, blocklist: Blocklist) -> Row | None:
    row = unfetched(candidate, blocklist, config.integrity)
    # Before anything is read: a member of a hostile tar may be larger than memory.
    if row is None and candidate["nbytes"] > config.limits.max_body_bytes:
        return failed(candidate["key"], "too_large", f"{candidate['nbytes']} bytes")
    return row


def _decode(
    root: Root, places: list[Place | None], decoders: DecoderPool, num_threads: int
) -> Iterator[tuple[int, Decoded]]:
    """(position, what was found) of every place, in order; the next ones are read while these are decoded."""
    waiting: deque[tuple[int, Future[Decoded]]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for i, content in enumerate(read_located(root, places)):
            if content is None:
                continue
            waiting.append((i, threads.submit(decoders.decode, content)))
            while len(waiting) > _AHEAD * num_threads:
                first, decoded = waiting.popleft()
                yield first, decoded.result()
        for first, decoded in waiting:
            yield first, decoded.result()
