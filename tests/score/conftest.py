"""A small open_clip model with random weights, registered like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dataengine.config.score import ScorerConfig
from dataengine.score.clip import Scorer

MODEL = "random-tiny-clip"
SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def make_weights(folder: Path, seed: int) -> Path:
    """Random weights of MODEL."""
    torch.manual_seed(seed)
    path = folder / f"{MODEL}-{seed}.safetensors"
    save_file({name: value.contiguous() for name, value in open_clip.create_model(MODEL).state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's weights; it is registered from here on."""
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{MODEL}.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(folder)
    return make_weights(folder, 0)


@pytest.fixture(scope="session")
def load(weights: Path) -> Callable[..., Scorer]:
    """Loads the model with settings of ScorerConfig."""

    def loaded(**settings: object) -> Scorer:
        fields = {"model": MODEL, "pretrained": str(weights), "batch_size": 4} | settings
        return Scorer.load(ScorerConfig.model_validate(fields), "cpu", 1)

    return loaded


@pytest.fixture(scope="session")
def scorer(load: Callable[..., Scorer]) -> Scorer:
    """The model as it comes; never changed."""
    return load()
