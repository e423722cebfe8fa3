"""Scorer: one open_clip model; prepared pixels and tokens in, unit embeddings out.

Every batch has the same shape, the last one padded, so that an embedding depends on nothing but its own image
or text. Towers may run in bfloat16; embeddings are normalised in float32. Preprocessing, tokens and
activation are the model's own, and are told in `provenance`. It knows no tables and decodes no images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import ConfigError
from dataengine.imaging import whole
from dataengine.score.memory import MemoryShort, is_short_of_memory
from dataengine.score.preprocess import Preprocess
from dataengine.score.published import check_activation, settings_of
from dataengine.score.texts import TextTower
from dataengine.score.tokens import Tokenizer, Tokens
from dataengine.score.weights import clip_weights, file_sha256, reason, weights_identity

if TYPE_CHECKING:
    import torch

    from dataengine.config.score import ScorerConfig

_LIBRARIES = ("numpy", "open_clip_torch", "opencv-python-headless", "pillow", "simplejpeg", "torch", "torchvision")


@dataclass
class Scorer:
    """A loaded model; `dim` is the length of its embeddings, `batch_size` shrinks when memory is short."""

    config: ScorerConfig
    weights_sha256: str
    device: str
    dim: int
    batch_size: int
    model: Any
    image_tower: Callable[[torch.Tensor], torch.Tensor]
    text_tower: Callable[[torch.Tensor], torch.Tensor]
    texts: TextTower
    preprocess: Preprocess
    tokenizer: Tokenizer

    @classmethod
    def load(cls, config: ScorerConfig, device: str, num_threads: int, identified: str | None = None) -> Scorer:
        """The model that `config` names, on `device` (`cpu` or `cuda`), with `num_threads` CPU threads.

        `identified` is what `identify_scorer` said when the run was planned. Sets torch to deterministic kernels for
        the whole process. Raises ConfigError for a model, tag, file or device that does not exist, does not fit or is
        another than planned, and StorageError for weights that cannot be fetched.
        """
        weights = clip_weights(config)
        sha256 = _checked_sha256(config, weights, identified)
        settle_torch(device, num_threads)
        model, transform = _build(config, weights, device)
        tokenizer = Tokenizer(config.model)
        texts = TextTower.of(model, tokenizer.context_length)
        shape = model.visual.preprocess_cfg
        compiled = _compiled if config.compile else _uncompiled
        return cls(
            config=config,
            weights_sha256=sha256,
            device=device,
            dim=_dim(config.model),
            batch_size=config.batch_size,
            model=model,
            image_tower=compiled(model.encode_image),
            text_tower=compiled(texts),
            texts=texts,
            preprocess=Preprocess.of(transform, shape, config.preprocess, device),
            tokenizer=tokenizer,
        )

    def encode_images(self, rgbs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit embeddings of upright RGB images [height, width, 3]: float32 [n, dim].

        Raises ConfigError where one is not finite, as with broken weights, and MemoryShort.
        """
        prepared = [self.preprocess.prepare(whole(rgb)) for rgb in rgbs]
        parts = [prepared[start : start + self.batch_size] for start in range(0, len(prepared), self.batch_size)]
        raw = [self.run_images(self.lay_out(part))[: len(part)] for part in parts]
        return self._all_good(*self.unit_rows(raw))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit embeddings of texts: float32 [n, dim]; what exceeds the model's context is not seen.

        Raises ConfigError where one is not finite, and MemoryShort.
        """
        return self._all_good(*self.encode_tokens(self.tokenizer.read(texts)))

    def lay_out(self, prepared: Sequence[Any]) -> torch.Tensor:
        """At most a batch of prepared images as a whole one on the device, padded with the first image.

        Raises MemoryShort.
        """
        import torch

        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        padded = [*prepared, *[prepared[0]] * (self.batch_size - len(prepared))]
        with self._room(), torch.inference_mode():
            return self.preprocess.finish(padded, layout)

    def run_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Raw embeddings of a batch, still on the device. Raises MemoryShort."""
        with self._room(), self._precision():
            return self.image_tower(batch)

    def encode_tokens(
        self, tokens: Tokens, after_batch: Callable[[], None] = lambda: None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Unit embeddings [n, dim] of texts, and whether each is finite; zeros where it is not. Raises MemoryShort."""
        import torch

        order, raw = [np.empty(0, np.int64)], []
        for rows, ids in self.texts.batches(tokens.ids, self.batch_size):
            with self._room(), self._precision():
                raw.append(self.text_tower(torch.from_numpy(ids).to(self.device))[: len(rows)])
            order.append(rows)
            after_batch()
        units, good = self.unit_rows(raw)
        back = np.argsort(np.concatenate(order), kind="stable")
        return units[back], good[back]

    def unit_rows(self, raw: Sequence[torch.Tensor]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(float32 [n, dim] of length 1, whether each row has a length); rows without one are zeros."""
        rows = [part.float().cpu().numpy() for part in raw]
        values = np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        good = np.isfinite(lengths) & (lengths > 0)
        return np.divide(values, lengths, out=np.zeros_like(values), where=good), good[:, 0]

    def provenance(self) -> dict[str, Any]:
        """Everything the embeddings depend on but the images and texts, as plain JSON values."""
        return {
            "model": self.config.model,
            "pretrained": "file" if self.config.is_file else self.config.pretrained,
            "weights_sha256": self.weights_sha256,
            "activation": _activation(self.model),
            "preprocess": self.preprocess.provenance(),
            "text": self.texts.variant,
            "context_length": self.tokenizer.context_length,
            "precision": self.config.precision,
            "device": _device_class(self.device),
            "batch_size": self.batch_size,
            "compile": self.config.compile,
            "channels_last": self.config.channels_last,
            "libraries": {name: version(name) for name in _LIBRARIES},
        }

    def _all_good(self, units: NDArray[np.float32], good: NDArray[np.bool_]) -> NDArray[np.float32]:
        if not good.all():
            raise ConfigError(
                f"scorer {self.config.model}: gives embeddings of length zero or not finite; "
                f"check its weights, or set `precision: float32`"
            )
        return units

    @contextmanager
    def _precision(self) -> Iterator[None]:
        import torch

        is_low = self.config.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=is_low):
            yield

    @contextmanager
    def _room(self) -> Iterator[None]:
        """When memory is short, batches are half as large from now on. Raises MemoryShort, at last ConfigError."""
        import torch

        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_short_of_memory(error):
                raise
            if self.batch_size == 1:
                raise ConfigError(
                    f"scorer {self.config.model}: not even one image at a time fits the memory of {self.device}: "
                    f"{error}; give each worker more memory, or more of a GPU (execution.score.num_gpus)"
                ) from error
            self.batch_size //= 2
            if self.device != "cpu":
                torch.cuda.empty_cache()
            raise MemoryShort(f"batches of {self.batch_size} from now on") from error


def _checked_sha256(config: ScorerConfig, weights: Path, identified: str | None) -> str:
    """The SHA-256 of the weights; raises ConfigError when they are not those of the config or the plan."""
    found = file_sha256(weights)
    if config.weights_sha256 is not None and config.weights_sha256 != found:
        raise _another(config, weights, found, config.weights_sha256)
    mine = weights_identity(config, found)
    # A tag or a name on the hub is known by its name when a run is planned.
    if identified is not None and identified.startswith("sha256:") and identified != mine:
        raise _another(config, weights, mine, identified)
    return found


def _another(config: ScorerConfig, weights: Path, found: str, planned: str) -> ConfigError:
    return ConfigError(
        f"scorer {config.model}: {weights} hashes to {found.removeprefix('sha256:')}, the run was planned with "
        f"{planned.removeprefix('sha256:')}; give this machine "
        f"the same file"
    )


def _activation(model: Any) -> str:
    from open_clip.transformer import QuickGELU

    return "quick_gelu" if any(isinstance(module, QuickGELU) for module in model.modules()) else "gelu"


def _dim(model: str) -> int:
    import open_clip

    return int(open_clip.get_model_config(model)["embed_dim"])


def _device_class(device: str) -> str:
    import torch

    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} {torch.cuda.get_device_name()}"


def _compiled(tower: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    # A shape for images and one per length of text; each is compiled once.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(tower, dynamic=False)
    return compiled


def _uncompiled(tower: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return tower


def settle_torch(device: str, num_threads: int) -> None:
    """Set this process's threads, and kernels that repeat their bits. Raises ConfigError where there is no GPU."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("score: torch sees no GPU here; set execution.score.num_gpus to 0")
    # cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False  # 10 mantissa bits would change float32 scores in the third digit
    torch.backends.cuda.matmul.allow_tf32 = False


def _build(config: ScorerConfig, weights: Path, device: str) -> tuple[Any, Any]:
    import open_clip

    names: dict[str, Any] = {}
    if config.pretrained is not None:
        tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
        # A tag brings its own pixels. And open_clip only warns when one was trained with QuickGELU and the model is
        # built without.
        names = {"force_quick_gelu": bool(tag.get("quick_gelu"))} if tag else settings_of(config)
        names["pretrained"] = config.pretrained if tag else str(weights)
    try:
        model, transform = open_clip.create_model_from_pretrained(config.model, device=device, **names)
    except Exception as error:
        raise ConfigError(
            f"scorer {config.model}: the weights {config.pretrained or weights} do not load ({reason(error)}); name "
            f"the model that they were trained as"
        ) from error
    check_activation(config, _activation(model))
    model = model.eval()
    if config.channels_last:
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model, transform
