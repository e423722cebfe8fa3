"""Decides whether the headers of a response forbid the use of an image for training.

In go the values of `X-Robots-Tag` headers, which may list several directives, name a robot that they are
for, and hold dates full of commas and colons; out comes the directive that forbids, verbatim, as evidence.
`tdm-reservation: 1` of the TDM Reservation Protocol is understood as well. Nothing here receives headers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
# The hours of a date precede a colon too ("25 Jun 2030 15:00"), but hold spaces or begin with a digit.
# Who writes a semicolon or a space means a comma.
_SEPARATORS = re.compile("[,;]")
_ROBOT = re.compile(r"\*|[A-Za-z][\w.-]*")


def agent_token(user_agent: str) -> str:
    """The product name that a User-Agent starts with: what robots.txt and X-Robots-Tag call a robot."""
    name = re.match(r"[A-Za-z_-]+", user_agent)
    return name[0] if name else ""


def opt_out(headers: Sequence[str], agent: str, *, tdm_reservations: Sequence[str] = ()) -> str | None:
    """The directive that forbids `agent` the use of an image, or None.

    `headers` are the values of all X-Robots-Tag headers, `agent` is an agent_token, and `tdm_reservations`
    are the values of all headers of that name.
    """
    for value in headers:
        forbidding = _forbidding_directive(value, agent)
        if forbidding:
            return f"x-robots-tag: {forbidding}"
    if any(value.strip() == "1" for value in tdm_reservations):
        return "tdm-reservation: 1"
    return None


def _forbidding_directive(value: str, agent: str) -> str | None:
    """The first directive of one header that forbids; a robot's name holds until the next one."""
    robot = "*"
    for entry in _SEPARATORS.split(value):
        name, colon, rest = entry.partition(":")
        directive = name.strip()
        if colon and directive.lower() not in _WITH_VALUE | _FORBIDDING and _ROBOT.fullmatch(directive):
            robot, directive = directive, rest.strip()
        found = next((word for word in directive.split() if word.lower() in _FORBIDDING), None)
        if found and robot.lower() in ("*", agent.lower()):
            return found if robot == "*" else f"{robot}: {found}"
    return None
