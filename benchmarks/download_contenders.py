"""The contenders of the download benchmark: how each is started on a URL list, and what it stored and accounted for.

In go URLs, an output format and an empty folder; out come a command to run and, when it has ended, its outcomes. What
is decided here: equal work (same list, same output, shards of the same number of rows), and each contender's own
defaults for everything else. Nothing here measures.
"""

from __future__ import annotations

import json
import sys
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dataengine.storage.rundir import Commit

SHARD_ROWS = 1000
"""Rows per shard or part, fewer when there are not enough rows for every worker."""


@dataclass(frozen=True)
class Output:
    """What is stored of every image: JPEG of quality 95."""

    size: int
    mode: str
    """keep_ratio_largest or center_crop; all contenders call them so."""


@dataclass(frozen=True)
class Location:
    """Where a stored picture lies."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> bytes:
        """Its bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)


@dataclass(frozen=True)
class Outcomes:
    """What came of the URLs."""

    stored: Mapping[str, Location]
    """URL → its stored picture."""
    num_rows: Mapping[str, int] | None
    """URL → rows that say what became of it; None: this contender keeps no account."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why the others are not stored."""

    def num_unaccounted(self, urls: list[str]) -> int | None:
        """URLs without exactly one row, and rows called good that hold no picture."""
        if self.num_rows is None:
            return None
        wrong = sum(self.num_rows.get(url, 0) != 1 for url in urls)
        return wrong + abs(len(urls) - len(self.stored) - sum(self.reasons.values()))


@dataclass(frozen=True)
class Contender(ABC):
    """A downloader as users start it, in fresh processes."""

    name: str
    num_workers: int

    @abstractmethod
    def command(self, urls: list[str], output: Output, folder: Path) -> list[str]:
        """What to run; everything it reads and writes lies in `folder`."""

    @abstractmethod
    def outcomes(self, folder: Path) -> Outcomes:
        """What it left."""

    def shard_rows(self, num_rows: int) -> int:
        """Rows of a shard, such that every worker has one."""
        return min(SHARD_ROWS, -(-num_rows // self.num_workers))


@dataclass(frozen=True)
class Img2dataset(Contender):
    """img2dataset 1.47 in an environment of its own."""

    python: str
    num_threads: int = 64

    def command(self, urls: list[str], output: Output, folder: Path) -> list[str]:
        settings = {
            "url_list": str(_write_table(urls, folder)),
            "input_format": "parquet",
            "caption_col": "caption",
            "output_folder": str(folder / "out"),
            "output_format": "webdataset",
            "image_size": output.size,
            "resize_mode": output.mode,
            "resize_only_if_bigger": True,
            "encode_quality": 95,
            "thread_count": self.num_threads,
            "processes_count": self.num_workers,
            "number_sample_per_shard": self.shard_rows(len(urls)),
        }
        script = "import json, sys, img2dataset; img2dataset.download(**json.loads(sys.argv[1]))"
        return [self.python, "-c", script, json.dumps(settings)]

    def outcomes(self, folder: Path) -> Outcomes:
        stored, rows, reasons = {}, Counter[str](), Counter[str]()
        for table in sorted((folder / "out").glob("*.parquet")):
            found = pq.read_table(table, columns=["url", "key", "status", "error_message"]).to_pylist()
            rows.update(row["url"] for row in found)
            reasons.update(str(row["error_message"]) for row in found if row["status"] != "success")
            url_of = {row["key"]: row["url"] for row in found}
            with tarfile.open(table.with_suffix(".tar")) as tar:
                for member in tar:
                    key, _, extension = member.name.rpartition(".")
                    if extension == "jpg":
                        stored[url_of[key]] = Location(table.with_suffix(".tar"), member.offset_data, member.size)
        return Outcomes(stored, rows, reasons)


@dataclass(frozen=True)
class Floor(Contender):
    """See `download_floor`."""

    def command(self, urls: list[str], output: Output, folder: Path) -> list[str]:
        spec = {"urls": urls, "size": output.size, "mode": output.mode, "num_processes": self.num_workers}
        (folder / "spec.json").write_text(json.dumps(spec | {"folder": str(folder / "out")}))
        return [sys.executable, "-m", "benchmarks.download_floor", str(folder / "spec.json")]

    def outcomes(self, folder: Path) -> Outcomes:
        stored = {}
        for listing in sorted((folder / "out").glob("*.jsonl")):
            for line in listing.read_text().splitlines():
                url, offset, nbytes = json.loads(line)
                stored[url] = Location(listing.with_suffix(".bin"), offset, nbytes)
        return Outcomes(stored, None)


@dataclass(frozen=True)
class Ours(Contender):
    """`dataengine run --until download`."""

    runner: str
    num_cpus: int
    """Of one worker, which fetches in one process and decodes in as many as it has cores."""
    host: str
    """Address that all URLs are on; loopback is off limits unless a config says otherwise."""

    def command(self, urls: list[str], output: Output, folder: Path) -> list[str]:
        execution = {
            stage: {"num_cpus": self.num_cpus, "max_workers": self.num_workers} for stage in ("sources", "download")
        }
        config = {
            "name": "bench",
            "root": str(folder / "root"),
            "part_rows": self.shard_rows(len(urls)),
            "sources": {"web": {"kind": "table", "paths": [str(_write_table(urls, folder))]}},
            "download": {
                "image": {"resize": output.mode, "size": output.size, "quality": 95, "format": "jpg"},
                # One host stands for the whole web here; the others know no politeness.
                "fetch": {"per_host": 64 * self.num_workers, "per_host_rate": None},
                "guard": {"allow_hosts": [self.host]},
            },
            "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
            "execution": {"runner": self.runner, **execution},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return [sys.executable, "-m", "dataengine", "run", str(folder / "config.yaml"), "--until", "download"]

    def outcomes(self, folder: Path) -> Outcomes:
        root = folder / "root"
        url_of = {row["key"]: row["url"] for row in _committed(root, "sources", "candidate", ["key", "url"])}
        columns = ["key", "status", "reason", "object", "offset", "nbytes"]
        samples = _committed(root, "download", "sample", columns)
        stored = {
            url_of[row["key"]]: Location(root / row["object"], row["offset"], row["nbytes"])
            for row in samples
            if row["status"] == "ok"
        }
        rows = Counter(url_of[row["key"]] for row in samples)
        return Outcomes(stored, rows, Counter(row["reason"] for row in samples if row["status"] != "ok"))


def _committed(root: Path, stage: str, name: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of table `name` in all commits of the benchmark's source."""
    rows: list[dict[str, Any]] = []
    for path in sorted(root.glob(f"runs/bench/{stage}/web-*/commits/*.json")):
        table = Commit.from_json(path.read_bytes(), str(path)).objects[name]
        rows += pq.read_table(root / table.path, columns=columns).to_pylist()
    return rows


def _write_table(urls: list[str], folder: Path) -> Path:
    """The input of contenders that read one: URLs and captions."""
    captions = [f"picture number {number} of many" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "urls.parquet")
    return folder / "urls.parquet"
