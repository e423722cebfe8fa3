"""One part of URLs: candidates in, their SAMPLE rows and a raw tar in key order out.

Responses come in any order and the tar is in key order, so that images wait in a scratch file, not in memory. With the
rows of an earlier pass, only those of the wanted reasons are asked for again; the others stay, their bytes by
reference. Pace, permission and decoding are decided elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO

from dataengine.config.download import DownloadConfig
from dataengine.contract import Machine, Outputs
from dataengine.download.blocklist import Blocklist
from dataengine.download.decoder import DecoderPool
from dataengine.download.fetch import Fetched, fetch_all
from dataengine.download.known_hosts import hosts_of_this_process
from dataengine.download.metrics import Tally
from dataengine.download.rows import Row, algorithms_for, judged, of_fetch, unanswered, unfetched
from dataengine.errors import StorageError
from dataengine.storage.tar import END, append

_REPORT_SECONDS = 2.0


def fetch_part(
    candidates: list[Row],
    kept: Sequence[Row | None],
    config: DownloadConfig,
    blocklist: Blocklist,
    outputs: Outputs,
    machine: Machine,
) -> list[Row]:
    """The SAMPLE row of each candidate, in order; where `kept` has one already, that.

    Writes the images to the object `raw`, and how it went to the metrics. Raises TryAgainError when the network, not
    the URLs, is at fault.
    """
    rows = [
        row if row is not None else unfetched(candidate, blocklist, config.integrity)
        for candidate, row in zip(candidates, kept, strict=True)
    ]
    part = _Part(candidates, rows, config, blocklist)
    with tempfile.TemporaryFile(buffering=0) as scratch, ThreadPoolExecutor(machine.num_threads) as threads:
        algorithms = algorithms_for(candidates, blocklist)
        with DecoderPool(machine.num_threads, config.image, config.limits, algorithms) as decoders:
            asyncio.run(part.fetch(scratch, threads, decoders, machine))
        part.write_tar(scratch, outputs)
    outputs.metrics |= part.tally.metrics()
    return part.finished()


class _Part:
    def __init__(
        self, candidates: list[Row], rows: list[Row | None], config: DownloadConfig, blocklist: Blocklist
    ) -> None:
        self._candidates = candidates
        self._rows = rows
        self._config = config
        self._blocklist = blocklist
        self._spans: dict[int, tuple[int, int]] = {}
        self.tally = Tally()

    async def fetch(
        self, scratch: FileIO, threads: ThreadPoolExecutor, decoders: DecoderPool, machine: Machine
    ) -> None:
        """Fill in the rows that are still open, their images in `scratch`."""
        wanted = [i for i, row in enumerate(self._rows) if row is None]
        hosts = hosts_of_this_process(self._config.fetch, self._config.guard, machine.num_workers)
        loop = asyncio.get_running_loop()
        next_report = loop.time() + _REPORT_SECONDS

        async def take(position: int, fetched: Fetched) -> None:
            nonlocal next_report
            candidate, image = self._candidates[wanted[position]], None
            if fetched.content is None:
                row = unanswered(candidate, fetched)
            else:
                decoded = await loop.run_in_executor(threads, decoders.decode, fetched.content)
                row = judged(candidate, decoded, self._blocklist, self._config.integrity) | of_fetch(fetched)
                image = decoded.image if row["status"] == "ok" else None
            self._rows[wanted[position]] = row
            if image is not None:
                self._spans[wanted[position]] = scratch.tell(), _keep(scratch, image.content)
            self.tally.add(fetched, row["reason"])
            if loop.time() >= next_report:
                machine.report({**self.tally.metrics(), "resting": hosts.pace.resting(loop.time())})
                next_report = loop.time() + _REPORT_SECONDS

        urls = [self._candidates[i]["url"] for i in wanted]
        forbids = self._blocklist.forbids_url
        await fetch_all(urls, self._config, machine.num_workers, machine.now, take, hosts=hosts, forbids=forbids)

    def write_tar(self, scratch: FileIO, outputs: Outputs) -> None:
        """Write the images in key order, and note in their rows where they lie."""
        if not self._spans:
            return
        with outputs.stream("raw", "raw.tar") as tar:
            for i in sorted(self._spans):
                row, (start, nbytes) = self._rows[i], self._spans[i]
                assert row is not None
                scratch.seek(start)
                offset = append(tar, f"{row['key']}.{row['format']}", scratch.read(nbytes))
                row |= {"object": outputs.path("raw.tar"), "offset": offset, "nbytes": nbytes}
            tar.write(END)

    def finished(self) -> list[Row]:
        """Every row; all of them are there once `fetch` has returned."""
        return [row for row in self._rows if row is not None]


def _keep(scratch: FileIO, content: bytes) -> int:
    """Append `content` to the scratch file, and say how many bytes that was; StorageError when its disk is full."""
    num_written = 0
    try:
        with memoryview(content) as view:
            while num_written < len(view):  # a disk that gets full takes a part first
                num_written += scratch.write(view[num_written:]) or 0
        return num_written
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"{tempfile.gettempdir()}: {error.strerror}, while the images of a part wait there for their turn in its "
            f"tar; make room, set TMPDIR to a larger disk, or lower part_rows"
        ) from error
