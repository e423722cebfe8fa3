"""Extra members of existing tars (a source image, latents) travel through a whole run, byte for byte and verified."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import webdataset
import yaml
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import parse_config
from dataengine.config.sources import WebDatasetSource
from dataengine.errors import CorruptObject
from dataengine.job import run_job
from dataengine.trainer.dataset import ShardDataset

Members = dict[str, bytes]
LACKING = "t1/00003"  # has no latents


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((80, 64)).save(sink, "JPEG")
    return sink.getvalue()


def latents(seed: int) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.random.default_rng(seed).normal(size=(4, 8, 8)).astype(np.float16))
    return sink.getvalue()


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Members]:
    """Two tars of image-to-image pairs with latents, and what is in them by caption."""
    found = {}
    for tar_number in range(2):
        with tarfile.open(tmp_path / f"t{tar_number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(8):
                seed = 100 * tar_number + number
                name = f"t{tar_number}/{number:05d}"
                members = {"src.jpg": picture(seed + 50), "jpg": picture(seed), "npy": latents(seed)}
                members["txt"] = name.encode()
                if name == LACKING:
                    del members["npy"]
                for extension, content in members.items():
                    entry = tarfile.TarInfo(f"{number:05d}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                found[name] = members
    return found


def run(folder: Path, **emit: Any) -> Path:
    """Publish the tars in `folder`; the version's folder."""
    source = {"kind": "webdataset", "paths": [f"{folder}/t*.tar"], "url_field": None}
    tree = {
        "name": "edits",
        "root": str(folder / "root"),
        "sources": {"pairs": source | {"extra_members": ["src.jpg", "npy"]}},
        "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
        "dedup": {"captions": None, "images": None, "num_class_buckets": 1},
        "emit": {"shard_multiple": 2, **emit},
        "execution": {"runner": "serial"},
    }
    finished = run_job(parse_config(yaml.safe_dump(tree, sort_keys=False)), console=Console(quiet=True))
    assert finished.dataset is not None
    return Path(finished.dataset)


def test_they_are_published_as_they_are(samples: dict[str, Members], tmp_path: Path) -> None:
    version = run(tmp_path)
    urls = [str(path) for path in sorted((version / "pairs").glob("*.tar"))]
    read = {sample["txt"].decode(): sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert read.keys() == samples.keys() - {LACKING}
    for name, sample in read.items():
        assert {extension: sample[extension] for extension in samples[name]} == samples[name]
    rows = pl.read_parquet(version / "samples" / "*.parquet").to_dicts()
    places = next(row["extra_members"] for row in rows if row["caption"] == "t0/00001")
    assert list(places) == ["src.jpg", "npy"]
    tar = next(Path(url) for url in urls if read["t0/00001"]["__url__"] == url).read_bytes()
    for extension, place in places.items():
        assert tar[place["offset"] : place["offset"] + place["nbytes"]] == samples["t0/00001"][extension]
    dataset = open_dataset(version)
    assert verify(dataset, full=True, sample=2, progress=lambda *_: None) == []
    dropped = dataset.ledger().filter(pl.col("state") == "dropped").collect().to_dicts()
    assert [row["reason"] for row in dropped] == ["missing_member"]
    assert "no member npy" in dropped[0]["rule_value"]
    assert len(list(ShardDataset(version, decode="bytes"))) == 15


def test_a_flipped_bit_in_a_published_one_is_named(samples: dict[str, Members], tmp_path: Path) -> None:
    version = run(tmp_path)
    content, shard = samples["t0/00001"]["npy"], None
    for path in (version / "pairs").glob("*.tar"):
        tar = bytearray(path.read_bytes())
        place = tar.find(content)
        if place >= 0:
            tar[place + 200] ^= 1
            path.write_bytes(tar)
            shard = f"pairs/{path.name}"
    faults = verify(open_dataset(version), full=True, sample=2, progress=lambda *_: None)
    assert {fault.check for fault in faults} == {"sha256", "npy xxh3"}
    assert all(fault.object.startswith(str(shard)) for fault in faults)


def test_one_that_changed_since_it_was_indexed_stops_the_run(samples: dict[str, Members], tmp_path: Path) -> None:
    first = run(tmp_path)
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.rglob("*.tar")}
    source = tmp_path / "t0.tar"
    stamp, tar = source.stat(), bytearray(source.read_bytes())
    tar[tar.find(samples["t0/00001"]["npy"]) + 200] ^= 1
    source.write_bytes(tar)
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a disk that forgets a bit
    with pytest.raises(CorruptObject, match=r"sample [0-9a-f]{32}: .*changed after download"):
        run(tmp_path, shard_multiple=4)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.rglob("*.tar")} == before


@pytest.mark.parametrize(
    ("names", "message"),
    [(["jpg"], "names an image"), (["txt"], "names an image"), (["npy", "npy"], "twice"), ([".npy"], "pattern")],
)
def test_names_that_cannot_be_carried_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WebDatasetSource(kind="webdataset", paths=("x.tar",), extra_members=tuple(names))
