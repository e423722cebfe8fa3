"""Pictures: one decode feeds every preprocess and the measures, and what is seen does not depend on the company."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dataengine.config.download import LimitsConfig
from dataengine.imaging import open_image, reduce, render
from dataengine.score import pictures
from dataengine.score.measures import measure
from dataengine.score.pictures import Preparer, distinct
from dataengine.score.preprocess import MIN_SIDE, Preprocess
from tests.score.test_clip import CPU_SHORT
from tests.score.test_preprocess import picture

LIMITS = LimitsConfig()
BOUNDS = {"max_pixels": LIMITS.max_pixels, "max_side": LIMITS.max_side}


def preprocess(variant: str, size: int) -> Preprocess:
    config = PreprocessCfg(size=size)
    return Preprocess.of(image_transform_v2(config, is_train=False), vars(config), variant, "cpu")


def encoded(pixels: NDArray[np.uint8], form: str = "JPEG", **settings: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form, **settings)
    return content.getvalue()


FAST, LARGE, EXACT = preprocess("fast", 224), preprocess("fast", 336), preprocess("exact", 224)


@pytest.mark.parametrize("size", [(300, 400), (1300, 1100), (2300, 1200)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_company_changes_nothing(size: tuple[int, int], form: str) -> None:
    content = encoded(picture(*size), form)
    together = Preparer((FAST, LARGE, EXACT), LIMITS, measures=True)(content)
    for step in (FAST, LARGE, EXACT):
        alone = Preparer((step,), LIMITS, measures=False)(content)
        assert np.array_equal(alone.pixels[step], together.pixels[step])
        assert alone.measures is None
    assert together.measures == measure(reduce(open_image(content, **BOUNDS), MIN_SIDE).pixels)
    wanted = np.asarray(EXACT.transform(Image.fromarray(render(open_image(content, **BOUNDS)))))
    assert np.array_equal(together.pixels[EXACT], wanted)


@pytest.mark.parametrize(
    ("size", "steps", "num_decoded"),
    [
        ((700, 900), (FAST, LARGE, EXACT), 1),
        ((1400, 1100), (FAST, LARGE), 1),
        ((1400, 1100), (FAST, EXACT), 2),
    ],
)
def test_every_picture_is_decoded_once(
    size: tuple[int, int], steps: tuple[Preprocess, ...], num_decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    for name in ("render", "reduce"):
        decode = getattr(pictures, name)
        monkeypatch.setattr(pictures, name, lambda *args, decode=decode: calls.append(args) or decode(*args))
    Preparer(steps, LIMITS, measures=True)(encoded(picture(*size)))
    assert len(calls) == num_decoded


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(picture(64, 64))[:300]])
def test_what_does_not_decode_is_empty(content: bytes) -> None:
    made = Preparer((FAST,), LIMITS, measures=True)(content)
    assert (made.pixels, made.measures, made.status) == ({}, None, "undecodable")


@pytest.mark.parametrize("error", [MemoryError(), CPU_SHORT])
@pytest.mark.parametrize("place", ["render", "measure"])
def test_memory_for_one_picture_is_a_matter_of_its_row(
    monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pictures, place, fail)
    made = Preparer((FAST,), LIMITS, measures=True)(encoded(picture(64, 64)))
    assert (made.pixels, made.measures, made.status) == ({}, None, "decoder_memory")


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "measure", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Preparer((FAST,), LIMITS, measures=True)(encoded(picture(64, 64)))


def test_a_picture_over_the_limits_is_empty() -> None:
    limits = LimitsConfig(max_pixels=10_000)
    assert Preparer((FAST,), limits, measures=False)(encoded(picture(101, 100))).pixels == {}


def test_equal_steps_are_taken_once() -> None:
    assert distinct([FAST, preprocess("fast", 224), LARGE]) == (FAST, LARGE)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(300, 900), (1023, 1500), (1024, 1500), (3000, 2049), (530, 5000)])
def test_reduced_pictures_keep_their_short_side(size: tuple[int, int], form: str) -> None:
    content = encoded(picture(*size), form)
    reduced = reduce(open_image(content, **BOUNDS), MIN_SIDE)
    short = min(reduced.pixels.shape[:2])
    assert MIN_SIDE <= short < 2 * MIN_SIDE or (short == min(size) and short < MIN_SIDE)
    factor = 2 ** round(math.log2(min(size) / short))
    assert reduced.box == (0, 0, size[1] / factor, size[0] / factor)
    assert reduced.pixels.shape[:2] == (math.ceil(size[0] / factor), math.ceil(size[1] / factor))
    assert reduced.is_whole == (size[0] % factor == size[1] % factor == 0)
    full = render(open_image(content, **BOUNDS))
    if factor == 1:
        assert np.array_equal(reduced.pixels, full)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1280, 1600), (1283, 1601), (2049, 2051)])
def test_a_halved_picture_does_not_shift(size: tuple[int, int], orientation: int) -> None:
    """Bands on plain ground: where they lie to a tenth of a pixel is their centre of mass."""
    pixels = np.zeros((*size, 3), np.uint8)
    for share in (0.1, 0.5, 0.93):
        row, column = round(size[0] * share), round(size[1] * share)
        pixels[row - 30 : row + 30, :, 0] = 255
        pixels[:, column - 30 : column + 30, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(pixels, quality=97, subsampling=0, exif=exif.tobytes())
    squash = PreprocessCfg(size=224, resize_mode="squash")
    made = {}
    for variant in ("fast", "exact"):
        step = Preprocess.of(image_transform_v2(squash, is_train=False), vars(squash), variant, "cpu")
        made[variant] = Preparer((step,), LIMITS, measures=False)(content).pixels[step].astype(float)
    places = np.arange(224)
    for axis in (0, 1):
        for channel in (0, 1):
            profile = {name: image[:, :, channel].mean(axis=axis) for name, image in made.items()}
            centre = {name: (values * places).sum() / values.sum() for name, values in profile.items()}
            assert abs(centre["fast"] - centre["exact"]) < 0.03


def test_reduced_pictures_are_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(1100, 1500), exif=exif.tobytes())
    assert reduce(open_image(content, **BOUNDS), MIN_SIDE).pixels.shape == (750, 550, 3)
