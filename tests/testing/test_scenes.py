"""Rendered scenes: the same everywhere, unlike each other, and as their captions say."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataengine.testing.scenes import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    LAYOUTS,
    SIZES,
    TEXTURES,
    Scene,
    Shape,
    captions,
    draw_scene,
    quality,
    render,
)

seeds = st.integers(0, 2**32)


def scenes(num_scenes: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng) for _ in range(num_scenes)]


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_scenes_use_known_words_and_tell_shapes_apart(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed))
    assert len(scene.shapes) == len(LAYOUTS[scene.layout])
    assert scene.background in BACKGROUNDS
    assert scene.texture in TEXTURES
    assert all(shape.kind in KINDS and shape.size in SIZES for shape in scene.shapes)
    assert len({shape.color for shape in scene.shapes}) == len(scene.shapes)


@given(seeds, st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_every_size_renders(seed: int, width: int, height: int) -> None:
    picture = render(draw_scene(np.random.default_rng(seed)), width, height)
    assert picture.size == (width, height)
    assert picture.mode == "RGB"


def test_rendering_does_not_depend_on_the_process() -> None:
    program = (
        "import hashlib, numpy as np\n"
        "from dataengine.testing.scenes import captions, draw_scene, render\n"
        "scene = draw_scene(np.random.default_rng(5))\n"
        "print(hashlib.sha256(render(scene, 90, 120).tobytes() + repr(captions(scene)).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (scene,) = scenes(1, seed=5)
    here = hashlib.sha256(render(scene, 90, 120).tobytes() + repr(captions(scene)).encode()).hexdigest()
    assert other.stdout.strip() == here


@pytest.mark.parametrize("size", [(512, 384), (300, 640)])
def test_another_size_shows_the_same_picture(size: tuple[int, int]) -> None:
    for scene in scenes(12):
        large, small = render(scene, *size), render(scene, size[0] // 4, size[1] // 4)
        shrunk = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.int16)
        assert np.abs(shrunk - np.asarray(small)).mean() < 3


def test_different_scenes_have_distant_hashes() -> None:
    hashes = np.array([_perceptual_hash(render(scene, 96, 96)) for scene in scenes(120)])
    distances = (hashes[:, None] != hashes[None]).sum(axis=-1)[np.triu_indices(len(hashes), 1)]
    assert np.quantile(distances, 0.01) > 16
    assert distances.min() > 6


def test_instances_of_the_same_words_look_different() -> None:
    for scene in scenes(10):
        again = replace(scene, instance=scene.instance + 1)
        difference = np.asarray(render(scene, 64, 64), np.int16) - np.asarray(render(again, 64, 64), np.int16)
        assert np.abs(difference).mean() > 8


@pytest.mark.parametrize("color", COLORS)
def test_a_shape_has_its_color(color: str) -> None:
    background = "olive" if color in ("red", "blue", "purple") else "navy"
    drawn = (Scene((Shape("square", color, "large"),), "center", background, "plain", at) for at in range(1000))
    good = next(scene for scene in drawn if quality(scene) > 8.5)
    middle = np.asarray(render(good, 96, 96))[40:56, 40:56].mean(axis=(0, 1))
    distances = {name: np.linalg.norm(middle - rgb) for name, rgb in COLORS.items()}
    assert min(distances, key=lambda name: distances[name]) == color


def test_layouts_place_shapes_where_they_say() -> None:
    shapes = (Shape("circle", "red", "medium"), Shape("circle", "blue", "medium"))
    for instance in range(10):
        beside = _redness(Scene(shapes, "left of", "gray", "plain", instance))
        over = _redness(Scene(shapes, "above", "gray", "plain", instance))
        assert beside[:, :48].mean() > beside[:, 48:].mean()
        assert over[:48].mean() > over[48:].mean()


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_captions_name_what_the_scene_shows(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed))
    texts = captions(scene)
    assert set(texts) == {"caption", "alt", "long"}
    for text in texts.values():
        words = text.replace(",", " ").replace(".", " ").split()
        named = [(color, kind) for color, kind in pairwise(words) if kind in KINDS]
        assert sorted(named) == sorted((shape.color, shape.kind) for shape in scene.shapes)
        assert not (set(words) & set(BACKGROUNDS)) - {scene.background}
        assert not (set(words) & set(TEXTURES)) - {scene.texture}


def test_captions_keep_the_order_of_the_shapes() -> None:
    first, second = Shape("star", "red", "small"), Shape("heart", "blue", "small")
    for instance in range(40):
        text = captions(Scene((first, second), "left of", "gray", "plain", instance))["alt"]
        assert ("left of" in text) == (text.index("star") < text.index("heart"))


def test_captions_vary_in_wording() -> None:
    (scene,) = scenes(1)
    texts = {captions(replace(scene, instance=instance))["caption"] for instance in range(100)}
    assert len(texts) > 15


def test_quality_falls_with_haze_fade_and_gloom() -> None:
    drawn = scenes(150)
    qualities = np.array([quality(scene) for scene in drawn])
    assert qualities.min() >= 1
    assert qualities.max() <= 10
    order = np.argsort(qualities)
    spread = [np.asarray(render(drawn[row], 64, 64)).std() for row in order]
    assert np.mean(spread[-15:]) > 1.3 * np.mean(spread[:15])


def _redness(scene: Scene) -> np.ndarray:
    pixels = np.asarray(render(scene, 96, 96)).astype(np.float32)
    return pixels[..., 0] - pixels[..., 2]


def _perceptual_hash(picture: Image.Image) -> np.ndarray:
    """64 bits: signs of the low frequencies about their median."""
    small = picture.convert("L").resize((32, 32), Image.Resampling.BOX)
    low = cv2.dct(np.asarray(small, np.float32))[:8, :8].ravel()
    return low > np.median(low[1:])
