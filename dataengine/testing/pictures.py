"""Picture files as the web has them: in goes an RGB picture or a file's bytes, out come the bytes of a JPEG,
PNG or WebP file, of a copy that shows the same picture, or of a picture file that is broken on purpose. Every
function is pure, and none knows where a file will lie.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFilter

from dataengine.testing.copies import crop, rescale, watermark

_MIN_SHORT_SIDE, _MAX_SHORT_SIDE = 256, 800
_TURNED_RIGHT = 6  # EXIF orientation: to be shown, the stored picture must be turned a quarter to the right


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """A web-like width and height in pixels: short side 256 to 800, mostly small.

    The aspect ratio is at most 1.5, so that the square a model looks at still shows what the captions say.
    """
    short = _MIN_SHORT_SIDE * (_MAX_SHORT_SIDE / _MIN_SHORT_SIDE) ** (rng.random() ** 1.5)
    sides = round(short), round(short * 1.5 ** (rng.random() ** 1.3))
    return sides if rng.random() < 0.35 else sides[::-1]


def suffix(body: bytes) -> str:
    """File name suffix of a picture file, by its first bytes: jpg, png or webp."""
    if body.startswith(b"\x89PNG"):
        return "png"
    return "webp" if body[8:12] == b"WEBP" else "jpg"


def content_type(body: bytes) -> str:
    """Media type of a picture file, by its first bytes."""
    return {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}[suffix(body)]


def _save(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def _open(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP")).convert("RGB")


def jpeg(picture: Image.Image) -> bytes:
    """A JPEG file of quality 88."""
    return _save(picture, "JPEG", quality=88)


def progressive_jpeg(picture: Image.Image) -> bytes:
    """A progressive JPEG file without chroma subsampling."""
    return _save(picture, "JPEG", quality=80, progressive=True, subsampling=0)


def png(picture: Image.Image) -> bytes:
    """A PNG file, compressed in a hurry."""
    return _save(picture, "PNG", compress_level=1)


def webp(picture: Image.Image) -> bytes:
    """A lossy WebP file."""
    return _save(picture, "WEBP", quality=84, method=1)


def _exif_orientation(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = _TURNED_RIGHT
    return _save(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=88, exif=exif)


def _with_alpha(picture: Image.Image) -> Image.Image:
    """The picture with corners that fade to transparent."""
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *picture.size), radius=min(picture.size) // 6, fill=255)
    faded = picture.convert("RGBA")
    faded.putalpha(mask)
    return faded


FORMS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": jpeg,
    "progressive_jpeg": progressive_jpeg,
    "png": png,
    "webp": webp,
    "exif_orientation": _exif_orientation,
    "alpha_png": lambda picture: png(_with_alpha(picture)),
    "alpha_webp": lambda picture: webp(_with_alpha(picture)),
    "cmyk_jpeg": lambda picture: jpeg(picture.convert("CMYK")),
    "gray_jpeg": lambda picture: jpeg(picture.convert("L")),
    "palette_png": lambda picture: png(picture.quantize(256)),
}
"""Kind of picture file → encoder of an RGB picture."""


COPIES: dict[str, Callable[[bytes], bytes]] = {
    "exact_copy": lambda body: body,
    "lossless_copy": lambda body: _save(_open(body), "WEBP", lossless=True, quality=0, method=0),
    "jpeg_copy": lambda body: _save(_open(body), "JPEG", quality=60),
    "resized_copy": lambda body: jpeg(rescale(_open(body), 0.7)),
    "cropped_copy": lambda body: jpeg(crop(_open(body), 0.975)),
    "watermarked_copy": lambda body: jpeg(watermark(_open(body))),
}
"""Kind of copy → bytes of a file that shows the same picture; a crop keeps 95 % of the area."""


def blur(picture: Image.Image) -> Image.Image:
    """The picture so far out of focus that hardly an edge is left."""
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) / 16))


def half(body: bytes) -> bytes:
    """The first half of a file."""
    return body[: len(body) // 2]


def pixel_bomb() -> bytes:
    """A well-formed PNG file of a few hundred bytes that declares 50,000 × 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    scanlines = zlib.compress(bytes(150_001))
    chunks = ((b"IHDR", header), (b"IDAT", scanlines), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, content) for name, content in chunks)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
