"""Turns the bytes of a sample's members into what a transform wants: a picture, a text, a record, an array.

In come member contents, out come values. It chooses no caption and no crop.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dataengine.errors import CorruptObject, InputError
from dataengine.orientation import DECODER_FAULTS, is_lying, jpeg_orientation, orientation_of, upright, upright_picture
from dataengine.trainer.arrays import decode_array
from dataengine.trainer.buckets import Shape

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Literal["pil", "rgb", "scaled", "bytes"] | Callable[[bytes], Any]
NAMED = ("pil", "rgb", "scaled", "bytes")
_DIVISORS = (8, 4, 2)  # of a JPEG's sides, that its decoder reaches by leaving out high frequencies


def decoder(part: str, decode: Decode, shape: Shape | None = None) -> Callable[[bytes], Any] | None:
    """What turns the bytes of `part` into its value; None leaves them as they are.

    `pil` makes an RGB picture of the image, `rgb` an array uint8 [height, width, 3], both upright, and with both txt is
    a str, json a dict, and any other member that is an npy file a read-only array; `scaled` is `rgb`, but of a JPEG
    much larger than `shape` a half, a quarter or an eighth that covers it; `bytes` leaves everything; a function gets
    the image's bytes, which may say an orientation. The decoders raise CorruptObject for contents that do not decode.
    """
    if decode == "bytes":
        return None
    if part == "image":
        if decode == "scaled":
            return partial(_pixels, shape=shape)
        return _IMAGES[decode] if isinstance(decode, str) else decode
    return _DECODERS.get(part, decode_array)


def decode_record(content: bytes) -> dict[str, Any]:
    """The json member as a dict; raises CorruptObject when it is none."""
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CorruptObject(f"json of {len(content)} bytes does not parse: {error}") from error
    if not isinstance(record, dict):
        raise CorruptObject(f"json holds a {type(record).__name__}, wanted an object")
    return record


def _picture(content: bytes, shape: Shape | None = None) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError("decode='pil' needs Pillow: install dataengine[trainer], or use decode='bytes'") from error
    try:
        file = Image.open(io.BytesIO(content))
        if shape is not None and file.format == "JPEG":
            divisor = _divisor(file.size, shape, orientation_of(file))
            file.draft(None, (file.width // divisor, file.height // divisor))
        picture = file.convert("RGB")
        return upright_picture(picture, orientation_of(file))  # after the pixels: EXIF may follow them
    except UnidentifiedImageError as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: unknown format") from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: {error}") from error


def _pixels(content: bytes, shape: Shape | None = None) -> np.ndarray[Any, Any]:
    # libjpeg-turbo without Pillow's copies, where it is installed: half of the time.
    if content[:2] == b"\xff\xd8":
        try:
            import simplejpeg

            orientation, least = jpeg_orientation(content), {}
            if shape is not None:
                height, width = simplejpeg.decode_jpeg_header(content)[:2]
                divisor = _divisor((width, height), shape, orientation)
                least = {"min_width": -(-width // divisor), "min_height": -(-height // divisor)}
            return upright(simplejpeg.decode_jpeg(content, **least), orientation)
        except (ImportError, *DECODER_FAULTS):  # CMYK and the like are left to Pillow
            pass
    return np.asarray(_picture(content, shape))


def _divisor(size: Shape, shape: Shape, orientation: int) -> int:
    """What a JPEG's sides may be divided by so that the upright picture still covers `shape`."""
    across, down = shape[::-1] if is_lying(orientation) else shape
    ratio = min(size[0] // across, size[1] // down)
    return next((divisor for divisor in _DIVISORS if divisor <= ratio), 1)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptObject(f"txt of {len(content)} bytes is not UTF-8: {error}") from error


_IMAGES: dict[str, Callable[[bytes], Any]] = {"pil": _picture, "rgb": _pixels}
_DECODERS: dict[str, Callable[[bytes], Any]] = {"txt": _text, "json": decode_record}
