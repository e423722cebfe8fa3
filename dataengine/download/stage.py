"""The download stage: CANDIDATE in; SAMPLE out, one row per candidate, and for URLs a raw tar in key order.

URLs are fetched, checked, decoded once, resized and stored. Images that already lie in files are read, checked and
hashed, and stay where they are.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dataengine.config.download import DownloadConfig
from dataengine.contract import AGAIN, Inputs, Machine, Need, Outputs, Step
from dataengine.download.blocklist import BadEntry, Blocklist, parse_blocklist
from dataengine.download.fetched_part import fetch_part
from dataengine.download.located_part import inspect_part
from dataengine.download.outcomes import matching
from dataengine.download.rows import Row
from dataengine.errors import DataBudgetError, InputError
from dataengine.schemas import CANDIDATE, SAMPLE
from dataengine.storage.inputs import content_fingerprint, find_files
from dataengine.storage.rundir import Commit, Part
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table
from dataengine.storage.takedowns import standing_lists

_NEEDED = ["key", "url", "expected_hash", "fault", "detail", "object", "offset", "nbytes"]


@dataclass(frozen=True)
class Download(Step):
    """Gets the image of every candidate of a source, or the reason why not."""

    stage: ClassVar[str] = "download"
    version: ClassVar[int] = 2
    source: str
    config: DownloadConfig
    in_place: bool
    again: tuple[str, ...] = ()
    """Reasons and groups (see `outcomes.parse_reasons`) whose rows are asked for once more, on top of a commit."""

    @property
    def unit(self) -> str:
        return self.source

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.source}"),)

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "in_place": self.in_place}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE, _NEEDED).to_pylist()
        blocklist = load_blocklist(inputs.root, self.config.blocklists)
        if self.in_place:
            rows = inspect_part(candidates, self.config, blocklist, inputs.root, machine)
        else:
            config = _with_hosts(self.config, machine.hosts)
            kept = self._kept(inputs, len(candidates))
            rows = fetch_part(candidates, kept, config, blocklist, outputs, machine)
        outputs.rows_in = len(candidates)
        outputs.count(Counter(row["reason"] or "ok" for row in rows))
        columns = {name: [row[name] for row in rows] for name in SAMPLE.arrow.names}
        outputs.table("sample", SAMPLE, SAMPLE.table(columns))

    def _kept(self, inputs: Inputs, num_rows: int) -> Sequence[Row | None]:
        """Rows of the commit that this is done on top of, None for those to be asked for again."""
        last = inputs.by_part.get(AGAIN)
        if last is None:
            return [None] * num_rows
        rows = read_table(inputs.root, last.objects["sample"].path, SAMPLE).to_pylist()
        wanted = matching((row["reason"] for row in rows if row["reason"]), self.again)
        return [None if row["reason"] in wanted else row for row in rows]

    def check(self, commits: Sequence[Commit]) -> None:
        num_rows = sum(commit.rows_in for commit in commits)
        num_failed = num_rows - sum(commit.counts.get("ok", 0) for commit in commits)
        if num_rows and num_failed / num_rows > self.config.max_failed_share:
            reasons: Counter[str] = Counter()
            for commit in commits:
                reasons.update(commit.counts)
            worst = ", ".join(f"{name} {count:,}" for name, count in reasons.most_common(6) if name != "ok")
            raise DataBudgetError(
                f"{self.name}: {num_failed:,} of {num_rows:,} candidates failed ({num_failed / num_rows:.1%}), more "
                f"than download.max_failed_share {self.config.max_failed_share:.1%} allows: {worst}. "
                f"Mend the cause and ask for the failed rows again with `dataengine download-again <root>/runs/<name> "
                f"--reasons transient`; or raise the share, and run again."
            )


def _with_hosts(config: DownloadConfig, hosts: Mapping[str, str]) -> DownloadConfig:
    guard = config.guard.model_copy(update={"hosts": {**config.guard.hosts, **hosts}})
    return config.model_copy(update={"guard": guard})


def load_blocklist(root: Root, patterns: Sequence[str]) -> Blocklist:
    """The entries of all files that `patterns` name, and of the root's standing take-downs.

    Raises InputError for a file that is not there, and for a line that is no entry.
    """
    files = find_files(root, patterns, "download.blocklists") if patterns else []
    fingerprints = [(path, content_fingerprint(root, path)) for path in files]
    return _read_blocklist(root, (*standing_lists(root).items(), *fingerprints))


@functools.lru_cache(maxsize=2)  # parsed once per process, not per part: a list may hold millions
def _read_blocklist(root: Root, files: tuple[tuple[str, str], ...]) -> Blocklist:
    blocklist = Blocklist()
    for path, _ in files:
        with root.open(path) as file:
            try:
                parse_blocklist((line.decode("utf-8-sig", "replace") for line in file), path, blocklist)
            except BadEntry as error:
                raise InputError(f"download.blocklists: {error}; mend or remove the line") from error
    return blocklist
