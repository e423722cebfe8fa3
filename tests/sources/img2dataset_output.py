"""What img2dataset 1.47 leaves in its WebDataset format, written by hand: the same members, columns and row groups."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("licence", "caption", "url")),
        ("n", pa.int64()),
        *((name, pa.string()) for name in ("key", "status", "error_message")),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        *((name, pa.string()) for name in ("exif", "sha256")),
    ]
)


@dataclass(frozen=True)
class Asked:
    """A row that img2dataset was given, and what became of it: an image, or an error."""

    key: str
    caption: str | None
    content: bytes | None
    error: str | None = None
    n: int = 0

    @property
    def fields(self) -> dict[str, object]:
        is_success = self.error is None
        status = "success" if is_success else "failed_to_download"
        sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), 8 if is_success else None)
        return {
            **{"licence": "cc", "caption": self.caption, "url": f"http://u/{self.key}", "n": self.n, "key": self.key},
            **{"status": status, "error_message": self.error, **sizes},
            **{"exif": "{}" if is_success else None, "sha256": "ab" * 32 if is_success else None},
        }


def tar_bytes(rows: Sequence[Asked]) -> bytes:
    """The tar: jpg, json, txt of each success, every one with a pax header for its time of change."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            if row.content is None:
                continue
            text = (row.caption or "").encode()
            members = {"jpg": row.content, "json": json.dumps(row.fields, indent=4).encode(), "txt": text}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{row.key}.{extension}")
                info.size, info.mtime, info.mode, info.uname = len(content), 1795474039.225776, 0o444, "bigdata"  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def parquet_bytes(rows: Sequence[Asked]) -> bytes:
    """The Parquet: every row, in row groups of 100."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.fields for row in rows], _SCHEMA), sink, row_group_size=100)
    return sink.getvalue()


def write_shard(folder: Path, shard: str, rows: Sequence[Asked]) -> None:
    """The three files of a shard."""
    (folder / f"{shard}.tar").write_bytes(tar_bytes(rows))
    (folder / f"{shard}.parquet").write_bytes(parquet_bytes(rows))
    (folder / f"{shard}_stats.json").write_text(json.dumps({"count": len(rows)}))
