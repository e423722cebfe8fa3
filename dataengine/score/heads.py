"""Heads: small networks that grade an image by its embedding, such as an aesthetic predictor.

A weights file in, one float32 per embedding out. Two shapes are known: a linear layer (`weight`, `bias`), and
the layers of the improved aesthetic predictor (`layers.N.weight`, `layers.N.bias`), which has no activations
between them, and dropout in training only. What a grade means is decided at select.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import ConfigError
from dataengine.score.weights import BUILTIN, UNREADABLE, builtin_weights

_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class Head:
    """Linear layers, applied one after the other."""

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    """(weight [out, in], bias [out]) of each; the last one has one output."""
    sha256: str
    """Of the weights file."""

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """One grade per unit embedding [n, dim]: float32 [n]; summed in float64."""
        values = embeddings.astype(np.float64)
        for weight, bias in self.layers:
            values = values @ weight.T.astype(np.float64) + bias
        return values[:, 0].astype(np.float32)


def load_head(weights: str, dim: int) -> Head:
    """The head in a .safetensors or weights-only .pth file, or `builtin:NAME`, for embeddings [n, dim].

    Raises ConfigError when there is no such file, it is no head, or it is made for another dimension.
    """
    path = builtin_weights(weights.removeprefix(BUILTIN), "head") if weights.startswith(BUILTIN) else Path(weights)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"head {weights}: cannot read the weights: {error}; give the path of a file") from error
    layers = _layers(_tensors(content, path.suffix, weights), weights)
    wanted = layers[0][0].shape[1]
    if wanted != dim:
        raise ConfigError(
            f"head {weights}: made for embeddings of {wanted} numbers, but the scorer's have {dim}; "
            f"name the head that was trained on this model"
        )
    return Head(layers, hashlib.sha256(content).hexdigest())


def _tensors(content: bytes, suffix: str, weights: str) -> dict[str, NDArray[np.float32]]:
    import torch
    from safetensors.torch import load

    try:
        if suffix == ".safetensors":
            tensors = load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(f"head {weights}: no weights-only file: {error}; convert it to .safetensors") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ConfigError(f"head {weights}: wanted a table of named tensors; save the model's state_dict()")
    return {str(name): value.to(torch.float32).numpy() for name, value in tensors.items()}


def _layers(
    tensors: Mapping[str, NDArray[np.float32]], weights: str
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    named = tensors if set(tensors) != {"weight", "bias"} else {f"layers.0.{name}": tensors[name] for name in tensors}
    matches = [_LAYER.fullmatch(name) for name in named]
    numbers = sorted({int(match[1]) for match in matches if match})
    wanted = {f"layers.{number}.{kind}" for number in numbers for kind in ("weight", "bias")}
    if not numbers or set(named) != wanted:
        raise ConfigError(
            f"head {weights}: holds {sorted(tensors)[:8]}, wanted weight and bias, or both of each layers.N"
        )
    layers = tuple((named[f"layers.{number}.weight"], named[f"layers.{number}.bias"]) for number in numbers)
    shapes = [weight.shape for weight, _ in layers]
    is_chain = all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers)
    if not is_chain or [shape[1] for shape in shapes[1:]] + [1] != [shape[0] for shape in shapes]:
        raise ConfigError(f"head {weights}: layers of shapes {shapes} do not lead to one number; is it another model?")
    if not all(np.isfinite(weight).all() and np.isfinite(bias).all() for weight, bias in layers):
        raise ConfigError(f"head {weights}: holds infinite or undefined weights; fetch the file again")
    return layers
