"""How a download goes: fetches in, a few numbers as plain JSON out, their sums over parts, and a line for people.

These are no facts of the dataset: they are kept beside a commit, not in its identity.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataengine.download.fetch import Fetched

_SLOWEST = 8  # hosts named
_RATE_SECONDS = 30.0  # rates shown are of the last half minute


@dataclass
class Tally:
    """Counts the URLs of one part."""

    num_urls: int = 0
    num_body_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Outcomes so far, `ok` among them."""
    hosts: dict[str, list[float]] = field(default_factory=dict)
    """Host → number of URLs, seconds its server took."""

    def add(self, fetched: Fetched, reason: str | None) -> None:
        """Count one URL and its outcome, None for ok."""
        self.num_urls += 1
        self.num_body_bytes += fetched.num_body_bytes
        self.reasons[reason or "ok"] += 1
        if fetched.host is not None:
            counted = self.hosts.setdefault(fetched.host, [0, 0.0])
            counted[0] += 1
            counted[1] += fetched.seconds

    def metrics(self) -> dict[str, Any]:
        """The numbers so far; of the hosts, those whose servers took most time."""
        return {
            "num_urls": self.num_urls,
            "num_body_bytes": self.num_body_bytes,
            "reasons": dict(self.reasons),
            "slow_hosts": [[host, int(number), round(spent, 3)] for host, (number, spent) in _slowest(self.hosts)],
        }


@dataclass(frozen=True)
class Summary:
    """Metrics of many parts together."""

    num_urls: int
    num_body_bytes: int
    reasons: Counter[str]
    slow_hosts: list[tuple[str, int, float]]
    """Host, number of URLs, mean seconds of its server per URL; those first that took most time in all."""
    resting: tuple[str, str, float] | None = None
    """Of parts under way, the host that is left alone longest: why, and for how many seconds."""

    @property
    def ok_share(self) -> float:
        """Share of URLs that gave an image, 0 to 1."""
        return self.reasons["ok"] / self.num_urls if self.num_urls else 0.0

    def worst(self, number: int) -> str:
        """The most frequent reasons, for people."""
        failures = [(reason, count) for reason, count in self.reasons.most_common() if reason != "ok"]
        return ", ".join(f"{reason} {count:,}" for reason, count in failures[:number])


def summarise(metrics: Iterable[Mapping[str, Any]]) -> Summary:
    """The sum over parts; those without metrics count nothing."""
    num_urls, num_bytes = 0, 0
    reasons: Counter[str] = Counter()
    hosts: dict[str, list[float]] = {}
    resting: list[tuple[str, str, float]] = []
    for item in metrics:
        num_urls += item.get("num_urls", 0)
        num_bytes += item.get("num_body_bytes", 0)
        reasons.update(item.get("reasons", {}))
        for host, number, spent in item.get("slow_hosts", []):
            counted = hosts.setdefault(host, [0, 0.0])
            counted[0] += number
            counted[1] += spent
        if item.get("resting"):
            resting.append(tuple(item["resting"]))
    slowest = [(host, int(number), spent / number) for host, (number, spent) in _slowest(hosts)]
    return Summary(num_urls, num_bytes, reasons, slowest, max(resting, key=lambda item: item[2], default=None))


def _slowest(hosts: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    return heapq.nlargest(_SLOWEST, hosts.items(), key=lambda item: (item[1][1], item[0]))


class Gauge:
    """Turns the metrics of a download under way into a line for people."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def line(self, metrics: Iterable[Mapping[str, Any]], seconds: float) -> str:
        """What the sum of `metrics`, taken at a moment in `seconds`, says; empty when nothing was fetched yet."""
        summary = summarise(metrics)
        if not summary.num_urls:
            return ""
        self._seen.append((seconds, summary.num_urls, summary.num_body_bytes))
        while len(self._seen) > 2 and seconds - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()
        parts = [f"{summary.num_urls:,} URLs", f"{summary.ok_share:.0%} ok", *self._rates()]
        if summary.worst(3):
            parts.append(summary.worst(3))
        if summary.slow_hosts:
            host, _, mean_seconds = summary.slow_hosts[0]
            parts.append(f"slowest host {host} {mean_seconds:.1f} s a URL")
        if summary.resting is not None:
            host, reason, rest_seconds = summary.resting
            parts.append(f"{host} is left alone for {rest_seconds:.0f} s ({reason})")
        return " · ".join(parts)

    def _rates(self) -> list[str]:
        (start, urls, nbytes), (end, more_urls, more_bytes) = self._seen[0], self._seen[-1]
        if end - start < 1:
            return []
        spent = end - start
        return [f"{(more_urls - urls) / spent:,.0f} URLs/s", f"{(more_bytes - nbytes) / spent / 1e6:,.1f} MB/s"]
