"""Turns the bytes of a sample's members into what a transform wants: a picture, a text, a record.

In come member contents, out come the values of the sample's fields. It chooses no caption and no crop: that
is the transform's business.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, Literal

from dataengine.errors import CorruptObject, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Literal["pil", "bytes"]


def decode_members(contents: dict[str, bytes], decode: Decode) -> dict[str, Any]:
    """Field → value: `pil` gives an RGB picture, a str and a dict; `bytes` the members as they are.

    Raises CorruptObject when a member does not decode.
    """
    if decode == "bytes":
        return dict(contents)
    return {member: _DECODERS[member](content) for member, content in contents.items()}


def _picture(content: bytes) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError("decode='pil' needs Pillow: install dataengine[trainer], or use decode='bytes'") from error
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: unknown format") from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: {error}") from error


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptObject(f"txt of {len(content)} bytes is not UTF-8: {error}") from error


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CorruptObject(f"json of {len(content)} bytes does not parse: {error}") from error
    if not isinstance(record, dict):
        raise CorruptObject(f"json holds a {type(record).__name__}, wanted an object")
    return record


_DECODERS = {"image": _picture, "txt": _text, "json": _record}
