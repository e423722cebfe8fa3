"""Score: which CLIP models and heads look at every image and caption."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dataengine.config.base import EXECUTION, Config

ScoreName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\Z")]
EmbeddingName = Annotated[str, Field(pattern=r"^[^\s/]+/[^\s/]+\Z")]

SELF_CONTAINED = ("hf-hub:", "local-dir:")
"""Beginnings of models that bring their weights along, and so take no `pretrained`."""
_WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class HeadConfig(Config):
    """A linear layer or MLP on a scorer's unit image embedding: an aesthetic predictor, a NSFW or watermark classifier.

    Where the file lies is no part of what a head is; its SHA-256 is, and stands in the recipe.
    """

    weights: Annotated[str, Field(json_schema_extra=EXECUTION)]
    """A .safetensors or weights-only .pth file, or `builtin:tiny-aesthetic`."""
    sha256: Annotated[Sha256 | None, Field(json_schema_extra=EXECUTION)] = None
    """What the file must hash to; needed where a run is planned on a machine that has no such file."""
    embedding: Annotated[EmbeddingName | None, Field(json_schema_extra=EXECUTION)] = None
    """The embedding it was trained on, as `ViT-L-14/openai`; needed unless the file is one of LAION's aesthetic heads
    or says so itself (`embedding` in the metadata of a .safetensors file). Any other scorer is refused."""
    activation: Literal["none", "relu", "gelu", "silu", "tanh"] = "none"
    """Between layers; the aesthetic predictors have none."""
    output: Literal["value", "sigmoid", "softmax"] = "value"
    """What becomes of the last layer: itself, its logistic function, or its share among all outputs."""
    index: Annotated[int, Field(ge=0)] = 0
    """Which output of the last layer is the score."""


class ScorerConfig(Config):
    """One open_clip model; its scores and embeddings carry its name.

    Where a weights file lies is no part of what a scorer is; its SHA-256 is, and stands in the recipe.
    """

    model: str
    """An open_clip architecture (`ViT-L-14`), `hf-hub:ORG/REPO`, `local-dir:FOLDER`, or `tiny-clip`, the built-in model
    for tests."""
    pretrained: str | None = None
    """An open_clip tag (`openai`), a weights file, or `builtin`; none for hf-hub: and local-dir:."""
    weights_sha256: Annotated[Sha256 | None, Field(json_schema_extra=EXECUTION)] = None
    """What the weights must hash to; needed where a run is planned on a machine that has no such file."""
    embedding: Annotated[EmbeddingName | None, Field(json_schema_extra=EXECUTION)] = None
    """What heads know its embedding as; null: `model/pretrained`. Say it when `pretrained` is a file: one of
    open_clip's, such as ViT-L-14/openai, also tells activation and pixels, which a file does not hold."""
    heads: dict[ScoreName, HeadConfig] = {}
    """Column name → head."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the towers; normalisation and dot products are float32 always."""
    preprocess: Literal["fast", "exact"] = "fast"
    """`exact`: open_clip's own transform with Pillow, on the picture at full size. `fast`: large pictures are halved
    while decoded, then resized by torch, on the device where that is a GPU."""
    batch_size: Annotated[int, Field(ge=1, json_schema_extra=EXECUTION)] = 64
    """Images a tower sees at once, and as many captions of 16 tokens. Batches are padded to it. Halved for the rest of
    a worker's life when memory runs out."""
    compile: Annotated[bool, Field(json_schema_extra=EXECUTION)] = False
    """Run the towers through torch.compile: a minute at the start of every worker, for faster batches on a GPU."""
    channels_last: Annotated[bool, Field(json_schema_extra=EXECUTION)] = False
    """Lay images out as height, width, channels on the device; faster for convolutional towers."""

    @model_validator(mode="after")
    def _weights_are_named(self) -> Self:
        if self.model.startswith(SELF_CONTAINED) and self.pretrained is not None:
            raise ValueError(f"pretrained: {self.model} brings its own weights; remove this key")
        if not self.model.startswith(SELF_CONTAINED) and self.pretrained is None:
            raise ValueError("pretrained: missing; give an open_clip tag, a weights file or builtin")
        return self

    @model_validator(mode="after")
    def _embedding_does_not_deny_a_tag(self) -> Self:
        is_told = self.is_file or self.pretrained is None
        if not is_told and self.embedding and plain_embedding(self.embedding) != plain_embedding(self._own_name):
            raise ValueError(f"embedding: {self.pretrained} of {self.model} is no {self.embedding}; remove this key")
        return self

    @property
    def is_file(self) -> bool:
        """Whether `pretrained` is the path of a file."""
        return self.pretrained is not None and ("/" in self.pretrained or self.pretrained.endswith(_WEIGHTS_SUFFIXES))

    @property
    def embedding_name(self) -> str:
        """What heads know its embedding as."""
        return self.embedding or self._own_name

    @property
    def _own_name(self) -> str:
        return f"{self.model}/{self.pretrained or ''}"

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.model.startswith("local-dir:"):
            return found | {"model": "local-dir"}
        return found | {"pretrained": "file"} if self.is_file else found


def plain_embedding(embedding: str) -> str:
    """One name for both that OpenAI's weights have: open_clip builds them with QuickGELU under either architecture."""
    model, _, pretrained = embedding.rpartition("/")
    return f"{model.removesuffix('-quickgelu') if pretrained == 'openai' else model}/{pretrained}"


class ScoreConfig(Config):
    """Everything about scoring."""

    scorers: Annotated[dict[ScoreName, ScorerConfig], Field(min_length=1)]
    """Name → model. The first one gives `clip_score` and the measures."""
    parts_per_batch: Annotated[int, Field(ge=1, le=1000, json_schema_extra=EXECUTION)] = 1
    """Parts whose images may share a batch. More than 1 saves padding where parts are small, and gives up that scores
    are the same bits however the work is scheduled; provenance tells how many did. Only parts that are ready at the
    same time do, seldom while a source is still being downloaded. A killed worker loses as many parts."""
