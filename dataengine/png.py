"""Reads common PNGs with a decoder in Rust, and tells whether a file says more after its pixels.

In go the bytes of a PNG; out come its samples, or None where another decoder should say what they mean. What is decided
here: which files are common, namely 8-bit grey, RGB and RGBA without a transparent colour and without animation. That
decoder takes a third of the time of libpng in Pillow, and its memory is safe. It holds chunks to their checksums, but
not the stream within, which Pillow does: only an encoder can break that one alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from kornia_rs.io import decode_image_png_u8

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGNATURE_BYTES = 8
_CHUNK = struct.Struct(">I4s")  # length of the body, type; behind the body, four bytes of checksum
_HEADER = struct.Struct(">IIBB")  # width, height, bit depth, colour type: the start of the first chunk's body
_MODES = {0: "mono", 2: "rgb", 6: "rgba"}  # by colour type
_MANY_CHUNKS = 65_536  # 500 MB of pixels in the usual pieces; a hostile file has an empty chunk every 12 bytes
_SILENT = frozenset({b"IDAT", b"IEND", b"tIME"})


def decode_common(content: bytes) -> NDArray[np.uint8] | None:
    """The samples of a common PNG, uint8 [height, width], [.., 3] or [.., 4]; None for others, and for broken ones."""
    kinds = _chunks(content)
    if len(kinds) in (0, _MANY_CHUNKS) or not {b"tRNS", b"acTL"}.isdisjoint(kinds):
        return None
    width, height, bit_depth, colour_type = _HEADER.unpack_from(content, _SIGNATURE_BYTES + _CHUNK.size)
    if bit_depth != 8 or colour_type not in _MODES:
        return None
    try:
        samples = decode_image_png_u8(content, (height, width), _MODES[colour_type])
    except Exception:  # noqa: BLE001 - all that it raises; the other decoder names the fault
        return None
    return np.asarray(samples, np.uint8).reshape((height, width) if colour_type == 0 else (height, width, -1))


def speaks_late(content: bytes) -> bool:
    """Whether anything but pixels and a date follows the first pixels, as EXIF may."""
    kinds = _chunks(content)
    return b"IDAT" not in kinds or not _SILENT.issuperset(kinds[kinds.index(b"IDAT") :])


def _chunks(content: bytes) -> list[bytes]:
    """Types of chunks, in order, as far as their lengths lead; of a file of very many, the first ones."""
    kinds: list[bytes] = []
    place = _SIGNATURE_BYTES
    while place + _CHUNK.size <= len(content) and len(kinds) < _MANY_CHUNKS:
        num_bytes, kind = _CHUNK.unpack_from(content, place)
        kinds.append(kind)
        place += _CHUNK.size + num_bytes + 4
    return kinds
