"""Decides which bytes of a fetched image are stored, and what is known about them.

In go fetched bytes, bounds and the wanted format; out comes a StoredImage: upright RGB without metadata, in the
wanted size, with its sizes and hashes. Bytes that already are all that pass unchanged, so that no picture loses
quality for nothing. Nothing here knows where bytes come from or go.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from dataengine.imaging import ImageFault, OpenImage, open_image, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.download import ImageConfig, LimitsConfig

_MAX_SIDES = {"jpg": 65_500, "png": 2**31 - 1, "webp": 16_383}  # what the encoders take
_WHITE = 255


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
    """`content` as it is to be stored: resized as `image` says, and encoded anew unless nothing changed.

    Raises ImageFault, and MemoryError.
    """
    opened = open_image(content, max_pixels=limits.max_pixels, max_side=limits.max_side)
    given = opened.width, opened.height
    target = _target_size(given, image)
    _check_size(target or given, image, limits)
    pixels = render(opened, target, cut=image.resize == "center_crop")
    if target is not None and image.resize == "border":
        pixels = _on_white(pixels, image.size)
    if pixels.shape[1::-1] != given or not _is_clean(content, opened, image.format):
        content = _encode(pixels, image.format, image.quality)
    return _describe(content, image.format, opened, pixels)


def inspect_image(content: bytes, limits: LimitsConfig) -> StoredImage:
    """What is known about an image that stays where it lies, unchanged; sizes are of the upright picture.

    Raises ImageFault, and MemoryError.
    """
    opened = open_image(content, max_pixels=limits.max_pixels, max_side=limits.max_side)
    return _describe(content, opened.format, opened, render(opened))


def _target_size(given: tuple[int, int], image: ImageConfig) -> tuple[int, int] | None:
    """What the picture of width and height `given` is scaled to, its border aside; None leaves it alone.

    An image that is small enough stays as it is, of whatever shape: as with img2dataset's resize_only_if_bigger,
    it is neither cut to a square nor filled up to one.
    """
    if image.resize == "no":
        return None
    side = min(given) if image.resize in ("keep_ratio", "center_crop") else max(given)
    if image.only_if_bigger and side <= image.size:
        return None
    if image.resize == "center_crop":
        return image.size, image.size
    return max(1, round(given[0] * image.size / side)), max(1, round(given[1] * image.size / side))


def _check_size(target: tuple[int, int], image: ImageConfig, limits: LimitsConfig) -> None:
    """Enlarging a thin picture's short side can make the long one endless."""
    max_side = _MAX_SIDES[image.format]
    max_pixels = max(limits.max_pixels, image.size**2)
    if max(target) > max_side or target[0] * target[1] > max_pixels:
        wanted = f"at most {max_side} a side in {image.format}, and {max_pixels} pixels"
        raise ImageFault("too_many_pixels", f"{target[0]} x {target[1]} pixels to store, wanted {wanted}")


def _on_white(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The picture in the middle of a white square."""
    height, width = pixels.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.full((size, size, 3), _WHITE, np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square


def _describe(content: bytes, image_format: str, opened: OpenImage, pixels: NDArray[np.uint8]) -> StoredImage:
    height, width = pixels.shape[:2]
    digest = xxhash.xxh3_128(b"%dx%d:" % (width, height))
    digest.update(pixels.data)
    return StoredImage(
        content=content,
        format=image_format,
        width=width,
        height=height,
        original_width=opened.width,
        original_height=opened.height,
        xxh3=xxhash.xxh3_64_hexdigest(content),
        pixel_hash=digest.hexdigest(),
    )


def _encode(pixels: NDArray[np.uint8], image_format: str, quality: int) -> bytes:
    if image_format == "jpg":
        return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format, quality=quality)
    return stream.getvalue()


def _is_clean(content: bytes, opened: OpenImage, image_format: str) -> bool:
    """Whether the encoded bytes are surely upright 8-bit RGB of `image_format` and nothing else.

    A grey JPEG is not: what is stored has three channels. PNG is always encoded anew: that loses nothing, and its
    chunks can carry anything.
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
