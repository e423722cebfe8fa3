from __future__ import annotations

import pytest

from dataengine.download.outcomes import REASONS, TRANSIENT, is_known, is_transient, matching, parse_reasons
from dataengine.errors import ConfigError


def test_the_set_is_closed() -> None:
    assert all(map(is_known, REASONS | {"http_404", "http_599"}))
    assert not any(map(is_known, ["", "ok", "http_", "http_4040", "http_abc", "DNS", "unknown"]))


def test_what_may_pass_by_itself() -> None:
    assert all(map(is_transient, TRANSIENT | {"http_429", "http_408", "http_500", "http_503"}))
    assert not any(map(is_transient, {"http_404", "http_403", "opt_out", "robots", "blocked_address", "bad_image"}))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dns", {"dns"}),
        ("dns, 5xx", {"dns", "http_500", "http_503"}),
        ("4XX", {"http_404", "http_429"}),
        ("http_404,opt_out", {"http_404", "opt_out"}),
        ("transient", {"dns", "timeout", "http_429", "http_500", "http_503"}),
    ],
)
def test_words_name_reasons(words: str, found: set[str]) -> None:
    there = ["dns", "timeout", "http_404", "http_429", "http_500", "http_503", "opt_out", "bad_image"]
    assert matching(there, parse_reasons(words)) == found


@pytest.mark.parametrize(
    ("words", "hint"), [("time_out", "did you mean timeout"), ("ok", "no reason 'ok'"), ("", "no")]
)
def test_other_words_are_refused(words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_reasons(words)
