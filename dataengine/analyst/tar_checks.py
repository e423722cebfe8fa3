"""Checks that a shard's tar holds what the samples table says, where it says.

In go one shard's rows and its tar; out come faults about members, image hashes and pictures that do not
decode. It checks no size or hash of the tar as a whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

import xxhash

from dataengine.analyst.faults import Fault
from dataengine.storage.tar import Member, TarFault, walk

Row = dict[str, Any]


def check_members(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """The first member that differs from the rows in name, offset or size, or what breaks the tar."""
    try:
        for expected, found in zip_longest(_expected_members(rows), walk(file, path)):
            if expected != found:
                yield Fault(path, "members", _describe(expected), _describe(found))
                return
    except TarFault as fault:
        yield Fault(path, "tar", f"{3 * len(rows)} sound members", str(fault))


def check_hashes(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """Images whose bytes do not hash to the row's xxh3."""
    for row in rows:
        found = xxhash.xxh3_64_hexdigest(_image(file, row))
        if found != row["xxh3"]:
            yield Fault(f"{path}: key {row['key']}", "image xxh3", row["xxh3"], found)


def check_pictures(file: BinaryIO, path: str, rows: list[Row]) -> Iterator[Fault]:
    """Images that do not decode to the row's width and height."""
    from PIL import Image, UnidentifiedImageError

    for row in rows:
        expected = f"{row['width']}x{row['height']}"
        try:
            with Image.open(io.BytesIO(_image(file, row))) as picture:
                picture.load()
                found = f"{picture.width}x{picture.height}"
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


def _describe(member: Member | None) -> str:
    return f"{member.name}, {member.nbytes} bytes at {member.offset}" if member else "end of the tar"


def _image(file: BinaryIO, row: Row) -> bytes:
    file.seek(row["image_offset"])
    return file.read(row["image_nbytes"])
