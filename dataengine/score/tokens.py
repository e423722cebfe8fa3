"""Tokens: captions in; what the text tower reads, and how much of it there was, out.

Captions are hostile, so a very long one is read only in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataengine.errors import ConfigError
from dataengine.score.byte_pairs import BytePairs

MAX_CHARS = 4096
"""Characters of a caption that are looked at: 77 tokens end long before."""


@dataclass(frozen=True)
class Tokens:
    """What the text tower reads of some texts, and how much of it there was."""

    ids: NDArray[np.int64]
    """[texts, context]: begin, tokens, end, padding; long texts are cut."""
    counts: NDArray[np.int32]
    """[texts]: tokens without ends, before the cut; counted over the first MAX_CHARS characters."""
    truncated: NDArray[np.bool_]
    """[texts]: whether the tower sees only the beginning."""

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of all of them; there must be one."""
        columns = zip(*[(part.ids, part.counts, part.truncated) for part in parts], strict=True)
        ids, counts, truncated = (np.concatenate(column) for column in columns)
        return cls(ids, counts, truncated)


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
        self._pairs = BytePairs.of(self._tokenizer) if self._is_open_clips_own() else None

    def read(self, texts: Sequence[str]) -> Tokens:
        """The tokens of each text."""
        seen = [text[:MAX_CHARS] for text in texts]
        ids, counts = self._call(seen) if self._pairs is None else self._encode(self._pairs, seen)
        is_longer = np.array([len(text) > MAX_CHARS for text in texts], dtype=bool)
        return Tokens(ids, counts, is_longer | (counts + self._num_ends() > self.context_length))

    def _encode(self, pairs: BytePairs, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """As open_clip's own call does, but keeping the lengths: byte pairs take most of the time."""
        begin, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        ids = np.zeros((len(texts), self.context_length), np.int64)
        counts = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            tokens = pairs.encode(text)
            counts[row] = len(tokens)
            kept = [begin, *tokens[: self.context_length - 2], end]
            ids[row, : len(kept)] = kept
        return ids, counts

    def _call(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        counts = np.array([self._count(text) for text in texts], dtype=np.int32)
        if not texts:
            return np.zeros((0, self.context_length), np.int64), counts
        return self._tokenizer(list(texts)).numpy(), counts

    def _count(self, text: str) -> int:
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(text))
        cleaned = self._tokenizer.clean_fn(text)
        return len(self._tokenizer.tokenizer(cleaned, add_special_tokens=False).input_ids)

    def _num_ends(self) -> int:
        if hasattr(self._tokenizer, "encode"):
            return 2
        return int(self._tokenizer.tokenizer.num_special_tokens_to_add())

    def _is_open_clips_own(self) -> bool:
        return hasattr(self._tokenizer, "bpe") and self._tokenizer.reduction_fn is None
