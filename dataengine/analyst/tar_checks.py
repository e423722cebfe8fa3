"""Checks that a shard's tar holds what the samples table says, where it says.

In go one shard's rows and its tar; out come faults about members, image hashes and pictures that do not
decode. It checks no size or hash of the tar as a whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np
import xxhash

from dataengine.analyst.faults import Fault
from dataengine.orientation import is_lying, orientation_of
from dataengine.storage.tar import BLOCK, Member, TarFault, walk

Row = dict[str, Any]


def check_members(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """The first member that differs from the rows in name, offset or size, or what breaks the tar."""
    try:
        for expected, found in zip_longest(_expected_members(rows), walk(file, path)):
            if expected != found:
                yield Fault(path, "members", _describe(expected), _describe(found))
                return
    except TarFault as fault:
        yield Fault(path, "tar", f"{sum(1 for _ in _expected_members(rows))} sound members", str(fault))


def check_index(content: bytes, path: str, rows: list[Row]) -> Iterator[Fault]:
    """The first of Energon's offsets (uint64, each sample's first header, and the end) that the rows do not give."""
    starts = [row["image_offset"] - BLOCK for row in rows]
    last = max(_expected_members(rows[-1:]), key=lambda member: member.offset, default=None)
    expected = [*starts, last.offset + last.nbytes + -last.nbytes % BLOCK if last else 0]
    found = np.frombuffer(content[: len(content) // 8 * 8], "<u8").tolist()
    for number, (wanted, got) in enumerate(zip_longest(expected, found)):
        if wanted != got or len(content) % 8:
            yield Fault(path, f"offset of sample {number}", _number(wanted), _number(got))
            return


def check_hashes(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """Images and extra members whose bytes do not hash to the row's xxh3."""
    for row in rows:
        stored = [("image", row["image_offset"], row["image_nbytes"], row["xxh3"])]
        stored += [(name, place["offset"], place["nbytes"], place["xxh3"]) for name, place in _extras(row)]
        for name, offset, nbytes, wanted in stored:
            file.seek(offset)
            found = xxhash.xxh3_64_hexdigest(file.read(nbytes))
            if found != wanted:
                yield Fault(f"{path}: key {row['key']}", f"{name} xxh3", wanted, found)


def check_pictures(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """Images that do not decode to the row's width and height, which are those of the upright picture."""
    from PIL import Image, UnidentifiedImageError

    for row in rows:
        expected = f"{row['width']}x{row['height']}"
        try:
            with Image.open(io.BytesIO(_image(file, row))) as picture:
                picture.load()
                turned = is_lying(orientation_of(picture))  # once loaded: EXIF may follow the pixels
                width, height = picture.size[::-1] if turned else picture.size
                found = f"{width}x{height}"
        except UnidentifiedImageError:
            found = "no image format that Pillow knows"
        except (
            Image.DecompressionBombError,
            OSError,
            SyntaxError,
            ValueError,
        ) as error:
            found = f"{type(error).__name__}: {error}"
        if found != expected:
            yield Fault(f"{path}: key {row['key']}", "picture", expected, found)


def _expected_members(rows: list[Row]) -> Iterator[Member]:
    for row in rows:
        for member, suffix in (("image", row["format"]), ("txt", "txt"), ("json", "json")):
            yield Member(f"{row['key']}.{suffix}", row[f"{member}_offset"], row[f"{member}_nbytes"])
        for name, place in _extras(row):
            yield Member(f"{row['key']}.{name}", place["offset"], place["nbytes"])


def _extras(row: Row) -> list[tuple[str, Any]]:
    return list(row["extra_members"].items())


def _number(value: int | None) -> str:
    return "nothing" if value is None else str(value)


def _describe(member: Member | None) -> str:
    return f"{member.name}, {member.nbytes} bytes at {member.offset}" if member else "end of the tar"


def _image(file: BinaryIO, row: Row) -> bytes:
    file.seek(row["image_offset"])
    return file.read(row["image_nbytes"])
