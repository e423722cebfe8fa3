"""Turns image bytes from strangers into upright RGB pixels, or says why it cannot.

In go encoded bytes and bounds; out come 8-bit RGB pixels as a viewer would show them, or an ImageFault whose
reason becomes a row. What is decided here: JPEG, PNG, WebP and GIF only, told by their magic bytes; the first
frame of an animation; EXIF orientation applied; transparency laid on white; CMYK, grey, palette and 16-bit
samples brought to 8-bit RGB; an embedded RGB or CMYK profile converted to sRGB. Size is checked in the header,
before any pixel is decoded, and a picture that ends early is a fault, never half grey.
Pillow reads every header; what most of the web is, grey and RGB JPEGs, plain WebP and common PNGs, is then decoded by
simplejpeg, OpenCV and `dataengine.png`, in a third to two thirds of the time. Nothing here knows where bytes come from.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dataengine.orientation import DECODER_FAULTS, STEPS, is_lying, orientation_of, upright
from dataengine.png import decode_common, speaks_late
from dataengine.scaling import MIN_HALVED, halve, middle, num_halvings, scale

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from dataengine.scaling import Extent, Size

    _Pixels = NDArray[np.uint8]

# Named one by one, because Image.open tries every format Pillow knows on bytes that nobody vouches for.
_READERS: dict[str, type[ImageFile]] = {
    "jpg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
}
# Progressive files hold about 10 scans; in a 50 megapixel bomb each costs 0.1 s and a hundred bytes.
_MAX_JPEG_SCANS = 100
# Warnings of libjpeg after which part of the picture is grey or rubbish. Its others, such as stray bytes between
# markers, come with pictures that every browser shows.
_DAMAGE = re.compile("premature end|bad huffman code|bad arithmetic code|instead of rst", re.IGNORECASE)


class ImageFault(Exception):
    """An image that cannot be used; `reason` is not_image, bad_image or too_many_pixels."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True)
class OpenImage:
    """An image whose header was read and found within bounds."""

    content: bytes
    file: ImageFile
    """The same, its header read by Pillow."""
    format: str
    width: int
    """Of the upright image, as is `height`."""
    height: int
    orientation: int
    """EXIF orientation 1..8 of the encoded pixels; 1 is upright."""


def sniff_format(content: bytes) -> str | None:
    """ "jpg", "png", "webp" or "gif" by magic bytes, or None."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return None


def decode_rgb(content: bytes, *, max_pixels: int, max_side: int) -> NDArray[np.uint8]:
    """The upright picture on white: uint8 [height, width, 3], sRGB.

    Raises ImageFault.
    """
    return render(open_image(content, max_pixels=max_pixels, max_side=max_side))


def open_image(content: bytes, *, max_pixels: int, max_side: int) -> OpenImage:
    """The image's header, checked: no more than `max_pixels` pixels, and `max_side` pixels a side.

    Raises ImageFault.
    """
    image_format = sniff_format(content)
    if image_format is None:
        raise ImageFault("not_image", f"no JPEG, PNG, WebP or GIF starts with {content[:16]!r}")
    if image_format == "jpg" and _num_scans(content) > _MAX_JPEG_SCANS:
        raise ImageFault("bad_image", f"a JPEG of more than {_MAX_JPEG_SCANS} scans")
    with _decoding():
        file = _READERS[image_format](io.BytesIO(content))
    width, height = file.size
    if width * height > max_pixels or max(width, height) > max_side:
        wanted = f"at most {max_pixels} pixels and {max_side} a side"
        raise ImageFault("too_many_pixels", f"{width} x {height} pixels, wanted {wanted}")
    orientation = _orientation(file, content)
    if is_lying(orientation):
        width, height = height, width
    return OpenImage(content, file, image_format, width, height, orientation)


def render(image: OpenImage, target: tuple[int, int] | None = None, *, cut: bool = False) -> NDArray[np.uint8]:
    """The upright picture on white: uint8 [height, width, 3], sRGB; with `target`, scaled to that (width, height).

    A target of another shape squeezes the picture; with `cut`, the picture loses its longer ends instead. Decodes,
    so call it once per image. Raises ImageFault, and MemoryError.
    """
    if target is not None and is_lying(image.orientation):
        target = target[1], target[0]
    with _decoding():
        pixels, extent = _decode(image, target)
        if target is not None:
            pixels, extent = middle(pixels, extent, target) if cut else (pixels, extent)
            pixels = scale(pixels, extent, target)
        pixels = _to_srgb(pixels, image.file.info.get("icc_profile"))
    return upright(pixels, image.orientation)


@dataclass(frozen=True)
class Reduced:
    """A picture that was halved some times."""

    pixels: NDArray[np.uint8]
    """Upright, on white: uint8 [height, width, 3], sRGB."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of what they show; the pixels of an edge may show less than a whole one."""

    @property
    def is_whole(self) -> bool:
        """Whether every pixel shows as much as the others."""
        return self.box == (0, 0, self.pixels.shape[1], self.pixels.shape[0])


def whole(pixels: NDArray[np.uint8]) -> Reduced:
    """A picture [height, width, 3] at its full size."""
    return Reduced(pixels, (0, 0, pixels.shape[1], pixels.shape[0]))


def reduce(image: OpenImage, min_side: int) -> Reduced:
    """The picture, halved as often as leaves its short side at `min_side` or more.

    Of the picture alone, so that whoever looks at it sees the same. JPEGs are halved by their decoder where they can
    be, at a third of the time; the rest is averaged two by two. Decodes, so call it once per image. Raises ImageFault,
    and MemoryError.
    """
    target = (min_side, min_side)
    with _decoding():
        pixels, (wide, high) = _decode(image, target, margin=1.0)
        for _ in range(num_halvings((wide, high), target, 16, margin=1.0)):
            pixels, wide, high = halve(pixels), wide / 2, high / 2
        pixels = _to_srgb(pixels, image.file.info.get("icc_profile"))
    rows, columns = STEPS[image.orientation]
    wide, high = (high, wide) if is_lying(image.orientation) else (wide, high)
    pixels = upright(pixels, image.orientation)
    height, width = pixels.shape[:2]
    left, top = (width - wide if columns < 0 else 0.0), (height - high if rows < 0 else 0.0)
    return Reduced(pixels, (left, top, left + wide, top + high))


def _num_scans(content: bytes) -> int:
    """Starts of scan in a JPEG; bytes.count takes several times as long."""
    codes = np.frombuffer(content, np.uint8)
    return int(np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA)))


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a hostile file makes a decoder raise becomes an ImageFault; its warnings are silenced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise ImageFault("too_many_pixels", str(error)) from error
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise
    except DECODER_FAULTS as error:
        raise ImageFault("bad_image", f"{type(error).__name__}: {error}") from error


def _orientation(file: ImageFile, content: bytes) -> int:
    with _decoding():
        if isinstance(file, PngImageFile) and speaks_late(content):  # the only format whose EXIF may follow the pixels
            file.load()
        return orientation_of(file)


def _decode(image: OpenImage, target: Size | None, margin: float = MIN_HALVED) -> tuple[_Pixels, Extent]:
    """Pixels of the encoded picture, RGB or CMYK, no smaller than `target`, and the width and height they show.

    A JPEG is decoded at a half, a quarter or an eighth where that is enough. Its last row and column then may show
    less than a whole pixel of the scaled picture, so the extent is fractional: without it, everything would shift.
    """
    width, height = image.file.size
    scales = target is not None and image.format == "jpg"
    divisor = 2 ** num_halvings((width, height), target, 3, margin) if target is not None and scales else 1
    pixels = _decode_fast(image, divisor)
    if pixels is not None:
        return pixels, (width / divisor, height / divisor)
    # Rounded down: draft() takes the largest scale that leaves no less than what is asked.
    drafted = image.file.draft(None, (width // divisor, height // divisor))
    _, _, wide, high = drafted[1] if drafted else (0, 0, width, height)
    image.file.load()
    return np.array(_opaque(image.file)), (wide, high)


def _decode_fast(image: OpenImage, divisor: int) -> _Pixels | None:
    """The pixels of a grey or RGB JPEG, a plain WebP or a common PNG as RGB, or None where Pillow should decide."""
    if image.format == "jpg" and image.file.mode in ("RGB", "L"):
        return _decode_jpeg(image, divisor)
    if image.format == "webp" and image.content[12:16] == b"VP8 ":  # lossy, and no room for alpha, EXIF or profiles
        pixels = cv2.imdecode(np.frombuffer(image.content, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is not None and pixels.shape[1::-1] == image.file.size:
            return np.asarray(pixels, np.uint8)
    if image.format == "png":
        samples = decode_common(image.content)
        return None if samples is None else _on_white(samples)
    return None


def _decode_jpeg(image: OpenImage, divisor: int) -> _Pixels | None:
    """Raises ImageFault where libjpeg finds damage that Pillow would show as grey or rubbish."""
    width, height = image.file.size
    try:
        if simplejpeg.decode_jpeg_header(image.content)[:2] != (height, width):
            raise ImageFault("bad_image", "a JPEG of two sizes")
        least = {"min_width": -(-width // divisor), "min_height": -(-height // divisor)}
        return np.asarray(simplejpeg.decode_jpeg(image.content, "RGB", **least), np.uint8)
    except ValueError as error:
        if "memory" in str(error):
            raise MemoryError(str(error)) from error
        if _DAMAGE.search(str(error)):
            raise ImageFault("bad_image", str(error)) from error
        return None


def _on_white(samples: _Pixels) -> _Pixels:
    """Grey, RGB or RGBA samples as RGB; only the rows between the first and the last clear pixel are blended."""
    if samples.ndim == 2:
        return np.asarray(cv2.cvtColor(samples, cv2.COLOR_GRAY2RGB), np.uint8)
    if samples.shape[2] == 3:
        return samples
    pixels = np.asarray(cv2.cvtColor(samples, cv2.COLOR_RGBA2RGB), np.uint8)
    clear = np.flatnonzero(samples[..., 3].min(axis=1) < 255)
    if clear.size:
        rows = slice(clear[0], clear[-1] + 1)
        pixels[rows] = np.asarray(_opaque(Image.fromarray(samples[rows])))
    return pixels


def _opaque(file: Image.Image) -> Image.Image:
    """The decoded first frame as RGB, or CMYK where it is, transparency laid on white."""
    if file.mode == "I;16":  # 16-bit grey: keep the high byte, where Pillow would clip at 255
        deep = np.asarray(file)
        shallow = np.where(deep == file.info.get("transparency", -1), 255, deep >> 8).astype(np.uint8)
        return Image.fromarray(shallow).convert("RGB")
    if file.has_transparency_data:
        layer = file.convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return file if file.mode in ("RGB", "CMYK") else file.convert("RGB")


def _to_srgb(pixels: _Pixels, profile: bytes | None) -> _Pixels:
    """RGB or CMYK as sRGB; a profile that is broken or of another colour model is ignored, as in browsers."""
    mode = "CMYK" if pixels.shape[2] == 4 else "RGB"
    transform = _transform(profile, mode) if profile else None
    if transform is None and mode == "RGB":
        return pixels
    picture = Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    converted = ImageCms.applyTransform(picture, transform) if transform is not None else None
    return np.array(converted if converted is not None else picture.convert("RGB"))


@lru_cache(maxsize=32)  # a handful of profiles covers most of the web, and building takes milliseconds
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from `profile` to sRGB, or None where there is nothing to convert."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != mode or "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
