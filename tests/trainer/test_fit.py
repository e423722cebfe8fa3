"""Pictures are fitted to the middle, by one filter whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataengine.errors import ConfigError
from dataengine.trainer import fit as fitting
from dataengine.trainer.fit import fit

SIDES = st.integers(1, 60)


@pytest.mark.parametrize(("shape", "left", "top"), [((101, 101), 64, 0), ((230, 50), 0, 25), ((230, 101), 0, 0)])
@pytest.mark.parametrize("is_picture", [False, True])
def test_a_picture_of_the_right_scale_is_cut_and_not_filtered(
    shape: tuple[int, int], left: int, top: int, is_picture: bool
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (101, 230, 3), np.uint8)
    width, height = shape
    found = fit(Image.fromarray(pixels) if is_picture else pixels, shape)
    np.testing.assert_array_equal(found, pixels[top : top + height, left : left + width])


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.booleans())
def test_fitting_gives_the_shape(width: int, height: int, across: int, down: int, with_torch: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not with_torch:
            patch.setattr(fitting, "installed_torch", lambda: None)
        found = fit(np.full((height, width, 3), 77, np.uint8), (across, down))
    assert found.shape == (down, across, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert (found == 77).all()


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.tuples(*[st.floats(0, 3)] * 4))
def test_torch_and_pillow_agree_on_what_is_smooth(
    width: int, height: int, across: int, down: int, phases: tuple[float, ...]
) -> None:
    """Without hard edges, which are cut off at 255 between the passes over rows and columns."""
    rows, columns = np.linspace(0, phases[0], height)[:, None, None], np.linspace(0, phases[1], width)[None, :, None]
    wave = np.sin(rows + columns + np.array([0, phases[2], phases[3]]))
    pixels = (128 + 90 * wave).astype(np.uint8)
    by_torch = fit(pixels, (across, down)).astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "installed_torch", lambda: None)
        by_pillow = fit(pixels, (across, down)).astype(int)
    assert np.abs(by_torch - by_pillow).max() <= 2


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (128, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "array", "read-only"])
def test_the_result_is_the_callers_own(mode: str, shape: tuple[int, int], recwarn: pytest.WarningsRecorder) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (128, 128, 3), np.uint8)
    before = pixels.copy()
    pixels.flags.writeable = mode != "read-only"
    found = fit(Image.fromarray(pixels).convert(mode) if mode.isupper() else pixels, shape)
    found[:] = 0
    np.testing.assert_array_equal(pixels, before)
    assert not recwarn.list


@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
@pytest.mark.parametrize("shape", [(40, 30), (64, 48), (100, 20)])
def test_channels_stay(channels: tuple[int, ...], shape: tuple[int, int]) -> None:
    found = fit(np.full((48, 64, *channels), 200, np.uint8), shape)
    assert found.shape == (*shape[::-1], *channels)
    assert (found[..., :3] == 200).all() if channels else (found == 200).all()


def test_colours_under_transparency_do_not_bleed() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    pixels[:, 4:] = (0, 255, 0, 0)
    for image in (pixels, Image.fromarray(pixels)):
        assert fit(image, (4, 4))[..., 1].max() == 0


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros((3, 64, 128), dtype=torch.uint8),
        np.zeros((3, 64, 128), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint16),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(image: object) -> None:
    with pytest.raises(ConfigError, match=r"decode gave a (Tensor|ndarray) of .*; buckets fit pictures"):
        fit(image, (32, 32))


@pytest.mark.parametrize(("size", "shape"), [((400, 300), (100, 100)), ((300, 400), (128, 64)), ((90, 90), (256, 200))])
def test_the_middle_is_shown(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Beside what Pillow makes of the same box, whose edges may lie within a pixel."""
    ramp = np.add.outer(np.linspace(0, 120, size[1]), np.linspace(0, 120, size[0]))
    pixels = np.repeat(ramp[..., None].astype(np.uint8), 3, axis=2)
    scale = max(shape[0] / size[0], shape[1] / size[1])
    left, top = (size[0] - shape[0] / scale) / 2, (size[1] - shape[1] / scale) / 2
    box = (left, top, size[0] - left, size[1] - top)
    wanted = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC, box=box)).astype(int)
    assert np.abs(fit(pixels, shape) - wanted).mean() < 1
