"""Scorer: one open_clip model; pixels and texts in, unit embeddings out.

Every batch has the same shape, the last one padded, so that an embedding depends on nothing but its own image
or text. Towers may run in bfloat16; embeddings are normalised in float32. Preprocessing, tokens and
activation are the model's own, and are told in `provenance`. It knows no tables and decodes no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import ConfigError
from dataengine.score.tokens import Tokenizer
from dataengine.score.weights import UNREADABLE, clip_weights, file_sha256

if TYPE_CHECKING:
    import torch

    from dataengine.config.score import ScorerConfig

MAX_ASPECT = 16
"""Longer images are cut to their middle: a 1 × 20,000 image scaled to a short side of 224 takes 3 GB."""

_LIBRARIES = ("open_clip_torch", "pillow", "torch", "torchvision")


@dataclass(frozen=True)
class Scorer:
    """A loaded model; `dim` is the length of its embeddings."""

    config: ScorerConfig
    weights: Path
    device: str
    dim: int
    model: Any
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Tokenizer

    @classmethod
    def load(cls, config: ScorerConfig, device: str, num_threads: int) -> Scorer:
        """The model that `config` names, on `device` (`cpu` or `cuda`), with `num_threads` CPU threads.

        Sets torch to deterministic kernels for the whole process. Raises ConfigError for a model, tag, file
        or device that does not exist or does not fit, and StorageError for weights that cannot be fetched.
        """
        import open_clip

        weights = clip_weights(config.model, config.pretrained)
        _settle_torch(device, num_threads)
        model, preprocess = _build(config, weights, device)
        dim = open_clip.get_model_config(config.model)["embed_dim"]
        return cls(config, weights, device, dim, model, preprocess, Tokenizer(config.model))

    def encode_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit embeddings of upright RGB images [height, width, 3]: float32 [n, dim]."""
        return self._in_batches(rgbs, self._encode_image_batch)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit embeddings of texts: float32 [n, dim]; what exceeds the model's context is not seen."""
        return self._in_batches(texts, self._encode_text_batch)

    def count_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(tokens of each text without ends, before truncation; whether it is cut): int32 [n], bool [n]."""
        return self.tokenizer.count(texts)

    def provenance(self) -> dict[str, Any]:
        """Everything the embeddings depend on but the images and texts, as plain JSON values."""
        from open_clip.transformer import QuickGELU

        has_quick_gelu = any(isinstance(module, QuickGELU) for module in self.model.modules())
        shape = self.model.visual.preprocess_cfg
        return {
            "model": self.config.model,
            "pretrained": self.config.pretrained,
            "weights_sha256": file_sha256(self.weights),
            "activation": "quick_gelu" if has_quick_gelu else "gelu",
            "preprocess": {name: shape[name] for name in ("size", "mean", "std", "interpolation", "resize_mode")},
            "context_length": self.tokenizer.context_length,
            "precision": self.config.precision,
            "device": self.device,
            "libraries": {name: version(name) for name in _LIBRARIES},
        }

    def _in_batches(
        self, items: Sequence[Any], encode: Callable[[Sequence[Any]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        size = self.config.batch_size
        batches = [encode(items[start : start + size]) for start in range(0, len(items), size)]
        return np.concatenate(batches) if batches else np.empty((0, self.dim), dtype=np.float32)

    def _encode_image_batch(self, rgbs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        import torch
        from PIL import Image

        pixels = torch.stack([self.preprocess(Image.fromarray(_middle(rgb))) for rgb in rgbs])
        return self._encode(self.model.encode_image, pixels)

    def _encode_text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._encode(self.model.encode_text, self.tokenizer.read(texts))

    def _encode(self, tower: Callable[[Any], Any], inputs: torch.Tensor) -> NDArray[np.float32]:
        """Unit rows for at most a batch of `inputs`, which is padded with its first one."""
        import torch

        padding = inputs[:1].expand(self.config.batch_size - len(inputs), *inputs.shape[1:])
        batch = torch.cat([inputs, padding]).to(self.device)
        is_low = self.config.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=is_low):
            outputs = tower(batch)
        rows: NDArray[np.float32] = outputs[: len(inputs)].float().cpu().numpy()
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise ConfigError(
                f"scorer {self.config.model}: gives embeddings of length zero or not finite; "
                f"check its weights, or set `precision: float32`"
            )
        return rows / lengths


def _settle_torch(device: str, num_threads: int) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("score: torch sees no GPU here; set execution.score.num_gpus to 0")
    # cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False  # 10 mantissa bits would change float32 scores in the third digit
    torch.backends.cuda.matmul.allow_tf32 = False


def _build(config: ScorerConfig, weights: Path, device: str) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    import open_clip

    tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            config.model,
            # A tag also brings its own mean and deviation of pixels; a file has open_clip's defaults.
            pretrained=config.pretrained if tag else str(weights),
            device=device,
            # open_clip only warns when a tag was trained with QuickGELU and the model is built without.
            force_quick_gelu=bool(tag.get("quick_gelu")),
        )
    except UNREADABLE as error:
        text = str(error)
        raise ConfigError(
            f"scorer {config.model}: the weights {config.pretrained} do not load: {text[:500]}; "
            f"name the model that they were trained as"
        ) from error
    return model.eval(), preprocess


def _middle(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, its long side cut to MAX_ASPECT times its short side around the centre."""
    height, width = rgb.shape[:2]
    most = MAX_ASPECT * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return np.ascontiguousarray(rgb[top : top + most, left : left + most])
