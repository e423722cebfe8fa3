"""Renders training material: small views of scenes with their captions and qualities. Takes a seed and a
number of rows, returns arrays; it decides which pairs of kind and colour training never sees and knows no
model.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from dataengine.testing import copies
from dataengine.testing.scenes import COLORS, KINDS, Scene, captions, draw_scene, quality, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 64
NUM_COPIES = 3
_RENDER_SIDE = 128  # twice the model's side: copies are made before the last resize, as on the web
_BLOCK_ROWS = 250
HELD_OUT = frozenset(
    (kind, color) for k, kind in enumerate(KINDS) for c, color in enumerate(COLORS) if (c + 3 * k) % 10 == 0
)


@dataclass(frozen=True)
class Views:
    """Rows of one scene each: its plain view and copies, captions and quality."""

    pixels: NDArray[np.uint8]  # [rows, 1 + NUM_COPIES, SIDE, SIDE, 3]
    captions: list[tuple[str, ...]]
    qualities: NDArray[np.float32]


def is_held_out(scene: Scene) -> bool:
    """Whether the scene shows a pair of kind and colour that training never sees."""
    return any((shape.kind, shape.color) in HELD_OUT for shape in scene.shapes)


def draw_scenes(rng: np.random.Generator, rows: int, held_out: bool) -> list[Scene]:
    """``rows`` random scenes, all with (or all without) a held-out pair."""
    scenes: list[Scene] = []
    while len(scenes) < rows:
        scene = draw_scene(rng)
        if is_held_out(scene) == held_out:
            scenes.append(scene)
    return scenes


def draw_size(rng: np.random.Generator, short_side: int) -> tuple[int, int]:
    """A web-like (width, height): aspects up to 2, most of them near 1."""
    skew = rng.uniform(-1, 1)
    aspect = math.exp(math.log(2) * skew * abs(skew))
    return round(short_side * max(1, aspect)), round(short_side * max(1, 1 / aspect))


def render_views(seed: int, rows: int, num_workers: int) -> Views:
    """Training views of ``rows`` scenes; equal for equal ``seed`` and ``rows``, however many workers."""
    starts = range(0, rows, _BLOCK_ROWS)
    sizes = [min(_BLOCK_ROWS, rows - start) for start in starts]
    with ProcessPoolExecutor(num_workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        blocks = list(pool.map(_render_block, repeat(seed), starts, sizes))
    return Views(
        np.concatenate([block.pixels for block in blocks]),
        [texts for block in blocks for texts in block.captions],
        np.concatenate([block.qualities for block in blocks]),
    )


def _render_block(seed: int, start: int, rows: int) -> Views:
    rng = np.random.default_rng([seed, start])
    scenes = draw_scenes(rng, rows, held_out=False)
    return Views(
        np.stack([_scene_views(scene, rng) for scene in scenes]),
        [tuple(captions(scene).values()) for scene in scenes],
        np.array([quality(scene) for scene in scenes], np.float32),
    )


def _scene_views(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    picture = render(scene, *draw_size(rng, _RENDER_SIDE))
    views = [picture, *(_random_copy(picture, rng) for _ in range(NUM_COPIES))]
    return np.stack([_square(view) for view in views])


def _random_copy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """``picture`` after one to three of the things that happen to copies, at random strengths."""
    across, down = rng.uniform(0, 1, 2)
    changes = [
        partial(copies.crop, keep=rng.uniform(0.88, 0.99), across=across, down=down),
        partial(copies.watermark, across=0.15 + 0.7 * across, down=0.05 + 0.9 * down),
        partial(copies.rescale, factor=rng.uniform(0.5, 0.9)),
        partial(copies.reencode, quality=int(rng.integers(40, 95))),
    ]
    for chosen in sorted(rng.choice(len(changes), int(rng.integers(1, 4)), replace=False)):
        picture = changes[chosen](picture)
    return picture


def _square(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels [SIDE, SIDE, 3] as CLIP's preprocessing sees them: short side resized, centre cropped."""
    scale = SIDE / min(picture.size)
    width, height = (max(SIDE, int(side * scale)) for side in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)))
