"""How scoring goes: seconds by what a worker did or waited for, their sums over parts, and a line for people.

These are no facts of the dataset: they are kept beside a commit, not in its identity.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CAUSES = ("read", "decode", "transfer", "token")
"""What a tower waits for."""
REPORT_SECONDS = 2.0
_RATE_SECONDS = 30.0  # rates shown are of the last half minute


@dataclass
class Waits:
    """Where a worker's seconds went, by the clock of its main thread."""

    started: float = field(default_factory=time.monotonic)
    read_seconds: float = 0.0
    """Waiting for bytes from the store."""
    decode_seconds: float = 0.0
    """Waiting for pictures to be decoded and resized."""
    transfer_seconds: float = 0.0
    """Laying batches out and bringing them to the device."""
    token_seconds: float = 0.0
    """Turning captions into tokens."""
    tower_seconds: float = 0.0
    """In the image towers; on a GPU by its own clock."""
    text_seconds: float = 0.0
    """In the text towers."""
    num_images: int = 0
    num_texts: int = 0
    num_memory_short: int = 0
    """Times that batches were halved."""

    def metrics(self) -> dict[str, Any]:
        """As plain JSON values; `idle_share` is the share of the time when no tower ran."""
        seconds = time.monotonic() - self.started
        busy = self.tower_seconds + self.text_seconds
        found = {name: round(value, 4) for name, value in vars(self).items() if name != "started"}
        return found | {"seconds": round(seconds, 4), "idle_share": round(max(0.0, 1 - busy / max(seconds, 1e-9)), 4)}


@dataclass
class Reporter:
    """Tells the run, every few seconds, that a part gets on; one that says nothing for long counts as stuck."""

    waits: Waits
    report: Callable[[Mapping[str, Any]], None]
    _told: float = field(default_factory=time.monotonic)

    def tell(self) -> None:
        """Called after every piece of work."""
        if time.monotonic() - self._told > REPORT_SECONDS:
            self._told = time.monotonic()
            self.report(self.waits.metrics())


class Clock:
    """Counts the seconds of a device in `with` blocks; a GPU is asked at the end, so that nothing waits for it."""

    def __init__(self, device: str) -> None:
        self._is_gpu = device != "cpu"
        self._seconds = 0.0
        self._started: Any = None
        self._events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *_: object) -> None:
        if self._is_gpu:
            self._events.append((self._started, self._now()))
        else:
            self._seconds += self._now() - self._started

    def _now(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> float:
        """The sum so far; call it when the device has finished."""
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3


class Gauge:
    """Turns the metrics of scoring under way into a line for people."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def line(self, metrics: Iterable[Mapping[str, Any]], seconds: float) -> str:
        """What the sum of `metrics`, taken at a moment in `seconds`, says; empty when nothing was scored yet."""
        total: Counter[str] = Counter()
        for item in metrics:
            total.update({name: value for name, value in item.items() if name != "idle_share"})
        if not total["num_images"]:
            return ""
        self._seen.append((seconds, total["num_images"]))
        while len(self._seen) > 2 and seconds - self._seen[1][0] >= _RATE_SECONDS:
            self._seen.popleft()
        (start, before), (end, now) = self._seen[0], self._seen[-1]
        rate = [f"{(now - before) / (end - start):,.0f} images/s"] if end - start >= 1 else []
        return " · ".join([f"{total['num_images']:,} images", *rate, idle_words(total)])


def idle_words(total: Mapping[str, float]) -> str:
    """How much of the time no tower ran, and what it waited for most."""
    busy = total["tower_seconds"] + total["text_seconds"]
    share = max(0.0, 1 - busy / max(total["seconds"], 1e-9))
    causes = {cause: total[f"{cause}_seconds"] / max(total["seconds"], 1e-9) for cause in CAUSES}
    told = [f"{cause} {part:.0%}" for cause, part in sorted(causes.items(), key=lambda item: -item[1]) if part >= 0.005]
    return f"towers idle {share:.0%}" + (f" ({', '.join(told)})" if told else "")
