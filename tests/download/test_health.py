"""A dead network stops the worker, dead links do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.download import HealthConfig
from dataengine.download.health import HealthGate
from dataengine.errors import TryAgainError

WINDOW = 100


def stops_after(reasons: list[str | None], **settings: object) -> int | None:
    """How many of `reasons`, over and over again, stop the worker; None when a thousand do not."""
    gate = HealthGate(HealthConfig.model_validate({"window": WINDOW} | settings))
    for number in range(1000):
        try:
            gate.record(reasons[number % len(reasons)])
        except TryAgainError:
            return number + 1
    return None


@pytest.mark.parametrize(
    ("reasons", "num_seen"),
    [
        ([None], None),
        (["http_404"], None),
        (["http_410", "opt_out", "robots", "too_large"], None),
        (["bad_url", "blocked_address", "blocked_port"], None),
        ([*["dns"] * 59, *[None] * 41], None),
        ([*["dns"] * 61, *[None] * 39], WINDOW),
        (["connect"], WINDOW),
        (["timeout", "reset", "tls", "robots_unreachable"], WINDOW),
        (["http_403"], WINDOW),
        (["http_429", "http_503"], WINDOW),
        ([*["timeout"] * 98, *[None] * 2], None),
        ([*["timeout"] * 99, None], WINDOW),
        (["bad_url", "connect"], 2 * WINDOW),
    ],
)
def test_what_stops_a_worker(reasons: list[str | None], num_seen: int | None) -> None:
    assert stops_after(reasons) == num_seen


def test_thresholds_are_the_callers() -> None:
    assert stops_after(["dns"], max_dns_share=1.0, min_ok_share=0.0) is None
    assert stops_after(["timeout"], min_ok_share=0.0) is None
    assert stops_after(["timeout", None, None, None], min_ok_share=0.8) == WINDOW
    assert stops_after(["dns", None], max_dns_share=0.4) == WINDOW


def test_only_the_last_outcomes_count() -> None:
    gate = HealthGate(HealthConfig(window=WINDOW))
    for reason in [None] * 10_000 + ["connect"] * (WINDOW - 2):
        gate.record(reason)
    with pytest.raises(TryAgainError):
        gate.record("connect")


def test_the_message_says_what_was_seen_and_what_to_do() -> None:
    gate = HealthGate(HealthConfig(window=WINDOW))
    for reason in ["dns"] * 70 + ["connect"] * 20 + [None] * 9:
        gate.record(reason)
    with pytest.raises(TryAgainError) as caught:
        gate.record(None)
    message = str(caught.value)
    assert "dns 70, connect 20, ok 10" in message
    assert "70% of them name hosts that do not resolve, more than download.health.max_dns_share 60% allows" in message
    assert "download.fetch.nameservers" in message
    assert "run the same command again" in message
    assert TryAgainError.exit_code == 75


@given(st.lists(st.sampled_from([None, "dns", "connect", "http_404", "bad_url"]), max_size=300))
def test_it_stops_when_the_shares_of_the_window_say_so(reasons: list[str | None]) -> None:
    gate, told = HealthGate(HealthConfig(window=50, max_dns_share=0.3, min_ok_share=0.3)), []
    for reason in reasons:
        told += [] if reason == "bad_url" else [reason]
        last = told[-50:]
        is_dead = len(last) == 50 and (last.count("dns") > 15 or last.count(None) + last.count("http_404") < 15)
        try:
            gate.record(reason)
        except TryAgainError:
            assert is_dead
            return
        assert not is_dead
