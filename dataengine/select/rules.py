"""Rules: SQL boolean expressions that every row must meet.

Decides which SQL a rule may be (one row at a time, nothing but the row's own columns, no division by zero
that passes) and which rule a row failed first, with the values it saw. Frames in, frames out; it does not
know what the columns mean.

Numbers are compared as float64, so that products of pixels cannot overflow and division is division.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from dataengine.errors import ConfigError
from dataengine.select.columns import require_column

_NODES = frozenset({"Column", "Literal", "BinaryExpr", "Ternary", "Cast", "Function"})
# An allow-list, so that what a later Polars learns to parse stays refused until somebody has looked at it.
_FUNCTIONS = frozenset(
    {
        *("Abs", "Ceil", "Coalesce", "FillNull", "Floor", "MaxHorizontal", "MinHorizontal", "Negate"),
        *("Boolean.IsNull", "Boolean.IsNotNull", "Boolean.IsIn", "Boolean.Not"),
        *("Sql.Binary", "Sql.IsIn", "Sql.Round", "StringExpr.LenBytes", "StringExpr.LenChars"),
        *("StringExpr.Contains", "StringExpr.EndsWith", "StringExpr.Find", "StringExpr.StartsWith"),
        *("StringExpr.Lowercase", "StringExpr.Slice", "StringExpr.StripChars", "StringExpr.Uppercase"),
    }
)
_FAMILIES = frozenset({"Boolean", "Pow", "Range", "Sql", "StringExpr"})
_DIVISIONS = ({"Sql": {"Binary": "Div"}}, {"Sql": {"Binary": "Rem"}})
_GRAMMAR = (
    "a rule looks at one row at a time and may use columns, literals, comparisons, arithmetic, AND, OR, "
    "NOT, IN, BETWEEN, LIKE, IS NULL, CASE, CAST, abs, ceil, coalesce, ends_with, floor, greatest, least, "
    "length, lower, octet_length, round, starts_with, strpos, substr, trim and upper"
)
_VALUE_CHARS = 80


@dataclass(frozen=True)
class Rule:
    """A rule that fits the table it was compiled for."""

    name: str
    text: str
    columns: tuple[str, ...]
    """Columns it names, in order of appearance."""
    predicate: pl.Expr
    """True where a row passes; null and false fail it."""


def compile_rules(rules: Mapping[str, str], columns: Mapping[str, pl.DataType]) -> list[Rule]:
    """The rules in order, proven against the table's columns (name → type).

    Raises ConfigError naming the rule: not SQL, an unknown column, not boolean, or not about a single row.
    """
    compiled = []
    for name, text in rules.items():
        try:
            compiled.append(_compile(name, text, pl.Schema(columns)))
        except RecursionError as error:
            raise ConfigError(f"select.rules.{name}: nests too deep; split it into several rules") from error
    return compiled


def _compile(name: str, text: str, schema: pl.Schema) -> Rule:
    where = f"select.rules.{name}: {text}"
    try:
        expression = pl.sql_expr(text)
        tree = json.loads(expression.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ConfigError(f"{where}: not an expression a rule can be ({_first_line(error)}); {_GRAMMAR}") from error
    refused = next(_refused(tree), None)
    if refused:
        raise ConfigError(f"{where}: {refused} is not allowed; {_GRAMMAR}")
    named = tuple(dict.fromkeys(_columns(tree)))
    for column in named:
        require_column(column, schema.names(), where)
    if not named:
        raise ConfigError(f"{where}: names no column, so it would pass or fail every row")
    rule = Rule(name, text, named, _guarded(expression, tree))
    outcome = _evaluate(rule, schema.to_frame()).dtype
    if outcome != pl.Boolean:
        raise ConfigError(f"{where}: gives {outcome}, wanted true or false; compare it with something")
    return rule


def _refused(tree: Any) -> Iterator[str]:
    """What the expression holds that a rule must not."""
    if isinstance(tree, str):
        yield tree
        return
    ((node, body),) = tree.items()
    if node not in _NODES:
        yield next(iter(body), node) if node == "Agg" else node
    elif node == "Function":
        if _function(body["function"]) not in _FUNCTIONS:
            yield _function(body["function"])
        for argument in body["input"]:
            yield from _refused(argument)
    elif node not in ("Column", "Literal"):
        fields = {
            "BinaryExpr": ("left", "right"),
            "Ternary": ("predicate", "truthy", "falsy"),
            "Cast": ("expr",),
        }
        for field in fields[node]:
            yield from _refused(body[field])


def _function(function: Any) -> str:
    """`StringExpr.Contains` and the like, options left out."""
    if isinstance(function, str):
        return function
    ((name, body),) = function.items()
    return f"{name}.{_function(body)}" if name in _FAMILIES else str(name)


def _subtrees(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _subtrees(child)


def _columns(tree: Any) -> Iterator[str]:
    for subtree in _subtrees(tree):
        if isinstance(subtree.get("Column"), str):
            yield subtree["Column"]


def _guarded(expression: pl.Expr, tree: Any) -> pl.Expr:
    """`expression`, false where it divides by zero: Polars calls the NaN of 0 / 0 greater than any number."""
    for subtree in _subtrees(tree):
        call = subtree.get("Function")
        if isinstance(call, dict) and call["function"] in _DIVISIONS:
            serialized = io.BytesIO(json.dumps(call["input"][1]).encode())
            expression &= pl.Expr.deserialize(serialized, format="json").cast(pl.Float64) != 0
    return expression


def _evaluate(rule: Rule, frame: pl.DataFrame) -> pl.Series:
    """What the rule's predicate gives on each row."""
    seen = frame.select(pl.col(rule.columns)).with_columns(cs.integer().cast(pl.Float64))
    try:
        return seen.select(rule.predicate.alias(rule.name)).to_series()
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"select.rules.{rule.name}: {rule.text}: {_first_line(error)}") from error


def apply_rules(frame: pl.DataFrame, rules: list[Rule]) -> pl.DataFrame:
    """`frame` with two columns more: `failed_rule`, the first that a row fails (or null), and `rule_value`.

    `rule_value` gives that rule's columns with the values it saw: `clip_score=0.1234, width=80`. Raises
    ConfigError when a rule cannot be computed on a row, such as a CAST of text that is no number.
    """
    failed = np.full(len(frame), len(rules))
    for number, rule in reversed(list(enumerate(rules))):
        failed[~_evaluate(rule, frame).fill_null(value=False).to_numpy()] = number
    rows = [np.flatnonzero(failed == number) for number in range(len(rules))]
    values = [frame[at].select(_shown(frame, rule)).to_series() for at, rule in zip(rows, rules, strict=True)]
    places = np.full(len(frame), sum(map(len, rows)))
    for at, begin in zip(rows, np.cumsum([0, *map(len, rows)]), strict=False):
        places[at] = np.arange(begin, begin + len(at))
    none = pl.Series("value", [None], dtype=pl.String)
    return frame.with_columns(
        pl.Series([*(rule.name for rule in rules), None], dtype=pl.String).gather(failed).alias("failed_rule"),
        pl.concat([*values, none]).gather(places).alias("rule_value"),
    )


def _shown(frame: pl.DataFrame, rule: Rule) -> pl.Expr:
    parts = []
    for name in rule.columns:
        value = pl.col(name)
        if frame.schema[name].is_float():
            value = value.round(4)
        text = value.cast(pl.String).str.slice(0, _VALUE_CHARS).fill_null("null")
        parts.append(pl.concat_str(pl.lit(f"{name}="), text))
    return pl.concat_str(parts, separator=", ").alias("value")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
