"""Draws backdrops and shapes as pixels. Takes relative coordinates, colours and a seeded generator; returns
uint8 RGB arrays. Everything random has a size that does not depend on the picture's size, so that one
generator state gives the same picture at every resolution. It knows no words, scenes or captions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dataengine.testing.textures import TEXTURES, clouds

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dataengine.testing.textures import Field

    Contours: TypeAlias = list[NDArray[np.float64]]

GRID_SIDE = 128  # short side of the backdrop's grid: finer detail would alias at the 64 px that CLIP sees
GRAIN_SIDE = 160
_SUBPIXEL_BITS = 4


def backdrop(color: tuple[int, int, int], texture: str, shadow: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Background picture [rows, columns, 3], uint8, sized as ``shadow``: light, texture and soft discs."""
    rows, columns = shadow.shape
    across, down = _plane(rows, columns)
    light = 0.55 * clouds(rng, 5, rows, columns) + _slope(rng, across, down)
    pattern = TEXTURES[texture](across, down, rng)
    tint = cv2.resize(rng.standard_normal((3, 3, 3), np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    shade = (1 + 0.30 * light + 0.20 * pattern + _discs(rng, rows, columns)) * (1 - shadow)
    return _to_bytes(shade[..., None] * np.asarray(color, np.float32) + 9 * tint)


def shadows(outlines: list[Contours], depth: float, width: int, height: int) -> Field:
    """Soft shadows [rows, columns] of outlines (relative x, y), 0 to ``depth``; short side ``GRID_SIDE``."""
    unit = GRID_SIDE / max(min(width, height), max(width, height) / 8)  # a sliver needs no grid of megapixels
    rows, columns = round(height * unit), round(width * unit)
    mask = np.zeros((rows, columns), np.uint8)
    for contours in outlines:
        _fill(mask, contours, columns, rows)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), GRID_SIDE / 40).astype(np.float32) * (depth / 255), np.float32)


def enlarge(grid: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """``grid`` resampled to [height, width, 3]."""
    smaller = width < grid.shape[1]
    resized = cv2.resize(grid, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


def paint(picture: NDArray[np.uint8], contours: Contours, color: tuple[int, int, int], light_angle: float) -> None:
    """Fill ``contours`` (relative x, y; even-odd) in ``picture`` in place, antialiased and shaded."""
    height, width = picture.shape[:2]
    points = np.concatenate(contours) * (width, height)
    left, top = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(points.max(axis=0)).astype(int) + 2, 0, (width, height))
    if right <= left or bottom <= top:
        return
    mask = np.zeros((bottom - top, right - left), np.uint8)
    _fill(mask, contours, width, height, origin=(left, top))
    down, across = np.ogrid[-1 : 1 : (bottom - top) * 1j, -1 : 1 : (right - left) * 1j]
    shade = (1 + 0.16 * (math.cos(light_angle) * across + math.sin(light_angle) * down)).astype(np.float32)
    region = picture[top:bottom, left:right]
    alpha = (mask.astype(np.float32) / 255)[..., None]
    np.copyto(region, _to_bytes(region + alpha * (shade[..., None] * np.asarray(color, np.float32) - region)))


def develop(picture: NDArray[np.uint8], contrast: float, saturation: float, brightness: float) -> NDArray[np.uint8]:
    """``picture`` with contrast, saturation and brightness scaled (1 = as is); lost contrast is grey haze."""
    luma = np.tile(np.array([0.299, 0.587, 0.114]), (3, 1))  # ITU-R BT.601
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * luma)
    veil = brightness * (1 - contrast) * 190
    return np.asarray(cv2.transform(picture, np.hstack([matrix, np.full((3, 1), veil)])), np.uint8)


def add_grain(picture: NDArray[np.uint8], rng: np.random.Generator, amplitude: float) -> NDArray[np.uint8]:
    """``picture`` with soft luminance noise of standard deviation ``amplitude`` (in 1/255)."""
    height, width = picture.shape[:2]
    grain = rng.standard_normal((GRAIN_SIDE, GRAIN_SIDE), np.float32) * np.float32(amplitude)
    interpolation = cv2.INTER_AREA if min(width, height) < GRAIN_SIDE else cv2.INTER_LINEAR
    noise = cv2.resize(np.round(grain).astype(np.int16), (width, height), interpolation=interpolation)
    return np.asarray(cv2.add(picture, cv2.merge([noise] * 3), dtype=cv2.CV_8U), np.uint8)


def outline(kind: str, center: tuple[float, float], radius: tuple[float, float], angle: float) -> Contours:
    """Contours [points, 2] of a shape in relative (x, y); ``radius`` is relative to width and to height."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [contour @ turn * radius + center for contour in OUTLINES[kind]]


def _plane(rows: int, columns: int) -> tuple[Field, Field]:
    """Coordinates [rows, columns] in short sides of the picture, so that textures stay round."""
    unit = np.float32(1 / min(rows, columns))
    down, across = np.indices((rows, columns), np.float32)
    return (across + 0.5) * unit, (down + 0.5) * unit


def _slope(rng: np.random.Generator, across: Field, down: Field) -> Field:
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.6)
    ramp = math.cos(angle) * (across - across.mean()) + math.sin(angle) * (down - down.mean())
    return np.asarray(strength * ramp, np.float32)


def _discs(rng: np.random.Generator, rows: int, columns: int) -> Field:
    """Out-of-focus lights and dark spots [rows, columns], about -0.3 to 0.3."""
    field = np.zeros((rows, columns), np.float32)
    unit = min(rows, columns)
    for across, down, radius, level in rng.uniform((0, 0, 0.03, -0.3), (1, 1, 0.13, 0.3), (9, 4)):
        center = (round(across * columns), round(down * rows))
        cv2.circle(field, center, round(radius * unit), float(level), thickness=cv2.FILLED)
    return np.asarray(cv2.GaussianBlur(field, (0, 0), 1.5), np.float32)


def _fill(
    mask: NDArray[np.uint8], contours: Contours, width: int, height: int, origin: tuple[int, int] = (0, 0)
) -> None:
    """Fill ``contours`` in ``mask``, the part at ``origin`` of a picture of ``width`` x ``height``."""
    scale = 1 << _SUBPIXEL_BITS  # cv2's fixed-point coordinates: contours move by 1/16 px, not by whole pixels
    points = [np.round((contour * (width, height) - origin) * scale).astype(np.int32) for contour in contours]
    cv2.fillPoly(mask, points, 255, cv2.LINE_AA, _SUBPIXEL_BITS)


def _to_bytes(values: NDArray[np.number]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)


def _polygon(num_points: int, radius: float = 1.0, start: float = -math.pi / 2) -> NDArray[np.float64]:
    angles = start + np.linspace(0, 2 * math.pi, num_points, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> NDArray[np.float64]:
    points = _polygon(10)
    points[1::2] *= 0.42
    return points


def _cross() -> NDArray[np.float64]:
    arm, half = 1.0, 0.33
    corner = np.array([(-half, -arm), (half, -arm), (half, -half)])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])


def _heart() -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    across = 16 * np.sin(angles) ** 3
    up = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return np.stack([across, -up - 2.5], axis=1) / 16


OUTLINES: dict[str, Contours] = {
    "circle": [_polygon(96)],
    "square": [_polygon(4, 1.15, math.pi / 4)],
    "triangle": [_polygon(3, 1.15)],
    "star": [_star()],
    "ring": [_polygon(96), _polygon(96, 0.55)],
    "cross": [_cross()],
    "diamond": [_polygon(4) * (0.75, 1.1)],
    "heart": [_heart()],
}
