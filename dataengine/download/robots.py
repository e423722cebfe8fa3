"""Decides what a robots.txt forbids, as RFC 9309 says.

In goes the content of the file and the name of a robot; out come the rules of its groups, which tell for a
path the rule that forbids it. The longest matching rule decides and Allow wins a tie; `*` stands for anything
and `$` for the end. The standard library's parser takes the first match and knows no wildcards. Nothing here
fetches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from dataengine.download.opt_out import agent_token

MAX_ROBOTS_BYTES = 500 * 1024  # what RFC 9309 wants parsed at least; the rest of a longer file is ignored
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Rule:
    """One Allow or Disallow line."""

    allow: bool
    pattern: str
    """Percent-encoded alike to the paths it is compared with."""

    def matches(self, path: str) -> bool:
        """Whether the pattern fits the start of `path`; linear in both, whatever number of stars."""
        anchored = self.pattern.endswith("$")
        first, *others = self.pattern.removesuffix("$").split("*")
        if not path.startswith(first):
            return False
        end = len(first)
        last = others.pop() if anchored and others else None
        for piece in others:
            start = path.find(piece, end)
            if start < 0:
                return False
            end = start + len(piece)
        if last is not None:
            return len(path) - len(last) >= end and path.endswith(last)
        return not anchored or end == len(path)


@dataclass(frozen=True)
class RobotsRules:
    """The rules that one robots.txt holds for one robot."""

    rules: tuple[Rule, ...] = ()

    def forbidding(self, path: str) -> str | None:
        """The line that forbids `path`, query included, or None when it is allowed."""
        normal = _normalise(path).replace("*", "%2A").replace("$", "%24")
        matching = [rule for rule in self.rules if rule.matches(normal)]
        decisive = max(matching, key=lambda rule: (len(rule.pattern), rule.allow), default=None)
        return None if decisive is None or decisive.allow else f"Disallow: {decisive.pattern}"


def parse_robots(content: bytes, agent: str) -> RobotsRules:
    """The rules for `agent`: those of all groups that name it, else those of the groups for `*`."""
    groups: dict[str, list[Rule]] = {}
    names: list[str] = []
    naming = False
    for key, value in _records(content):
        if key == "user-agent":
            names = [*names, _robot(value)] if naming else [_robot(value)]
            groups.setdefault(names[-1], [])
            naming = True
        elif key in ("allow", "disallow"):
            naming = False
            if value:
                rule = Rule(key == "allow", _pattern(value))
                for name in names:
                    groups[name].append(rule)
    return RobotsRules(tuple(groups.get(agent.lower(), groups.get("*", ()))))


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """Every `key: value` line, without comments, the key in lower case."""
    if len(content) > MAX_ROBOTS_BYTES:
        content = content[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]  # half a rule would mean another one
    for line in re.split("[\r\n]+", content.decode("utf-8-sig", "replace")):
        key, colon, value = line.partition("#")[0].partition(":")
        if colon:
            yield key.strip().lower(), value.strip()


def _robot(value: str) -> str:
    return "*" if value.startswith("*") else agent_token(value).lower()


def _pattern(value: str) -> str:
    """`value` in the spelling of paths; a dollar that is not at the end is a character like any other."""
    anchor = "$" if value.endswith("$") else ""
    return _normalise(value.removesuffix("$")).replace("$", "%24") + anchor


def _normalise(path: str) -> str:
    """`path` in one spelling: unreserved characters bare, escapes in capitals, what is not ASCII escaped."""
    encoded = quote(path, safe="%/?#[]@!$&'()*+,;=:~", errors="replace")
    return _ESCAPE.sub(_decode_unreserved, encoded)


def _decode_unreserved(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0].upper()
