"""How near a stored picture comes to Lanczos in floats, next to the picture that img2dataset makes.

img2dataset decodes the whole picture and averages areas. Both are compared before encoding, which costs both the
same. A picture counts by its PSNR; a shift of half a pixel already costs 10 dB.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataengine.imaging import open_image, render
from dataengine.testing.scenes import draw_scene
from dataengine.testing.scenes import render as paint

MAX_LOSS_DB = 0.3
MAX_WORST_LOSS_DB = 2.5
Pictures = list[bytes]


@pytest.fixture(scope="module")
def photos(real_data: Path) -> Pictures:
    """40 real photos, most of 500 x 375; none with a profile, which img2dataset drops."""
    contents = [path.read_bytes() for path in sorted((real_data / "photos").iterdir())]
    return [content for content in contents if b"ICC_PROFILE" not in content][:40]


@pytest.fixture(scope="module")
def scenes() -> Pictures:
    """Rendered pictures of odd sizes, grainy as photos are, in every kind of JPEG and as PNG."""
    forms: list[tuple[str, dict[str, object]]] = [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 92, "subsampling": 0}),
        ("JPEG", {"quality": 85, "progressive": True}),
        ("PNG", {"compress_level": 1}),
    ]
    contents = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        picture = np.asarray(paint(draw_scene(rng), 701 + 53 * seed, 997 - 37 * seed), np.int16)
        grainy = Image.fromarray(np.clip(picture + rng.integers(-6, 7, picture.shape), 0, 255).astype(np.uint8))
        name, options = forms[seed % len(forms)]
        stream = io.BytesIO()
        grainy.save(stream, name, **options)
        contents.append(stream.getvalue())
    return contents


def lanczos(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """The reference: Lanczos of three lobes in floats."""
    planes = [Image.fromarray(pixels[..., color].astype(np.float32)) for color in range(3)]
    return np.stack([np.asarray(plane.resize(target, Image.Resampling.LANCZOS)) for plane in planes], axis=-1)


def psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    apart = np.clip(reference, 0, 255) - pixels
    return float(10 * np.log10(255**2 / np.mean(apart**2)))


def gains(contents: Pictures, size: int, side_of: Callable[..., int], *, cut: bool = False) -> np.ndarray:
    """Per picture that is made smaller, our PSNR less img2dataset's, in dB."""
    found = []
    for content in contents:
        opened = open_image(content, max_pixels=10**8, max_side=10_000)
        full = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if cut:
            side = min(opened.width, opened.height)
            left, top = (opened.width - side) // 2, (opened.height - side) // 2
            full = full[top : top + side, left : left + side]
        scale = size / side_of(full.shape[:2])
        if scale >= 1:
            continue
        target = (round(full.shape[1] * scale), round(full.shape[0] * scale))
        reference = lanczos(full, target)
        theirs = cv2.resize(full, target, interpolation=cv2.INTER_AREA)
        found.append(psnr(render(opened, target, cut=cut), reference) - psnr(theirs, reference))
    return np.array(found)


def check(found: np.ndarray, record_property: Callable[[str, object], None], num_least: int) -> None:
    assert len(found) >= num_least
    record_property("mean_gain_db", round(float(found.mean()), 2))
    record_property("worst_gain_db", round(float(found.min()), 2))
    assert found.mean() >= -MAX_LOSS_DB
    assert found.min() >= -MAX_WORST_LOSS_DB


@pytest.mark.parametrize("side_of", [min, max], ids=["keep_ratio", "keep_ratio_largest"])
@pytest.mark.parametrize("size", [64, 100, 128, 160, 256])
def test_real_photos_lose_nothing(
    size: int, side_of: Callable[..., int], photos: Pictures, record_property: Callable[[str, object], None]
) -> None:
    check(gains(photos, size, side_of), record_property, 30)


@pytest.mark.parametrize("side_of", [min, max], ids=["keep_ratio", "keep_ratio_largest"])
@pytest.mark.parametrize("size", [100, 256, 400])
def test_rendered_pictures_lose_nothing(
    size: int, side_of: Callable[..., int], scenes: Pictures, record_property: Callable[[str, object], None]
) -> None:
    check(gains(scenes, size, side_of), record_property, 12)


@pytest.mark.parametrize("size", [64, 100, 128, 256])
def test_a_crop_loses_nothing(size: int, photos: Pictures, record_property: Callable[[str, object], None]) -> None:
    even = []
    for content in photos:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        if picture.width < 480 or picture.height < 352:
            continue
        stream = io.BytesIO()
        # The middle lies on whole pixels at every scale that the decoder may take, so both crop the same.
        picture.crop((0, 0, 480, 352)).save(stream, "JPEG", quality=95)
        even.append(stream.getvalue())
    check(gains(even, size, min, cut=True), record_property, 10)
