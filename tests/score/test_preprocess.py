"""Preprocess: the exact variant has open_clip's bits, the fast one its levels give or take two."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dataengine.imaging import whole
from dataengine.score.preprocess import MAX_ASPECT, Preprocess, resize_bytes, resize_floats

SIZES = [(300, 500), (512, 683), (901, 640), (224, 224), (97, 301), (225, 1000), (31, 30), (1, 600)]
STD = PreprocessCfg().std


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Blobs with hard edges and grain: what overshoots when it is resized."""
    rng = np.random.default_rng(height * 1000 + width)
    small = rng.integers(0, 2, (max(1, height // 20), max(1, width // 20), 3)).astype(np.float32) * 255
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(large + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def made(variant: str, **shape: Any) -> tuple[Preprocess, Any]:
    config = PreprocessCfg(**({"size": 224} | shape))
    transform = image_transform_v2(config, is_train=False)
    return Preprocess.of(transform, vars(config), variant, "cpu"), transform


def run(preprocess: Preprocess, images: list[NDArray[np.uint8]]) -> torch.Tensor:
    return preprocess.finish([preprocess.prepare(whole(image)) for image in images], torch.contiguous_format)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_exact_has_open_clips_bits(mode: str, interpolation: str) -> None:
    preprocess, transform = made("exact", resize_mode=mode, interpolation=interpolation)
    images = [picture(*size) for size in SIZES[:-1]]
    wanted = torch.stack([transform(Image.fromarray(image)) for image in images])
    assert torch.equal(run(preprocess, images), wanted)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, 224, 336])
def test_fast_is_within_two_levels(mode: str, interpolation: str, size: int) -> None:
    preprocess, transform = made("fast", resize_mode=mode, interpolation=interpolation, size=size)
    assert preprocess.variant == "fast"
    images = [picture(*shape) for shape in SIZES[:-1]]
    wanted = torch.stack([transform(Image.fromarray(image)) for image in images])
    levels = (run(preprocess, images) - wanted).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
    assert levels.max() < 2.01
    assert (levels > 1.01).float().mean() < 1e-4
    assert levels.mean() < 0.01


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_floats_on_a_device_come_to_the_same_levels(interpolation: str) -> None:
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    for height, width in SIZES:
        image = picture(height, width)
        for target in ((224, 300), (64, 48), (height, 224)):
            wanted = np.asarray(Image.fromarray(image).resize(target[::-1], resample)).astype(np.float32)
            floats = resize_floats(torch.from_numpy(image), target, interpolation).numpy()
            assert np.abs(floats - wanted).max() <= 2
            assert np.abs(resize_bytes(image, target, interpolation).astype(np.float32) - wanted).max() <= 2


def test_what_is_more_than_a_plain_resize_is_left_to_open_clip() -> None:
    assert made("fast", resize_mode="longest")[0].variant == "exact"
    assert made("fast", size=(224, 336))[0].variant == "exact"
    assert made("fast", size=(224, 336), resize_mode="squash")[0].variant == "fast"


def test_an_endless_picture_is_cut_to_its_middle() -> None:
    preprocess, _ = made("fast")
    image = np.zeros((1, 20_000, 3), np.uint8)
    image[:, 10_000 - MAX_ASPECT // 2 : 10_000 + MAX_ASPECT // 2] = 255
    assert (preprocess.prepare(whole(image)) == 255).all()


def test_equal_models_share_what_is_prepared() -> None:
    assert made("fast")[0] == made("fast")[0]
    assert hash(made("fast")[0]) == hash(made("fast")[0])
    assert made("fast")[0] != made("exact")[0]
