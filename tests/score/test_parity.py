"""Real photos and captions beside plain open_clip code: its own preprocess, float32, one picture at a time.

Pictures are those that the download stage stores, upright and without a colour profile, or lie in a real shard; plain
open_clip ignores profiles and orientation, which is a fault that we do not share.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.download.image import store_image
from dataengine.imaging import open_image, render
from dataengine.score.clip import Scorer
from dataengine.score.pictures import Preparer, distinct
from dataengine.score.preprocess import resize_bytes, resize_floats
from dataengine.score.weights import MODELS, register_builtin

LIMITS = LimitsConfig()
FAST_MEAN, FAST_MAX = 3e-4, 2e-3
BFLOAT16_MEAN, BFLOAT16_MAX = 3e-3, 1.5e-2
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a thousand looks of ViT-B-32, minutes of a machine of its own


@dataclass(frozen=True)
class Pairs:
    """Stored bytes of pictures, and a caption of each."""

    images: list[bytes]
    texts: list[str]


@pytest.fixture(scope="module")
def photos(real_data: Path) -> Pairs:
    """200 photos as the download stage stores them, captioned by their class."""
    files = sorted((real_data / "photos").iterdir())
    stored = [store_image(file.read_bytes(), ImageConfig(size=512), LIMITS).content for file in files]
    return Pairs(stored, [f"a photo of a {file.stem.partition('_')[2].replace('_', ' ')}" for file in files])


@pytest.fixture(scope="module")
def pairs(real_data: Path) -> Pairs:
    """32 real pairs, as they lie in a shard."""
    images, texts = [], []
    with tarfile.open(real_data / "cc12m-32" / "cc12m-train-0000.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            (images if member.name.endswith(".jpg") else texts if member.name.endswith(".txt") else []).append(
                file.read()
            )
    return Pairs(images, [text.decode() for text in texts])


@pytest.fixture(scope="module", params=["tiny-clip", pytest.param("ViT-B-32", marks=SLOW)])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model and its weights: the trained tiny one, and a real architecture with random ones."""
    register_builtin()
    if request.param == "tiny-clip":
        return request.param, MODELS / "tiny-clip.safetensors"
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(open_clip.create_model(request.param).state_dict(), path)
    return request.param, path


@dataclass(frozen=True)
class Plain:
    """Unit embeddings by plain open_clip code."""

    images: NDArray[np.float32]
    texts: NDArray[np.float32]

    @property
    def scores(self) -> NDArray[np.float32]:
        return np.sum(self.images * self.texts, axis=1)


def plain(weights: tuple[str, Path], pairs: Pairs) -> Plain:
    model, preprocess = open_clip.create_model_from_pretrained(weights[0], pretrained=str(weights[1]))
    tokenizer = open_clip.get_tokenizer(weights[0])
    model.eval()
    torch.set_num_threads(1)
    with torch.inference_mode():
        pictures = [preprocess(Image.open(io.BytesIO(content)))[None] for content in pairs.images]
        images = torch.cat([model.encode_image(picture, normalize=True) for picture in pictures])
        texts = torch.cat([model.encode_text(tokenizer([text]), normalize=True) for text in pairs.texts])
    return Plain(images.numpy(), texts.numpy())


def ours(weights: tuple[str, Path], pairs: Pairs, **settings: Any) -> Plain:
    config = ScorerConfig.model_validate(
        {"model": weights[0], "pretrained": str(weights[1]), "batch_size": 16} | settings
    )
    scorer = Scorer.load(config, "cpu", 1)
    assert scorer.provenance()["preprocess"]["variant"] == config.preprocess
    return Plain(embed(scorer, pairs.images), scorer.encode_texts(pairs.texts))


def embed(scorer: Scorer, images: Sequence[bytes]) -> NDArray[np.float32]:
    """The way of the score stage: decode and prepare, then batches."""
    prepare = Preparer(distinct([scorer.preprocess]), LIMITS, measures=False)
    prepared = [prepare(content).pixels[scorer.preprocess] for content in images]
    size = scorer.batch_size
    parts = [prepared[start : start + size] for start in range(0, len(prepared), size)]
    units, good = scorer.unit_rows([scorer.run_images(scorer.lay_out(part))[: len(part)] for part in parts])
    assert good.all()
    return units


@pytest.fixture(scope="module", params=["photos", "pairs"])
def both(request: pytest.FixtureRequest, weights: tuple[str, Path]) -> tuple[tuple[str, Path], Pairs, Plain]:
    found: Pairs = request.getfixturevalue(request.param)
    assert len(found.images) == len(found.texts) == {"photos": 200, "pairs": 32}[request.param]
    return weights, found, plain(weights, found)


def differences(mine: Plain, theirs: Plain) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.abs(mine.scores - theirs.scores)
    return found


def test_exact_preprocess_equals_plain_open_clip(both: tuple[tuple[str, Path], Pairs, Plain]) -> None:
    weights, pairs, wanted = both
    found = ours(weights, pairs, preprocess="exact")
    assert np.abs(found.images - wanted.images).max() <= 1e-5
    assert np.abs(found.texts - wanted.texts).max() <= 1e-5
    assert differences(found, wanted).max() <= 1e-5


def test_fast_preprocess_stays_within_its_tolerance(both: tuple[tuple[str, Path], Pairs, Plain]) -> None:
    weights, pairs, wanted = both
    drift = differences(ours(weights, pairs, preprocess="fast"), wanted)
    assert drift.mean() <= FAST_MEAN, json.dumps([float(drift.mean()), float(drift.max())])
    assert drift.max() <= FAST_MAX, json.dumps([float(drift.mean()), float(drift.max())])


def test_bfloat16_stays_within_its_tolerance(both: tuple[tuple[str, Path], Pairs, Plain]) -> None:
    weights, pairs, wanted = both
    drift = differences(ours(weights, pairs, preprocess="exact", precision="bfloat16"), wanted)
    assert drift.mean() <= BFLOAT16_MEAN, json.dumps([float(drift.mean()), float(drift.max())])
    assert drift.max() <= BFLOAT16_MAX, json.dumps([float(drift.mean()), float(drift.max())])


def test_resizing_in_floats_as_on_a_device_gives_pillows_levels(photos: Pairs) -> None:
    levels = []
    for content in photos.images:
        rgb = render(open_image(content, max_pixels=LIMITS.max_pixels, max_side=LIMITS.max_side))
        height, width = rgb.shape[:2]
        target = (224, 224 * width // height) if height <= width else (224 * height // width, 224)
        wanted = np.asarray(Image.fromarray(rgb).resize(target[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
        floats = resize_floats(torch.from_numpy(rgb), target, "bicubic").numpy()
        apart = [np.abs(found - wanted) for found in (floats, resize_bytes(rgb, target, "bicubic"))]
        levels += [(found.max(), found.mean()) for found in apart]
    assert max(most for most, _ in levels) <= 2
    assert max(mean for _, mean in levels) <= 0.02


def test_order_changes_nothing(weights: tuple[str, Path], pairs: Pairs) -> None:
    there = ours(weights, pairs)
    back = ours(weights, Pairs(pairs.images[::-1], pairs.texts[::-1]))
    assert np.array_equal(there.images, back.images[::-1])
    assert np.array_equal(there.texts, back.texts[::-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_scores(both: tuple[tuple[str, Path], Pairs, Plain]) -> None:
    weights, pairs, wanted = both
    config = ScorerConfig(model=weights[0], pretrained=str(weights[1]), batch_size=16)
    scorer = Scorer.load(config, "cuda", 2)
    drift = differences(Plain(embed(scorer, pairs.images), scorer.encode_texts(pairs.texts)), wanted)
    assert drift.mean() <= FAST_MEAN
    assert drift.max() <= FAST_MAX
