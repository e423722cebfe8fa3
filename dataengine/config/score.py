"""Score: which CLIP models and heads look at every image and caption."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dataengine.config.base import EXECUTION, Config

ScoreName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]


class HeadConfig(Config):
    """A linear or MLP head on a scorer's normalised image embedding."""

    weights: str
    """A .safetensors or weights-only .pth file, or `builtin:tiny-aesthetic`."""


class ScorerConfig(Config):
    """One open_clip model; its scores and embeddings carry its name."""

    model: str
    """An open_clip architecture (`ViT-L-14`), or `tiny-clip`, the built-in model for tests."""
    pretrained: str
    """An open_clip tag (`openai`), a weights file, or `builtin`."""
    heads: dict[ScoreName, HeadConfig] = {}
    """Column name → head."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the towers; normalisation and dot products are float32 always."""
    batch_size: Annotated[int, Field(ge=1, json_schema_extra=EXECUTION)] = 64
    """Images or captions a tower sees at once; batches are padded to it."""


class ScoreConfig(Config):
    """Everything about scoring."""

    scorers: Annotated[dict[ScoreName, ScorerConfig], Field(min_length=1)]
    """Name → model. The first one gives `clip_score` and the measures."""
