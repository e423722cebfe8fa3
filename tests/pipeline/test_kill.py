"""SIGKILL of the driver and everything it started, at random moments: run again, the manifest is the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMALL

COMMAND = [sys.executable, "-m", "dataengine", "run", str(REPOSITORY / "configs" / "quickstart.yaml")]
MARK = "DATAENGINE_KILL_TEST"
MANIFEST = Path("datasets") / "quickstart" / "v000001" / "manifest.json"


def start(root: Path, runner: str, mark: str) -> subprocess.Popen[bytes]:
    """The small quickstart in `root`, as a process group of its own whose members carry `mark`."""
    overrides = [f"root={root}", *SMALL, f"execution.runner={runner}", "execution.download.num_cpus=0.5"]
    arguments = [argument for override in overrides for argument in ("--set", override)]
    environment = os.environ | {MARK: mark}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill_all(mark: str) -> int:
    """SIGKILL every process that carries `mark`; how many there were."""
    num_killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                num_killed += 1
        except (OSError, ProcessLookupError):
            continue
    return num_killed


def killed_run(root: Path, runner: str, moments: list[float]) -> None:
    """Run until done, killed after each of `moments` seconds on the way."""
    for seconds in moments:
        mark = uuid.uuid4().hex
        process = start(root, runner, mark)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            while kill_all(mark):
                time.sleep(0.05)
            process.wait()
    mark = uuid.uuid4().hex
    process = start(root, runner, mark)
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        kill_all(mark)
    assert process.returncode == 0, output.decode()


def no_strays(root: Path, wanted: Path) -> None:
    """The killed run published the same files, no more and no fewer."""
    version, other = (root / MANIFEST).parent, wanted
    mine, theirs = (sorted(p.relative_to(v) for p in v.rglob("*") if p.is_file()) for v in (version, other))
    assert [path for path in mine if not path.name.startswith(".aside-")] == theirs


def test_serial_run_killed_three_times_publishes_the_same_manifest(quickstart_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_dataset.parents[2] / "sample-web", tmp_path / "sample-web")
    seed = random.randrange(2**32)
    moments = [random.Random(seed).uniform(2.0, 8.0) for _ in range(3)]
    killed_run(tmp_path, "serial", moments)
    assert (tmp_path / MANIFEST).read_bytes() == (quickstart_dataset / "manifest.json").read_bytes(), f"seed {seed}"
    no_strays(tmp_path, quickstart_dataset)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_ray_run_killed_at_a_random_moment_publishes_the_same_manifest(
    quickstart_dataset: Path, tmp_path: Path, attempt: int
) -> None:
    shutil.copytree(quickstart_dataset.parents[2] / "sample-web", tmp_path / "sample-web")
    seed = random.randrange(2**32)
    moment = random.Random(seed).uniform(3.0, 45.0)
    killed_run(tmp_path, "ray", [moment])
    same = (tmp_path / MANIFEST).read_bytes() == (quickstart_dataset / "manifest.json").read_bytes()
    assert same, f"seed {seed}, killed after {moment:.1f} s"
    no_strays(tmp_path, quickstart_dataset)


def test_two_drivers_at_once_publish_one_dataset(quickstart_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_dataset.parents[2] / "sample-web", tmp_path / "sample-web")
    mark = uuid.uuid4().hex
    drivers = [start(tmp_path, "serial", mark) for _ in range(2)]
    try:
        outputs = [driver.communicate(timeout=240)[0] for driver in drivers]
    finally:
        kill_all(mark)
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert (tmp_path / MANIFEST).read_bytes() == (quickstart_dataset / "manifest.json").read_bytes()
    assert not (tmp_path / "datasets" / "quickstart" / "v000002").exists()


@pytest.mark.slow
def test_sigterm_ends_a_ray_run_in_order(quickstart_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_dataset.parents[2] / "sample-web", tmp_path / "sample-web")
    mark = uuid.uuid4().hex
    process = start(tmp_path, "ray", mark)
    try:
        while not list((tmp_path / "runs").rglob("commits/*.json")):
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        kill_all(mark)
    assert process.returncode == 143, output.decode()
    assert b"run the same command again to continue" in output
