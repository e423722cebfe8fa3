"""The download stage: CANDIDATE in; SAMPLE out, one row per candidate, and for URLs a raw tar in key order.

URLs are fetched, checked, decoded once, resized and stored. Images that already lie in tars are read, checked and
hashed, and stay where they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, Literal

from dataengine.config.download import DownloadConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, Step
from dataengine.download.fetch import Fetched, fetch_all
from dataengine.download.image import StoredImage, inspect_image, store_image
from dataengine.errors import DataBudgetError
from dataengine.imaging import ImageFault
from dataengine.schemas import CANDIDATE, SAMPLE
from dataengine.storage.located import read_located
from dataengine.storage.rundir import Commit, Part
from dataengine.storage.store import Root
from dataengine.storage.tar import END, header, padding

_NEEDED = ["key", "url", "expected_sha256", "fault", "object", "offset", "nbytes"]
_NOTHING: dict[str, Any] = dict.fromkeys(SAMPLE.arrow.names)


@dataclass(frozen=True)
class Download(Step):
    """Gets the image of every candidate of a source, or the reason why not."""

    stage: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    source: str
    config: DownloadConfig
    kind: Literal["table", "webdataset"]

    @property
    def unit(self) -> str:
        return self.source

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.source}"),)

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "kind": self.kind}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE, _NEEDED)
        rows = candidates.to_pylist()
        is_table = self.kind == "table"
        samples = self._fetch(rows, outputs, machine) if is_table else self._inspect(rows, inputs.root)
        columns: dict[str, list[Any]] = {name: [sample[name] for sample in samples] for name in SAMPLE.arrow.names}
        outputs.rows_in = len(rows)
        outputs.count(Counter(sample["reason"] or "ok" for sample in samples))
        outputs.table("sample", SAMPLE, SAMPLE.table(columns))

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
                f"Mend the cause, remove the folders <root>/runs/<name>/{self.name}-*, which hold the failures, and "
                f"run again; or raise the share."
            )

    def _fetch(self, rows: list[dict[str, Any]], outputs: Outputs, machine: Machine) -> list[dict[str, Any]]:
        wanted = [i for i, row in enumerate(rows) if row["fault"] is None]
        samples = [_failed(row["key"], row["fault"]) for row in rows]
        spans: dict[int, tuple[int, int]] = {}
        config = self.config.model_copy(update={"hosts": {**self.config.hosts, **machine.hosts}})
        # Responses come in any order, the tar is in key order: images wait in a scratch file, not in memory.
        with tempfile.TemporaryFile() as scratch, ThreadPoolExecutor(machine.num_threads) as decoders:

            async def keep(position: int, fetched: Fetched) -> None:
                row = rows[wanted[position]]
                loop = asyncio.get_running_loop()
                sample, image = await loop.run_in_executor(decoders, self._store, row, fetched)
                samples[wanted[position]] = sample
                if image is not None:
                    spans[wanted[position]] = (scratch.tell(), scratch.write(image.content))

            urls = [rows[i]["url"] for i in wanted]
            asyncio.run(fetch_all(urls, config, machine.num_workers, machine.now, keep))
            self._write_tar(samples, spans, scratch, outputs)
        return samples

    def _store(self, row: dict[str, Any], fetched: Fetched) -> tuple[dict[str, Any], StoredImage | None]:
        """The SAMPLE row of a response, and the image to keep."""
        sample = _failed(row["key"], fetched.reason) | {
            "http_status": fetched.http_status,
            "final_url": fetched.final_url,
            "content_type": fetched.content_type,
            "opt_out": fetched.opt_out,
            "fetched_at": fetched.fetched_at,
            "num_attempts": fetched.num_attempts,
        }
        if fetched.content is None or fetched.reason is not None:
            return sample, None
        sample["sha256"] = hashlib.sha256(fetched.content).hexdigest()
        if row["expected_sha256"] not in (None, sample["sha256"]):
            return sample | {"reason": "hash_mismatch"}, None
        try:
            image = store_image(fetched.content, self.config.image, self.config.limits)
        except ImageFault as fault:
            return sample | {"reason": fault.reason}, None
        return sample | _found(image), image

    def _write_tar(
        self,
        samples: list[dict[str, Any]],
        spans: dict[int, tuple[int, int]],
        scratch: BinaryIO,
        outputs: Outputs,
    ) -> None:
        if not spans:
            return
        with outputs.stream("raw", "raw.tar") as tar:
            for i in sorted(spans):
                start, nbytes = spans[i]
                tar.write(header(f"{samples[i]['key']}.{samples[i]['format']}", nbytes))
                samples[i] |= {"object": outputs.path("raw.tar"), "offset": tar.num_bytes, "nbytes": nbytes}
                scratch.seek(start)
                tar.write(scratch.read(nbytes))
                tar.write(padding(nbytes))
            tar.write(END)

    def _inspect(self, rows: list[dict[str, Any]], root: Root) -> list[dict[str, Any]]:
        def inspect(row: dict[str, Any], content: bytes | None) -> dict[str, Any]:
            sample = _failed(row["key"], row["fault"])
            if content is None:
                return sample
            sample["sha256"] = hashlib.sha256(content).hexdigest()
            try:
                image = inspect_image(content, self.config.limits)
            except ImageFault as fault:
                return sample | {"reason": fault.reason}
            return sample | _found(image) | {name: row[name] for name in ("object", "offset", "nbytes")}

        # Before anything is read: a member of a hostile tar may be larger than memory.
        most = self.config.limits.max_body_bytes
        for row in rows:
            if row["fault"] is None and row["nbytes"] > most:
                row["fault"] = "too_large"
        places = [(row["object"], row["offset"], row["nbytes"]) if row["fault"] is None else None for row in rows]
        return [inspect(row, content) for row, content in zip(rows, read_located(root, places), strict=True)]


def _failed(key: str, reason: str | None) -> dict[str, Any]:
    return _NOTHING | {"key": key, "status": "failed", "reason": reason, "num_attempts": 0}


def _found(image: StoredImage) -> dict[str, Any]:
    fields = ("format", "width", "height", "original_width", "original_height", "xxh3", "pixel_hash")
    return {"status": "ok", "reason": None} | {name: getattr(image, name) for name in fields}
