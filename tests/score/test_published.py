"""Published: a weights file is built as the tag that its embedding names, and nothing runs as what it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
from pydantic import ValidationError

from dataengine.config.score import ScorerConfig
from dataengine.errors import ConfigError
from dataengine.score.clip import Scorer
from dataengine.score.published import settings_of, training_of
from dataengine.score.weights import identify_scorer
from tests.score.conftest import MODEL
from tests.score.test_clip import pictures

TAG = {"quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
NAME = f"{MODEL}/like_dfn"


@pytest.fixture(autouse=True)
def _tag(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"like_dfn": TAG | {"file": str(weights), "resize_mode": "squash"}, "like_laion": {"file": str(weights)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, MODEL, tags)


def file_of(weights: Path, embedding: str | None) -> ScorerConfig:
    return ScorerConfig(model=MODEL, pretrained=str(weights), embedding=embedding)


@pytest.mark.parametrize(
    ("embedding", "quick_gelu", "pixels"),
    [
        ("ViT-L-14/openai", True, {}),
        ("ViT-L-14-quickgelu/openai", True, {}),
        ("ViT-L-14/laion2b_s32b_b82k", False, {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}),
        ("ViT-B-32/laion2b_s34b_b79k", False, {}),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", True, {}),
        (
            "ViT-B-16-SigLIP/webli",
            False,
            {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"},
        ),
    ],
)
def test_a_tag_says_how_it_was_trained(embedding: str, quick_gelu: bool, pixels: dict[str, object]) -> None:
    found = training_of(embedding)
    assert found is not None
    assert (found.quick_gelu, found.pixels) == (quick_gelu, pixels)
    assert training_of("some-model/some-tag") is None


def test_a_file_is_built_as_the_tag_that_its_embedding_names(load: Callable[..., Scorer]) -> None:
    tag, file = load(pretrained="like_dfn"), load(embedding=NAME)
    names = ("activation", "preprocess", "weights_sha256")
    assert [file.provenance()[name] for name in names] == [tag.provenance()[name] for name in names]
    assert file.provenance()["activation"] == "quick_gelu"
    assert file.provenance()["preprocess"]["resize_mode"] == "squash"
    images = pictures(3)
    assert np.array_equal(file.encode_images(images), tag.encode_images(images))
    assert not np.allclose(file.encode_images(images), load().encode_images(images), atol=1e-3)


def test_what_a_file_is_built_as_is_part_of_what_it_is(weights: Path) -> None:
    bare = identify_scorer(file_of(weights, None))
    assert identify_scorer(file_of(weights, f"{MODEL}/mine")) == bare
    assert identify_scorer(file_of(weights, f"{MODEL}/like_laion")) == bare  # says what a file is taken for anyway
    named = identify_scorer(file_of(weights, NAME))
    assert named.startswith(f"{bare} ")
    assert json.loads(named.removeprefix(bare)) == {
        "force_quick_gelu": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.5, 0.5],
        "image_interpolation": "bilinear",
        "image_resize_mode": "squash",
    }
    with pytest.raises(ConfigError, match="the run was planned with"):
        Scorer.load(file_of(weights, NAME), "cpu", 1, bare)


def test_a_file_is_not_taken_for_another_architecture(weights: Path) -> None:
    for model, embedding in (("ViT-B-32", "ViT-L-14/openai"), ("ViT-L-14-quickgelu", "ViT-L-14/laion2b_s32b_b82k")):
        config = ScorerConfig(model=model, pretrained=str(weights), embedding=embedding)
        with pytest.raises(ConfigError, match=f"{embedding} belong into the architecture ViT-L-14"):
            identify_scorer(config)
    both_names = ScorerConfig(model="ViT-L-14-quickgelu", pretrained=str(weights), embedding="ViT-L-14/openai")
    assert settings_of(both_names) == {}  # the architecture says it already


def test_a_model_that_runs_with_another_activation_than_its_embedding_is_refused(
    load: Callable[..., Scorer], weights: Path, tmp_path: Path
) -> None:
    saved = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(saved))
    shutil.copy(weights, tmp_path / "open_clip_model.safetensors")
    folder = {"model": f"local-dir:{tmp_path}", "pretrained": None}
    assert load(**folder, embedding=f"{MODEL}/like_laion").dim == 16
    with pytest.raises(ConfigError, match=f"runs with gelu, and the embedding {NAME} with quick_gelu"):
        load(**folder, embedding=NAME)


@pytest.mark.parametrize(
    ("model", "pretrained", "embedding", "is_right"),
    [
        ("ViT-B-16", "openai", "ViT-B-32/openai", False),  # as long as the other, so that shapes would not tell
        ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32/openai", False),
        ("tiny-clip", "builtin", "ViT-B-32/openai", False),
        ("ViT-B-32", "openai", "ViT-B-32/openai", True),
        ("ViT-B-32-quickgelu", "openai", "ViT-B-32/openai", True),
        ("ViT-B-32", "/w/vit.safetensors", "ViT-B-32/openai", True),
        ("hf-hub:a/b", None, "ViT-B-32/openai", True),
    ],
)
def test_a_tag_is_what_it_is(model: str, pretrained: str | None, embedding: str, is_right: bool) -> None:
    settings = {"model": model, "pretrained": pretrained, "embedding": embedding}
    if is_right:
        assert ScorerConfig.model_validate(settings).embedding_name == embedding
    else:
        with pytest.raises(ValidationError, match=f"{pretrained} of {model} is no {embedding}; remove"):
            ScorerConfig.model_validate(settings)
