"""Loaded: the models that a worker keeps from part to part, with their heads and the golden batches they passed."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataengine.config.score import ScorerConfig
from dataengine.score.clip import Scorer
from dataengine.score.heads import Head, load_head

LEAST_KEPT = 8
"""Models that stay although no part of now needs them; another source may."""


@dataclass(frozen=True)
class Ask:
    """A model with its heads, as a run planned it for a machine."""

    config_json: str
    """A ScorerConfig."""
    weights: str
    """What `identify_scorer` said."""
    heads: tuple[tuple[str, str], ...]
    """Column and SHA-256 of each head, as `identify_head` said."""
    device: str
    num_threads: int


@dataclass(frozen=True)
class Loaded:
    """A model and its heads in this process."""

    scorer: Scorer
    heads: dict[str, Head]
    proven: set[str] = field(default_factory=set)
    """Golden batches that it has passed."""

    @classmethod
    def of(cls, ask: Ask) -> Loaded:
        """Raises ConfigError where a file is missing, does not fit, or is another than planned; and StorageError."""
        config = ScorerConfig.model_validate_json(ask.config_json)
        scorer = Scorer.load(config, ask.device, ask.num_threads, ask.weights)
        planned = dict(ask.heads)
        heads = {name: load_head(head, config, scorer.dim, planned[name]) for name, head in config.heads.items()}
        return cls(scorer, heads)


class Models:
    """Keeps models, those used longest ago given up first."""

    def __init__(self) -> None:
        self._kept: dict[Ask, Loaded] = {}

    def get(self, ask: Ask, num_wanted: int) -> Loaded:
        """The model, loaded when it is not kept; `num_wanted` are needed for one part, and none of them is given up."""
        found = self._kept.pop(ask, None)
        if found is None:
            while len(self._kept) >= max(LEAST_KEPT, num_wanted):
                del self._kept[next(iter(self._kept))]
            found = Loaded.of(ask)
        self._kept[ask] = found
        return found

    def forget(self) -> None:
        """Keep nothing."""
        self._kept.clear()


MODELS = Models()
"""Of this process."""
