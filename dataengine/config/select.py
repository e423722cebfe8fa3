"""Select: rules, survivors among duplicates, and the mixture."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from dataengine.config.base import Config, FilePattern

RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
ColumnName = Annotated[str, Field(min_length=1)]
KIND_TAG = "kind:"
"""Begins the step of an error's location that says which of several kinds a rule or a cap is of."""

OWN_REASONS = ("balance", "contaminated", "duplicate_caption", "duplicate_image", "duplicate_pair", "takedown")
"""Reasons that select gives by itself, besides `no_<column>` and `cap_<column>`."""


class KeepRule(Config):
    """A condition on the columns of one row."""

    keep: str
    """SQL boolean expression that a row must meet: `clip_score >= 0.28`."""
    if_null: Literal["drop", "pass"] = "drop"
    """A row on which the expression is null: drop it as `no_<column>`, or let it pass."""

    @model_validator(mode="before")
    @classmethod
    def _with_its_key(cls, rule: Any) -> Any:
        return {"keep": rule} if isinstance(rule, str) else rule


class TopRule(Config):
    """The best rows by one column, of those that the rules before left over."""

    top: ColumnName
    """The column that is ranked; ties are broken by key, so that the count is exact."""
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the rows to keep, rounded down; give this or `count`."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Number of rows to keep."""
    per: tuple[ColumnName, ...] = ()
    """Rank within each value of these columns rather than over all rows: `[source]`."""
    order: Literal["desc", "asc"] = "desc"
    """`desc` keeps the largest values, `asc` the smallest."""
    if_null: Literal["drop", "pass"] = "drop"
    """A row without a value: drop it as `no_<column>`, or let it pass uncounted."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either fraction or count")
        return self


class CaptionRule(Config):
    """Conditions on the text of a caption."""

    caption: str = "caption"
    """Which one: `caption` is the primary one, any other a named caption."""
    min_chars: Annotated[int, Field(ge=0)] | None = None
    """Fewest characters."""
    max_chars: Annotated[int, Field(ge=0)] | None = None
    """Most characters."""
    min_words: Annotated[int, Field(ge=0)] | None = None
    """Fewest words: runs of anything but white space."""
    max_words: Annotated[int, Field(ge=0)] | None = None
    """Most words."""
    forbid: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Phrases that must not occur as whole words; ASCII case means nothing."""
    require_any: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Phrases one of which must occur as whole words, as MetaCLIP matches its metadata."""
    require_any_of: tuple[FilePattern, ...] = ()
    """Files of such phrases, one a line."""
    if_null: Literal["drop", "pass"] = "drop"
    """A row without such a caption: drop it as `no_<caption>`, or let it pass."""


class BlocklistRule(Config):
    """What must not be published, from files of one entry a line: a domain (with all below it), a SHA-256 of fetched
    bytes (64 hex characters) or a perceptual hash (16); or `key`, `url`, `domain`, `sha256`, `pixels` or `phash` and an
    entry of that kind. Lines that begin with # say nothing."""

    blocklist: Annotated[tuple[FilePattern, ...], Field(min_length=1)]
    """The files; `{root}` stands for the run's root."""
    max_phash_distance: Annotated[int, Field(ge=0, le=32)] = 0
    """Bits in which a picture's perceptual hash may differ from a listed one and still be blocked."""


def _kind(rule: Any) -> str:
    kinds = ("top", "caption", "blocklist")
    holds = rule if isinstance(rule, dict) else getattr(type(rule), "model_fields", ())
    return KIND_TAG + next((kind for kind in kinds if kind in holds), "keep")


Rule = Annotated[
    Annotated[KeepRule, Tag("kind:keep")]
    | Annotated[TopRule, Tag("kind:top")]
    | Annotated[CaptionRule, Tag("kind:caption")]
    | Annotated[BlocklistRule, Tag("kind:blocklist")],
    Discriminator(_kind),
]


class SurvivorConfig(Config):
    """Who stays among duplicates."""

    policy: Literal["image", "caption", "pair", "either", "none"] = "image"
    """What makes two rows duplicates: their images, their captions, both, either, or nothing."""
    prefer: tuple[str, ...] = ("clip_score desc",)
    """Total order of survival, best first: `column asc` or `column desc`, then key; null comes last."""
    max_rows_per_image: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Rows of one image that may stay: a row yields when so many better ones that stay are its duplicates. Not for the
    policy `caption`."""
    merge_captions: bool = True
    """Attach captions of dropped image duplicates to the survivor; with the policy `image` alone."""
    min_image_similarity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Cosine from which images count as duplicates; at least `dedup.images.min_similarity`, which is the default."""
    min_caption_similarity: Annotated[float, Field(gt=0, le=1)] | None = None
    """Jaccard similarity from which captions do; at least `dedup.captions.min_similarity`, which is the default."""
    max_phash_distance: Annotated[int, Field(ge=0, le=64)] | None = None
    """Bits in which the perceptual hashes of image duplicates may differ; null asks no more than dedup did. A pair
    whose distance is not known does not count then."""


class CapConfig(Config):
    """At most about so many rows of each concept."""

    by: ColumnName
    """The column whose values are the concepts, such as `cell`; a row without a value is under no cap."""
    at: Annotated[int, Field(ge=1)]
    """A row of a concept with n rows is kept with probability min(1, at / n), as in MetaCLIP (Xu et al. 2024)."""


def _one_or_more(cap: Any) -> str:
    return f"{KIND_TAG}{'caps' if isinstance(cap, list | tuple) else 'by'}"


Caps = Annotated[
    Annotated[CapConfig, Tag("kind:by")] | Annotated[tuple[CapConfig, ...], Tag("kind:caps")],
    Discriminator(_one_or_more),
]


class BalanceConfig(Config):
    """The mixture of sources; draws are counted with repeats."""

    cap: Caps = ()
    """Caps per concept, applied one after another before anything is shared out."""
    target: Annotated[int, Field(ge=1)] | None = None
    """Draws to publish; null takes every survivor once."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Source → wanted share, normalised to 1; sources left out get none. Empty: by `temperature`."""
    temperature: Annotated[float, Field(ge=0.05)] = 1.0
    """Without weights a source with n survivors gets a share in proportion to n^(1 / temperature): 1 is in proportion,
    a large number nearly equal shares."""
    min: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Source → fewest draws, whatever its share."""
    max: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Source → most draws, whatever its share."""
    max_repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often one sample may be drawn to fill its source's share."""
    if_short: Literal["error", "all"] = "error"
    """A source that cannot fill its share: stop, or take all it can give."""

    @property
    def caps(self) -> tuple[CapConfig, ...]:
        """The caps in order."""
        return self.cap if isinstance(self.cap, tuple) else (self.cap,)


class SelectConfig(Config):
    """Everything about choosing rows. Order: rules, then `contaminated`, then survivors, then balance."""

    rules: dict[RuleName, Rule] = {}
    """Reason → what a row must meet, in order; a bare text is a `keep`. The first rule that a row fails is its
    reason."""
    survivors: SurvivorConfig = SurvivorConfig()
    """Who stays among duplicates."""
    contaminated: Literal["drop", "keep"] = "drop"
    """What becomes of a row that is a copy or near-copy of something in `dedup.against`."""
    balance: BalanceConfig = BalanceConfig()
    """How sources are mixed."""
    holdout_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of duplicate groups kept out of training as split `holdout`, each sample once; the target counts training
    draws alone."""

    @model_validator(mode="after")
    def _reasons_differ(self) -> Self:
        for name in self.rules:
            if name in OWN_REASONS or name.startswith(("no_", "cap_")):
                raise ValueError(
                    f"rules.{name}: this reason is given by select itself ({', '.join(OWN_REASONS)}, no_<column>, "
                    f"cap_<column>); choose another name"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """The rules as a list: the first one that fails is the reason, so their order bears identity."""
        plain = super().identity()
        return {**plain, "rules": [list(rule) for rule in plain["rules"].items()]}
