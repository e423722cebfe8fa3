"""SIGKILL in the middle of a download: run again, nothing that was committed is fetched twice and no row is lost."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.crawl import (
    LoggingSite,
    committed_parts,
    crawl_config,
    logging_site,
    picture_reply,
    planned_parts,
)

NUM_HOSTS = 20
SETTLE_SECONDS = 0.5  # what the killed process has sent may still be on its way


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """The download, as a process group of its own."""
    command = [sys.executable, "-m", "dataengine", "run", str(config), "--until", "download"]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the driver, and then of what it started and left."""
    process.kill()
    process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the group is empty, as it should be


def run_until(num_requests: int, config: Path, site: LoggingSite, log: Path) -> None:
    """Run the download and kill its driver once `num_requests` have come."""
    process = start(config, log)
    try:
        while site.num_pictures < num_requests:
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
        process.kill()
        process.wait()
        time.sleep(SETTLE_SECONDS)
    finally:
        end(process)


def run_to_the_end(config: Path, log: Path, timeout_seconds: float) -> None:
    process = start(config, log)
    try:
        assert process.wait(timeout_seconds) == 0, log.read_text()
    finally:
        end(process)


@pytest.mark.parametrize(
    ("num_urls", "part_rows"),
    [(400, 50), pytest.param(20_000, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_killed_download_fetches_no_committed_part_again(tmp_path: Path, num_urls: int, part_rows: int) -> None:
    seed = random.randrange(2**32)
    moment = int(random.Random(seed).uniform(0.25, 0.75) * num_urls)
    logging.getLogger(__name__).info("seed %d: killed after %d requests", seed, moment)
    picture = picture_reply()
    with logging_site(lambda _: picture) as site:
        fetch = {"per_host": 64, "per_host_rate": None}
        config = crawl_config(tmp_path, site, num_urls, NUM_HOSTS, part_rows, fetch)
        run_until(moment, config, site, tmp_path / "log")
        before, hits = committed_parts(tmp_path), site.hits()
        run_to_the_end(config, tmp_path / "log", 900)
        after, all_hits = committed_parts(tmp_path), site.hits()
    planned = planned_parts(tmp_path)
    assert 0 < len(before) < len(planned)
    committed = set().union(*(part.paths for part in before.values()))
    assert {path: all_hits[path] for path in committed} == dict.fromkeys(committed, 1)
    assert {name: after[name].commit for name in before} == {name: part.commit for name, part in before.items()}
    assert sum((all_hits - hits).values()) == num_urls - len(committed)
    assert {name: sorted(row["path"] for row in part.rows) for name, part in after.items()} == {
        name: sorted(paths) for name, paths in planned.items()
    }
    assert sum(len(part.rows) for part in after.values()) == num_urls
    assert {row["status"] for part in after.values() for row in part.rows} == {"ok"}
