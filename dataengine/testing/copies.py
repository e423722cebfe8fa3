"""Makes the copies of pictures that the web is full of: re-encoded, resized, cropped, marked. In goes an RGB
picture, out comes its copy, the same each time; files, formats on disk and hashes are not its business.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Callable


def reencode(picture: Image.Image, quality: int = 60, image_format: str = "JPEG") -> Image.Image:
    """``picture`` after one lossy round trip at ``quality`` (1 to 100)."""
    buffer = io.BytesIO()
    picture.save(buffer, image_format, quality=quality)
    return Image.open(buffer).convert("RGB")


def rescale(picture: Image.Image, factor: float = 0.5) -> Image.Image:
    """``picture`` with both sides multiplied by ``factor``."""
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def crop(picture: Image.Image, keep: float = 0.95, across: float = 0.5, down: float = 0.5) -> Image.Image:
    """The part of ``picture`` with the share ``keep`` of each side, placed at ``across``, ``down``."""
    width, height = (max(1, round(side * keep)) for side in picture.size)
    left, top = round((picture.width - width) * across), round((picture.height - height) * down)
    return picture.crop((left, top, left + width, top + height))


def watermark(picture: Image.Image, across: float = 0.8, down: float = 0.85) -> Image.Image:
    """``picture`` with a small half-transparent mark centred at ``across``, ``down`` (0 to 1)."""
    mark = Image.new("L", picture.size)
    half_width, half_height = 0.14 * picture.width, 0.035 * picture.height
    center_x, center_y = across * picture.width, down * picture.height
    corners = (center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height)
    draw = ImageDraw.Draw(mark)
    draw.rounded_rectangle(corners, radius=half_height, fill=110)
    draw.line((corners[0], center_y, corners[2], center_y), fill=0, width=max(1, round(half_height / 3)))
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, mark)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg_q60": reencode,
    "webp_q50": lambda picture: reencode(picture, 50, "WEBP"),
    "half_size": rescale,
    "crop_95": crop,
    "watermark": watermark,
}
