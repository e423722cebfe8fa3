"""Serves a folder on loopback for the download benchmark: nginx where it is installed, else a small server of our own.

Both run in processes of their own, so that their work is not counted as a contender's.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NGINX = """
daemon off; worker_processes 1; pid {run}/pid; error_log {run}/error.log; {user}
events {{ worker_connections 4096; }}
http {{
  types {{ image/jpeg jpg; image/png png; image/webp webp; }}
  access_log off; sendfile on; tcp_nopush on; keepalive_timeout 60; keepalive_requests 1000000;
  client_body_temp_path {run}/1; proxy_temp_path {run}/2; fastcgi_temp_path {run}/3;
  uwsgi_temp_path {run}/4; scgi_temp_path {run}/5;
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}; }}
}}
"""
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_START_SECONDS = 15.0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve `folder` while the context lasts; yields the server's name and its port on 127.0.0.1.

    Raises RuntimeError when it does not start.
    """
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    port = _free_port()
    with tempfile.TemporaryDirectory() as run:
        if nginx is None:
            command = [sys.executable, "-m", "benchmarks.download_server", str(folder), "--port", str(port)]
        else:
            # Started by root, nginx would serve as nobody, who may not look into a cache folder.
            user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
            config = _NGINX.format(run=run, port=port, folder=folder, user=user)
            (Path(run) / "nginx.conf").write_text(config)
            command = [nginx, "-c", f"{run}/nginx.conf", "-e", f"{run}/error.log"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                _await_listener(server, port)
                yield ("asyncio" if nginx is None else "nginx"), port
            finally:
                server.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_listener(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not listen on 127.0.0.1:{port} within {_START_SECONDS:g} s: {server.args!r}")


async def _answer(folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            path = folder / request.split(b" ", 2)[1].decode().partition("?")[0].rpartition("/")[2]
            found = path.is_file()
            body = path.read_bytes() if found else b""
            kind = _TYPES.get(path.suffix, "application/octet-stream")
            status = "200 OK" if found else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    writer.close()


async def _serve(folder: Path, port: int) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _answer(folder, reader, writer), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Serve a folder until killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.folder, arguments.port))


if __name__ == "__main__":
    main()
