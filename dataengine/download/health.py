"""Stops a worker whose network is dead, before it records a million false deaths.

In go the outcomes of URLs as they come; out comes silence, or an error that ends the command with exit code 75, after
which the same command goes on. What is decided here: which outcomes prove that the network lives. Nothing here
knows about hosts or time.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from dataengine.errors import TryAgainError

if TYPE_CHECKING:
    from dataengine.config.download import HealthConfig

# Answers that only a living network gives: bodies, what servers say of consent, and that an image is gone: a list of
# dead links is dead data. Not 403, 429 or 5xx, which is how bans look, nor faults of TLS, which is how captive portals
# and proxies look.
_ALIVE = frozenset({None, "opt_out", "robots", "too_large", "http_404", "http_410"})
_SILENT = frozenset({"bad_url", "blocked_address", "blocked_port"})  # decided here, without an answer of the network
_NUM_NAMED = 5


class HealthGate:
    """Looks at the last `config.window` outcomes that say something about the network."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._window: deque[str | None] = deque()
        self._counts: Counter[str | None] = Counter()
        self._num_alive = 0

    def record(self, reason: str | None) -> None:
        """Count one outcome, None for a body.

        Raises TryAgainError when the window is full and too many names do not resolve, or too few servers answer.
        """
        if reason in _SILENT:
            return
        self._count(reason, 1)
        self._window.append(reason)
        if len(self._window) > self._config.window:
            self._count(self._window.popleft(), -1)
        if len(self._window) == self._config.window:
            self._judge()

    def _count(self, reason: str | None, number: int) -> None:
        self._counts[reason] += number
        self._num_alive += number * (reason in _ALIVE)

    def _judge(self) -> None:
        dns_share = self._counts["dns"] / self._config.window
        if dns_share > self._config.max_dns_share:
            raise TryAgainError(
                self._seen(
                    f"{dns_share:.0%} of them name hosts that do not resolve, more than download.health.max_dns_share "
                    f"{self._config.max_dns_share:.0%} allows",
                    "Check that this machine's resolver answers, or name other servers in download.fetch.nameservers",
                    "raise download.health.max_dns_share, up to 1",
                )
            )
        ok_share = self._num_alive / self._config.window
        if ok_share < self._config.min_ok_share:
            raise TryAgainError(
                self._seen(
                    f"{ok_share:.1%} of them got an image or a plain answer, less than download.health.min_ok_share "
                    f"{self._config.min_ok_share:.1%} asks for",
                    "Check that this machine reaches the internet, and that the hosts do not ban it",
                    "lower download.health.min_ok_share, down to 0",
                )
            )

    def _seen(self, finding: str, remedy: str, setting: str) -> str:
        worst = ", ".join(
            f"{reason or 'ok'} {number:,}" for reason, number in self._counts.most_common(_NUM_NAMED) if number
        )
        return (
            f"download: the last {self._config.window:,} URLs came to {worst}: {finding}. That is how a dead network "
            f"looks, so the part under way is not recorded. {remedy}, and run the same command again. If the URLs "
            f"are that dead, {setting}."
        )
