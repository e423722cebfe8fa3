"""However few files a process may have open, all readers in it find theirs: tried in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.publishing import publish, write_siblings

SHARDS = 60


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of 480 samples in 60 shards, with latents beside them."""
    folder = publish(tmp_path_factory.mktemp("files") / "shards", {"alpha": (8,) * SHARDS})
    write_siblings(folder, "latents")
    return folder


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
import os, resource, sys
folder, num_threads, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from dataengine.trainer import DataLoader, ShardDataset
siblings = {"latent": "latents"}
dataset = ShardDataset(folder, parts=("txt", "latent"), siblings=siblings)
most = 0
def read(num_workers):
    global most
    keys = set()
    options = {"num_workers": num_workers, "workers": "thread", "on_corrupt": "raise", "prefetch_batches": 1}
    for batch in DataLoader(dataset, global_batch_size=32, tail="pad", **options):
        keys.update(batch["__key__"])
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert len(keys) == len(dataset), (len(keys), len(dataset))
list(dataset)  # one reader alone takes what it likes
read(num_threads)
read(0)
print(most)
"""


@pytest.mark.parametrize(("num_threads", "limit"), [(2, 200), (12, 256), (12, 1024), (0, 128)])
def test_all_is_read_with_few_files(many: Path, num_threads: int, limit: int) -> None:
    assert int(run(READ, many, num_threads, limit)) < limit


TAKEN = """
import os, resource, sys, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from dataengine.trainer import ShardDataset
dataset = ShardDataset(sys.argv[1], parts=("txt",))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
def give_back():
    time.sleep(0.5)
    for _ in range(4):
        os.close(taken.pop())
threading.Thread(target=give_back).start()
print(len(list(dataset)))
"""


def test_one_that_finds_all_files_taken_waits_and_goes_on_with_its_own(many: Path) -> None:
    """Four come back: enough for one tar and its index at a time, for 60 of them."""
    assert run(TAKEN, many) == "480"


RAISED = """
import resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from dataengine.trainer.files import raise_file_limit
print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 1000), (1000, 1000)])
def test_the_limit_is_raised_to_what_the_system_grants(soft: int, hard: int) -> None:
    assert run(RAISED, soft, hard) == "1000 1000 1000"
