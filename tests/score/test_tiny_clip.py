"""The built-in models: loaded by open_clip's calls, they match captions, know copies and judge quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import dataengine
from dataengine.testing.copies import COPIES
from dataengine.testing.scenes import Scene, captions, draw_scene, quality, render

open_clip = pytest.importorskip("open_clip")
torch = pytest.importorskip("torch")

MODELS = Path(dataengine.__file__).parent / "models"
NUM_SCENES = 256


@dataclass(frozen=True)
class Tiny:
    model: Any
    preprocess: Any
    tokenizer: Any

    def images(self, pictures: list[Image.Image]) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.stack([self.preprocess(picture) for picture in pictures])
            return self.model.encode_image(batch, normalize=True).numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(texts), normalize=True).numpy()


def load() -> Tiny:
    open_clip.add_model_config(MODELS / "tiny-clip.json")
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-clip", pretrained=str(MODELS / "tiny-clip.safetensors")
    )
    return Tiny(model.eval(), preprocess, open_clip.get_tokenizer("tiny-clip"))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return load()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(20_240)
    return [draw_scene(rng) for _ in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def pictures(scenes: list[Scene]) -> list[Image.Image]:
    return [render(scene, 240, 200) for scene in scenes]


@pytest.fixture(scope="module")
def embeddings(tiny: Tiny, pictures: list[Image.Image]) -> np.ndarray:
    return tiny.images(pictures)


def test_files_are_small_and_hold_half_precision() -> None:
    assert sum(path.stat().st_size for path in MODELS.glob("tiny-*")) < 9_000_000
    weights = load_file(MODELS / "tiny-clip.safetensors")
    assert {array.dtype.name for array in weights.values()} <= {"float16", "int64"}
    assert all(np.isfinite(array).all() for array in weights.values())


def test_loads_to_float32_with_its_own_preprocessing(tiny: Tiny) -> None:
    assert {parameter.dtype for parameter in tiny.model.parameters()} == {torch.float32}
    assert tiny.preprocess(Image.new("RGB", (90, 300))).shape == (3, 64, 64)
    assert tiny.tokenizer(["a red star"]).shape == (1, 32)


@pytest.mark.parametrize(("wording", "least"), [("caption", 0.7), ("alt", 0.4), ("long", 0.6)])
def test_captions_find_their_pictures(
    tiny: Tiny, scenes: list[Scene], embeddings: np.ndarray, wording: str, least: float
) -> None:
    texts = tiny.texts([captions(scene)[wording] for scene in scenes])
    found = (texts @ embeddings.T).argmax(axis=1) == np.arange(NUM_SCENES)
    assert found.mean() > least


def test_matches_score_above_mismatches(tiny: Tiny, scenes: list[Scene], embeddings: np.ndarray) -> None:
    cosines = tiny.texts([captions(scene)["caption"] for scene in scenes]) @ embeddings.T
    matches, mismatches = cosines.diagonal(), np.roll(cosines, 1, axis=1).diagonal()
    assert (matches[:, None] > mismatches).mean() > 0.98


@pytest.mark.parametrize("kind", COPIES)
def test_copies_stay_close(tiny: Tiny, pictures: list[Image.Image], embeddings: np.ndarray, kind: str) -> None:
    copied = tiny.images([COPIES[kind](picture) for picture in pictures[:100]])
    cosines = (copied * embeddings[:100]).sum(axis=1)
    assert np.median(cosines) > 0.98
    assert np.quantile(cosines, 0.02) > 0.95


def test_different_scenes_are_far_apart(embeddings: np.ndarray) -> None:
    cosines = (embeddings @ embeddings.T)[np.triu_indices(NUM_SCENES, 1)]
    assert np.quantile(cosines, 0.99) < 0.8
    assert np.quantile(cosines, 0.9999) < 0.92


def test_the_head_judges_quality(scenes: list[Scene], embeddings: np.ndarray) -> None:
    head = load_file(MODELS / "tiny-aesthetic.safetensors")
    assert {name: array.shape for name, array in head.items()} == {"weight": (1, 128), "bias": (1,)}
    predicted = (embeddings @ head["weight"].T + head["bias"])[:, 0]
    wanted = np.array([quality(scene) for scene in scenes])
    assert np.corrcoef(predicted, wanted)[0, 1] > 0.88


def test_loading_twice_scores_the_same_bits(tiny: Tiny, pictures: list[Image.Image]) -> None:
    assert np.array_equal(load().images(pictures[:8]), tiny.images(pictures[:8]))
