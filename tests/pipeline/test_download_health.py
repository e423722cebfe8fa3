"""A network that is dead stops the run, and nothing of it is recorded as the death of a million URLs."""

from __future__ import annotations

import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cli.command import CommandLine, write_config
from tests.cli.conftest import cli as cli

NUM_URLS = 120


def test_a_dead_resolver_stops_the_run(cli: CommandLine, tmp_path: Path) -> None:
    urls = [f"http://host{number}.example/{number}.jpg" for number in range(NUM_URLS)]
    pq.write_table(pa.table({"url": urls, "caption": ["picture"] * NUM_URLS}), tmp_path / "urls.parquet")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:  # takes questions and never answers
        deaf.bind(("127.0.0.1", 0))
        fetch = {
            "nameservers": [f"127.0.0.1:{deaf.getsockname()[1]}"],
            "retries": 0,
            "connect_seconds": 1.0,
            "total_seconds": 2.0,
        }
        download = {"fetch": fetch, "health": {"window": 50, "max_dns_share": 0.6}}
        source = {"kind": "table", "paths": [str(tmp_path / "urls.parquet")]}
        config = write_config(tmp_path, source, download=download)
        said = cli("run", config, "--until", "download")
    assert said.code == 75, said.err
    assert "dns" in said.err or "timeout" in said.err
    assert "download.health" in said.err
    assert not list(tmp_path.glob("root/runs/small/download/*/commits/*"))
    # A person who knows that the list is dead says so, and gets every row recorded.
    lenient = ["--set", "download.health.max_dns_share=1", "--set", "download.health.min_ok_share=0"]
    said = cli("run", config, "--until", "download", *lenient)
    assert said.code == 0, said.err
