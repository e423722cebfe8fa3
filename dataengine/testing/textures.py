"""Patterns of surfaces as float fields. Takes coordinates in short sides of a picture and a seeded generator,
returns fields [rows, columns] of about -1 to 1. It knows no colours and no pictures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from numpy.typing import NDArray

    Field: TypeAlias = NDArray[np.float32]


def clouds(rng: np.random.Generator, cells: int, rows: int, columns: int) -> Field:
    """Smooth normal noise [rows, columns] with ``cells`` cells a side: the same clouds at every size."""
    coarse = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def _waves(rng: np.random.Generator, across: Field, down: Field, low: float, high: float) -> tuple[Field, Field]:
    """Two perpendicular phases [rows, columns] in radians at a drawn angle and frequency (cycles a side)."""
    angle, frequency = rng.uniform(0, math.pi), 2 * math.pi * rng.uniform(low, high)
    phase_along, phase_over = rng.uniform(0, 2 * math.pi, 2)
    along = frequency * (math.cos(angle) * across + math.sin(angle) * down) + phase_along
    over = frequency * (math.cos(angle) * down - math.sin(angle) * across) + phase_over
    return np.asarray(along, np.float32), np.asarray(over, np.float32)


def _plain(across: Field, _down: Field, _rng: np.random.Generator) -> Field:
    return np.zeros_like(across)


def _striped(across: Field, down: Field, rng: np.random.Generator) -> Field:
    along, _ = _waves(rng, across, down, 4, 8)
    return np.tanh(3 * np.sin(along))


def _checkered(across: Field, down: Field, rng: np.random.Generator) -> Field:
    along, over = _waves(rng, across, down, 2, 4)
    return np.tanh(6 * np.sin(along) * np.sin(over))


def _dotted(across: Field, down: Field, rng: np.random.Generator) -> Field:
    along, over = _waves(rng, across, down, 5, 8)
    return np.tanh(4 * (np.cos(along) + np.cos(over) - 1)) + np.float32(0.4)


def _wavy(across: Field, down: Field, rng: np.random.Generator) -> Field:
    along, over = _waves(rng, across, down, 3, 6)
    return np.sin(along + 1.5 * np.sin(over * np.float32(0.6)))


def _marbled(across: Field, down: Field, rng: np.random.Generator) -> Field:
    rows, columns = across.shape
    bend = 2.5 * clouds(rng, 6, rows, columns) + 1.2 * clouds(rng, 12, rows, columns)
    along, _ = _waves(rng, across, down, 1, 2)
    return np.asarray(1 - 2 * np.abs(np.sin(along + bend)), np.float32)


TEXTURES: dict[str, Callable[[Field, Field, np.random.Generator], Field]] = {
    "plain": _plain,
    "striped": _striped,
    "checkered": _checkered,
    "dotted": _dotted,
    "wavy": _wavy,
    "marbled": _marbled,
}
