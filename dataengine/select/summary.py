"""What a decision comes to in numbers: funnel, sources, overlap of rules, difference to an earlier one.

Counts of the pool's rows as small frames; nothing here decides or prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.errors import ConfigError, LedgerError
from dataengine.select.rules import PASSED, Compiled, RankRule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import SelectConfig
    from dataengine.select.pool import Pool
    from dataengine.select.selection import Decision, Selector


@dataclass(frozen=True)
class Yield:
    """What a config gives, in a few numbers; `fault` says why it can give nothing."""

    available: Mapping[str, int]
    """Survivors by source."""
    realised: Mapping[str, int]
    """Draws by source."""
    num_published: int
    fault: str = ""


def yield_of(selector: Selector, config: SelectConfig, rules: Sequence[Compiled]) -> Yield:
    """The yield of `config`, whose compiled rules are `rules`; a balance that cannot be filled is a fault."""
    try:
        decision = selector.decide(config, rules, detailed=False)
    except ConfigError as error:
        return Yield({}, {}, 0, str(error))
    return Yield(decision.mixture.available, decision.mixture.realised, decision.num_published)


def count_reasons(decision: Decision, pool: Pool, num_rows: NDArray[np.integer]) -> pl.DataFrame:
    """The funnel that publishing would give, as FUNNEL: candidates and input rows (`num_rows` of each) by reason.

    Raises LedgerError when it does not close: rows in are not the sum of the states they end in.
    """
    size = len(decision.reasons)
    cells = pool.source.astype(np.int64) * size + decision.reason
    candidates = np.bincount(cells, minlength=len(pool.sources) * size)
    rows = np.bincount(cells, weights=num_rows, minlength=len(pool.sources) * size).astype(np.int64)
    if candidates.sum() != len(pool) or rows.sum() != num_rows.sum():
        raise LedgerError(f"select: {len(pool)} candidates, but {candidates.sum()} of them ended in a state")
    return pl.DataFrame(
        {
            "source": np.repeat(np.array(pool.sources, dtype=object), size),
            "state": ["emitted" if reason is None else "dropped" for _, reason in decision.reasons] * len(pool.sources),
            "stage": [stage for stage, _ in decision.reasons] * len(pool.sources),
            "reason": [reason for _, reason in decision.reasons] * len(pool.sources),
            "num_candidates": candidates,
            "num_rows": rows,
        },
        schema_overrides={"source": pl.String, "stage": pl.String, "reason": pl.String},
    ).filter(pl.col("num_candidates") > 0)


def yields(decision: Decision, pool: Pool) -> pl.DataFrame:
    """By source: candidates, usable ones, survivors of rules and duplicates, and what the mixture asks and gets."""
    numbers = {"num_candidates": np.ones(len(pool), np.bool_), "num_usable": pool.failed == 0}
    counts = {name: np.bincount(pool.source[chosen], minlength=len(pool.sources)) for name, chosen in numbers.items()}
    mixture = decision.mixture
    return pl.DataFrame(
        {
            "source": list(pool.sources),
            **counts,
            "num_survivors": [mixture.available[source] for source in pool.sources],
            "asked": [mixture.asked[source] for source in pool.sources],
            "realised": [mixture.realised[source] for source in pool.sources],
        },
        schema_overrides={"source": pl.String},
    )


def overlap(decision: Decision, pool: Pool, config: SelectConfig, rules: Sequence[Compiled]) -> pl.DataFrame:
    """By rule over one row: usable rows that fail it, that it is the reason of, that fail it alone, and with others.

    Columns: rule, num_failed, num_first, num_alone, and one by rule name. Ranks depend on the rules before them, so a
    `top` rule stands in no overlap.
    """
    named = [(name, rule) for (name, rule), compiled in zip(config.rules.items(), rules, strict=True)
             if not isinstance(compiled, RankRule)]  # fmt: skip
    usable = pool.failed == 0
    fails = [usable & (pool.states[name, rule] != PASSED) for name, rule in named]
    alone = np.sum(fails, axis=0, dtype=np.int16) == 1 if fails else np.zeros(0, np.bool_)
    firsts = {
        compiled.name: sum(int((decision.reason == number).sum()) for number in _numbers(decision, compiled))
        for compiled in rules
    }
    return pl.DataFrame(
        [
            {
                "rule": name,
                "num_failed": int(failed.sum()),
                "num_first": firsts[name],
                "num_alone": int((failed & alone).sum()),
                **{other: int((failed & also).sum()) for (other, _), also in zip(named, fails, strict=True)},
            }
            for (name, _), failed in zip(named, fails, strict=True)
        ],
        schema={"rule": pl.String, **dict.fromkeys(["num_failed", "num_first", "num_alone"], pl.Int64),
                **dict.fromkeys([name for name, _ in named], pl.Int64)},
    )  # fmt: skip


def _numbers(decision: Decision, rule: Compiled) -> list[int]:
    wanted = [("select", reason) for reason in rule.reasons]
    return [number for number, pair in enumerate(decision.reasons) if pair in wanted]


def difference(decision: Decision, pool: Pool, before: NDArray[np.bool_]) -> pl.DataFrame:
    """By source: rows that were kept `before` (bool [rows]) and are kept now, in both, only then, only now."""
    now = decision.repeat > 0
    parts = {"num_before": before, "num_now": now, "num_both": before & now, "num_left": before & ~now,
             "num_joined": now & ~before}  # fmt: skip
    counts = {name: np.bincount(pool.source[rows], minlength=len(pool.sources)) for name, rows in parts.items()}
    return pl.DataFrame({"source": list(pool.sources), **counts}, schema_overrides={"source": pl.String})
