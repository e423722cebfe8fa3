"""Brace patterns: what they stand for, and what is refused."""

from __future__ import annotations

import pytest

from dataengine.errors import ConfigError
from dataengine.sources.files import expand_braces


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("plain.tar", ["plain.tar"]),
        (
            "s3://b/i-{008..011}.tar",
            ["s3://b/i-008.tar", "s3://b/i-009.tar", "s3://b/i-010.tar", "s3://b/i-011.tar"],
        ),
        ("{8..10}", ["8", "9", "10"]),
        ("{0..1}", ["0", "1"]),
        ("{a,b}-{1..2}.x", ["a-1.x", "a-2.x", "b-1.x", "b-2.x"]),
        ("x{,.gz}", ["x", "x.gz"]),
        ("*-{0..1}?.tar", ["*-0?.tar", "*-1?.tar"]),
    ],
)
def test_expands_like_bash(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("{root}/x", "neither a range"),
        ("{}", "neither a range"),
        ("a{1..2", "not closed"),
        ("a}b", "not closed"),
        ("{a,{b,c}}", "nest"),
        ("{9..1}", "backwards"),
        ("{0..99999999999}", "at most 1,000,000"),
        ("{0..999}{0..999}{0..9}", "10,000,000 names"),
    ],
)
def test_refuses_with_the_reason(pattern: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        expand_braces(pattern)
