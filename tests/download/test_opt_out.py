"""Headers that forbid training are found, those for other robots and dates are not mistaken for them."""

from __future__ import annotations

import pytest

from dataengine.download.opt_out import agent_token, opt_out


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        (["all"], None),
        (["nofollow, nosnippet"], None),
        (["noai"], "noai"),
        (["NoImageAI"], "NoImageAI"),
        (["noarchive, noindex"], "noindex"),
        (["noimageindex"], "noimageindex"),
        (["noml"], "noml"),
        (["none"], "none"),
        (["nofollow", "noai"], "noai"),
        (["otherbot: noai"], None),
        (["otherbot: nofollow, noai"], None),
        (["otherbot: noai", "noindex"], "noindex"),
        (["noai, otherbot: nofollow"], "noai"),
        (["DataEngine: nofollow, noai"], "DataEngine: noai"),
        (["otherbot: noai, dataengine: noml"], "dataengine: noml"),
        (["*: noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], None),
        (["unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noai"], "noai"),
        (["unavailable_after: Wednesday, 25-Jun-30 15:00:00 GMT, noai"], "noai"),
        (["unavailable_after: 2030-06-25T15:00:00Z, noai"], "noai"),
        (["otherbot: unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], None),
        (["max-snippet: 20, max-image-preview: large, noai"], "noai"),
        (["noaim, xnoai"], None),
        ([" , ,:,noai"], "noai"),
        (["nofollow;noai"], "noai"),
        (["nofollow noindex"], "noindex"),
        (["otherbot: nofollow noindex"], None),
    ],
)
def test_robots_tags(headers: list[str], found: str | None) -> None:
    assert opt_out(headers, "dataengine") == (found and f"x-robots-tag: {found}")


@pytest.mark.parametrize(
    ("values", "found"),
    [(["1"], True), ([" 1 "], True), (["0"], False), ([""], False), ([], False), (["0", "1"], True)],
)
def test_tdm_reservation(values: list[str], found: bool) -> None:
    assert (opt_out([], "dataengine", tdm_reservations=values) is not None) == found


def test_agent_token() -> None:
    assert agent_token("dataengine/0.1 (+https://example.org)") == "dataengine"
    assert agent_token("Foo-Bar_baz") == "Foo-Bar_baz"
    assert agent_token("0.1") == ""
