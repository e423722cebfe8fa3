"""Which witness sees which edit of a photo: bytes, pixels, perceptual hash, CLIP; precision and recall by kind of edit.

python -m benchmarks.dedup_edits --rows 200     # photos; their folder is named by DATAENGINE_TEST_DATA

Every photo is edited in every way and compared with all photos: a match with its own original is right, any other is
wrong. Stored images, hashes and embeddings are made by the code that the pipeline runs. The CLIP is whichever
`--model` and `--pretrained` name; by default the built-in tiny one, which knows drawings of shapes and not photos.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.reporting import report
from dataengine.config.dedup import ImageDedupConfig
from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.dedup.cells import unit_vectors
from dataengine.download.image import store_image
from dataengine.imaging import decode_rgb
from dataengine.score.clip import Scorer
from dataengine.score.measures import phash
from dataengine.storage.hashing import HashingWriter
from dataengine.testing.copies import crop, rescale, watermark

Edit = Callable[[Image.Image], bytes]
DEDUP = ImageDedupConfig()


def _encoded(picture: Image.Image, image_format: str = "JPEG", quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, quality=quality)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    return _encoded(picture, "PNG")


EDITS: dict[str, Edit] = {
    "PNG of the same pixels": _png,
    "JPEG, quality 80": lambda picture: _encoded(picture, quality=80),
    "JPEG, quality 30": lambda picture: _encoded(picture, quality=30),
    "WebP, quality 50": lambda picture: _encoded(picture, "WEBP", 50),
    "half size": lambda picture: _encoded(rescale(picture)),
    "crop to 95 %": lambda picture: _encoded(crop(picture)),
    "crop to 80 %": lambda picture: _encoded(crop(picture, 0.8)),
    "crop to 60 %, off centre": lambda picture: _encoded(crop(picture, 0.6, 0.2, 0.3)),
    "watermark": lambda picture: _encoded(watermark(picture)),
    "border of a tenth": lambda picture: _encoded(ImageOps.expand(picture, picture.width // 10, "white")),
    "gray": lambda picture: _encoded(picture.convert("L").convert("RGB")),
    "rotated by 5 degrees": lambda picture: _encoded(picture.rotate(5, Image.Resampling.BICUBIC)),
    "mirrored": lambda picture: _encoded(ImageOps.mirror(picture)),
}


@dataclass(frozen=True)
class Seen:
    """What the pipeline knows of some images, row by row."""

    sha256: NDArray[np.str_]
    pixels: NDArray[np.str_]
    phashes: NDArray[np.uint64]
    units: NDArray[np.float32]


def look(contents: list[bytes], scorer: Scorer) -> Seen:
    """Store, hash and embed images as download and score do."""
    limits, sha256, pixels, hashes, rgbs = LimitsConfig(), [], [], [], []
    for content in contents:
        writer = HashingWriter(io.BytesIO())
        with writer:
            writer.write(content)
        stored = store_image(content, ImageConfig(), limits)
        rgb = decode_rgb(stored.content, max_pixels=limits.max_pixels, max_side=limits.max_side)
        sha256.append(writer.sha256)
        pixels.append(stored.pixel_hash)
        hashes.append(phash(rgb))
        rgbs.append(rgb)
    embeddings = np.concatenate([scorer.encode_images(rgbs[begin : begin + 50]) for begin in range(0, len(rgbs), 50)])
    return Seen(np.array(sha256), np.array(pixels), np.array(hashes, np.uint64), unit_vectors(embeddings))


def matches(edited: Seen, originals: Seen) -> dict[str, NDArray[np.bool_]]:
    """By witness, which edited image (row) is held for which original (column)."""
    distance = np.bitwise_count(edited.phashes[:, None] ^ originals.phashes)
    near = edited.units @ originals.units.T >= DEDUP.min_similarity
    confirmed = distance <= DEDUP.max_phash_distance
    return {
        "sha256": edited.sha256[:, None] == originals.sha256,
        "pixels": edited.pixels[:, None] == originals.pixels,
        "phash": distance <= 10,
        "CLIP": near,
        "CLIP + phash": near & confirmed,
    }


def rates(found: NDArray[np.bool_]) -> tuple[float, float | None]:
    """(recall, precision) where row i is an edit of column i; no precision where nothing was matched."""
    right, everything = int(np.trace(found)), int(found.sum())
    return right / len(found), right / everything if everything else None


def table_of(photos: list[bytes], scorer: Scorer) -> dict[str, dict[str, Any]]:
    """Recall and precision of each witness, by kind of edit."""
    originals = look(photos, scorer)
    pictures = [Image.fromarray(decode_rgb(item, max_pixels=10**9, max_side=10**5)) for item in photos]
    results: dict[str, dict[str, Any]] = {}
    for name, edit in {"untouched": None, **EDITS}.items():
        edited = originals if edit is None else look([edit(picture) for picture in pictures], scorer)
        found = matches(edited, originals)
        results[name] = {}
        for witness, matched in found.items():
            recall, precision = rates(matched)
            results[name] |= {f"{witness}: recall": recall, f"{witness}: prec.": precision}
    return results


NEAR_DUPLICATES = {
    "resized": "mixed_images/ukbench00120_resize.jpg",
    "mirrored": "mixed_images/ukbench00120_hflip.jpg",
    "rotated": "mixed_images/ukbench00120_rotation.jpg",
    "gray": "ukbench00120_gray.jpg",
    "as JPEG": "formats_images/ukbench09380.jpeg",
    "as PNG": "formats_images/ukbench09380.png",
    "as WebP": "formats_images/ukbench09380.webp",
}
"""Edits that others made: files of imagededup's test set; the ten pictures of `base_images` are their originals."""


def others_edits(folder: Path, scorer: Scorer) -> dict[str, dict[str, Any]]:
    """Which witness holds each for its original (1 or 0), and for how many other pictures."""
    bases = sorted((folder / "base_images").glob("*.jpg"))
    originals = look([path.read_bytes() for path in bases], scorer)
    results = {}
    for name, path in NEAR_DUPLICATES.items():
        own = [path.partition("/")[2].startswith(base.stem) or path.startswith(base.stem) for base in bases].index(True)
        found = matches(look([(folder / path).read_bytes()], scorer), originals)
        results[f"imagededup, {name}"] = {
            column: value
            for witness, matched in found.items()
            for column, value in (
                (f"{witness}: recall", float(matched[0, own])),
                (f"{witness}: prec.", float(matched[0, own] / matched.sum()) if matched.any() else None),
            )
        }
    return results


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200, help="photos")
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--pretrained", default="builtin")
    asked = parser.parse_args()
    folder = Path(os.environ.get("DATAENGINE_TEST_DATA", "."))
    paths = sorted(path for path in (folder / "photos").glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}/photos: no JPEG files; DATAENGINE_TEST_DATA names the folder that holds photos/")
    scorer = Scorer.load(ScorerConfig(model=asked.model, pretrained=asked.pretrained), "cpu", os.cpu_count() or 1)
    results = table_of([path.read_bytes() for path in paths[: asked.rows]], scorer)
    if (folder / "near-duplicates").is_dir():
        results |= others_edits(folder / "near-duplicates", scorer)
    report("dedup_edits", results, [])


if __name__ == "__main__":
    main()
