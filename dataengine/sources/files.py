"""File patterns: one pattern with brace ranges and lists in, the names it stands for out.

It knows text only: globs, stores and whether a file exists are somebody else's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from dataengine.errors import ConfigError

MAX_NAMES = 1_000_000

_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_GROUP = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """The names that `pattern` stands for, in order; the last group varies fastest.

    `{000..099}` counts, padded to the written width, and `{a,b}` lists, as in bash. Groups do not nest.
    Raises ConfigError for any other brace and above a million names.
    """
    literals_and_groups = _GROUP.split(pattern)
    literals, groups = literals_and_groups[::2], literals_and_groups[1::2]
    if any("{" in literal or "}" in literal for literal in literals):
        raise ConfigError(f"{pattern}: braces are not closed, or nest; write each group as {{000..099}} or {{a,b}}")
    choices = [_choices(group, pattern) for group in groups]
    num_names = math.prod(len(choice) for choice in choices)
    if num_names > MAX_NAMES:
        raise ConfigError(
            f"{pattern}: stands for {num_names:,} names, at most {MAX_NAMES:,}; split it into several paths"
        )
    return [
        "".join(itertools.chain.from_iterable(zip(literals, [*chosen, ""], strict=True)))
        for chosen in itertools.product(*choices)
    ]


def _choices(group: str, pattern: str) -> Sequence[str]:
    if bounds := _RANGE.fullmatch(group):
        return _counted(bounds[1], bounds[2], pattern)
    if "," in group:
        return group.split(",")
    raise ConfigError(f"{pattern}: {{{group}}} is neither a range like {{000..099}} nor a list like {{a,b}}")


def _counted(first: str, last: str, pattern: str) -> list[str]:
    low, high = int(first), int(last)
    if high < low:
        raise ConfigError(f"{pattern}: the range {{{first}..{last}}} runs backwards; write {{{last}..{first}}}")
    if high - low >= MAX_NAMES:
        raise ConfigError(f"{pattern}: {{{first}..{last}}} stands for {high - low + 1:,} names, at most {MAX_NAMES:,}")
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [str(number).zfill(width) for number in range(low, high + 1)]
