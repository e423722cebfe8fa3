"""A question to the pool: configs with their rules compiled, and the columns they look at.

Everything that can be wrong with a config is found here, before anything runs; and what several configs share is read
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataengine.config.select import SelectConfig
from dataengine.select.columns import Columns
from dataengine.select.judging import RuleKey
from dataengine.select.preference import preference
from dataengine.select.rules import Compiled, RowRule, compile_rules
from dataengine.sql import require_column

_ALWAYS = ("key", "status", "reason", "detail", "score_status")


@dataclass(frozen=True)
class Question:
    """Configs to select by, and what they need."""

    configs: tuple[SelectConfig, ...]
    rules: tuple[tuple[Compiled, ...], ...]
    """By config, in order."""
    kept: tuple[str, ...]
    """Columns that ranks, preferences and caps look at once all rows are there."""
    read: tuple[str, ...]
    """All columns they look at, in the order of `Columns.schema`."""

    @staticmethod
    def ask(
        configs: Sequence[SelectConfig],
        columns: Columns,
        lines: Mapping[str, Sequence[str]] | None = None,
        also: Sequence[str] = (),
    ) -> Question:
        """The question of `configs`; `lines` are those of the files that rules refer to, by rule.

        `also` names columns to keep besides.

        Raises ConfigError when a rule, a preference or a cap does not fit the columns there are.
        """
        types = columns.types
        rules = tuple(tuple(compile_rules(config.rules, types, lines)) for config in configs)
        kept: dict[str, None] = dict.fromkeys(also)
        for config, compiled in zip(configs, rules, strict=True):
            kept |= dict.fromkeys(_kept(config, compiled, list(types)))
        named = {name for compiled in rules for rule in compiled for name in rule.columns}
        read = tuple(name for name in types if name in {*_ALWAYS, *named, *kept})
        return Question(tuple(configs), rules, tuple(kept), read)

    @property
    def row_rules(self) -> dict[RuleKey, RowRule]:
        """The different rules over one row."""
        return {
            (name, rule): compiled
            for config, of_config in zip(self.configs, self.rules, strict=True)
            for (name, rule), compiled in zip(config.rules.items(), of_config, strict=True)
            if isinstance(compiled, RowRule)
        }

    @property
    def respects(self) -> frozenset[str]:
        """What duplicates are looked for in: `image`, `caption`. Images always count, for they make groups."""
        policies = {config.survivors.policy for config in self.configs}
        return frozenset({"image", "caption"} if policies & {"caption", "pair", "either"} else {"image"})


def _kept(config: SelectConfig, rules: Sequence[Compiled], names: Sequence[str]) -> list[str]:
    kept = [name for name, _ in preference(config.survivors.prefer, names)]
    for cap in config.balance.caps:
        require_column(cap.by, names, "select.balance.cap.by")
        kept.append(cap.by)
    return kept + [name for rule in rules for name in rule.kept_columns]
