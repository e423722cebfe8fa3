"""Turns the bytes of a sample's members into what a transform wants: a picture, a text, a record, an array.

In come member contents, out come values. It chooses no caption and no crop.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dataengine.errors import CorruptObject, InputError
from dataengine.orientation import DECODER_FAULTS, jpeg_orientation, orientation_of, upright, upright_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Literal["pil", "rgb", "bytes"] | Callable[[bytes], Any]
_NPY = b"\x93NUMPY"


def decoder(part: str, decode: Decode) -> Callable[[bytes], Any] | None:
    """What turns the bytes of `part` into its value; None leaves them as they are.

    `pil` makes an RGB picture of the image, `rgb` an array uint8 [height, width, 3], both upright, and with both txt is
    a str, json a dict, and any other member that is an npy file a read-only array; `bytes` leaves everything; a
    function gets the image's bytes, which may say an orientation. The decoders raise CorruptObject for contents that
    do not decode.
    """
    if decode == "bytes":
        return None
    if part == "image":
        return _IMAGES[decode] if isinstance(decode, str) else decode
    return _DECODERS.get(part, _other)


def decode_record(content: bytes) -> dict[str, Any]:
    """The json member as a dict; raises CorruptObject when it is none."""
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CorruptObject(f"json of {len(content)} bytes does not parse: {error}") from error
    if not isinstance(record, dict):
        raise CorruptObject(f"json holds a {type(record).__name__}, wanted an object")
    return record


def _picture(content: bytes) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError("decode='pil' needs Pillow: install dataengine[trainer], or use decode='bytes'") from error
    try:
        file = Image.open(io.BytesIO(content))
        picture = file.convert("RGB")
        return upright_picture(picture, orientation_of(file))  # after the pixels: EXIF may follow them
    except UnidentifiedImageError as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: unknown format") from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CorruptObject(f"image of {len(content)} bytes does not decode: {error}") from error


def _pixels(content: bytes) -> np.ndarray[Any, Any]:
    # libjpeg-turbo without Pillow's copies, where it is installed; 10 % of a decode.
    if content[:2] == b"\xff\xd8":
        try:
            import simplejpeg

            return upright(simplejpeg.decode_jpeg(content), jpeg_orientation(content))
        except (ImportError, *DECODER_FAULTS):  # CMYK and the like are left to Pillow
            pass
    return np.asarray(_picture(content))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptObject(f"txt of {len(content)} bytes is not UTF-8: {error}") from error


def _other(content: bytes) -> Any:
    return _array(content) if content.startswith(_NPY) else content


def _array(content: bytes) -> np.ndarray[Any, Any]:
    """The array of an npy file, over its bytes. Format: NumPy Enhancement Proposal 1."""
    width = 2 if content[6:7] == b"\x01" else 4
    begin = 8 + width
    end = begin + int.from_bytes(content[8:begin], "little")
    try:
        dtype, shape, order = _npy_header(content[begin:end])
        return np.frombuffer(content, dtype, offset=end).reshape(shape, order=order)
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise CorruptObject(f"npy of {len(content)} bytes does not parse: {error}") from error


@lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """(dtype, shape, order): a set of latents has one header, and parsing it costs more than reading the array."""
    fields = ast.literal_eval(header.decode("latin-1").strip())
    dtype = np.dtype(fields["descr"])
    if dtype.hasobject:
        raise ValueError("holds Python objects, which would be executed to be read")
    return dtype, tuple(fields["shape"]), "F" if fields["fortran_order"] else "C"


_IMAGES: dict[str, Callable[[bytes], Any]] = {"pil": _picture, "rgb": _pixels}
_DECODERS: dict[str, Callable[[bytes], Any]] = {"txt": _text, "json": decode_record}
