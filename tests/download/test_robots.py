"""robots.txt means what RFC 9309 says it means."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.download.robots import MAX_ROBOTS_BYTES, Rule, parse_robots


def allows(robots: str, path: str, agent: str = "dataengine") -> bool:
    return parse_robots(robots.encode(), agent).forbidding(path) is None


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("", "/a", True),
        ("Disallow:", "/a", True),
        ("Disallow: /", "/a", False),
        ("Disallow: /a", "/abc", False),
        ("Disallow: /a", "/b", True),
        ("Disallow: /A", "/a", True),
        ("Disallow: /a/\nAllow: /a/b", "/a/b.jpg", True),
        ("Allow: /a/b\nDisallow: /a/", "/a/c.jpg", False),
        ("Allow: /page\nDisallow: /page", "/page", True),
        ("Allow: /page\nDisallow: /*.htm", "/page.htm", False),
        ("Allow: /$\nDisallow: /", "/", True),
        ("Allow: /$\nDisallow: /", "/page", False),
        ("Disallow: /*.jpg$", "/x/y.jpg", False),
        ("Disallow: /*.jpg$", "/x/y.jpg?size=1", True),
        ("Disallow: /*.jpg", "/x/y.jpg?size=1", False),
        ("Disallow: *", "/a", False),
        ("Disallow: /a*b*c", "/axxbyyc", False),
        ("Disallow: /a*b*c", "/axxcyyb", True),
        ("Disallow: /fish*$", "/fishy", False),
        ("Disallow: /a*a$", "/a", True),
        ("Disallow: /?q=", "/?q=1", False),
        ("Disallow: /~joe", "/%7Ejoe/a", False),
        ("Disallow: /%7ejoe", "/~joe/a", False),
        ("Disallow: /a%2fb", "/a%2Fb", False),
        ("Disallow: /a%2Fb", "/a/b", True),
        ("Disallow: /caf\u00e9", "/caf%C3%A9", False),
        ("Disallow: /a%2A", "/a*", False),
        ("Disallow: /a$b", "/a$b", False),
        ("Disallow: /a # comment", "/a", False),
        ("#Disallow: /a", "/a", True),
        ("dIsAlLoW :/a", "/a", False),
        ("Crawl-delay: 5\nDisallow: /a", "/a", False),
    ],
)
def test_rules(rules: str, path: str, allowed: bool) -> None:
    assert allows(f"User-agent: *\n{rules}\n", path) == allowed


GROUPS = """
Disallow: /nobody
User-agent: otherbot
Disallow: /
Sitemap: http://a.test/map.xml

User-agent: *
Disallow: /star

User-Agent: DataEngine/1.0
user-agent: friend
Disallow: /ours

User-agent: dataengine
Disallow: /merged
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("dataengine", "/ours", False),
        ("dataengine", "/merged", False),
        ("dataengine", "/star", True),
        ("friend", "/ours", False),
        ("friend", "/merged", True),
        ("stranger", "/star", False),
        ("stranger", "/ours", True),
        ("data", "/star", False),
        ("otherbot", "/x", False),
        ("dataengine", "/nobody", True),
        ("", "/star", False),
    ],
)
def test_groups(agent: str, path: str, allowed: bool) -> None:
    assert allows(GROUPS, path, agent) == allowed
    assert allows(GROUPS.replace("\n", "\r\n"), path, agent) == allowed
    assert allows("\ufeff" + GROUPS.strip(), path, agent) == allowed or path == "/nobody"


def test_the_forbidding_line_is_told() -> None:
    rules = parse_robots(b"User-agent: *\nDisallow: /\nDisallow: /img/*.jpg$", "dataengine")
    assert rules.forbidding("/img/a.jpg") == "Disallow: /img/*.jpg$"


def test_only_the_first_500_kib_count() -> None:
    filler = b"#" * (MAX_ROBOTS_BYTES - 26) + b"\n"
    assert parse_robots(b"User-agent: *\nDisallow: /a\n" + filler, "x").forbidding("/a")
    cut_within = b"User-agent: *\n" + filler + b"Disallow: /a\n" * 9
    assert cut_within[:MAX_ROBOTS_BYTES].endswith(b"Disallow: /")
    assert not parse_robots(cut_within, "x").rules


@given(st.text("ab*", max_size=8), st.booleans(), st.text("ab", max_size=12))
def test_matching_agrees_with_a_regular_expression(pattern: str, anchored: bool, path: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*"))) + ("$" if anchored else "")
    rule = Rule(allow=False, pattern=pattern + ("$" if anchored else ""))
    assert rule.matches(path) == bool(re.match(expression, path))


@given(st.binary(max_size=200))
def test_any_bytes_parse(content: bytes) -> None:
    parse_robots(b"User-agent: *\nDisallow: " + content, "dataengine").forbidding("/a")


def test_many_stars_take_no_time() -> None:
    started = time.process_time()
    assert not Rule(allow=False, pattern="/" + "*a" * 2000 + "b$").matches("/" + "a" * 100_000)
    assert time.process_time() - started < 1
