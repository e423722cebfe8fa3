"""Caption rules: how long a text may be, and which phrases it must or must not hold.

Phrases are found as whole words: in the lower-cased text, with every run of white space and punctuation made one space
and one space added at both ends (the matching of Xu et al., Demystifying CLIP Data, 2024, section 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    from dataengine.config.select import CaptionRule

_BETWEEN_WORDS = r"[\s!-/:-@\[-`{-~]+"


def caption_condition(rule: CaptionRule, column: str, lines: Sequence[str] | None, where: str) -> pl.Expr:
    """The rule as an expression over the text in `column`; `lines` are those of its files, None: not read yet.

    Null where there is no text. Raises ConfigError when the rule asks nothing, a phrase holds no word, or the files
    hold no phrase.
    """
    text = pl.col(column)
    conditions = [*_lengths(rule, text)]
    if rule.forbid:
        conditions.append(~_holds(text, rule.forbid, where))
    if rule.require_any or rule.require_any_of:
        phrases = [line for line in lines or () if line.strip() and not line.startswith("#")]
        if lines is not None and not (phrases or rule.require_any):
            raise ConfigError(f"{where}.require_any_of: the files hold no phrase, so every row would fail")
        conditions.append(_holds(text, [*rule.require_any, *phrases], where))
    if not conditions:
        raise ConfigError(f"{where}: asks nothing of the caption; give min_words, forbid or another condition")
    return pl.all_horizontal(conditions) if len(conditions) > 1 else conditions[0]


def _lengths(rule: CaptionRule, text: pl.Expr) -> Iterator[pl.Expr]:
    num_chars, num_words = text.str.len_chars(), text.str.count_matches(r"\S+")
    if rule.min_chars is not None:
        yield num_chars >= rule.min_chars
    if rule.max_chars is not None:
        yield num_chars <= rule.max_chars
    if rule.min_words is not None:
        yield num_words >= rule.min_words
    if rule.max_words is not None:
        yield num_words <= rule.max_words


def _holds(text: pl.Expr, phrases: Sequence[str], where: str) -> pl.Expr:
    padded = [f" {re.sub(_BETWEEN_WORDS, ' ', phrase.lower()).strip()} " for phrase in phrases]
    if empty := [phrase for phrase, words in zip(phrases, padded, strict=True) if not words.strip()]:
        raise ConfigError(f"{where}: the phrase {empty[0]!r} holds no word")
    plain = text.str.to_lowercase().str.replace_all(_BETWEEN_WORDS, " ")
    return pl.concat_str(pl.lit(" "), plain, pl.lit(" ")).str.contains_any(sorted(set(padded)))
