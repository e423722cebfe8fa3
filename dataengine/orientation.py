"""Which way up a picture is: what its metadata says of its pixels, and how to turn those.

In go a picture that Pillow opened, or its pixels; out comes its EXIF orientation, or the pixels upright. The one rule
of the engine, of `verify` and of the reader, so Pillow is imported only by those who bring a picture of its.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

# What Pillow raises over the files of strangers.
DECODER_FAULTS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
# The steps of rows and columns that make the picture upright, after the axes changed places where it lies.
STEPS = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
_FIRST_LYING = 5
_TAG = 0x0112
# Pillow's names of what an orientation may stand in.
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_APP1, _START_OF_SCAN = b"\xe1", b"\xda"  # segments of a JPEG


def orientation_of(picture: Image) -> int:
    """EXIF orientation 1..8; a picture without one, or with unreadable EXIF, is upright, as in browsers.

    Of a PNG that is not loaded yet, only what stands before the pixels counts.
    """
    from PIL.Image import Image

    try:
        # Not the method of PNG, which decodes every picture to look behind it.
        orientation = Image.getexif(picture).get(_TAG, 1)
    except DECODER_FAULTS:
        return 1
    return int(orientation) if orientation in STEPS else 1


def is_lying(orientation: int) -> bool:
    """Whether the upright picture is as wide as the encoded one is high."""
    return orientation >= _FIRST_LYING


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels [height, width, ...] as encoded, turned."""
    rows, columns = STEPS[orientation]
    turned = pixels.swapaxes(0, 1) if is_lying(orientation) else pixels
    return np.ascontiguousarray(turned[::rows, ::columns])


def upright_picture(picture: Image, orientation: int) -> Image:
    """The same for a picture of Pillow's; a turned one has no EXIF, lest somebody turn it once more."""
    from PIL.Image import Transpose

    if orientation == 1:
        return picture
    methods = (
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    turned = picture.transpose(methods[orientation - 2])
    for name in _METADATA:
        turned.info.pop(name, None)
    return turned


def jpeg_orientation(content: bytes) -> int:
    """Of a JPEG by its bytes; microseconds where no segment can hold one. Raises DECODER_FAULTS, and ImportError."""
    if _is_bare(content):
        return 1
    from PIL.JpegImagePlugin import JpegImageFile

    return orientation_of(JpegImageFile(io.BytesIO(content)))


def _is_bare(content: bytes) -> bool:
    """Whether a JPEG has no segment of EXIF or XMP before its first scan; False for one that is oddly built."""
    at = 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != _APP1:
        if content[at + 1 : at + 2] == _START_OF_SCAN:
            return True
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return False
