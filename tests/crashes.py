"""A store that fails at a chosen operation, as if the process had died there: nothing is done in it ever after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dataengine.storage import store


class Crash(BaseException):
    """The process is gone; nothing may catch it."""


@dataclass
class Clock:
    """Counts operations, those of all threads; from number `crash_at` on, none succeeds."""

    crash_at: int | None = None
    now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tick(self) -> None:
        """Another moment at which a process can die."""
        with self._lock:
            self.now += 1
            if self.crash_at is not None and self.now >= self.crash_at:
                raise Crash

    def reset(self, crash_at: int | None = None) -> None:
        """Begin to count anew."""
        self.now, self.crash_at = 0, crash_at


class CrashingBackend:
    """Passes operations on, with a moment to die before and after each."""

    def __init__(self, backend: Any, clock: Clock) -> None:
        self._backend, self._clock = backend, clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._backend, name)
        if name == "local_path":
            return operation

        def call(*arguments: Any) -> Any:
            self._clock.tick()
            result = operation(*arguments)
            if name != "writer":
                self._clock.tick()
                return result
            return self._writer(result)

        return call

    @contextmanager
    def _writer(self, inner: Any) -> Iterator[Any]:
        with inner as stream:
            yield _CrashingStream(stream, self._clock)
            self._clock.tick()  # everything is written, and nothing is there yet
        self._clock.tick()


@dataclass
class _CrashingStream:
    stream: Any
    clock: Clock

    def write(self, content: Any) -> Any:
        """Half of it, should the moment have come."""
        try:
            self.clock.tick()
        except Crash:
            self.stream.write(memoryview(content)[: len(content) // 2])
            raise
        return self.stream.write(content)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of every store that is opened in this test."""
    ticking = Clock()
    real = store._backend
    monkeypatch.setattr(store, "_backend", lambda *arguments: CrashingBackend(real(*arguments), ticking))
    return ticking
