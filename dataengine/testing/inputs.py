"""Source files of the sample web: plants in, a Parquet, a CSV and a JSONL table of URLs and the tars of an
archive out, each with column names and quirks of its own. The bytes follow from the plants alone; it knows no
expectations.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataengine.testing.planting import ARCHIVE, Plant, Text

_LICENSES = ("CC-BY-4.0", None, "CC0-1.0", "CC-BY-SA-4.0")
_LANGUAGES = ("en", "en", None)
_PHOTOS = pa.schema([(name, pa.string()) for name in ("url", "caption", "alt", "license", "sha256")])
_PARQUET_ROWS = 500  # per row group, so that a table of 1,000 scenes has more than one


def write_inputs(directory: Path, plants: Sequence[Plant], seed: int) -> dict[str, list[Path]]:
    """Writes every source under ``directory``; source → its files, in order."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = {source: _shuffled(plants, source, seed + order) for order, source in enumerate(("photos", "shop", "blog"))}
    return {
        "photos": [_write_photos(directory / "photos.parquet", rows["photos"])],
        "shop": [_write_shop(directory / "shop.csv", rows["shop"])],
        "blog": [_write_blog(directory / "blog.jsonl", rows["blog"])],
        ARCHIVE: _write_archive(directory, [plant for plant in plants if plant.truth.source == ARCHIVE]),
    }


def _shuffled(plants: Sequence[Plant], source: str, seed: int) -> list[tuple[Plant, Text]]:
    """The source's rows in random order, so that neither copies nor rows of one URL lie together."""
    rows = [(plant, row) for plant in plants if plant.truth.source == source for row in plant.texts]
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]


def _write_photos(path: Path, rows: Sequence[tuple[Plant, Text]]) -> Path:
    columns = {
        "url": [plant.truth.url for plant, _ in rows],
        "caption": [row.caption for _, row in rows],
        "alt": [row.alt for _, row in rows],
        "license": [_LICENSES[plant.number % len(_LICENSES)] for plant, _ in rows],
        "sha256": [plant.claimed_sha256 for plant, _ in rows],
    }
    pq.write_table(pa.table(columns, schema=_PHOTOS), path, row_group_size=_PARQUET_ROWS)
    return path


def _write_shop(path: Path, rows: Sequence[tuple[Plant, Text]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(("SKU", "URL", "TEXT"))
        table.writerows((f"{plant.number:07d}", plant.truth.url, row.caption) for plant, row in rows)
    return path


def _write_blog(path: Path, rows: Sequence[tuple[Plant, Text]]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for plant, row in rows:
            language = _LANGUAGES[plant.number % len(_LANGUAGES)]
            line = {"image": plant.truth.url, "text": row.caption, "language": language}
            file.write(json.dumps(line, ensure_ascii=plant.number % 2 == 0) + "\n")
    return path


def _write_archive(directory: Path, plants: Sequence[Plant]) -> list[Path]:
    by_shard: dict[str, list[Plant]] = defaultdict(list)
    for plant in plants:
        by_shard[str(plant.truth.shard)].append(plant)
    for shard, residents in by_shard.items():
        with tarfile.open(directory / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in (member for plant in residents for member in _members(plant)):
                header = tarfile.TarInfo(name)  # no time, owner or group: equal content makes equal tars
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return [directory / shard for shard in sorted(by_shard)]


def _members(plant: Plant) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a sample's members, in the order and with the fields that img2dataset writes."""
    key, caption = plant.truth.member, plant.texts[0].caption
    if plant.body is not None:
        yield f"{key}.jpg", plant.body
    if caption is not None:
        yield f"{key}.txt", caption.encode()
    yield f"{key}.json", json.dumps(_metadata(plant), sort_keys=True).encode()


def _metadata(plant: Plant) -> dict[str, object]:
    width, height = (None, None) if plant.body is None else _size(plant.body)
    return {
        "key": plant.truth.member,
        "url": plant.truth.url,
        "caption": plant.texts[0].caption,
        "width": width,
        "height": height,
        "license": _LICENSES[plant.number % len(_LICENSES)],
        "status": "success",
    }


def _size(body: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(body), formats=("JPEG",)) as picture:
        return picture.size
