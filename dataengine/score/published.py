"""Published: how the weights of an embedding were trained, as far as a weights file does not say it.

An architecture has no activation and no pixels of its own: OpenAI's ViT-L-14 has QuickGELU, LAION's has GELU, and
SigLIP reads other pixels than both. open_clip notes this beside each tag; a file has lost it. So a file is built as the
tag was that the scorer's `embedding` names, and a model that claims an embedding must run with its activation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    from dataengine.config.score import ScorerConfig

_PIXELS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Training:
    """What a tag says of its weights."""

    quick_gelu: bool
    pixels: dict[str, Any] = field(default_factory=dict)
    """Of mean, std, interpolation and resize_mode those that are not open_clip's defaults, as plain JSON values."""


def training_of(embedding: str) -> Training | None:
    """How the weights of `embedding` (model/tag) were trained; None when open_clip knows no such tag."""
    import open_clip

    model, _, name = embedding.rpartition("/")
    tag = open_clip.get_pretrained_cfg(model, name)
    if not tag:
        return None
    defaults = open_clip.transform.PreprocessCfg()
    pixels = {name: _plain(tag[name]) for name in _PIXELS if tag.get(name) is not None}
    changed = {name: value for name, value in pixels.items() if value != _plain(getattr(defaults, name))}
    return Training(bool(tag.get("quick_gelu")) or _has_quick_gelu(model), changed)


def settings_of(config: ScorerConfig) -> dict[str, Any]:
    """What open_clip must be told to build a weights file as the tag that `embedding` names; empty for all others.

    Plain JSON values, and only those that change anything, so that they can stand in a recipe. Raises ConfigError when
    the architecture cannot be what `embedding` says.
    """
    training = training_of(config.embedding) if config.is_file and config.embedding else None
    if training is None:
        return {}
    assert config.embedding is not None
    named = config.embedding.rpartition("/")[0]
    is_quick = _has_quick_gelu(config.model)
    if _plain_name(named) != _plain_name(config.model) or (is_quick and not training.quick_gelu):
        raise ConfigError(
            f"scorer {config.model}: weights of the embedding {config.embedding} belong into the architecture {named}; "
            f"set `model` to it, or `embedding` to what the file is"
        )
    quick = {"force_quick_gelu": True} if training.quick_gelu and not is_quick else {}
    return quick | {f"image_{name}": value for name, value in training.pixels.items()}


def check_activation(config: ScorerConfig, activation: str) -> None:
    """Raises ConfigError when a model runs with another activation than the embedding that its config says it is."""
    training = training_of(config.embedding) if config.embedding else None
    if training is not None and training.quick_gelu != (activation == "quick_gelu"):
        raise ConfigError(
            f"scorer {config.model}: runs with {activation}, and the embedding {config.embedding} with "
            f"{'quick_gelu' if training.quick_gelu else 'gelu'}; set `embedding` to what the model is"
        )


def _has_quick_gelu(model: str) -> bool:
    import open_clip

    return bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))


def _plain_name(model: str) -> str:
    return model.removesuffix("-quickgelu")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
