"""Web-like pictures for the download benchmark: a seed and a number in, files in a cache folder out.

What is decided here: sizes (short side log-normal around 700 pixels, 1.1 Mpix on average), formats (85 % JPEG, 10 %
PNG, 5 % WebP), how hard they are compressed, and the odd ones that the web holds. Picture N is the same in a corpus of
any size, so a larger one only adds files. Nothing here knows servers or downloads.
"""

from __future__ import annotations

import io
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = 1
"""Raised when the same seed would give other pictures."""

Pixels = NDArray[np.uint8]

_SHORT_SIDE, _SPREAD, _MIN_SIDE, _MAX_SIDE = 700, 0.55, 200, 2000
_ASPECTS = {(4, 3): 0.30, (3, 2): 0.28, (16, 9): 0.10, (1, 1): 0.16, (3, 4): 0.08, (2, 3): 0.08}
_TILE_PIXELS = 300_000  # one photo per so many, so that a large picture has detail at its own scale


@dataclass(frozen=True)
class Picture:
    """What picture `number` is, before it is rendered."""

    number: int
    width: int
    height: int
    format: str
    """jpg, png or webp."""
    oddity: str
    """plain, or what is odd: grey, cmyk, exif, alpha, palette, deep (16 bits)."""

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.number:06d}-{self.oddity}.{self.format}"


def plan_picture(seed: int, number: int) -> Picture:
    """What picture `number` of corpus `seed` is."""
    rng = random.Random(f"{seed}/{number}/plan")
    short = min(_MAX_SIDE, max(_MIN_SIDE, round(_SHORT_SIDE * rng.lognormvariate(0, _SPREAD))))
    across, down = rng.choices(list(_ASPECTS), list(_ASPECTS.values()))[0]
    aspect = across / down * rng.lognormvariate(0, 0.03)
    width, height = (round(short * aspect), short) if aspect >= 1 else (short, round(short / aspect))
    form = rng.choices(["jpg", "png", "webp"], [85, 10, 5])[0]
    odd: dict[str, float] = {
        "jpg": {"grey": 2, "cmyk": 0.5, "exif": 3.5},
        "png": {"alpha": 30, "palette": 10, "deep": 3},
        "webp": {"alpha": 5},
    }[form]
    kinds = {"plain": 100 - sum(odd.values()), **odd}
    return Picture(number, width, height, form, rng.choices(list(kinds), list(kinds.values()))[0])


def build_corpus(folder: Path, num_pictures: int, seed: int, photos: Path | None, num_processes: int) -> list[Picture]:
    """The first `num_pictures` of corpus `seed`, rendered into `folder` where they are not there yet.

    They are cut from the pictures in `photos`, or drawn when there is none. Raises ValueError when `photos` is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [plan_picture(seed, number) for number in range(num_pictures)]
    missing = [picture for picture in pictures if not (folder / picture.name).exists()]
    if missing:
        with ProcessPoolExecutor(num_processes) as pool:
            list(pool.map(partial(_store, folder, seed, photos), missing, chunksize=8))
    return pictures


def _store(folder: Path, seed: int, photos: Path | None, picture: Picture) -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, picture.number])
    pixels = _drawn(rng, picture) if photos is None else _collage(rng, picture, _load(photos))
    part = folder / f"{picture.name}.part"  # so that an interrupted build leaves no half picture under a name
    part.write_bytes(_encoded(_grainy(rng, pixels), picture, rng))
    part.replace(folder / picture.name)


@cache
def _load(photos: Path) -> list[Pixels]:
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ValueError(f"{photos}: holds no .jpg, .jpeg or .png to cut pictures from")
    return [np.asarray(Image.open(path).convert("RGB")) for path in files]


def _collage(rng: np.random.Generator, picture: Picture, photos: list[Pixels]) -> Pixels:
    """Crops of photos side by side, each enlarged little."""
    canvas = np.empty((picture.height, picture.width, 3), np.uint8)
    num_tiles = max(1, round((picture.width * picture.height / _TILE_PIXELS) ** 0.5))
    rows = np.linspace(0, picture.height, num_tiles + 1).astype(int)
    columns = np.linspace(0, picture.width, num_tiles + 1).astype(int)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            photo = photos[rng.integers(len(photos))]
            height, width = (int(side * rng.uniform(0.55, 1.0)) for side in photo.shape[:2])
            y, x = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
            crop = np.ascontiguousarray(photo[y : y + height, x : x + width][:, :: rng.choice([-1, 1])])
            size = int(right - left), int(bottom - top)
            canvas[top:bottom, left:right] = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
    return canvas


def _drawn(rng: np.random.Generator, picture: Picture) -> Pixels:
    """A cloudy, partly rough ground with shapes and lines on it: detail at every scale, as photos have."""
    size = (picture.width, picture.height)
    clouds = np.full((picture.height // 4, picture.width // 4, 3), rng.uniform(60, 190, 3), np.float32)
    for octave in range(2, 7):
        cells = rng.normal(0, 110 / 1.7**octave, (2**octave, 2**octave, 3)).astype(np.float32)
        clouds += cv2.resize(cells, clouds.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    rough = rng.normal(0, 1, (picture.height // 2, picture.width // 2)).astype(np.float32)
    rough *= cv2.resize(rng.uniform(0, 5, (6, 6)).astype(np.float32) ** 2, rough.shape[::-1])
    ground = cv2.resize(clouds, size, interpolation=cv2.INTER_CUBIC)
    ground += cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC)[:, :, None]
    canvas = np.clip(ground, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(10, 40)):
        corners = rng.integers(0, size, 2) + rng.normal(0, 0.12 * min(size), (rng.integers(3, 7), 2))
        colour = [int(level) for level in rng.integers(0, 256, 3)]
        if rng.random() < 0.8:
            cv2.polylines(canvas, [corners.astype(np.int32)], True, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
        else:
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    return canvas


def _grainy(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """As from a sensor, seven times in ten; else as it is, or a little out of focus."""
    fate = rng.random()
    if fate < 0.7:
        grain = rng.integers(-1, 2, (*pixels.shape[:2], 1), dtype=np.int16) * rng.integers(1, 5, dtype=np.int16)
        return np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return pixels if fate < 0.9 else cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 2))


def _encoded(pixels: Pixels, picture: Picture, rng: np.random.Generator) -> bytes:
    image, file = _odd(pixels, picture.oddity), io.BytesIO()
    if picture.format == "png":
        image.save(file, "PNG", compress_level=4)
    elif picture.format == "webp":
        image.save(file, "WEBP", quality=int(rng.integers(70, 93)), method=2)
    else:
        exif = Image.Exif()
        if picture.oddity == "exif":
            exif[0x0112] = int(rng.choice([3, 6, 8]))  # orientation
        settings = {"progressive": bool(rng.random() < 0.25), "optimize": bool(rng.random() < 0.3)}
        subsampling = "4:2:0" if rng.random() < 0.75 else "4:4:4"
        image.save(
            file, "JPEG", quality=int(rng.integers(70, 96)), subsampling=subsampling, exif=exif.tobytes(), **settings
        )
    return file.getvalue()


def _odd(pixels: Pixels, oddity: str) -> Image.Image:
    image = Image.fromarray(pixels)
    if oddity == "alpha":
        clear = np.full(pixels.shape[:2], 255, np.uint8)
        clear[: len(clear) // 4] = 0
        return Image.fromarray(np.dstack([pixels, clear]))
    if oddity == "palette":
        return image.quantize(128)
    if oddity == "deep":
        return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    return image.convert({"grey": "L", "cmyk": "CMYK"}.get(oddity, "RGB"))
