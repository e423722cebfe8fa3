"""Select: rules, survivors among duplicates, and the mixture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dataengine.config.base import Config

RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]


class SurvivorConfig(Config):
    """Who stays among duplicates."""

    policy: Literal["image", "caption", "pair", "either", "none"] = "image"
    """What makes two rows duplicates: their images, their captions, both, either, or nothing."""
    prefer: tuple[str, ...] = ("clip_score desc",)
    """Total order of survival, best first: `column asc` or `column desc`, then key."""
    merge_captions: bool = True
    """Attach captions of dropped image duplicates to the survivor."""


class BalanceConfig(Config):
    """The mixture of sources; draws are counted with repeats."""

    target: Annotated[int, Field(ge=1)] | None = None
    """Draws to publish; null takes every survivor once."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Source → wanted share, normalised to 1; sources left out get none. Empty: in proportion to what survived."""
    max_repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often one sample may be drawn to fill its source's share."""
    if_short: Literal["error", "all"] = "error"
    """A source that cannot fill its share: stop, or take all it can give."""


class SelectConfig(Config):
    """Everything about choosing rows. Order: rules, then `against`, then survivors, then balance."""

    rules: dict[RuleName, str] = {}
    """Reason → SQL boolean expression a row must meet (`clip_score >= 0.28`), in order; null is false."""
    survivors: SurvivorConfig = SurvivorConfig()
    """Who stays among duplicates."""
    against: Literal["drop", "keep"] = "drop"
    """What becomes of rows whose caption or image is a copy or near-copy of one in `dedup.against` (reason
    `contaminated`)."""
    balance: BalanceConfig = BalanceConfig()
    """How sources are mixed."""
    holdout_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of duplicate groups kept out of training as split `holdout`, each sample once; the target counts training
    draws alone."""

    def identity(self) -> dict[str, Any]:
        """The rules as a list: the first one that fails is the reason, so their order bears identity."""
        return {**super().identity(), "rules": [list(rule) for rule in self.rules.items()]}
