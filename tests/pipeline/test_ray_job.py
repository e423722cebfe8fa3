"""The Ray-job entry point on a cluster that `ray start` made, with token authentication as Ray has it by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMALL

RAY = str(Path(sys.executable).parent / "ray")
PORTS = {
    "--port": 26379,
    "--dashboard-port": 28265,
    "--ray-client-server-port": 20001,
    "--dashboard-agent-listen-port": 25365,
}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of two CPUs with a token of its own; yields the environment of its users."""
    token = tmp_path / "token"
    token.write_text(os.urandom(32).hex())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    ports = [f"{name}={port}" for name, port in PORTS.items()]
    command = [
        RAY,
        "start",
        "--head",
        "--num-cpus=2",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
        *ports,
    ]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path, timeout=120)
    yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{PORTS['--dashboard-port']}"}
    subprocess.run([RAY, "stop", "--force"], env=environment, check=False, capture_output=True, timeout=60)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    entry = [sys.executable, str(REPOSITORY / "pipelines" / "build.py"), *arguments]
    command = [RAY, "job", "submit", "--", *entry]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)


@pytest.mark.slow
def test_submitted_job_publishes_the_quickstart(head: dict[str, str], quickstart_dataset: Path, tmp_path: Path) -> None:
    overrides = [f"root={tmp_path / 'root'}", *SMALL, "execution.runner=ray", "execution.download.num_cpus=0.5"]
    arguments = [part for override in overrides for part in ("--set", override)]
    done = submit(head, str(REPOSITORY / "configs" / "quickstart.yaml"), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = tmp_path / "root" / "datasets" / "quickstart" / "v000001" / "manifest.json"
    assert json.loads(manifest.read_text()) == json.loads((quickstart_dataset / "manifest.json").read_text())
    refused = submit(head | {"RAY_AUTH_MODE": "disabled"}, "x.yaml")
    assert refused.returncode != 0
    failed = submit(head, "/no/such/config.yaml")
    assert failed.returncode != 0
    assert "/no/such/config.yaml: cannot read this config" in failed.stdout
