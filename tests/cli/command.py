"""The command line as a user meets it: arguments in, exit code and messages out; and the smallest runs to give it."""

from __future__ import annotations

import io
import signal
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dataengine.cli.app import main

CLOSED = "127.0.0.1:9"
"""Nobody listens there; the discard service died with the last century."""


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: object
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """Runs commands in this process."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: object) -> Said:
        """Exit code, standard output and standard error of `dataengine ARGUMENTS`."""
        before = signal.getsignal(signal.SIGTERM)
        self.monkeypatch.setattr(sys, "argv", ["dataengine", *map(str, arguments)])
        self.monkeypatch.setenv("COLUMNS", "200")
        self.capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(ended.value.code, said.out, said.err)


def url_table(path: Path, num_rows: int = 3) -> Path:
    """A Parquet of URLs on the host `gone.test`, with columns of other kinds too."""
    urls = pa.array([f"http://gone.test/{row}.jpg" for row in range(num_rows)], pa.string())
    captions = pa.array([f"picture {row}" for row in range(num_rows)], pa.string())
    numbers = pa.array([[row] for row in range(num_rows)], pa.list_(pa.int64()))
    pq.write_table(pa.table({"url": urls, "caption": captions, "numbers": numbers}), path)
    return path


def picture_tar(path: Path, num_samples: int = 3) -> Path:
    """A WebDataset tar of tiny noise pictures with captions."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for sample in range(num_samples):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture, "PNG")
            for extension, content in (("png", picture.getvalue()), ("txt", f"picture {sample}".encode())):
                member = tarfile.TarInfo(f"{sample}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_config(folder: Path, source: Mapping[str, Any] | None = None, **sections: Any) -> Path:
    """A config of one source, by default three URLs that nobody serves; whole `sections` replace its own."""
    if source is None:
        source = {"kind": "table", "paths": [str(url_table(folder / "three.parquet"))]}
    tree = {
        "name": "small",
        "root": str(folder / "root"),
        "sources": {"web": dict(source)},
        "download": {"guard": {"hosts": {"gone.test": CLOSED}}, "fetch": {"retries": 0}},
        "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
        "dedup": {"captions": None, "images": None, "num_class_buckets": 1},
        "emit": {"shard_multiple": 1},
        "execution": {"runner": "serial"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree | sections))
    return path


def manifests(folder: Path) -> list[Path]:
    """Every manifest.json below `folder`: whatever was published."""
    return sorted(folder.rglob("manifest.json"))
