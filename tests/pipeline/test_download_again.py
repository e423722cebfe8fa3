"""Asking again for what failed: good rows stay by reference, other parts stay whole, later stages follow."""

from __future__ import annotations

import http.server
import io
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from tests.cli.command import CommandLine, write_config
from tests.cli.conftest import cli as cli

NUM_URLS = 24
ILL = ("03.png", "17.png")
"""Pages that answer 503 while the server is ill; all others are always well."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hits: Counter[str] = Counter()
        self.is_ill = True


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.hits[name] += 1
        status = 404 if name in ("robots.txt", "05.png") else 503 if self.server.is_ill and name in ILL else 200
        body = _picture(name) if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _picture(name: str) -> bytes:
    pixels = np.random.default_rng(int(name[:2])).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()


def _config(folder: Path, server: _Server, host: str = "pics.test", *, known: bool | None = None) -> Path:
    """A run over the pages of `server`, whose address is known as that of `host` unless this is not pics.test."""
    urls = [f"http://{host}/{number:02d}.png" for number in range(NUM_URLS)]
    captions = [f"noise of kind {number}" for number in range(NUM_URLS)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "pics.parquet")
    source = {"kind": "table", "paths": [str(folder / "pics.parquet")]}
    known = host == "pics.test" if known is None else known
    guard = {"hosts": {host if known else "other.test": f"127.0.0.1:{server.server_address[1]}"}}
    return write_config(folder, source, part_rows=4, download={"guard": guard, "fetch": {"retries": 0}})


def _samples(root: Path) -> pl.DataFrame:
    """The newest SAMPLE rows of the run, by key."""
    newest: dict[str, Path] = {}
    for path in sorted(root.glob("runs/small/download/*/data/*.sample.parquet"), key=lambda path: path.stat().st_mtime):
        newest[path.name.partition(".")[0]] = path
    return pl.concat([pl.read_parquet(path) for path in newest.values()]).sort("key")


def test_failed_rows_are_asked_for_once_more(cli: CommandLine, server: _Server, tmp_path: Path) -> None:
    config, root = _config(tmp_path, server), tmp_path / "root"
    assert cli("run", config).code == 0
    first = _samples(root)
    assert Counter(first["reason"]) == {None: NUM_URLS - 3, "http_503": 2, "http_404": 1}
    hits = Counter(server.hits)

    server.is_ill = False
    said = cli("download-again", config, "--reasons", "5xx")
    assert said.code == 0, said.err
    assert "http_503" not in said.out
    second = _samples(root)
    assert Counter(second["reason"]) == {None: NUM_URLS - 1, "http_404": 1}
    # Only what failed for this reason was asked for; robots.txt once a process, whichever parts are done.
    assert {name for name in server.hits if server.hits[name] > hits[name]} - {"robots.txt"} == {*ILL}
    # Good rows are the same to the last column, their bytes by reference.
    kept = first.filter(pl.col("status") == "ok")
    assert second.join(kept.select("key"), on="key", how="semi").equals(kept)
    touched = first.filter(pl.col("reason") == "http_503")
    num_parts = len(set(touched["key"].to_list()))  # four rows a part: at most one each

    said = cli("run", config)
    assert said.code == 0, said.err
    dataset = open_dataset(str(root / "datasets/small"))
    assert dataset.manifest["version"] == 2
    assert dataset.manifest["counts"]["num_samples"] == NUM_URLS - 1
    assert not verify(dataset, full=True, sample=1, progress=lambda *_: None)
    generations = list(root.glob("runs/small/score/*/commits/*.g1.json"))
    assert 1 <= len(generations) <= num_parts
    assert "Nothing left to do" in cli("run", config).out


def test_a_pass_without_such_rows_asks_nothing(cli: CommandLine, server: _Server, tmp_path: Path) -> None:
    config = _config(tmp_path, server)
    assert cli("run", config, "--until", "download").code == 0
    hits = Counter(server.hits)
    said = cli("download-again", tmp_path / "root/runs/small", "--reasons", "dns,timeout")
    assert said.code == 0, said.err
    assert "nothing was asked again" in said.out
    assert server.hits == hits


def test_what_still_fails_is_told_and_may_be_asked_again(cli: CommandLine, server: _Server, tmp_path: Path) -> None:
    config, root = _config(tmp_path, server), tmp_path / "root"
    assert cli("run", config, "--until", "download").code == 0
    for _ in range(2):
        said = cli("download-again", root / "runs/small")
        assert said.code == 0, said.err
        assert "http_503 2" in said.out
    server.is_ill = False
    assert "http_503" not in cli("download-again", root / "runs/small").out
    assert Counter(_samples(root)["reason"])["http_503"] == 0


def test_a_pass_that_changed_nothing_is_no_answer_to_the_next_one(
    cli: CommandLine, server: _Server, tmp_path: Path
) -> None:
    """A name that is gone leaves no time of its own, so two failures are the same to the last byte."""
    config = _config(tmp_path, server, host="gone.invalid")
    assert cli("run", config, "--until", "download").code == 0
    for _ in range(2):
        assert f"dns {NUM_URLS}" in cli("download-again", config, "--reasons", "dns").out
    server.is_ill = False
    # The config as it is now counts, not as it was when the run began.
    _config(tmp_path, server, host="gone.invalid", known=True)
    said = cli("download-again", config, "--reasons", "dns")
    assert said.code == 0, said.err
    assert Counter(_samples(tmp_path / "root")["reason"]) == {None: NUM_URLS - 1, "http_404": 1}


def test_status_tells_how_rows_stand_not_how_the_last_pass_went(
    cli: CommandLine, server: _Server, tmp_path: Path
) -> None:
    config = _config(tmp_path, server)
    assert cli("run", config, "--until", "download").code == 0
    server.is_ill = False
    assert cli("download-again", config).code == 0
    assert f" {NUM_URLS} │ {1 - 1 / NUM_URLS:.1%} " in cli("status", config).out


def test_an_unfinished_download_is_finished_first(cli: CommandLine, server: _Server, tmp_path: Path) -> None:
    config = _config(tmp_path, server)
    assert cli("run", config, "--until", "sources").code == 0
    said = cli("download-again", config)
    assert said.code == 3
    assert "not complete; finish it with" in said.err
    said = cli("download-again", config, "--reasons", "time_out")
    assert said.code == 2
    assert "did you mean timeout?" in said.err
