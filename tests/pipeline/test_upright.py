"""Images read in place that carry an EXIF orientation are upright to scores, tables, `verify` and the reader."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import parse_config
from dataengine.job import run_job
from dataengine.trainer.dataset import ShardDataset

ORIENTATIONS = (1, 3, 6, 8)
# What a camera that was held so did to the picture.
LAID = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
KINDS = [(form, orientation) for form in ("jpg", "png") for orientation in ORIENTATIONS]


def shown(seed: int) -> Image.Image:
    """As a viewer shows it: smooth, wider than high, no side like another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize((80, 64), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    laid = picture.transpose(LAID[orientation]) if orientation in LAID else picture
    sink = io.BytesIO()
    settings = {"quality": 97, "subsampling": 0} if form == "jpg" else {}
    laid.save(sink, "JPEG" if form == "jpg" else "PNG", exif=exif, **settings)
    return sink.getvalue()


def publish(folder: Path, *, turned: bool) -> Path:
    """A version of one picture of each kind; `turned` ones are stored as their orientation says, others upright."""
    folder.mkdir()
    with tarfile.open(folder / "t.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (form, orientation) in enumerate(KINDS):
            image = encoded(shown(number), form, orientation if turned else 1)
            for extension, content in ((form, image), ("txt", str(number).encode())):
                entry = tarfile.TarInfo(f"{number:05d}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    tree = {
        "name": "turned",
        "root": str(folder / "root"),
        "sources": {"pairs": {"kind": "webdataset", "paths": [f"{folder}/t.tar"], "url_field": None}},
        "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
        "dedup": {"captions": None, "images": None, "num_class_buckets": 1},
        "emit": {"shard_multiple": 2},
        "execution": {"runner": "serial"},
    }
    finished = run_job(parse_config(yaml.safe_dump(tree, sort_keys=False)), console=Console(quiet=True))
    assert finished.dataset is not None
    return Path(finished.dataset)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("turned") / "in", turned=True)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pl.read_parquet(folder / "samples" / "*.parquet").to_dicts()
    return {row["caption"]: row for row in rows}


def test_a_sound_version_has_no_faults(version: Path) -> None:
    assert {(row["width"], row["height"]) for row in rows_of(version).values()} == {(80, 64)}
    assert verify(open_dataset(version), full=True, sample=9, progress=lambda *_: None) == []


def test_sides_that_changed_places_are_a_fault(version: Path) -> None:
    """Of every picture, upright or not: were orientation ignored, half of these would pass."""
    parts = sorted((version / "samples").glob("*.parquet"))
    kept = [part.read_bytes() for part in parts]
    try:
        for part in parts:
            table = pq.read_table(part)
            names = {"width": "height", "height": "width"}
            swapped = table.rename_columns([names.get(name, name) for name in table.column_names])
            pq.write_table(swapped.select(table.column_names), part)
        faults = verify(open_dataset(version), full=True, sample=9, progress=lambda *_: None)
    finally:
        for part, content in zip(parts, kept, strict=True):
            part.write_bytes(content)
    found = [(fault.expected, fault.found) for fault in faults if fault.check == "picture"]
    assert found == [("64x80", "80x64")] * len(KINDS)


@pytest.mark.parametrize("decode", ["pil", "rgb"])
def test_the_reader_hands_out_upright_pictures(version: Path, decode: Any) -> None:
    samples = list(ShardDataset(version, decode=decode))
    assert len(samples) == len(KINDS)
    for sample in samples:
        number = int(sample["txt"])
        pixels = np.asarray(sample["image"])
        assert pixels.shape == (64, 80, 3)
        assert np.abs(pixels.astype(int) - np.asarray(shown(number))).mean() < (3 if number < 4 else 0.01)
        if decode == "pil":  # a transform that turns by EXIF finds nothing left to turn
            assert sample["image"].getexif().get(0x0112, 1) == 1


def test_scores_are_of_the_upright_picture(version: Path, tmp_path: Path) -> None:
    turned, plain = rows_of(version), rows_of(publish(tmp_path / "in", turned=False))
    scores = [name for name in turned["0"] if name.endswith("clip_score")]
    assert scores
    for number, (form, _) in enumerate(KINDS):
        ours, theirs = turned[str(number)], plain[str(number)]
        assert ours["phash"] == theirs["phash"] or form == "jpg"
        for name in scores:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6 if form == "png" else 2e-3), name
