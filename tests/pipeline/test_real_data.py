"""Real photos and a real WebDataset shard through the whole pipeline: photos over loopback, the tar in place."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest
import yaml
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import parse_config
from dataengine.job import run_job
from dataengine.trainer.dataset import ShardDataset


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(real_data: Path) -> Iterator[str]:
    """A loopback server of the real data; yields host:port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(real_data)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def rows_of(folder: Path, real_data: Path) -> pl.DataFrame:
    """A URL table of the files in `folder`, captioned by their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    urls = [f"http://real.test/{quote(path.relative_to(real_data).as_posix())}" for path in files]
    return pl.DataFrame({"url": urls, "caption": [path.stem.replace("_", " ") for path in files]})


@pytest.fixture(scope="module")
def published(real_data: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    rows_of(real_data / "photos", real_data).write_parquet(root / "photos.parquet")
    rows_of(real_data / "near-duplicates", real_data).write_parquet(root / "copies.parquet")
    config = {
        "name": "real",
        "root": str(root),
        "part_rows": 64,
        "sources": {
            "photos": {"kind": "table", "paths": ["{root}/photos.parquet"]},
            "copies": {"kind": "table", "paths": ["{root}/copies.parquet"]},
            "cc12m": {"kind": "webdataset", "paths": [str(real_data / "cc12m-32" / "cc12m-train-0000.tar")]},
        },
        "download": {"image": {"size": 384}, "guard": {"hosts": {"real.test": address}}},
        "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
        # The tiny model knows shapes, not photos: here it proposes, and the perceptual hash decides.
        "dedup": {"images": {"min_similarity": 0.97, "max_phash_distance": 10}},
        "emit": {"shard_multiple": 2, "target_shard_bytes": 4_000_000},
        "execution": {"runner": "serial"},
    }
    finished = run_job(parse_config(yaml.safe_dump(config)), console=Console(quiet=True))
    assert finished.dataset is not None
    return Path(finished.dataset)


def test_every_photo_and_pair_is_accounted_for(published: Path, real_data: Path) -> None:
    ledger = pl.read_parquet(published / "ledger" / "*.parquet")
    counts = dict(ledger.group_by("source").agg(pl.col("num_rows").sum()).iter_rows())
    num_copies = sum(path.is_file() for path in (real_data / "near-duplicates").rglob("*"))
    assert counts == {"photos": 200, "copies": num_copies, "cc12m": 32}
    photos = ledger.filter(pl.col("source") == "photos")
    assert photos.filter(pl.col("stage") == "download").is_empty()
    assert len(ledger.filter((pl.col("source") == "cc12m") & (pl.col("state") == "emitted"))) >= 30


def test_copies_of_one_picture_leave_one(published: Path) -> None:
    ledger = pl.read_parquet(published / "ledger" / "*.parquet").filter(pl.col("source") == "copies")
    assert len(ledger.filter(pl.col("reason") == "duplicate_image")) >= 8
    faults = set(ledger.filter(pl.col("stage") == "download")["reason"])
    assert faults <= {"not_image", "bad_image"}
    assert faults


def test_what_was_published_is_sound_and_readable(published: Path) -> None:
    assert verify(open_dataset(str(published)), full=True, sample=4, progress=lambda *_: None) == []
    dataset = ShardDataset(str(published / "manifest.json"))
    samples = list(dataset)
    assert len({sample["__key__"] for sample in samples}) == len(samples) == len(dataset)
    assert all(sample["image"].mode == "RGB" for sample in samples if sample["__source__"] != "cc12m")
