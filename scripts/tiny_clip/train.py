"""Trains the tiny CLIP and its aesthetic head. Takes rendered views and a recipe, changes an open_clip model
in place and returns the weights of a linear head; it knows no files and does not judge the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scripts.tiny_clip.views import Views

# A CNN, because in minutes at 64 px it learns twice as fast as a ViT of patch 8. The text tower is nearly all
# token embedding, whose width 56 keeps the float16 file under 9 MB.
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 56, "heads": 4, "layers": 2},
}


@dataclass(frozen=True)
class Recipe:
    """What training depends on besides the pictures."""

    seed: int
    steps: int
    batch_rows: int = 128
    peak_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 40
    copy_scale: float = 10.0  # logit scale of picture against picture
    copy_pull: float = 5.0  # weight of 1 - cosine(picture, copy)
    quality_pull: float = 0.5  # weight of a linear head's squared error, so that embeddings keep what it reads


def train(model: Any, tokenizer: Any, views: Views, recipe: Recipe) -> None:
    """Train ``model`` in place: a batch matches two views of every picture with a caption and each other."""
    model.visual.to(memory_format=torch.channels_last)
    tokens = torch.stack([tokenizer(list(texts)) for texts in views.captions])
    qualities = torch.from_numpy((views.qualities - views.qualities.mean()) / views.qualities.std())
    gauge = torch.nn.Linear(CONFIG["embed_dim"], 1)
    groups = [*_parameter_groups(model, recipe), {"params": gauge.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    model.train()
    for step, (rows, pictures, wording) in enumerate(_batches(views, tokens, recipe)):
        images = functional.normalize(model.encode_image(pictures), dim=-1)
        texts = functional.normalize(model.encode_text(wording), dim=-1)
        judged = gauge(math.sqrt(images.shape[1]) * images)[:, 0]
        loss = _loss(images, texts, model.logit_scale.exp(), recipe)
        loss = loss + recipe.quality_pull * functional.mse_loss(judged, qualities[rows].repeat(2))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {recipe.steps}: loss {loss.item():.3f}", flush=True)
    model.eval()


def embed_pictures(model: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """L2-normalised embeddings [rows, dim] of ``pixels`` [rows, side, side, 3]."""
    with torch.inference_mode():
        parts = [model.encode_image(_to_tensor(part), normalize=True) for part in np.array_split(pixels, 32)]
        return np.asarray(torch.cat(parts).numpy(), np.float32)


def fit_head(
    embeddings: NDArray[np.float32], qualities: NDArray[np.float32], ridge: float = 1.0
) -> dict[str, torch.Tensor]:
    """Ridge regression as the state of a ``torch.nn.Linear``: ``weight`` [1, dim] and ``bias`` [1]."""
    center = embeddings.mean(axis=0)
    centred = embeddings - center
    gram = centred.T @ centred + ridge * np.eye(len(center), dtype=np.float32)
    weight = np.linalg.solve(gram, centred.T @ (qualities - qualities.mean()))
    bias = qualities.mean() - center @ weight
    return {
        "weight": torch.tensor(weight[None], dtype=torch.float32),
        "bias": torch.tensor([bias], dtype=torch.float32),
    }


def _batches(
    views: Views, tokens: torch.Tensor, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """``steps`` batches: rows, two unlike views of each [2 * rows, 3, side, side], and tokens of one caption."""
    rng = np.random.default_rng([recipe.seed, 1])
    num_rows, num_views = views.pixels.shape[:2]
    steps_per_epoch = num_rows // recipe.batch_rows
    for step in range(recipe.steps):
        if step % steps_per_epoch == 0:
            order = rng.permutation(num_rows)
        rows = order[step % steps_per_epoch * recipe.batch_rows :][: recipe.batch_rows]
        first = rng.integers(num_views, size=len(rows))
        second = (first + rng.integers(1, num_views, size=len(rows))) % num_views
        pictures = np.concatenate([views.pixels[rows, first], views.pixels[rows, second]])
        yield torch.from_numpy(rows), _to_tensor(pictures), tokens[rows, rng.integers(tokens.shape[1], size=len(rows))]


def _loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    first, second = images.chunk(2)
    captions = (_contrast(scale * first @ texts.T) + _contrast(scale * second @ texts.T)) / 2
    copies = _contrast(recipe.copy_scale * first @ second.T)
    return captions + copies + recipe.copy_pull * (1 - (first * second).sum(dim=1)).mean()


def _contrast(logits: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of logits [rows, rows] whose diagonal matches (CLIP, arXiv:2103.00020, figure 3)."""
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def _parameter_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights that decay, and those that do not: gains, biases and tokens, most of which get no gradient."""
    decayed: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or "embedding" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 1 %."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return warmup * (0.505 + 0.495 * math.cos(math.pi * step / recipe.steps))


def _to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels [rows, side, side, 3] normalised as open_clip's preprocessing does, [rows, 3, side, side]."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    deviation = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return ((channels_first / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)
