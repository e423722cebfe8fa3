"""Sweeps: one config in, the configs that differ from it in one number out.

What is swept is a rule by its name (its one number, or its fraction or count), a column (the number it is compared
with, wherever that is, or a new rule), or any key of the config by its path (`balance.target`). The variants are
configs like any other, so a sweep gives what as many runs would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dataengine.config.select import KeepRule, SelectConfig, TopRule
from dataengine.errors import ConfigError
from dataengine.sql import require_column

if TYPE_CHECKING:
    import polars as pl

MAX_VALUES = 200
_NUMBER = r"(?<![\w.'\"])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])"
_COMPARED = (
    r"(?P<before>(?<![\w\"]){column}\s*(?:<=|>=|<|>)\s*)" + _NUMBER + "|"
    + _NUMBER + r"(?P<after>\s*(?:<=|>=|<|>)\s*{column}(?![\w\"]))"
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """One number, at several values."""

    name: str
    values: tuple[Decimal, ...]
    configs: tuple[SelectConfig, ...]


def plan_sweep(config: SelectConfig, text: str, columns: Mapping[str, pl.DataType]) -> Sweep:
    """The sweep that `text` asks for: `clip_score=0.24:0.34:0.02` (the end included), or `clip_score=0.2,0.25`.

    `columns` are those that a rule may name. Raises ConfigError when it is not of that form, or names no number of
    `config` and no column of numbers.
    """
    name, equals, range_ = text.partition("=")
    where = f"--sweep {text}"
    if not equals or not name:
        raise ConfigError(f"{where}: wanted NAME=LOW:HIGH:STEP or NAME=VALUE,VALUE, such as clip_score=0.24:0.34:0.02")
    values = _values(range_, where)
    changed = _changer(config, name.strip(), columns, where)
    return Sweep(name.strip(), values, tuple(changed(value) for value in values))


def _values(text: str, where: str) -> tuple[Decimal, ...]:
    try:
        numbers = [Decimal(number) for number in re.split("[:,]", text)]
    except InvalidOperation as error:
        raise ConfigError(f"{where}: {text!r} holds something that is no number") from error
    if not all(number.is_finite() for number in numbers):
        raise ConfigError(f"{where}: {text!r} holds a number that is not finite")
    if ":" not in text:
        return tuple(numbers)
    if "," in text or len(numbers) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
        raise ConfigError(f"{where}: wanted LOW:HIGH:STEP with LOW ≤ HIGH and STEP > 0, got {text}")
    low, high, step = numbers
    count = int((high - low) / step) + 1
    if count > MAX_VALUES:
        raise ConfigError(f"{where}: {count} values; a sweep has at most {MAX_VALUES}, so take a larger step")
    return tuple(low + number * step for number in range(count))


def _changer(
    config: SelectConfig, name: str, columns: Mapping[str, pl.DataType], where: str
) -> Callable[[Decimal], SelectConfig]:
    rule = config.rules.get(name)
    if isinstance(rule, TopRule):
        key = "count" if rule.fraction is None else "fraction"
        return lambda value: _with_value(config, f"rules.{name}.{key}", value, where)
    if isinstance(rule, KeepRule):
        return _in_text(config, name, _NUMBER, where)
    if rule is not None or "." in name or name in SelectConfig.model_fields:
        return lambda value: _with_value(config, name, value, where)
    require_column(name, columns, f"{where}: no rule and no key of select")
    if not columns[name].is_numeric():
        raise ConfigError(f"{where}: column {name} holds {columns[name]}; only a number can be swept")
    pattern = _COMPARED.format(column=f'"?{re.escape(name)}"?')
    compared = [
        at for at, other in config.rules.items() if isinstance(other, KeepRule) and re.search(pattern, other.keep)
    ]
    if len(compared) > 1:
        raise ConfigError(f"{where}: rules {', '.join(compared)} compare {name} with a number; name one of them")
    if compared:
        return _in_text(config, compared[0], pattern, where)
    return lambda value: _with_rule(config, name, KeepRule(keep=f'"{name}" >= {value}'))


def _in_text(config: SelectConfig, rule: str, pattern: str, where: str) -> Callable[[Decimal], SelectConfig]:
    """Puts a value in the place of the one number that `pattern` finds in a rule's text."""
    kept = config.rules[rule]
    assert isinstance(kept, KeepRule)
    if len(list(re.finditer(pattern, kept.keep))) != 1:
        raise ConfigError(
            f"{where}: wanted one number in select.rules.{rule}, which is {kept.keep!r}; name a column that it "
            f"compares with a number, or split the rule"
        )

    def change(value: Decimal) -> SelectConfig:
        text = re.sub(pattern, lambda found: _around(found, value), kept.keep)
        return _with_rule(config, rule, kept.model_copy(update={"keep": text}))

    return change


def _around(found: re.Match[str], value: Decimal) -> str:
    """What was found, with `value` in the place of its number."""
    groups = found.groupdict()
    return f"{groups.get('before') or ''}{value}{groups.get('after') or ''}"


def _with_rule(config: SelectConfig, name: str, rule: KeepRule) -> SelectConfig:
    named = name if re.fullmatch("[a-z][a-z0-9_]{0,39}", name) else "swept"
    return config.model_copy(update={"rules": {**config.rules, named: rule}})


def _with_value(config: SelectConfig, path: str, value: Decimal, where: str) -> SelectConfig:
    tree: dict[str, Any] = config.model_dump()
    *parents, last = path.removeprefix("select.").split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            raise ConfigError(f"{where}: select has no key {path}")
        node = node[parent]
    if not parents and last not in node:
        raise ConfigError(f"{where}: select has no key {path}")
    node[last] = int(value) if value == value.to_integral_value() else float(value)
    try:
        return SelectConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {path}={value}: {error.errors()[0]['msg']}") from error
