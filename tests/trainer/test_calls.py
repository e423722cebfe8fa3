"""Threads that make calls: those that hang take no place, keep no process, and end when they come back."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic, sleep

import pytest

from dataengine.trainer.calls import Calls


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def until(met: Callable[[], bool]) -> None:
    end = monotonic() + 10
    while not met():
        assert monotonic() < end
        sleep(0.01)


def test_calls_are_made_side_by_side_and_no_more_than_asked_for() -> None:
    calls, gate, lock = Calls(3, "side"), threading.Event(), threading.Lock()
    running = most = 0

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1

    made = [calls.submit(call) for _ in range(10)]
    until(lambda: running == 3)
    gate.set()
    for one in made:
        one.result(10)
    assert most == 3


def test_what_a_call_raises_is_raised_to_who_waits() -> None:
    with pytest.raises(SystemExit):
        Calls(1, "raises").submit(sys.exit).result(10)


def test_a_call_that_hangs_takes_no_thread_from_others_and_ends_when_it_comes_back() -> None:
    calls, gate = Calls(2, "hangs"), threading.Event()
    hung = [calls.submit(gate.wait) for _ in range(2)]
    begun: list[int] = []
    dropped = calls.submit(lambda: begun.append(1))
    for one in (dropped, *hung):
        calls.give_up(one)
    assert [calls.submit(lambda number=number: number).result(10) for number in range(5)] == [*range(5)]
    assert threads("hangs") == 4
    gate.set()
    until(lambda: threads("hangs") == 2)
    assert begun == []
    calls.give_up(hung[0])  # as nothing: it is done
    assert threads("hangs") == 2


def test_threads_that_are_made_up_for_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.trainer.calls._MAX_LOST", 5)
    calls, gate = Calls(1, "bound"), threading.Event()
    hung: list[Future[bool]] = []
    for _ in range(8):
        hung.append(calls.submit(gate.wait))
        until(lambda: hung[-1].running() or len(hung) > 6)
        calls.give_up(hung[-1])
    assert threads("bound") == 6
    gate.set()
    assert calls.submit(lambda: 7).result(10) == 7


def test_threads_end_with_their_calls() -> None:
    calls = Calls(4, "ends")
    for one in [calls.submit(lambda: None) for _ in range(8)]:
        one.result(10)
    del calls, one
    gc.collect()
    until(lambda: threads("ends") == 0)


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    code = "import time; from dataengine.trainer.calls import Calls; Calls(1, 'x').submit(lambda: time.sleep(60))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
