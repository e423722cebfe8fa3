"""Rules: what every row must meet, in order, and which one a row failed first.

A rule over one row becomes a column of states, whatever its kind, as its columns pass by; so only states are kept, and
the order of rules, other thresholds and overlaps are questions to these. `top` rules rank what the rules before left
over, and are answered in their turn (`ranks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.config.select import CaptionRule, KeepRule, Rule, TopRule
from dataengine.errors import ConfigError
from dataengine.select import blocklist, texts
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

    `lines` holds, by name, the lines of the files that rules refer to; without it they count as empty. Raises
    ConfigError naming the rule: an unknown column, no condition on a single row, or an entry that is none.
    """
    return [_compile(name, rule, columns, (lines or {}).get(name, ())) for name, rule in rules.items()]


def _compile(name: str, rule: Rule, columns: Mapping[str, pl.DataType], lines: Sequence[str]) -> Compiled:
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
    listed = blocklist.parse_lines(lines, where)
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
        found = seen.select(_state(rule).alias(str(number)) for number, rule in enumerate(rules)).collect()
    except pl.exceptions.PolarsError:
        found = pl.DataFrame([_alone(seen, rule).alias(str(number)) for number, rule in enumerate(rules)])
    nulls = {name: frame[name].is_null().to_numpy() for name in {column for rule in rules for column in rule.columns}}
    return [_explained(found[str(number)].to_numpy(), rule, nulls) for number, rule in enumerate(rules)]


def _state(rule: RowRule) -> pl.Expr:
    """`NULL` where the rule gives null, whatever column is."""
    if_null = PASSED if rule.if_null == "pass" else NULL
    return (~rule.predicate).cast(pl.UInt8).fill_null(pl.lit(if_null, pl.UInt8))


def _alone(seen: pl.LazyFrame, rule: RowRule) -> pl.Series:
    try:
        return seen.select(_state(rule).alias("state")).collect().to_series()
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{rule.where}: {first_line(error)}") from error


def _explained(state: NDArray[np.uint8], rule: RowRule, nulls: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """`state` with the column that is null; a rule may give null without one, and has failed then."""
    no_first = (state == NULL) & ~nulls[rule.columns[0]]
    if not no_first.any():
        return state
    rows = np.flatnonzero(no_first)
    found = np.full(len(rows), FAILED, np.uint8)
    for place, column in reversed(list(enumerate(rule.columns))):
        found[nulls[column][rows]] = NULL + place
    state = state.copy()
    state[rows] = found
    return state


def first_failed(under: Sequence[NDArray[np.uint8]], num_rows: int) -> NDArray[np.int16]:
    """The number of the first rule that each row fails, -1 for none: int16 [rows]."""
    none = np.int16(len(under))
    first = np.full(num_rows, none, np.int16)
    for number, state in enumerate(under):
        # Arithmetic, for it is done 32 rows at a time; to choose by a mask takes four times as long.
        np.minimum(first, np.int16(number) + (state == PASSED) * none, out=first)
    return np.where(first == none, np.int16(-1), first)


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
