"""Heads: small networks that grade an image by its embedding, such as an aesthetic predictor or a NSFW classifier.

A weights file in, one float32 per embedding out. A head is linear layers in the order of their names, with one kind of
activation between them or none; LAION's improved aesthetic predictor has none. It names the embedding it was trained
on, and is refused for any other: shapes alone would fit, and the grades would mean nothing. What a grade means is
decided at select.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from dataengine.config.score import plain_embedding
from dataengine.errors import ConfigError
from dataengine.score.weights import head_path, reason

if TYPE_CHECKING:
    from dataengine.config.score import HeadConfig, ScorerConfig

_EMBEDDINGS = {
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": "ViT-B-32/openai",
    "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0": "ViT-B-16/openai",
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": "ViT-L-14/openai",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": "ViT-L-14/openai",
    "609188de9313f0206955d5a24a65829be61268818cad1e4d76c4468512b209a7": "tiny-clip/builtin",
}
"""By SHA-256: LAION's sa_0_4_vit_{b_32,b_16,l_14}_linear.pth and sac+logos+ava1-l14-linearMSE.pth, and our own."""

_FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
"""Kinds of .safetensors, and how NumPy reads them; it has no bfloat16."""

_TENSOR = re.compile(r"(?:(.+)\.)?(weight|bias)")

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Weight [out, in] and bias [out]."""


@dataclass(frozen=True)
class Head:
    """Linear layers, applied one after the other."""

    layers: tuple[Layer, ...]
    sha256: str
    """Of the weights file."""
    embedding: str
    """What it was trained on: model/pretrained."""
    activation: str = "none"
    output: str = "value"
    index: int = 0

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """One grade per unit embedding [n, dim]: float32 [n]; summed in float64. Not finite where it overflows."""
        values = embeddings.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            for number, (weight, bias) in enumerate(self.layers):
                values = _ACTIVATIONS[self.activation](values) if number else values
                values = values @ weight.T.astype(np.float64) + bias
            return _OUTPUTS[self.output](values)[:, self.index].astype(np.float32)

    def provenance(self) -> dict[str, Any]:
        """Everything a grade depends on but the embedding, as plain JSON values."""
        told = {"activation": self.activation, "output": self.output, "index": self.index}
        return {"weights_sha256": self.sha256, "embedding": self.embedding, **told}


def identify_head(config: HeadConfig, scorer: ScorerConfig) -> str:
    """The SHA-256 of a head's file, when a run is planned.

    Raises ConfigError when the file cannot be read and the config does not say what it is, when it is no head, or when
    it was trained on another embedding than the scorer's.
    """
    path = head_path(config.weights)
    where = f"head {config.weights}"
    if config.sha256 is not None and not path.is_file():
        known = config.embedding or _EMBEDDINGS.get(config.sha256)
        if known is not None:
            _check_embedding(known, scorer, where)
        return config.sha256
    return _read(path, config, scorer, where).sha256


def load_head(config: HeadConfig, scorer: ScorerConfig, dim: int, identified: str | None = None) -> Head:
    """The head that `config` names, for unit embeddings [n, dim] of `scorer`.

    `identified` is what `identify_head` said when the run was planned. Raises ConfigError when there is no such file,
    it is another than planned, it is no head, or it was trained on another embedding.
    """
    path = head_path(config.weights)
    where = f"head {config.weights}"
    head = _read(path, config, scorer, where)
    if identified not in (None, head.sha256):
        raise ConfigError(
            f"{where}: hashes to {head.sha256}, the run was planned with {identified}; give this machine the same file"
        )
    made_for = head.layers[0][0].shape[1]
    if made_for != dim:
        raise ConfigError(f"{where}: made for embeddings of {made_for} numbers, the scorer's have {dim}")
    return head


def _read(path: Path, config: HeadConfig, scorer: ScorerConfig, where: str) -> Head:
    content, sha256 = _content(path, config, where)
    embedding = _trained_on(config, sha256, content, where)
    _check_embedding(embedding, scorer, where)
    layers = _layers(_tensors(content, path.suffix, where), where)
    num_outputs = layers[-1][0].shape[0]
    if config.index >= num_outputs or (config.output == "softmax" and num_outputs == 1):
        raise ConfigError(
            f"{where}: has {num_outputs} outputs, wanted number {config.index} of its {config.output}; set `index` and "
            f"`output` to what it was trained for"
        )
    return Head(layers, sha256, embedding, config.activation, config.output, config.index)


def _content(path: Path, config: HeadConfig, where: str) -> tuple[bytes, str]:
    """The file and its SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot read the weights: {error}; give the path of a file, and its `sha256` when only the "
            f"workers have it"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if config.sha256 not in (None, sha256):
        raise ConfigError(f"{where}: hashes to {sha256}, the config says {config.sha256}; fetch the file again")
    return content, sha256


def _trained_on(config: HeadConfig, sha256: str, content: bytes, where: str) -> str:
    """The embedding that a head says it was trained on: known by its hash, written in its file, or in the config."""
    known = _EMBEDDINGS.get(sha256) or _metadata(content).get("embedding")
    said = config.embedding or known
    if said is None:
        raise ConfigError(
            f"{where}: does not say which embedding it was trained on; set `embedding`, such as ViT-L-14/openai"
        )
    if known is not None and plain_embedding(said) != plain_embedding(known):
        raise ConfigError(f"{where}: was trained on {known}, the config says {said}; remove `embedding`")
    return said


def _check_embedding(embedding: str, scorer: ScorerConfig, where: str) -> None:
    if plain_embedding(embedding) != plain_embedding(scorer.embedding_name):
        raise ConfigError(
            f"{where}: was trained on the embedding {embedding}, and the scorer's is {scorer.embedding_name}; name the "
            f"head that was trained on this model, or give the scorer's `embedding` when its weights are those"
        )


def _tensors(content: bytes, suffix: str, where: str) -> dict[str, NDArray[np.float32]]:
    # Without torch, which takes seconds to import, for what most plans name.
    read = _read_safetensors if suffix == ".safetensors" else _read_pickled
    try:
        return read(content)
    except Exception as error:  # a damaged file raises whatever its bytes lead a loader to
        raise ConfigError(
            f"{where}: no weights-only file of named float tensors ({reason(error)}); save the model's state_dict(), "
            f"best as .safetensors"
        ) from error


def _read_safetensors(content: bytes) -> dict[str, NDArray[np.float32]]:
    found = {}
    for name, entry in safetensors.deserialize(content):  # type: ignore[no-untyped-call]
        if entry["dtype"] not in _FLOATS:
            raise TypeError(f"{name} holds {entry['dtype']}")
        values = np.frombuffer(entry["data"], _FLOATS[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        found[name] = _as_float32(values).reshape(entry["shape"])
    return found


def _read_pickled(content: bytes) -> dict[str, NDArray[np.float32]]:
    import torch

    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(tensors, Mapping):
        raise TypeError(f"it holds a {type(tensors).__name__}")
    found = {}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} holds {getattr(value, 'dtype', type(value).__name__)}")
        # A sparse or repeated one could be terabytes of a few bytes.
        if value.layout != torch.strided or value.numel() > len(content):
            raise TypeError(f"{name} is more than its file holds")
        found[str(name)] = _as_float32(value.detach().to(torch.float64).numpy())
    return found


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # is not finite then, and refused for it
        return values.astype(np.float32)


def _metadata(content: bytes) -> Mapping[str, str]:
    """The metadata of a .safetensors file (8 bytes of length, then a JSON header); empty for any other file."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found = dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _layers(tensors: Mapping[str, NDArray[np.float32]], where: str) -> tuple[Layer, ...]:
    """The layers in the natural order of their names: `net.2` comes before `net.10`."""
    matches = {name: _TENSOR.fullmatch(name) for name in tensors}
    stems = sorted({match[1] or "" for match in matches.values() if match}, key=_natural)
    wanted = {f"{stem}.{kind}".removeprefix(".") for stem in stems for kind in ("weight", "bias")}
    if not stems or set(tensors) != wanted:
        raise ConfigError(
            f"{where}: holds {sorted(tensors)[:8]}, wanted the weight and bias of linear layers and nothing else"
        )
    layers = tuple((tensors[f"{s}.weight".removeprefix(".")], tensors[f"{s}.bias".removeprefix(".")]) for s in stems)
    shapes = [weight.shape for weight, _ in layers]
    is_chain = all(weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers)
    if not is_chain or [shape[1] for shape in shapes[1:]] != [shape[0] for shape in shapes[:-1]]:
        raise ConfigError(f"{where}: layers of shapes {shapes} do not follow one another; is it another model?")
    if not all(np.isfinite(weight).all() and np.isfinite(bias).all() for weight, bias in layers):
        raise ConfigError(f"{where}: holds infinite or undefined weights; fetch the file again")
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _gelu(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # torch's default, with the error function; NumPy has none, and a head is small.
    return values * (0.5 + 0.5 * np.vectorize(math.erf, otypes=[np.float64])(values / np.sqrt(2)))


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(values - values.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


_Elementwise = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_ACTIVATIONS: dict[str, _Elementwise] = {
    "none": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "gelu": _gelu,
    "silu": lambda values: values * _sigmoid(values),
    "tanh": np.tanh,
}
_OUTPUTS: dict[str, _Elementwise] = {"value": lambda values: values, "sigmoid": _sigmoid, "softmax": _softmax}
