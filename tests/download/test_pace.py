"""Over all workers a host gets what the config allows, and less once it refuses; the clock is a number."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.download.pace import Lanes, Pace, Refusal

HOST = "photos.test"
BUSY = Refusal("http_429")


def pace(per_host: int = 8, rate: float | None = None, num_workers: int = 1) -> Pace:
    return Pace(per_host, rate, num_workers, random.Random(1))


def drive(paces: list[Pace], durations: list[float], num_requests: int) -> list[tuple[float, float]]:
    """When requests of all workers to one host start and end, if each worker asks as often as it may."""
    spans: list[tuple[float, float]] = []
    events = [(0.0, number, -1.0) for number in range(len(paces))]  # moment, worker, start of what ends then
    while len(spans) < num_requests:
        now, number, started = heapq.heappop(events)
        if started >= 0:
            paces[number].end(HOST, started, now)
        while paces[number].start(HOST, now):
            spans.append((now, now + durations[len(spans) % len(durations)]))
            heapq.heappush(events, (spans[-1][1], number, now))
        moment = paces[number].ready_at(HOST, now)
        if moment > now:
            heapq.heappush(events, (moment, number, -1.0))
    return spans


def most_within(moments: list[float], seconds: float) -> int:
    """The most of `moments` in any window of `seconds`."""
    ordered, first, most = sorted(moments), 0, 0
    for last, moment in enumerate(ordered):
        while ordered[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(st.floats(1, 200), st.integers(1, 20), st.lists(st.floats(0.001, 2), min_size=1, max_size=5))
def test_the_rate_holds_over_all_workers(rate: float, num_workers: int, durations: list[float]) -> None:
    spans = drive([pace(1000, rate, num_workers) for _ in range(num_workers)], durations, 300)
    seconds = 5 * num_workers / rate
    # One more per worker where a window begins and ends, and a tenth of a gap for late timers.
    assert most_within([start for start, _ in spans], seconds) <= seconds * rate / 0.9 + num_workers


def test_workers_that_start_together_do_not_ask_together() -> None:
    jitter = random.Random(1)
    paces = [Pace(1000, 50.0, 500, jitter) for _ in range(500)]
    starts = [start for start, _ in drive(paces, [0.01], 1500)]
    assert most_within(starts, 1.0) < 100
    assert len(starts) / max(starts) == pytest.approx(50, rel=0.1)


def test_idle_time_is_not_made_up_for() -> None:
    asked = pace(rate=2.0)
    assert asked.start(HOST, 0.0)
    assert asked.start(HOST, 10.0)
    assert not asked.start(HOST, 10.4)
    assert asked.start(HOST, 10.5)


def test_late_timers_cost_no_rate() -> None:
    asked, now = pace(1000, 50.0), 0.0
    for _ in range(500):
        now = asked.ready_at(HOST, now) + 0.0015
        assert asked.start(HOST, now)
    assert now == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize(("per_host", "num_workers"), [(8, 1), (8, 2), (8, 8), (8, 20), (1, 7), (3, 2)])
def test_requests_in_flight_hold_on_average(per_host: int, num_workers: int) -> None:
    durations = [0.1, 0.4, 1.5]
    spans = drive([pace(per_host, None, num_workers) for _ in range(num_workers)], durations, 4000)
    end = sorted(start for start, _ in spans)[3900]
    in_flight = sum(min(stop, end) - min(start, end) for start, stop in spans) / end
    assert in_flight <= per_host * 1.05
    assert in_flight >= per_host * 0.6  # shares are rounded down


def test_a_refusing_host_is_left_alone_twice_as_long_each_time() -> None:
    asked, now, waits = pace(), 0.0, []
    for _ in range(6):
        assert asked.start(HOST, now)
        asked.end(HOST, now, now, BUSY)
        waits.append(asked.ready_at(HOST, now) - now)
        now = asked.ready_at(HOST, now)
    assert all(0.25 * 2**n <= wait <= 0.75 * 2**n for n, wait in enumerate(waits))
    for _ in range(6):
        assert asked.start(HOST, now)
        asked.end(HOST, now, now)
    assert asked.start(HOST, now)
    asked.end(HOST, now, now, BUSY)
    assert asked.ready_at(HOST, now) - now < 1


def test_requests_refused_together_are_one_refusal() -> None:
    asked = pace()
    for _ in range(8):
        assert asked.start(HOST, 0.0)
    assert not asked.start(HOST, 0.0)
    for _ in range(8):
        asked.end(HOST, 0.0, 0.1, BUSY)
    assert asked.ready_at(HOST, 0.1) <= 0.1 + 0.75


def test_retry_after_holds_for_the_whole_host_only() -> None:
    asked = pace(rate=10.0)
    asked.start(HOST, 0.0)
    asked.end(HOST, 0.0, 1.0, Refusal("http_503", 20.0))
    assert asked.ready_at(HOST, 1.0) == 21.0
    assert not asked.start(HOST, 20.9)
    assert asked.start("other.test", 1.0)
    assert asked.given_up(HOST, 1.0) is None


@pytest.mark.parametrize("wait", [3600.0, float("inf")])
def test_a_host_that_asks_for_too_long_a_wait_is_given_up_for_now(wait: float) -> None:
    asked = pace()
    asked.start(HOST, 0.0)
    asked.end(HOST, 0.0, 0.0, Refusal("http_429", wait))
    assert asked.given_up(HOST, 0.0) == "http_429"
    assert (asked.given_up(HOST, 3550.0) is None) == (wait == 3600)
    lanes = Lanes([HOST, HOST, "other.test"], asked)
    hosts = [found[0].host for found in (lanes.next(1.0) for _ in range(3)) if found]
    assert sorted(hosts) == ["other.test", HOST, HOST]  # to be told so, not to wait


def test_the_host_that_is_left_alone_longest_is_known() -> None:
    asked = pace()
    assert asked.resting(0.0) is None
    for host, seconds in (("a.test", 5.0), ("b.test", 40.0)):
        asked.start(host, 0.0)
        asked.end(host, 0.0, 0.0, Refusal("http_429", seconds))
    assert asked.resting(10.0) == ("b.test", "http_429", 30.0)
    assert asked.resting(41.0) is None


def test_a_dead_host_costs_bounded_time() -> None:
    asked, now = pace(), 0.0
    while asked.given_up(HOST, now) is None:
        now = max(now, asked.ready_at(HOST, now))
        asked.start(HOST, now)
        asked.end(HOST, now, now + 5, Refusal("connect"))
        now += 5
    assert now < 250


def test_idle_hosts_are_forgotten_and_busy_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.download.pace._MIN_REMEMBERED", 100)
    asked = pace(per_host=1, rate=1.0)
    asked.start("refusing.test", 0.0)
    asked.end("refusing.test", 0.0, 0.0, Refusal("http_429", 50.0))
    asked.start("busy.test", 0.0)
    for number in range(20_000):
        now = number * 0.001
        assert asked.start(f"{number}.test", now)
        asked.end(f"{number}.test", now, now)
    assert len(asked._hosts) < 3000  # those of the last second, doubled
    assert not asked.start("busy.test", 20.0)
    assert not asked.start("refusing.test", 20.0)


@given(st.lists(st.sampled_from("abcde"), max_size=60), st.integers(1, 4), st.sampled_from([None, 2.0]), st.randoms())
def test_lanes_hand_out_every_position_once_within_the_share(
    hosts: list[str], per_host: int, rate: float | None, choices: random.Random
) -> None:
    asked = pace(per_host, rate)
    lanes, now = Lanes(hosts, asked), 0.0
    under_way, seen = [], []
    while len(seen) < len(hosts) or under_way:
        found = lanes.next(now)
        if found is not None:
            lane, position = found
            assert asked.start(lane.host, now)
            assert hosts[position] == lane.host
            seen.append(position)
            under_way.append((lane, now))
            assert max(Counter(lane.host for lane, _ in under_way).values()) <= per_host
        elif under_way:
            lane, started = under_way.pop(choices.randrange(len(under_way)))
            asked.end(lane.host, started, now)
            lanes.finished(lane)
        else:
            moment = lanes.next_moment()
            assert moment is not None
            now = max(now, moment)
    assert sorted(seen) == list(range(len(hosts)))
    assert lanes.next(now + 100) is None


def test_nobody_waits_for_a_busy_host() -> None:
    lanes = Lanes(["a"] * 10 + ["b", "c"], pace(per_host=2))
    hosts = []
    while (found := lanes.next(0.0)) is not None:
        hosts.append(found[0].host)
    assert hosts == ["a", "b", "c", "a"]
