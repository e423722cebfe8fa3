"""Tokens: captions in; what the text tower reads, and how much of it there was, out.

Captions are hostile, so a very long one is read only in part, and what is remembered of words is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    import torch

MAX_CHARS = 4096
"""Characters of a caption that are looked at: 77 tokens end long before, and merging the byte pairs of one
endless word takes the square of its length."""

_MAX_REMEMBERED = 1_000_000  # words in open_clip's cache, which it never empties: about 200 MB


class Tokenizer:
    """A model's tokenizer, as open_clip gives it."""

    def __init__(self, model: str) -> None:
        import open_clip

        try:
            self._tokenizer: Any = open_clip.get_tokenizer(model)
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"scorer {model}: its tokenizer cannot be loaded: {error}; install transformers and fetch "
                f"its files, or choose a model with open_clip's own tokenizer"
            ) from error
        self.context_length = int(self._tokenizer.context_length)
        self._special_words = dict(getattr(self._tokenizer, "cache", {}))

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """What the text tower is given: int64 [texts, context_length]."""
        self._forget()
        tokens: torch.Tensor = self._tokenizer([text[:MAX_CHARS] for text in texts])
        return tokens

    def count(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(tokens of each text without ends, before truncation; whether the tower sees only the beginning).

        Counted over the first MAX_CHARS characters.
        """
        self._forget()
        counts = np.array([self._count(text[:MAX_CHARS]) for text in texts], dtype=np.int32)
        is_longer = np.array([len(text) > MAX_CHARS for text in texts], dtype=bool)
        return counts, is_longer | (counts + self._num_ends() > self.context_length)

    def _count(self, text: str) -> int:
        if self._is_open_clips_own():
            return len(self._tokenizer.encode(text))
        cleaned = self._tokenizer.clean_fn(text)
        return len(self._tokenizer.tokenizer(cleaned, add_special_tokens=False).input_ids)

    def _num_ends(self) -> int:
        if self._is_open_clips_own():
            return 2
        return int(self._tokenizer.tokenizer.num_special_tokens_to_add())

    def _is_open_clips_own(self) -> bool:
        return hasattr(self._tokenizer, "encode")

    def _forget(self) -> None:
        if len(getattr(self._tokenizer, "cache", ())) > _MAX_REMEMBERED:
            self._tokenizer.cache = dict(self._special_words)
