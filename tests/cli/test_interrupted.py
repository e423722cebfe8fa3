"""A run that is stopped, or runs out of room, says so, publishes nothing, and is finished by the same command."""

from __future__ import annotations

import functools
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import CommandLine, manifests, picture_tar, write_config

# A shell may start its children deaf to SIGINT, and Python then leaves it so.
_RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dataengine.cli.app import main
main()
"""


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listening socket that never answers, on which every request waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_run_and_the_same_command_finishes_it(
    cli: CommandLine, tmp_path: Path, silent: socket.socket, number: signal.Signals, code: int
) -> None:
    address = "{}:{}".format(*silent.getsockname())
    fetch = {"retries": 0, "total_seconds": 30.0}
    guard = {"hosts": {"gone.test": address}}
    config = write_config(tmp_path, download={"guard": guard, "fetch": fetch, "honor_opt_out": False})
    arguments = [sys.executable, "-c", _RUN, "run", str(config)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        silent.settimeout(60)
        accepted, _ = silent.accept()  # the download is under way
        process.send_signal(number)
        _, message = process.communicate(timeout=20)
    accepted.close()
    assert process.returncode == code
    assert "run the same command again to continue" in message
    assert "Traceback" not in message
    assert not manifests(tmp_path)
    silent.close()
    assert cli("run", config).code == 0
    assert len(manifests(tmp_path)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(cli: CommandLine, tmp_path: Path, small_disk: Path) -> None:
    source = {"kind": "webdataset", "paths": [str(picture_tar(tmp_path / "pictures.tar", num_samples=100))]}
    config = write_config(tmp_path, source, root=str(small_disk))
    said = cli("run", config)
    assert (said.code, "no space left" in said.err, "make room" in said.err) == (74, True, True)
    assert not manifests(tmp_path)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert cli("run", config).code == 0
    assert len(manifests(tmp_path)) == 1


def test_a_full_scratch_disk(
    cli: CommandLine, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)  # larger than the disk
    Image.fromarray(pixels).save(tmp_path / "1.png")
    table = tmp_path / "urls.csv"
    table.write_text("url,caption\nhttp://pics.test/1.png,noise\n")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port, image = server.server_port, {"format": "png"}
        guard = {"hosts": {"pics.test": f"127.0.0.1:{port}"}}
        source = {"kind": "table", "paths": [str(table)]}
        config = write_config(tmp_path, source, download={"guard": guard, "image": image})
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
        said = cli("run", config, "--until", "download")
        assert (said.code, "TMPDIR" in said.err, str(small_disk) in said.err) == (74, True, True)
        monkeypatch.setattr(tempfile, "tempdir", None)
        assert cli("run", config, "--until", "download").code == 0
        server.shutdown()


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dataengine", "--help"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "No space left" in done.stderr, "Traceback" in done.stderr) == (74, True, False)
