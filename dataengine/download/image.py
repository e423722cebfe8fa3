"""Decides which bytes of a fetched image are stored, and what is known about them.

In go fetched bytes, bounds and the wanted format; out comes a StoredImage: upright RGB without metadata,
scaled down to the wanted short side, with its sizes and hashes. Bytes that already are all that pass
unchanged, so that no picture loses quality for nothing. Nothing here knows where bytes come from or go.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from dataengine.imaging import ImageFault, OpenImage, open_image, render

if TYPE_CHECKING:
    from PIL import Image

    from dataengine.config.download import ImageConfig, LimitsConfig

_ENCODERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MAX_SIDES = {"jpg": 65_500, "png": 2**31 - 1, "webp": 16_383}  # what the encoders take


@dataclass(frozen=True)
class StoredImage:
    """An image as stored, and what SAMPLE says about it."""

    content: bytes
    format: str
    """jpg, png or webp; in place also gif."""
    width: int
    height: int
    original_width: int
    original_height: int
    xxh3: str
    """XXH3-64 of `content`, 16 hex characters."""
    pixel_hash: str
    """XXH3-128 of size and RGB pixels as stored, before encoding; 32 hex characters."""


def store_image(content: bytes, image: ImageConfig, limits: LimitsConfig) -> StoredImage:
    """`content` as it is to be stored.

    Raises ImageFault.
    """
    opened = open_image(content, max_pixels=limits.max_pixels, max_side=limits.max_side)
    picture = render(opened, image.size if image.resize == "keep_ratio" else None)
    if max(picture.size) > _MAX_SIDES[image.format]:
        wanted = f"at most {_MAX_SIDES[image.format]} a side in {image.format}"
        raise ImageFault("too_many_pixels", f"{picture.width} x {picture.height} pixels, wanted {wanted}")
    if picture.size != (opened.width, opened.height) or not _is_clean(content, opened, image.format):
        content = _encode(picture, image.format, image.quality)
    return _describe(content, image.format, opened, picture)


def inspect_image(content: bytes, limits: LimitsConfig) -> StoredImage:
    """What is known about an image that stays where it lies, unchanged; sizes are of the upright picture.

    Raises ImageFault.
    """
    opened = open_image(content, max_pixels=limits.max_pixels, max_side=limits.max_side)
    return _describe(content, opened.format, opened, render(opened))


def _describe(content: bytes, image_format: str, opened: OpenImage, picture: Image.Image) -> StoredImage:
    return StoredImage(
        content=content,
        format=image_format,
        width=picture.width,
        height=picture.height,
        original_width=opened.width,
        original_height=opened.height,
        xxh3=xxhash.xxh3_64_hexdigest(content),
        pixel_hash=_pixel_hash(picture),
    )


def _pixel_hash(picture: Image.Image) -> str:
    digest = xxhash.xxh3_128(b"%dx%d:" % picture.size)
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _encode(picture: Image.Image, image_format: str, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, _ENCODERS[image_format], quality=quality)
    return stream.getvalue()


def _is_clean(content: bytes, opened: OpenImage, image_format: str) -> bool:
    """Whether the encoded bytes are surely upright 8-bit RGB of `image_format` and nothing else.

    PNG is always encoded anew: that loses nothing, and its chunks can carry anything.
    """
    if opened.format != image_format or opened.orientation != 1 or opened.file.mode != "RGB":
        return False
    if image_format == "jpg":
        return _is_bare_jpeg(content, opened)
    return image_format == "webp" and _is_bare_webp(content)


def _is_bare_jpeg(content: bytes, opened: OpenImage) -> bool:
    """Whether a JPEG holds one picture and nothing beside it but a JFIF header without a thumbnail."""
    segments = getattr(opened.file, "applist", [])
    is_plain = all(name == "APP0" and len(body) <= 14 for name, body in segments)
    # A second start of image is an embedded thumbnail or a picture appended behind the first.
    return is_plain and content.count(b"\xff\xd8\xff") == 1 and content.endswith(b"\xff\xd9")


def _is_bare_webp(content: bytes) -> bool:
    """Whether a WebP is one lossy frame: the simple layout has no room for alpha, EXIF or profiles."""
    num_bytes = int.from_bytes(content[16:20], "little")
    return content[12:16] == b"VP8 " and len(content) == 20 + num_bytes + num_bytes % 2
