"""The golden batch: a few rendered pictures and captions that every worker scores before it begins.

The first worker of a run settles what they score; all others, today and after any upgrade, must agree within the
precision's tolerance. So two GPUs, libraries or files that quietly differ cannot write into one table. Pictures are
integer arithmetic, so that no library decides what they are. Nothing here knows where values are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import CorruptObject, DriftError
from dataengine.score.memory import MemoryShort

if TYPE_CHECKING:
    from dataengine.score.clip import Scorer
    from dataengine.score.heads import Head

VERSION = 1
"""Raised when the pictures or captions change."""

CAPTIONS = (
    "a red circle on a blue background",
    "A photo of two dogs running along the beach at sunset, with a lighthouse far behind them",
    "stripes",
    'Vintage 1970s poster: "Café Zürich" – 50% off!',
    "",
    "a green square above a yellow triangle, seen from below",
    "noise",
    " ".join(["a very long caption that does not fit the context of any text tower at all"] * 12),
)
SIZES = ((224, 224), (512, 683), (640, 360), (97, 301))
"""Height and width of the pictures: as read, as stored, upright, and one that is enlarged."""

TOLERANCES = {"float32": 2e-4, "bfloat16": 2e-2}
"""Largest difference of a cosine. Devices and thread counts differ by 1e-6 in float32 and by up to 5e-3 in bfloat16;
another activation, preprocess or weights file by 1e-2 and far more."""

_HEAD_TOLERANCES = {"float32": 1e-2, "bfloat16": 5e-1}
"""Largest difference of a head, relative to 1 or its own value; a head sums hundreds of coordinates."""

Settle = Callable[[str, bytes], bytes]
"""Name and content in, what the run holds under that name out."""


def golden_pictures() -> list[NDArray[np.uint8]]:
    """uint8 [height, width, 3] each: waves, rings, checks and noise in every size."""
    return [_picture(number, *size) for number, size in enumerate(SIZES)]


def check_golden(scorer: Scorer, heads: Mapping[str, Head], identity: str, settle: Settle) -> None:
    """Score the golden batch and compare with what the run holds.

    `identity` tells one way of scoring from another, as 16 hex characters. Raises DriftError naming what differs,
    CorruptObject when what the run holds is damaged, and what the scorer raises.
    """
    values = _values(scorer, heads)
    name = f"golden-{identity}.json"
    content = json.dumps({"provenance": scorer.provenance(), "values": values}, sort_keys=True).encode()
    mine = _read(content, name)
    settled = _read(settle(name, content), name)
    if settled.shapes() != mine.shapes():
        raise _damaged(name, f"its values are {settled.shapes()}, wanted {mine.shapes()}")
    precision = scorer.config.precision
    for what in values:
        found, wanted = mine.values[what], settled.values[what]
        is_head = what.startswith("head ")
        scale = np.maximum(1.0, np.abs(wanted)) if is_head else 1.0
        tolerance = (_HEAD_TOLERANCES if is_head else TOLERANCES)[precision]
        drift = float(np.max(np.abs(found - wanted) / scale))
        if not drift <= tolerance:
            raise DriftError(
                f"scorer {scorer.config.model}: this worker's {what} of the golden batch differ by {drift:.2g} from "
                f"those of this run, more than {tolerance:g} ({precision}). "
                f"{_differences(settled.provenance, mine.provenance)} Make this machine like the others and run "
                f"the same command again; when the first one was wrong, start a run of another name."
            )


@dataclass(frozen=True)
class _Golden:
    """What a worker scored, and what it says of itself."""

    values: dict[str, NDArray[np.float64]]
    provenance: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: values.shape for name, values in self.values.items()}


def _read(content: bytes, name: str) -> _Golden:
    try:
        tree = json.loads(content)
        values = {str(what): np.array(rows, np.float64) for what, rows in tree["values"].items()}
        return _Golden(values, dict(tree["provenance"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, f"{type(error).__name__}: {error}") from error


def _damaged(name: str, why: str) -> CorruptObject:
    return CorruptObject(
        f"settled/{name} of this run: no golden batch ({why}); restore the object, or delete it when all workers are "
        f"as they were when it was made: the next one settles it anew"
    )


def _values(scorer: Scorer, heads: Mapping[str, Head]) -> dict[str, Any]:
    # On a GPU a full batch, so that a shape that does not fit its memory shows before any part; a CPU has no such
    # limit, and padding would cost it a minute.
    scorer = replace(scorer, batch_size=len(SIZES)) if scorer.device == "cpu" else scorer
    while True:
        try:
            images, texts = scorer.encode_images(golden_pictures()), scorer.encode_texts(CAPTIONS)
            break
        except MemoryShort:
            continue  # with half the batch
    # Cosines among all of them: a rotation apart they pin every embedding, and heads pin the rotation.
    all_units = np.concatenate([images, texts]).astype(np.float64)
    found = {"cosines": all_units @ all_units.T}
    found |= {"coordinates": all_units[:, :: max(1, scorer.dim // 16)]}
    found |= {f"head {name}": head.apply(images).astype(np.float64) for name, head in heads.items()}
    # A head that overflows on a picture is a matter of its row, not of the machine.
    return {
        name: np.round(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 9).tolist()
        for name, values in found.items()
    }


def _differences(settled: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    theirs, ours = _leaves(settled), _leaves(mine)
    names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if not names:
        return "Both say the same of themselves."
    return " ".join(f"{name}: {theirs.get(name)} there, {ours.get(name)} here." for name in names)


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Every value that is no table, by its path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{path}{name}.") if isinstance(value, Mapping) else {path + name: value}
    return found


def _picture(number: int, height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width].astype(np.int64)
    waves = (x * (3 + number) + y * y // 37) % 256
    rings = ((x - width // 2) ** 2 + (y - height // 3) ** 2) // (40 + 10 * number) % 256
    checks = ((x // 23 + y // 31) % 2) * 180 + 30
    noise = ((x * 73_856_093) ^ (y * 19_349_663) ^ (number * 83_492_791)) % 97
    return np.stack([waves, (rings + noise) % 256, checks + noise // 4], axis=2).astype(np.uint8)
