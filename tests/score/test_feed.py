"""The feed: everything once and in order, no more ahead than asked, and faults come out where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.score.feed import Feed
from dataengine.score.metrics import CAUSES, Clock, Gauge, Waits


@given(
    contents=st.lists(st.none() | st.binary(max_size=3), max_size=40),
    chunk=st.integers(1, 9),
    ahead=st.integers(0, 3),
)
def test_everything_comes_once_and_in_order(contents: list[bytes | None], chunk: int, ahead: int) -> None:
    feed = Feed(lambda content: content + b"!", 2, chunk, ahead, Waits())
    assert list(feed(contents)) == [content if content is None else content + b"!" for content in contents]


@pytest.mark.parametrize(("ahead", "most"), [(0, 4), (2, 12)])
def test_no_more_is_made_ahead_than_asked(ahead: int, most: int) -> None:
    made: list[bytes] = []
    lock = threading.Lock()

    def make(content: bytes) -> bytes:
        with lock:
            made.append(content)
        return content

    feed = iter(Feed(make, 3, 4, ahead, Waits())(bytes([n]) for n in range(50)))
    next(feed)
    time.sleep(0.05)
    assert len(made) <= most
    if ahead == 0:
        assert len(made) == 4


def test_a_fault_of_the_program_is_raised_and_ends_the_threads() -> None:
    def make(content: bytes) -> bytes:
        raise ZeroDivisionError(content)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(Feed(make, 4, 4, 1, Waits())([b"a"] * 20))
    assert threading.active_count() == before


def test_waiting_is_laid_to_its_cause() -> None:
    def slow() -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(0.02)
            yield b""

    waits = Waits()
    list(Feed(lambda content: content, 1, 2, 0, waits)(slow()))
    assert waits.read_seconds > 0.06 > waits.decode_seconds
    waits = Waits()
    list(Feed(lambda content: time.sleep(0.02) or content, 1, 2, 0, waits)([b""] * 4))
    assert waits.decode_seconds > 0.06 > waits.read_seconds


def test_metrics_say_how_idle_the_towers_were() -> None:
    waits = Waits(started=time.monotonic() - 10, tower_seconds=6, text_seconds=2, decode_seconds=1.5, num_images=7)
    told = waits.metrics()
    assert told["idle_share"] == pytest.approx(0.2, abs=0.01)
    assert {f"{cause}_seconds" for cause in CAUSES} <= told.keys()
    assert Gauge().line([], 0.0) == ""
    gauge = Gauge()
    gauge.line([told], 0.0)
    line = gauge.line([told, told], 7.0)
    assert line == "14 images · 1 images/s · towers idle 20% (decode 15%)"


def test_a_cpus_clock_counts_its_blocks() -> None:
    clock = Clock("cpu")
    for _ in range(2):
        with clock:
            time.sleep(0.01)
    assert 0.02 <= clock.seconds() < 1
