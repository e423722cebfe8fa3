"""A download of many rows in one process: its memory and open files do not grow with their number."""

from __future__ import annotations

import itertools
import logging
import os
import resource
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.crawl import committed_parts, crawl_config, logging_site, picture_reply
from tests.pipeline.test_download_kill import end, start

NUM_URLS, STEP, NUM_WARM = 100_000, 10_000, 2
NUM_HOSTS = 2000
MAX_SLOPE_BYTES = 1e6
MAX_SLOPE_FILES = 16
MAX_FILES = 1024  # what most systems give a process; connections that are kept alive to many hosts would pass it
MAX_KEPT = 512
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Sample:
    """How large the process is, once so many pictures have been asked for."""

    num_pictures: int
    rss_bytes: int
    num_files: int


def sample(number: int, num_pictures: int) -> Sample:
    """The process `number` now. Raises OSError when it is gone."""
    pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
    num_files = sum(1 for _ in Path(f"/proc/{number}/fd").iterdir())
    return Sample(num_pictures, pages * os.sysconf("SC_PAGE_SIZE"), num_files)


def slope(values: list[float]) -> float:
    """Growth per step: the median over all pairs (Theil and Sen), which one odd value cannot move."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((later - sooner) / (j - i) for (i, sooner), (j, later) in pairs)


def test_slope_sees_growth_and_no_single_spike() -> None:
    assert slope([5.0, 7.0, 9.0, 11.0]) == 2.0
    assert slope([5.0, 5.0, 90.0, 5.0, 5.0, 5.0]) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_and_open_files_stay_flat(tmp_path: Path) -> None:
    picture, samples = picture_reply(), []
    with logging_site(lambda _: picture) as site:
        fetch = {"per_host_rate": None}
        config = crawl_config(tmp_path, site, NUM_URLS, NUM_HOSTS, STEP, fetch)
        process = start(config, tmp_path / "log")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
        try:
            while process.poll() is None:
                try:
                    samples.append(sample(process.pid, site.num_pictures))
                except OSError:
                    continue  # it has just ended
                time.sleep(SAMPLE_SECONDS)
        finally:
            end(process)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    reasons = Counter(row["reason"] for part in committed_parts(tmp_path).values() for row in part.rows)
    assert reasons == {None: NUM_URLS}
    # Within a part memory rises with its rows and falls at its end, so each step has the end of one part in its middle.
    numbers = range(NUM_WARM, NUM_URLS // STEP)
    steps = [[s for s in samples if (s.num_pictures - STEP // 2) // STEP == number] for number in numbers]
    peaks = [float(max(s.rss_bytes for s in step)) for step in steps]
    files = [float(max(s.num_files for s in step)) for step in steps]
    growth = slope(peaks)
    logging.getLogger(__name__).info("peaks %s, slope %.0f bytes, open files %s", peaks, growth, files)
    assert growth < MAX_SLOPE_BYTES
    assert slope(files) < MAX_SLOPE_FILES
    assert max(files) <= MAX_KEPT
