"""Measures the tiny CLIP as its users meet it: loaded from its files by open_clip's own calls, on new scenes
at web-like sizes. Takes the loaded model and a seed, returns numbers; it judges none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file

from dataengine.testing.copies import COPIES
from dataengine.testing.scenes import Scene, captions, quality, render
from scripts.tiny_clip.views import draw_scenes, draw_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

SHORT_SIDE = 256
NUM_CANDIDATES = 256  # R@1 finds a caption's picture among so many


@dataclass(frozen=True)
class Loaded:
    """Model, tokenizer and head as a user loads them."""

    model: Any
    preprocess: Any
    tokenizer: Any
    head: dict[str, torch.Tensor]


def load(folder: Path) -> Loaded:
    """Load the files in ``folder`` with the calls that load any open_clip model."""
    open_clip.add_model_config(folder / "tiny-clip.json")
    weights = str(folder / "tiny-clip.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=weights)
    head = load_file(folder / "tiny-aesthetic.safetensors")
    return Loaded(model.eval(), preprocess, open_clip.get_tokenizer("tiny-clip"), head)


def evaluate(loaded: Loaded, seed: int, rows: int = 1024) -> dict[str, float]:
    """Numbers by name, measured on ``rows`` new scenes and as many with held-out pairs of kind and colour."""
    rng = np.random.default_rng([seed, 2])
    numbers: dict[str, float] = {}
    for group, held_out in (("new", False), ("held_out", True)):
        scenes = draw_scenes(rng, rows, held_out)
        pictures = [render(scene, *draw_size(rng, SHORT_SIDE)) for scene in scenes]
        images = embed_images(loaded, pictures)
        texts = embed_texts(loaded, [captions(scene)["caption"] for scene in scenes])
        numbers |= {f"{group}_{name}": value for name, value in _matching(images, texts).items()}
        numbers[f"{group}_aesthetic_r2"] = _head_r2(loaded, images, scenes)
        if not held_out:
            numbers |= _copies(loaded, pictures[:300], images[:300]) | _strangers(images, rng)
    return numbers


def embed_images(loaded: Loaded, pictures: list[Image.Image]) -> NDArray[np.float32]:
    """L2-normalised embeddings [pictures, dim], float32."""
    with torch.inference_mode():
        batch = torch.stack([loaded.preprocess(picture) for picture in pictures])
        return np.asarray(loaded.model.encode_image(batch, normalize=True).numpy(), np.float32)


def embed_texts(loaded: Loaded, texts: list[str]) -> NDArray[np.float32]:
    """L2-normalised embeddings [texts, dim], float32."""
    with torch.inference_mode():
        return np.asarray(loaded.model.encode_text(loaded.tokenizer(texts), normalize=True).numpy(), np.float32)


def _matching(images: NDArray[np.float32], texts: NDArray[np.float32]) -> dict[str, float]:
    blocks = [slice(at, at + NUM_CANDIDATES) for at in range(0, len(images), NUM_CANDIDATES)]
    cosines = [texts[block] @ images[block].T for block in blocks]
    matches = np.concatenate([block.diagonal() for block in cosines])
    mismatches = np.concatenate([np.roll(block, 1, axis=1).diagonal() for block in cosines])
    return {
        "recall_at_1": float(np.mean([block.argmax(axis=1) == np.arange(len(block)) for block in cosines])),
        "match_beats_mismatch": float((matches[:, None] > mismatches).mean()),
        "match_median": float(np.median(matches)),
        "match_5%": float(np.quantile(matches, 0.05)),
        "mismatch_median": float(np.median(mismatches)),
        "mismatch_95%": float(np.quantile(mismatches, 0.95)),
    }


def _copies(loaded: Loaded, pictures: list[Image.Image], images: NDArray[np.float32]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for kind, make in COPIES.items():
        cosines = (images * embed_images(loaded, [make(picture) for picture in pictures])).sum(axis=1)
        low, median = np.quantile(cosines, (0.01, 0.5))
        numbers |= {f"{kind}_min": cosines.min(), f"{kind}_1%": low, f"{kind}_median": median}
    return {name: float(value) for name, value in numbers.items()}


def _strangers(images: NDArray[np.float32], rng: np.random.Generator) -> dict[str, float]:
    """Cosines of different scenes: 2,000 random pairs, and each scene's nearest other."""
    left = rng.integers(len(images), size=2000)
    right = (left + rng.integers(1, len(images), size=2000)) % len(images)
    pairs = (images[left] * images[right]).sum(axis=1)
    nearest = (images @ images.T - 2 * np.eye(len(images))).max(axis=1)
    return {
        "different_99%": float(np.quantile(pairs, 0.99)),
        "different_max": float(pairs.max()),
        "nearest_median": float(np.median(nearest)),
        "nearest_max": float(nearest.max()),
    }


def _head_r2(loaded: Loaded, images: NDArray[np.float32], scenes: list[Scene]) -> float:
    """Share of the variance of quality that the head explains."""
    wanted = np.array([quality(scene) for scene in scenes])
    predicted = images @ loaded.head["weight"].numpy()[0] + loaded.head["bias"].numpy()
    return float(1 - ((wanted - predicted) ** 2).mean() / wanted.var())
