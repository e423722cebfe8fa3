"""Runs a command and says what it and all that it started cost: CPU and memory of the whole process tree.

Ray's daemons are waited for by nobody whose account we could read, and what lives shorter than a sample is in no
sample; so CPU is the larger of two lower bounds, the kernel's account of waited-for children and the sum over samples
of /proc. Memory is PSS: pages that processes share are counted once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_SAMPLE_SECONDS = 0.1
_SAMPLES_PER_PSS = 4  # PSS walks page tables, and holds the process meanwhile
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What a command cost, with everything it started."""

    wall_seconds: float
    cpu_seconds: float
    peak_pss_bytes: int


@dataclass(frozen=True)
class _Process:
    parent: int
    started: str
    """Ticks since boot: tells a process from a later one of the same number."""
    cpu_ticks: int


def run_watched(command: list[str], *, timeout_seconds: float, environment: Mapping[str, str] | None = None) -> Cost:
    """Run `command` to its end. Raises RuntimeError with its last words when it fails or takes too long."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        tree = ProcessTree(child.pid)
        try:
            while True:
                tree.sample()
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                wall_seconds = time.monotonic() - started
                if pid:
                    break
                if wall_seconds > timeout_seconds:
                    raise RuntimeError(
                        f"still running after {timeout_seconds:g} s: {command}\n{_tail(output.fileno())}"
                    )
                time.sleep(_SAMPLE_SECONDS)
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if child.returncode is None:
                tree.kill()
                child.wait()
        if child.returncode:
            raise RuntimeError(f"exit code {child.returncode}: {command}\n{_tail(output.fileno())}")
    return Cost(wall_seconds, max(usage.ru_utime + usage.ru_stime, tree.cpu_seconds), tree.peak_pss_bytes)


@dataclass
class ProcessTree:
    """The processes that `root` started, and what they cost in all samples so far."""

    root: int
    peak_pss_bytes: int = 0
    _cpu_ticks: dict[tuple[int, str], int] = field(default_factory=dict)
    _num_samples: int = 0

    @property
    def cpu_seconds(self) -> float:
        """Of every process that was seen, when it was seen last."""
        return sum(self._cpu_ticks.values()) / _TICKS

    def sample(self) -> None:
        """Look at every process that lives now."""
        alive = dict(_processes())
        ours = self._members(alive)
        self._cpu_ticks |= {(number, alive[number].started): alive[number].cpu_ticks for number in ours}
        if self._num_samples % _SAMPLES_PER_PSS == 0:
            self.peak_pss_bytes = max(self.peak_pss_bytes, sum(map(_pss_bytes, ours)))
        self._num_samples += 1

    def kill(self) -> None:
        """End every process of the tree."""
        for number in self._members(dict(_processes())):
            with suppress(ProcessLookupError):  # it ended since
                os.kill(number, signal.SIGKILL)

    def _members(self, alive: Mapping[int, _Process]) -> set[int]:
        # What was seen once stays ours, though its parent may have left it to init.
        ours = {number for number, started in self._cpu_ticks if number in alive and alive[number].started == started}
        ours |= {self.root} & alive.keys()
        young = set(ours)
        while young:
            young = {number for number, found in alive.items() if found.parent in young} - ours
            ours |= young
        return ours


def _processes() -> Iterator[tuple[int, _Process]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended since the listing
            fields = stat[stat.rindex(")") + 2 :].split()
            yield int(entry.name), _Process(int(fields[1]), fields[19], int(fields[11]) + int(fields[12]))


def _pss_bytes(number: int) -> int:
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it ended, or is another user's
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _tail(output: int) -> str:
    size = os.fstat(output).st_size
    return os.pread(output, 4000, max(0, size - 4000)).decode(errors="replace")
