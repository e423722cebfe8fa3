"""The selection: one verdict per candidate, in the order download, score, rules, contaminated, survivors, balance.

Decides what a row is dropped for: the first thing that stands against it. A pool, its duplicates and a config in; a
`Decision` in columns of numbers out, which other modules write down or count. It reads no store, and no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.errors import LedgerError
from dataengine.keys import draws_of_bits
from dataengine.select.balance import Mixture, apportion, draw_rows
from dataengine.select.caps import cap
from dataengine.select.covering import in_order
from dataengine.select.judging import Reason
from dataengine.select.keyed import ABSENT
from dataengine.select.pool import Pool, Texts
from dataengine.select.preference import best_first, preference
from dataengine.select.ranks import rank
from dataengine.select.rules import PASSED, Compiled, RankRule, RowRule, values_seen
from dataengine.select.survivors import REASONS, Respect, cover, group_rows, respects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import SelectConfig, SurvivorConfig
    from dataengine.select.covering import Links
    from dataengine.select.duplicates import Duplicates
    from dataengine.select.relations import Relation


@dataclass
class Decision:
    """What became of each row of the pool: [rows] each."""

    reasons: list[Reason]
    """What a row can be dropped for; the first is `KEPT`."""
    reason: NDArray[np.int16]
    """Which of `reasons`."""
    survivor: NDArray[np.int32]
    similarity: NDArray[np.float32]
    group: NDArray[np.int32]
    """Row of the smallest key of its duplicates; `ABSENT` where it has none."""
    held_out: NDArray[np.bool_]
    repeat: NDArray[np.int32]
    draw: NDArray[np.float64]
    """NaN where nothing was drawn."""
    num_held_out: int = 0
    """Kept rows of the split `holdout`."""
    mixture: Mixture = field(default_factory=lambda: Mixture({}, {}, {}))
    words: list[Texts] = field(default_factory=list)
    """Evidence, later ones over earlier ones."""

    @property
    def num_published(self) -> int:
        """Rows that are drawn at least once, held-out ones included; known also where no row was drawn yet."""
        mixture = self.mixture
        drawn = sum(min(mixture.available[source], number) for source, number in mixture.realised.items())
        return drawn + self.num_held_out

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Rows to publish."""
        return self.reason == 0

    def drop(self, rows: NDArray[np.integer], reason: Reason) -> None:
        """Drop `rows` for one reason."""
        self.reason[rows] = self.number_of(reason)

    def number_of(self, reason: Reason) -> int:
        """The place of a reason among `reasons`, where it is put if it is new."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)


@dataclass
class Selector:
    """Decides over one pool, any number of times: a sweep asks for many configs of it."""

    pool: Pool
    duplicates: Duplicates
    seed: int
    _prepared: dict[Any, tuple[NDArray[np.int32], list[Links]]] = field(default_factory=dict)

    def decide(self, config: SelectConfig, rules: Sequence[Compiled], *, detailed: bool = True) -> Decision:
        """The verdict on every row under `config`, whose compiled rules are `rules`.

        Not `detailed` leaves out what only a published table needs: evidence, groups and each row's draw. Raises
        ConfigError when the balance asks for what there is not, LedgerError when the verdicts contradict each other.
        """
        decision = self._start()
        for (name, rule), compiled in zip(config.rules.items(), rules, strict=True):
            if isinstance(compiled, RankRule):
                self._rank(decision, compiled, detailed=detailed)
            else:
                _judge(decision, self.pool.states[name, rule], compiled)
        if config.contaminated == "drop":
            self._decontaminate(decision)
        self._survive(decision, config, grouped=detailed or config.holdout_share > 0)
        self._balance(decision, config, detailed=detailed)
        if detailed:
            _check(decision)
        return decision

    def _start(self) -> Decision:
        num_rows = len(self.pool)
        return Decision(
            reasons=list(self.pool.reasons),
            reason=self.pool.failed.copy(),
            survivor=np.full(num_rows, ABSENT, np.int32),
            similarity=np.zeros(num_rows, np.float32),
            group=np.full(num_rows, ABSENT, np.int32),
            held_out=np.zeros(num_rows, np.bool_),
            repeat=np.zeros(num_rows, np.int32),
            draw=np.full(num_rows, np.nan),
            words=[self.pool.evidence],
        )

    def _rank(self, decision: Decision, rule: RankRule, *, detailed: bool) -> None:
        rows = np.flatnonzero(decision.kept)
        ranked = rank(rule.config, self.pool.columns, self.pool.keys, rows)
        below = rows[~ranked.kept & ~ranked.null]
        dropped = [(below, rule.reasons[0])]
        if rule.config.if_null == "drop":
            dropped.append((rows[ranked.null], rule.reasons[1]))
        for which, reason in dropped:
            decision.drop(which, ("select", reason))
            if detailed:
                seen = values_seen(self.pool.columns.select(pl.col(rule.columns).gather(which)), rule.columns)
                decision.words.append(_texts(which, seen))

    def _decontaminate(self, decision: Decision) -> None:
        found = self.duplicates.contaminated
        fresh = decision.kept[found.rows]
        if fresh.any():
            rows = found.rows[fresh]
            decision.drop(rows, ("select", "contaminated"))
            decision.similarity[rows] = found.similarity[fresh]
            decision.words.append(Texts(rows, found.words.filter(pa.array(fresh)).cast(pa.large_string())))

    def _survive(self, decision: Decision, config: SelectConfig, *, grouped: bool) -> None:
        passed = decision.kept
        order, compared = self._prepare(config.survivors)
        found = cover(compared, passed[order])
        places = np.flatnonzero(found.leader != ABSENT)
        rows = order[places]
        decision.survivor[rows] = order[found.leader[places]]
        decision.similarity[rows] = found.similarity[places]
        for number, reason in enumerate(REASONS[config.survivors.policy]):
            decision.drop(rows[found.respect[places] == number], ("select", reason))
        if grouped:
            decision.group = group_rows(self._linked(config.survivors), passed, self.pool.keys)
        if config.holdout_share:
            leaders = np.where(decision.group == ABSENT, np.arange(len(self.pool)), decision.group)
            bits = self.pool.keys.high[leaders]
            decision.held_out = draws_of_bits(bits, self.seed, "holdout") < config.holdout_share

    def _linked(self, config: SurvivorConfig) -> list[Respect]:
        """What makes a group: images, and captions where the policy compares these."""
        policy = "either" if config.policy in ("caption", "either") else "image"
        linked = config.model_copy(update={"policy": policy})
        return respects(linked, self.duplicates.images, self.duplicates.captions, np.zeros(0, np.int64))

    def _prepare(self, config: SurvivorConfig) -> tuple[NDArray[np.int32], list[Links]]:
        """Every row that has a duplicate under the policy, best first, and what the policy compares, in that order."""
        images, captions = self.duplicates.images, self.duplicates.captions
        usable = self.pool.failed == 0
        # Thresholds are part of a relation only where two are made one.
        made_of = config if config.policy == "pair" else (config.policy, config.prefer)
        if made_of not in self._prepared:
            columns = preference(config.prefer, self.pool.columns.columns)
            rows = np.flatnonzero(usable & _related(config.policy, images, captions))
            order = best_first(columns, self.pool.columns, self.pool.keys, rows)
            compared = respects(config, images, captions, rows)
            self._prepared[made_of] = order, [in_order(respect.links, order) for respect in compared]
        order, links = self._prepared[made_of]
        if config.policy == "pair":
            return order, links
        asked = respects(config, images, captions, np.zeros(0, np.int64))
        return order, [old._replace(**respect.limits) for old, respect in zip(links, asked, strict=True)]

    def _balance(self, decision: Decision, config: SelectConfig, *, detailed: bool) -> None:
        held = decision.kept & decision.held_out
        decision.num_held_out = int(held.sum())
        for item in config.balance.caps:
            rows = np.flatnonzero(decision.kept & ~held)
            concepts = self.pool.columns[item.by].gather(rows)
            capped = cap(item, concepts, self.pool.keys.high[rows], self.seed)
            over = ~capped.kept
            decision.drop(rows[over], ("select", f"cap_{item.by}"))
            decision.draw[rows[over]] = capped.numbers[over]
            if detailed:
                seen = pl.DataFrame({item.by: concepts.filter(over), "count": capped.counts[over]})
                decision.words.append(_texts(rows[over], values_seen(seen, [item.by, "count"])))
        rows = np.flatnonzero(decision.kept & ~held)
        counts = np.bincount(self.pool.source[rows], minlength=len(self.pool.sources)).tolist()
        available = dict(zip(self.pool.sources, counts, strict=True))
        decision.mixture = apportion(dict.fromkeys(config.balance.weights, 0) | available, config.balance)
        if detailed:
            self._draw(decision, rows, config)
            decision.repeat[held] = 1

    def _draw(self, decision: Decision, rows: NDArray[np.int64], config: SelectConfig) -> None:
        """Repeats of the survivors; those never drawn are dropped for `balance`."""
        of_source = self.pool.source[rows]
        for number, source in enumerate(self.pool.sources):
            mine = rows[of_source == number]
            realised = decision.mixture.realised[source]
            repeats, numbers = draw_rows(self.pool.keys.take(mine), realised, config.balance.max_repeat, self.seed)
            decision.repeat[mine], decision.draw[mine] = repeats, numbers
            decision.drop(mine[repeats == 0], ("select", "balance"))


def _judge(decision: Decision, state: NDArray[np.uint8], rule: RowRule) -> None:
    """Drop the rows that fail a rule over one row, for its name or for the column that is null."""
    numbers = np.array([0, *(decision.number_of(("select", reason)) for reason in rule.reasons)], np.int16)
    rows = np.flatnonzero((state != PASSED) & decision.kept)
    decision.reason[rows] = numbers[state[rows]]


def _related(policy: str, images: Relation, captions: Relation) -> NDArray[np.bool_]:
    """Rows that may be duplicates of any under a policy: bool [rows]."""
    if policy == "none":
        return np.zeros(len(images.labels), np.bool_)
    if policy in ("image", "caption"):
        return (images if policy == "image" else captions).related
    return images.related & captions.related if policy == "pair" else images.related | captions.related


def _texts(rows: NDArray[np.int64], words: pl.Series) -> Texts:
    return Texts(rows, pa.chunked_array([words.to_arrow().cast(pa.large_string())]))


def _check(decision: Decision) -> None:
    """Prove that every row is in one state, and that every duplicate has a survivor that nothing but balance drops."""
    if (decision.kept != (decision.repeat > 0)).any():
        raise LedgerError("select: a row is kept without a draw, or drawn though it is dropped; nothing was selected")
    left = np.array(
        [reason is None or reason == "balance" or reason.startswith("cap_") for _, reason in decision.reasons]
    )
    yields = np.flatnonzero(decision.survivor != ABSENT)
    lost = ~left[decision.reason[decision.survivor[yields]]]
    if lost.any():
        raise LedgerError(f"select: {int(lost.sum())} duplicates yield to a row that did not survive itself")
