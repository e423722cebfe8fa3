"""Decides when a worker may ask a host, and which of its URLs is next; the time is passed in.

In go the budget of a host over all workers, and when requests start, end and are refused; out comes the earliest
moment of the next one. What is decided here: how a budget is shared, how refusals slow a host down and when its URLs
are given up, and that nobody waits for a busy host while another one is idle. Nothing here waits or connects.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

_FIRST_WAIT_SECONDS = 0.5
_MAX_WAIT_SECONDS = 60.0  # a part must end, whatever a host asks for
_MAX_REFUSALS = 8  # in a row; as many as it takes to wait for a minute where the host does not say how long
_SLACK = 0.1  # of a gap; timers fire a millisecond late, which would cost 5 % of 50 requests a second
_MIN_REMEMBERED = 4096  # hosts, in 1 MB; more are looked through for idle ones


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a host gave no answer, or the answer that it wants to be left alone."""

    reason: str
    wait_seconds: float | None = None
    """What its Retry-After asks for."""


@dataclass(slots=True)
class _Host:
    not_before: float
    num_open: int = 0
    num_refusals: int = 0
    """In a row; each answer takes one off."""
    refused_at: float = -math.inf
    refused_until: float = -math.inf
    reason: str = ""
    """Of the last refusal."""


class Pace:
    """One worker's share of what every host is asked: `per_host` requests in flight and `per_host_rate` a second.

    A share below one request in flight is one request, followed by a rest that makes up for the others' shares. All
    moments are seconds of any one clock.
    """

    def __init__(self, per_host: int, per_host_rate: float | None, num_workers: int, jitter: random.Random) -> None:
        share = per_host / num_workers
        self.max_open = max(1, int(share))
        self.gap_seconds = 0.0 if per_host_rate is None else num_workers / per_host_rate
        """Between two starts at a host."""
        self._rest = max(0.0, 1 / share - 1)
        # Workers that start together on the same hosts must not ask them together.
        self._phase_seconds = self.gap_seconds if num_workers > 1 else 0.0
        self._jitter = jitter
        self._hosts: dict[str, _Host] = {}
        self._num_remembered = _MIN_REMEMBERED

    def ready_at(self, host: str, now: float) -> float:
        """The earliest moment at which `host` may be asked, requests in flight aside."""
        return self._of(host, now).not_before

    def is_full(self, host: str, now: float) -> bool:
        """Whether as many requests are in flight as may be."""
        return self._of(host, now).num_open >= self.max_open

    def given_up(self, host: str, now: float) -> str | None:
        """The reason of a host's last refusal, when it refuses for longer, or more often, than a part may wait."""
        known = self._hosts.get(host)
        if known is None or known.refused_until <= now:
            return None
        is_long = known.refused_until - now > _MAX_WAIT_SECONDS or known.num_refusals >= _MAX_REFUSALS
        return known.reason if is_long else None

    def resting(self, now: float) -> tuple[str, str, float] | None:
        """The host that wants to be left alone longest, why, and for how many more seconds."""
        host = max(self._hosts, key=lambda host: self._hosts[host].refused_until, default=None)
        if host is None or self._hosts[host].refused_until <= now:
            return None
        return host, self._hosts[host].reason, self._hosts[host].refused_until - now

    def start(self, host: str, now: float) -> bool:
        """Whether `host` may be asked now; if so, a request counts as started."""
        known = self._of(host, now)
        if known.not_before > now or known.num_open >= self.max_open:
            return False
        known.num_open += 1
        known.not_before = max(known.not_before, now - _SLACK * self.gap_seconds) + self.gap_seconds
        return True

    def end(self, host: str, started: float, now: float, refusal: Refusal | None = None) -> None:
        """A request came to its end; no refusal is an answer, and takes back one of those before."""
        known = self._hosts[host]
        known.num_open -= 1
        known.not_before = max(known.not_before, now + self._rest * (now - started))
        if refusal is not None:
            self._slow_down(known, started, now, refusal)
        elif known.num_refusals and started >= known.refused_at:
            known.num_refusals -= 1

    def _slow_down(self, known: _Host, started: float, now: float, refusal: Refusal) -> None:
        """Leave the host alone for as long as it asks, or twice as long with each refusal in a row."""
        wait = refusal.wait_seconds
        if started >= known.refused_at:  # those that were under way at the last refusal say nothing new
            known.num_refusals += 1
            known.refused_at = now
            if wait is None:
                wait = _FIRST_WAIT_SECONDS * 2.0 ** min(known.num_refusals - 1, 30) * self._jitter.uniform(0.5, 1.5)
        known.reason = refusal.reason
        known.refused_until = max(known.refused_until, now + (wait or 0.0))
        known.not_before = max(known.not_before, known.refused_until)

    def _of(self, host: str, now: float) -> _Host:
        known = self._hosts.get(host)
        if known is None:
            if len(self._hosts) >= self._num_remembered:
                self._forget_idle(now)
            known = self._hosts[host] = _Host(now + self._jitter.uniform(0.0, self._phase_seconds))
        return known

    def _forget_idle(self, now: float) -> None:
        """Forget hosts that a stranger would be treated like; the look through all of them is paid by as many new."""
        self._hosts = {
            host: known
            for host, known in self._hosts.items()
            if known.num_open or known.not_before > now or known.num_refusals
        }
        self._num_remembered = max(_MIN_REMEMBERED, 2 * len(self._hosts))


@dataclass(slots=True)
class Lane:
    """URLs of one host that wait, by their positions, and how many of it are under way."""

    host: str
    positions: deque[int] = field(default_factory=deque)
    num_visits: int = 0


class Lanes:
    """URLs by host, and whose turn it is: each host gets one after another, as its pace allows.

    A lane is in one of two queues as long as it has positions and is not full: those that may go on at once, in turn,
    and those whose host must wait, by the moment at which it need not.
    """

    def __init__(self, hosts: Iterable[str], pace: Pace) -> None:
        by_host: dict[str, Lane] = {}
        for position, host in enumerate(hosts):
            by_host.setdefault(host, Lane(host)).positions.append(position)
        self._pace = pace
        self._ready = deque(by_host.values())
        self._parked: list[tuple[float, int, Lane]] = []
        self._num_parked = 0  # breaks ties

    def next(self, now: float) -> tuple[Lane, int] | None:
        """A lane whose host may be asked now, and the next of its positions; None when all of them must wait."""
        while self._parked and self._parked[0][0] <= now:
            self._ready.append(heapq.heappop(self._parked)[2])
        while self._ready:
            lane = self._ready.popleft()
            moment = self._pace.ready_at(lane.host, now)
            if moment > now and self._pace.given_up(lane.host, now) is None:
                self._park(lane, moment)
                continue
            lane.num_visits += 1
            position = lane.positions.popleft()
            if lane.positions and lane.num_visits < self._pace.max_open:
                self._requeue(lane, now)
            return lane, position
        return None

    def next_moment(self) -> float | None:
        """When the first lane that waits need not wait any longer."""
        return self._parked[0][0] if self._parked else None

    def finished(self, lane: Lane) -> None:
        """One of the lane's URLs came to its outcome."""
        if lane.num_visits == self._pace.max_open and lane.positions:
            self._ready.append(lane)
        lane.num_visits -= 1

    def _requeue(self, lane: Lane, now: float) -> None:
        if self._pace.gap_seconds:
            self._park(lane, now + self._pace.gap_seconds)
        else:
            self._ready.append(lane)

    def _park(self, lane: Lane, moment: float) -> None:
        self._num_parked += 1
        heapq.heappush(self._parked, (moment, self._num_parked, lane))
