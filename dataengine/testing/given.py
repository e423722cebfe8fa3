"""Steps that stand for sources, download, score and select: rows made by number, so that emit can be run alone.

A set is its sizes and a seed. Every row has a picture of its own, a caption, a score and a verdict; nothing is fetched,
decoded or judged. Tests and benchmarks of what comes after select start here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import xxhash

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.keys import url_keys
from dataengine.schemas import CANDIDATE, SAMPLE, SELECTION, score_schema
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.tar import END, append

SCORER = "given"
SCORE = score_schema(["clip_score"], [], measures=True)
FORMATS = ("jpg", "png", "webp")
_DROP_EVERY = 11
_WORDS = np.array(["a", "red", "old", "house", "near", "the", "river", "with", "two", "dogs", "in", "summer"])


@dataclass(frozen=True)
class GivenSource:
    """A source of `num_rows` rows in parts of `part_rows`; of every `1 / holdout_every`, one row is held out."""

    name: str
    num_rows: int
    part_rows: int = 1000
    image_bytes: int = 0
    """Pictures are filled up to about this size; trailing bytes are no part of the picture."""
    formats: tuple[str, ...] = ("jpg",)
    holdout_every: int = 0
    max_repeat: int = 1
    seed: int = 0

    def parts(self) -> list[Part]:
        """As many as there are rows for."""
        return [Part(f"part-{i:06d}") for i in range(-(-self.num_rows // self.part_rows))]

    def first_row(self, part: Part) -> int:
        """Number of the part's first row."""
        return int(part.name.removeprefix("part-")) * self.part_rows

    def urls(self) -> list[str]:
        """The URL of every row, in key order."""
        urls = [f"http://{self.name}.test/{self.seed}/{i}.jpg?q=ü" for i in range(self.num_rows)]
        return [url for _, url in sorted(zip(url_keys(self.name, urls), urls, strict=True))]


@dataclass(frozen=True)
class _Given(Step):
    version: ClassVar[int] = 1
    given: GivenSource

    @property
    def unit(self) -> str:
        return self.given.name

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.given.name}"),)

    def identity(self) -> Mapping[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.given).items()}

    def urls(self, part: Part) -> list[str]:
        """URLs of the part's rows, in key order."""
        first = self.given.first_row(part)
        return self.given.urls()[first : first + self.given.part_rows]


@dataclass(frozen=True)
class GivenCandidates(_Given):
    """Rows of captions that need escaping, named captions and passthrough columns."""

    stage: ClassVar[str] = "sources"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def plan(self, context: PlanContext) -> Plan:
        return Plan(tuple(self.given.parts()))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        urls = self.urls(part)
        rng = np.random.default_rng([self.given.seed, self.given.first_row(part)])
        words = [" ".join(row) for row in rng.choice(_WORDS, (len(urls), 14)).tolist()]
        table = CANDIDATE.table(
            {
                "key": url_keys(self.given.name, urls),
                "num_rows": [1] * len(urls),
                "source": [self.given.name] * len(urls),
                "url": urls,
                "caption": [f'{text} "№ {i}"\n' if i % 7 == 0 else text for i, text in enumerate(words)],
                "captions": [[("alt", f"alt {i}")] if i % 2 else [] for i in range(len(urls))],
                "extra": [[("license", "CC0")]] * len(urls),
                **{name: pa.nulls(len(urls), CANDIDATE.arrow.field(name).type) for name in ("expected_hash", "fault")},
                **{name: pa.nulls(len(urls), CANDIDATE.arrow.field(name).type) for name in ("detail", "object")},
                **{name: pa.nulls(len(urls), pa.int64()) for name in ("offset", "nbytes")},
            }
        )
        outputs.rows_in = len(table)
        outputs.table("candidate", CANDIDATE, table)
        outputs.facts["content_sha256"] = hashlib.sha256("\n".join(urls).encode()).hexdigest()


@dataclass(frozen=True)
class GivenSamples(_Given):
    """Stores a picture for every row, in a tar as download does."""

    stage: ClassVar[str] = "download"

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        keys = url_keys(self.given.name, self.urls(part))
        rows = []
        with outputs.stream("raw", "raw.tar") as tar:
            for number, key in enumerate(keys, self.given.first_row(part)):
                form = self.given.formats[number % len(self.given.formats)]
                image = picture(number, form, self.given.image_bytes)
                offset = append(tar, f"{key}.{form}", image)
                rows.append(self._row(key, form, image, offset))
            tar.write(END)
        blank = dict.fromkeys(SAMPLE.arrow.names) | {
            "status": "ok",
            "num_attempts": 1,
            "object": outputs.path("raw.tar"),
        }
        table = SAMPLE.table({name: [(blank | row)[name] for row in rows] for name in SAMPLE.arrow.names})
        outputs.rows_in = len(rows)
        outputs.table("sample", SAMPLE, table)

    def _row(self, key: str, form: str, image: bytes, offset: int) -> dict[str, Any]:
        return {
            "key": key,
            "sha256": hashlib.sha256(image).hexdigest(),
            "xxh3": xxhash.xxh3_64_hexdigest(image),
            "width": 24,
            "height": 16,
            "format": form,
            "offset": offset,
            "nbytes": len(image),
        }


def picture(number: int, form: str, nbytes: int) -> bytes:
    """A small picture that is `number`'s own, as `form`, filled up to about `nbytes`."""
    from PIL import Image

    colour = (number % 256, number // 256 % 256, number // 65536 % 256)
    sink = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(sink, {"jpg": "JPEG"}.get(form, form.upper()), comment=str(number).encode())
    missing = max(0, nbytes * (50 + number * 37 % 101) // 100 - sink.tell())
    return sink.getvalue() + np.random.default_rng(number).bytes(missing)


@dataclass(frozen=True)
class GivenScores(_Given):
    """A score for every row, missing for some."""

    stage: ClassVar[str] = "score"

    @property
    def unit(self) -> str:
        return f"{SCORER}.{self.given.name}"

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        keys = url_keys(self.given.name, self.urls(part))
        rng = np.random.default_rng([1, self.given.seed, self.given.first_row(part)])
        scores = rng.normal(0.28, 0.05, len(keys)).astype(np.float32)
        columns: dict[str, Any] = {
            "key": keys,
            "score_status": ["ok"] * len(keys),
            "clip_score": pa.array(scores, mask=np.arange(len(keys)) % 13 == 0),
            "phash": [f"{value:016x}" for value in rng.integers(0, 2**63, len(keys))],
            "caption_chars": [9] * len(keys),
            "caption_tokens": [3] * len(keys),
            "caption_truncated": [False] * len(keys),
        }
        columns |= {name: pa.array(scores) for name in ("sharpness", "entropy")}
        outputs.table("score", SCORE, SCORE.table(columns))
        outputs.facts["provenance"] = {"scorer": SCORER}


@dataclass(frozen=True)
class GivenSelection(Step):
    """Keeps all rows but one in eleven, holds some out, and draws some more than once."""

    stage: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    given: tuple[GivenSource, ...]

    @property
    def unit(self) -> str:
        return "selection"

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Need(f"download/{source.name}", whole=True) for source in self.given)

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        draws = {}
        for source in self.given:
            urls, realised = source.urls(), 0
            for planned in source.parts():
                first = source.first_row(planned)
                keys = url_keys(source.name, urls[first : first + source.part_rows])
                table = _selection(source, keys, first)
                outputs.table(f"{source.name}.{planned.name}", SELECTION, table)
                trained = np.array(table.column("split").to_pylist()) == "train"
                realised += int(table.column("repeat").to_numpy()[trained].sum())
            draws[source.name] = {"available": source.num_rows, "asked": realised, "realised": realised}
        outputs.facts["mixture"] = {"target": None, "sources": draws}


def _selection(source: GivenSource, keys: list[str], first: int) -> pa.Table:
    number = np.arange(first, first + len(keys))
    kept = number % _DROP_EVERY != 0
    held = (number % source.holdout_every == 1) if source.holdout_every else np.zeros(len(keys), bool)
    repeat = np.where(kept, 1 + number % source.max_repeat, 0)
    columns: dict[str, Any] = {
        name: pa.nulls(len(keys), SELECTION.arrow.field(name).type) for name in SELECTION.arrow.names
    }
    columns |= {
        "key": keys,
        "source": [source.name] * len(keys),
        "verdict": np.where(kept, "kept", "dropped").tolist(),
        "stage": pa.array(["select"] * len(keys), mask=kept),
        "reason": pa.array(["too_dull"] * len(keys), mask=kept),
        "split": np.where(held, "holdout", "train").tolist(),
        "repeat": repeat.tolist(),
        "merged_captions": [[("merged_1", "seen elsewhere")] if i % 40 == 39 else [] for i in number.tolist()],
    }
    return SELECTION.table(columns)


def given_steps(sources: tuple[GivenSource, ...]) -> list[Step]:
    """Everything that emit needs of `sources`."""
    steps: list[Step] = []
    for source in sources:
        steps += [GivenCandidates(source), GivenSamples(source), GivenScores(source)]
    return [*steps, GivenSelection(sources)]
