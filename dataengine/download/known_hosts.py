"""What a worker knows of hosts and keeps from one part to the next: their pace, rules and addresses.

Keys are hashes, so a busy host is in every part. Without this it would be asked for its robots.txt once a part, and one
that wants to be left alone for an hour would be asked again minutes later. All moments are those of the event loop's
clock, which is one for all loops of a process. Nothing here asks anybody.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from dataengine.config.download import FetchConfig, GuardConfig
from dataengine.download.pace import Pace

if TYPE_CHECKING:
    from yarl import URL

    from dataengine.download.resolve import Answer
    from dataengine.download.robots import RobotsRules


@dataclass(frozen=True)
class KnownHosts:
    """Filled by those who ask: `rules` by origin, with the moment until which they hold, and `answers` by name."""

    pace: Pace
    rules: dict[URL, tuple[RobotsRules, float]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


def new_hosts(fetch: FetchConfig, num_workers: int) -> KnownHosts:
    """Nothing known yet, for one of `num_workers` workers that share each host's budget."""
    # Unseeded: workers must not keep step, and no outcome depends on it.
    return KnownHosts(Pace(fetch.per_host, fetch.per_host_rate, num_workers, random.Random()))


def hosts_of_this_process(fetch: FetchConfig, guard: GuardConfig, num_workers: int) -> KnownHosts:
    """What this process knows under these settings; others would have made it know something else."""
    return _remembered(fetch.model_dump_json(), guard.model_dump_json(), num_workers)


@lru_cache(maxsize=1)  # a worker has one config
def _remembered(fetch: str, _guard: str, num_workers: int) -> KnownHosts:
    return new_hosts(FetchConfig.model_validate_json(fetch), num_workers)
