"""SQL boolean expressions over the columns of one row.

Decides which SQL a rule, or a reader's condition, may be: nothing but the row's own columns, and no NaN that passes.
Text in, a Polars expression out; it knows no rule's name and no column's meaning.

Numbers are compared as float64, so that products of pixels cannot overflow and division is division.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl
import polars.selectors as cs

from dataengine.errors import ConfigError

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
_FLOATS = ({"Literal": "Float32"}, {"Literal": "Float64"})
_ALIKE = {**{name: name for name in ("Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq")}, "EqValidity": "EqMissing"}
"""Comparisons as BETWEEN, CASE and IS NOT DISTINCT FROM spell them, and as `=`, `<` and their like do."""
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
_CLOCKS = re.compile(r"\b(?:now\s*\(|(?:current_(?:date|time|timestamp)|localtime(?:stamp)?)\b)", re.IGNORECASE)
_GRAMMAR = (
    "a condition looks at one row at a time and may use columns, literals, comparisons, arithmetic, AND, OR, "
    "NOT, IN, BETWEEN, LIKE, IS NULL, CASE, CAST, abs, ceil, coalesce, ends_with, floor, greatest, least, "
    "length, lower, octet_length, round, starts_with, strpos, substr, trim and upper"
)


def compile_condition(text: str, columns: Mapping[str, pl.DataType], where: str) -> tuple[pl.Expr, tuple[str, ...]]:
    """The condition as an expression over `as_numbers(...)` frames, and the columns it names, in order of appearance.

    True where a row meets it; null where a column it needs is null. Raises ConfigError beginning with `where`: not
    SQL, an unknown column, not boolean, or not about a single row.
    """
    try:
        return _compile(text, pl.Schema(columns), where)
    except RecursionError as error:
        raise ConfigError(f"{where}: nests too deep; split it up") from error


def as_numbers(frame: pl.LazyFrame) -> pl.LazyFrame:
    """`frame` as conditions see it: whole numbers as float64."""
    return frame.with_columns(cs.integer().cast(pl.Float64))


def require_column(name: str, columns: Iterable[str], where: str) -> None:
    """Proves that `name` is one of `columns`; raises ConfigError with the closest match and the list."""
    known = sorted(columns)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"{where}: no column {name!r}; {hint}columns are {', '.join(known)}")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _compile(text: str, schema: pl.Schema, where: str) -> tuple[pl.Expr, tuple[str, ...]]:
    if clock := _CLOCKS.search(_QUOTED.sub("''", text)):
        raise ConfigError(
            f"{where}: {clock[0].rstrip('( ')} is not allowed, for a condition gives the same at every run; write the "
            f"time down, such as date '2026-01-31'"
        )
    try:
        tree = _alike(json.loads(pl.sql_expr(text).meta.serialize(format="json")))
        expression = _expression(tree)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ConfigError(
            f"{where}: not an expression that a condition can be ({first_line(error)}); {_GRAMMAR}"
        ) from error
    refused = next(_refused(tree), None)
    if refused:
        raise ConfigError(f"{where}: {refused} is not allowed; {_GRAMMAR}")
    named = tuple(dict.fromkeys(_columns(tree)))
    for column in named:
        require_column(column, schema.names(), where)
    if not named:
        raise ConfigError(f"{where}: names no column, so it would pass or fail every row")
    guarded = _guarded(expression, tree)
    try:
        checked = as_numbers(schema.to_frame().lazy().select(named)).select(guarded.alias("outcome"))
        outcome = checked.collect().schema["outcome"]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{where}: {first_line(error)}") from error
    if outcome != pl.Boolean:
        raise ConfigError(f"{where}: gives {outcome}, wanted true or false; compare it with something")
    return guarded, named


def _alike(tree: Any) -> Any:
    """`tree` with decimals compared in one way: BETWEEN would hold a float32 against them digit by digit, so that
    0.3 is more than 0.3."""
    if isinstance(tree, list):
        return [_alike(child) for child in tree]
    if not isinstance(tree, dict):
        return tree
    compared = tree.get("BinaryExpr")
    if compared and compared["op"] in _ALIKE and any(map(_is_decimal, (compared["left"], compared["right"]))):
        sides = [_alike(compared["left"]), _alike(compared["right"])]
        return {"Function": {"input": sides, "function": {"Sql": {"Binary": _ALIKE[compared["op"]]}}}}
    return {name: _alike(child) for name, child in tree.items()}


def _is_decimal(tree: Any) -> bool:
    return isinstance(tree, dict) and "Decimal" in str(tree.get("Literal"))


def _refused(tree: Any) -> Iterator[str]:
    """What the expression holds that a condition must not."""
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
    """`expression`, false where a division by zero or a text gives NaN, which Polars calls greater than any number, or
    an infinity, of which arithmetic makes NaN."""
    for subtree in _subtrees(tree):
        call, cast = subtree.get("Function"), subtree.get("Cast")
        if isinstance(call, dict) and call["function"] in _DIVISIONS:
            expression &= (_expression(call["input"][1]).cast(pl.Float64) != 0).fill_null(value=True)
        elif isinstance(cast, dict) and cast["dtype"] in _FLOATS:
            expression &= _expression(subtree).is_finite().fill_null(value=True)
    return expression


def _expression(tree: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.BytesIO(json.dumps(tree).encode()), format="json")
