"""Rules: what every row must meet, in order, and which one a row failed first.

A rule over one row becomes a column of states, whatever its kind, as its columns pass by; so only states are kept, and
the order of rules, other thresholds and overlaps are questions to these. `top` rules rank what the rules before left
over, and are answered in their turn (`ranks.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.config.select import CaptionRule, KeepRule, Rule, TopRule
from dataengine.errors import ConfigError
from dataengine.select import blocklist, texts
from dataengine.select.bits import unpacked
from dataengine.sql import as_numbers, compile_condition, first_line, require_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

PASSED, FAILED, NULL = 0, 1, 2
"""States of a row under a rule; `NULL + i` says that the i-th of the rule's columns is null."""
_VALUE_CHARS = 80


@dataclass(frozen=True)
class RowRule:
    """A rule over one row, that fits the table it was compiled for."""

    name: str
    where: str
    columns: tuple[str, ...]
    """Columns it looks at, in order of appearance."""
    predicate: pl.Expr
    """True where a row passes, null where a value is wanting."""
    if_null: str

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Columns it needs when all rows are there: none, its states say it all."""
        return ()

    @property
    def reasons(self) -> list[str]:
        """The reason of each state but `PASSED`."""
        return [self.name, *(f"no_{column}" for column in self.columns)]


@dataclass(frozen=True)
class RankRule:
    """A `top` rule."""

    name: str
    where: str
    config: TopRule

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it looks at."""
        return (self.config.top, *self.config.per)

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Columns it needs when all rows are there."""
        return self.columns

    @property
    def reasons(self) -> list[str]:
        """What a row fails it for: its rank, or having none."""
        return [self.name, f"no_{self.config.top}"]


Compiled = RowRule | RankRule


def compile_rules(
    rules: Mapping[str, Rule],
    columns: Mapping[str, pl.DataType],
    lines: Mapping[str, Sequence[str]] | None = None,
) -> list[Compiled]:
    """The rules in order, proven against the table's columns (name → type).

    `lines` holds, by name, the lines of the files that rules refer to; without it nothing is asked of these. Raises
    ConfigError naming the rule: an unknown column, no condition on a single row, or an entry that is none.
    """
    known = dict.fromkeys(rules) if lines is None else {name: lines.get(name, ()) for name in rules}
    return [_compile(name, rule, columns, known[name]) for name, rule in rules.items()]


def _compile(name: str, rule: Rule, columns: Mapping[str, pl.DataType], lines: Sequence[str] | None) -> Compiled:
    where = f"select.rules.{name}"
    if isinstance(rule, TopRule):
        for column in (rule.top, *rule.per):
            require_column(column, columns, where)
        return RankRule(name, where, rule)
    if isinstance(rule, KeepRule):
        where = f"{where}: {rule.keep}"
        predicate, named = compile_condition(rule.keep, columns, where)
        return RowRule(name, where, named, predicate, rule.if_null)
    if isinstance(rule, CaptionRule):
        column = caption_column(rule.caption)
        require_column(column, columns, where)
        return RowRule(name, where, (column,), texts.caption_condition(rule, column, lines, where), rule.if_null)
    listed = blocklist.parse_lines(lines or (), where)
    for column in listed.columns:
        require_column(column, columns, where)
    return RowRule(name, where, listed.columns, blocklist.blocklist_condition(listed, rule.max_phash_distance), "drop")


def caption_column(name: str) -> str:
    """The column that holds the captions of a name."""
    return "caption" if name == "caption" else f"captions_{name}"


def states(frame: pl.DataFrame, rules: Sequence[RowRule]) -> list[NDArray[np.uint8]]:
    """The state of each row under each rule: uint8 [rows] each.

    Raises ConfigError when a rule cannot be computed on a row, such as a CAST of text that is no number.
    """
    if not rules:
        return []
    seen = as_numbers(frame.lazy())
    try:
        found = seen.select(rule.predicate.alias(str(number)) for number, rule in enumerate(rules)).collect()
    except pl.exceptions.PolarsError:
        found = pl.DataFrame([_alone(seen, rule).alias(str(number)) for number, rule in enumerate(rules)])
    is_null = functools.cache(lambda name: unpacked(frame[name].is_null())[0].view(np.bool_))
    return [_explained(_state(found[str(number)], rule), rule, is_null) for number, rule in enumerate(rules)]


def _state(met: pl.Series, rule: RowRule) -> NDArray[np.uint8]:
    """`NULL` where the rule gives null, whatever column is."""
    passed, known = unpacked(met)
    if_null = np.uint8(PASSED if rule.if_null == "pass" else NULL)
    failed = np.uint8(FAILED) - passed
    return failed if known is None else known * failed + (np.uint8(1) - known) * if_null


def _alone(seen: pl.LazyFrame, rule: RowRule) -> pl.Series:
    try:
        return seen.select(rule.predicate.alias("met")).collect().to_series()
    except pl.exceptions.PolarsError as error:
        hint = "; TRY_CAST gives null where CAST fails" if "conversion" in str(error) else ""
        raise ConfigError(f"{rule.where}: {first_line(error)}{hint}") from error


def _explained(
    state: NDArray[np.uint8], rule: RowRule, is_null: Callable[[str], NDArray[np.bool_]]
) -> NDArray[np.uint8]:
    """`state` with the column that is null; a rule may give null without one, and has failed then."""
    null = state == NULL
    if not null.any():
        return state
    rows = np.flatnonzero(null & ~is_null(rule.columns[0]))
    if not len(rows):
        return state
    found = np.full(len(rows), FAILED, np.uint8)
    for place, column in reversed(list(enumerate(rule.columns))):
        found[is_null(column)[rows]] = NULL + place
    state = state.copy()
    state[rows] = found
    return state


def first_failed(under: Sequence[NDArray[np.uint8]], num_rows: int) -> NDArray[np.signedinteger]:
    """The number of the first rule that each row fails, -1 for none: int8 [rows], int16 for more than 63 rules."""
    kind = np.int8 if 2 * len(under) < np.iinfo(np.int8).max else np.int16
    none = kind(len(under))
    first = np.full(num_rows, none)
    for number, state in enumerate(under):
        # Arithmetic, for it is done 64 rows at a time; to choose by a mask takes four times as long.
        np.minimum(first, kind(number) + (state == PASSED) * none, out=first)
    return first - (first == none) * kind(len(under) + 1)


def values_seen(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """What the rows hold in some columns, as text: `clip_score=0.1234, width=80`."""
    parts: list[pl.Expr] = []
    for name in columns:
        value = pl.col(name)
        if frame.schema[name].is_float():
            value = value.round(4)
        text = value.cast(pl.String).str.slice(0, _VALUE_CHARS).fill_null("null")
        parts += [pl.lit(f"{', ' if parts else ''}{name}="), text]
    return frame.select(pl.concat_str(parts).alias("value")).to_series()
