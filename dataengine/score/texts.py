"""The text tower: tokens in, one raw embedding per text out, without computing what no embedding can see.

A causal tower that reads its embedding off the end-of-text token never looks at what stands behind it, so tokens are
cut there. Texts of about the same length share a batch: lengths are rounded up to a multiple of 8, and every length has
one fixed number of rows, so that an embedding depends on nothing but its own text. Towers of another kind see the full
context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

STEP = 8
"""Lengths are multiples of it: 4 would save another twelfth of the tokens of alt-texts, and pad twice as many last
batches."""
TOKENS_PER_IMAGE = 16
"""A batch of texts holds as many tokens per image of a batch of images; alt-texts have about that many."""


@dataclass(frozen=True)
class TextTower:
    """A model's way from tokens to a raw embedding; `causal` is the module that can be cut short, or None."""

    model: Any
    causal: Any
    context_length: int

    @classmethod
    def of(cls, model: Any, context_length: int) -> TextTower:
        """The text tower of an open_clip model, cut short where that is exact."""
        return cls(model, _causal(model), context_length)

    @property
    def variant(self) -> str:
        """For provenance."""
        return f"cut at end of text, multiples of {STEP}" if self.causal is not None else "full context"

    def ends(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row [n, context] up to the one that its embedding is read off: int64 [n]."""
        if self.causal is None:
            return np.full(len(tokens), tokens.shape[1], np.int64)
        pool, end = _pooling(self.causal)
        return (tokens.argmax(axis=1) if pool == "argmax" else (tokens == end).argmax(axis=1)) + 1

    def batches(
        self, tokens: NDArray[np.int64], batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(rows, tokens [b, length]) such that every row is in one batch; `b` depends on the length alone.

        The last batch of a length is padded with its first row; `rows` names the true ones.
        """
        lengths = np.minimum(-(-self.ends(tokens) // STEP) * STEP, tokens.shape[1])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            size = max(1, batch_size * TOKENS_PER_IMAGE // int(length))
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                padded = np.concatenate([part, np.repeat(part[:1], size - len(part))])
                yield part, tokens[padded, :length]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Raw embeddings [n, dim] of tokens [n, length]."""
        import torch

        if self.causal is None:
            encoded: torch.Tensor = self.model.encode_text(tokens)
            return encoded
        tower, length = self.causal, tokens.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        seen = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
        seen = tower.transformer(seen, attn_mask=tower.attn_mask[:length, :length])
        pool, end = _pooling(tower)
        ends = tokens.argmax(dim=-1) if pool == "argmax" else torch.eq(tokens, end).int().argmax(dim=-1)
        pooled = tower.ln_final(seen[torch.arange(len(seen), device=seen.device), ends])
        project = tower.text_projection
        if project is None:
            return pooled
        return project(pooled) if isinstance(project, torch.nn.Linear) else pooled @ project


def _causal(model: Any) -> Any:
    """The module whose tokens may be cut behind the end of text, or None.

    Both open_clip's CLIP, which holds its text tower itself, and its TextTransformer have the same parts under the same
    names. One with a class token, a padding mask or another pooling looks at every place.
    """
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    tower = model if isinstance(model, CLIP) else getattr(model, "text", None)
    if not isinstance(tower, CLIP | TextTransformer) or getattr(tower, "attn_mask", None) is None:
        return None
    looks_further = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    return None if looks_further or _pooling(tower)[0] not in ("argmax", "eos") else tower


def _pooling(tower: Any) -> tuple[str, int]:
    """How a tower finds its embedding, and the token it looks for."""
    if hasattr(tower, "text_pool_type"):
        return tower.text_pool_type, getattr(tower, "text_eos_id", -1)
    return tower.pool_type, getattr(tower, "eos_id", -1)
