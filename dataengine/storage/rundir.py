"""The run directory: what was planned, what exists, and what each part was made from.

    runs/<run>/<stage>/<unit>-<recipe8>/plan.json                  the parts, in order
                                        data/<part>.<attempt>.*    attempt-unique, never overwritten
                                        commits/<part>.json        create-once: the record that makes the part exist
                                        complete.json              create-once: every commit of the unit, sorted
    runs/<run>/settled/<name>                                      create-once: what all workers must agree on

A commit holds for the content it names as read. When that content changes, the next generation is written beside it
(`part-000000.g1.json`, and `plan.g1.json` when the parts change); nothing is edited, and the generation that fits is
found by what it read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dataengine.errors import CorruptObject, MissingObject
from dataengine.storage.store import Root

_PARALLEL_READS = 32


def canonical_json(value: Any) -> bytes:
    """The one JSON text of `value`: sorted keys, no spaces, UTF-8. Raises TypeError for what has no stable form."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex characters."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Part:
    """One unit of work and, once committed, one part of a table. `spec` is plain JSON that the stage planned."""

    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The parts of a unit in order, and fingerprints of everything that decided them."""

    parts: tuple[Part, ...]
    reads: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The plan as stored."""
        return canonical_json({"parts": [asdict(part) for part in self.parts], "reads": dict(self.reads)})

    @property
    def digest(self) -> str:
        """Identity of the plan."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Self:
        """The plan in `content`; raises CorruptObject."""
        record = _parse(content, where)
        try:
            return cls(tuple(Part(part["name"], part["spec"]) for part in record["parts"]), record["reads"])
        except (KeyError, TypeError) as error:
            raise CorruptObject(f"{where}: not a plan: {error!r}") from error


@dataclass(frozen=True)
class ObjectRef:
    """An object that a commit makes exist."""

    path: str
    nbytes: int
    sha256: str
    num_rows: int = 0
    xxh3: str | None = None
    """XXH3-64 of an object that was written in one piece, 16 hex characters: proves what was read, at a tenth of the
    cost of SHA-256, which is the object's identity."""


@dataclass(frozen=True)
class Commit:
    """That a part exists: its objects, what they were made from, and counts for the ledger."""

    part: str
    attempt: str
    reads: Mapping[str, str]
    objects: Mapping[str, ObjectRef]
    rows_in: int = 0
    rows_out: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """How the work went, as plain JSON; no part of the commit's identity."""

    @property
    def digest(self) -> str:
        """Identity of the content: what a stage above names as read."""
        return digest(
            {"objects": {name: item.sha256 for name, item in self.objects.items()}, "facts": dict(self.facts)}
        )

    def to_json(self) -> bytes:
        """The commit as stored."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Self:
        """The commit in `content`; raises CorruptObject."""
        return cls.from_record(_parse(content, where), where)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Self:
        """The commit that a parsed JSON object holds; raises CorruptObject."""
        try:
            objects = {name: ObjectRef(**item) for name, item in record["objects"].items()}
            return cls(**{**record, "objects": objects})
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptObject(f"{where}: not a commit: {error!r}") from error


def combined_digest(commits: Sequence[Commit]) -> str:
    """Identity of a whole unit's content: what a stage that reads all of its parts names as read."""
    return digest({commit.part: commit.digest for commit in commits})


@dataclass(frozen=True)
class UnitDirectory:
    """The folder of one unit at one recipe."""

    root: Root
    path: str

    def data_path(self, part: str, attempt: str, suffix: str) -> str:
        """Where an attempt at a part writes an object."""
        return f"{self.path}/data/{part}.{attempt}.{suffix}"

    def settle(self, name: str, content: bytes) -> bytes:
        """What the run holds under `settled/<name>` for ever: the first content that anybody gave it."""
        run = self.path.rsplit("/", 2)[0]
        return self.root.create(f"{run}/settled/{name}", content)

    def store_plan(self, plan: Plan) -> Plan:
        """Store `plan`, as another generation when the inputs that decided the last one have changed."""
        content, generation = plan.to_json(), 0
        while True:
            path = f"{self.path}/{_generation_name('plan', generation)}"
            if self.root.create(path, content) == content:
                return plan
            generation += 1

    def store_commit(self, commit: Commit) -> Commit:
        """`commit`, or the one that another attempt stored first from the same reads."""
        content, generation = commit.to_json(), 0
        while True:
            path = f"{self.path}/commits/{_generation_name(commit.part, generation)}"
            stored = Commit.from_json(self.root.create(path, content), self.root.address(path))
            if stored.reads == commit.reads:
                return stored
            generation += 1

    def load_plans(self) -> list[Plan]:
        """Every generation of the plan, oldest first."""
        plans: list[Plan] = []
        while True:
            path = f"{self.path}/{_generation_name('plan', len(plans))}"
            try:
                plans.append(Plan.from_json(self.root.get(path), self.root.address(path)))
            except MissingObject:
                return plans

    def standing(self) -> tuple[int | None, list[Commit]]:
        """Parts of the newest plan (None: not planned yet), and the newest commit of each that has one."""
        plans = self.load_plans()
        if not plans:
            return None, []
        names = {part.name for part in plans[-1].parts}
        return len(names), [found[-1] for part, found in self.load_commits().items() if part in names]

    def load_commits(self) -> dict[str, list[Commit]]:
        """Every stored commit by part, oldest generation first.

        Found by listing: a commit that a stale listing hides costs a repeated part, whose own commit then meets it.
        """
        paths = [path for path in self.root.list(f"{self.path}/commits") if path.endswith(".json")]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            contents = list(pool.map(self.root.get, paths))
        by_part: dict[str, dict[int, Commit]] = {}
        for path, content in zip(paths, contents, strict=True):
            commit = Commit.from_json(content, self.root.address(path))
            by_part.setdefault(commit.part, {})[_generation_of(path)] = commit
        return {part: [found[number] for number in sorted(found)] for part, found in by_part.items()}

    def store_complete(self, plan: Plan, commits: Sequence[Commit]) -> str:
        """Record that every part of `plan` is committed, with all commits in one object; that object's path."""
        record = {"plan": plan.digest, "commits": [asdict(commit) for commit in commits]}
        content, generation = canonical_json(record), 0
        while True:
            path = f"{self.path}/{_generation_name('complete', generation)}"
            if self.root.create(path, content) == content:
                return path
            generation += 1

    def find_complete(self, plan: Plan) -> tuple[str, list[Commit]] | None:
        """Path and commits of the newest completion of `plan`; None when the unit never was complete under it."""
        generation, found = 0, None
        while True:
            path = f"{self.path}/{_generation_name('complete', generation)}"
            try:
                record = _parse(self.root.get(path), self.root.address(path))
            except MissingObject:
                return found
            if record.get("plan") == plan.digest:
                found = path, self.read_complete(path)
            generation += 1

    def read_complete(self, path: str) -> list[Commit]:
        """The commits that a completion lists, in part order."""
        where = self.root.address(path)
        return [Commit.from_record(item, where) for item in _parse(self.root.get(path), where)["commits"]]


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run."""

    root: Root
    name: str

    @classmethod
    def open(cls, root: str, options: Mapping[str, str], name: str) -> Self:
        """The run `name` under the root at a URL, with settings of its store."""
        return cls(Root(root, tuple(sorted(options.items()))), name)

    @property
    def path(self) -> str:
        """Relative to the root."""
        return f"runs/{self.name}"

    def unit(self, stage: str, unit: str, recipe: str) -> UnitDirectory:
        """The folder of a unit at a recipe (hex; its first 8 characters name the folder)."""
        return UnitDirectory(self.root, f"{self.path}/{stage}/{unit}-{recipe[:8]}")

    def record_config(self, record: Mapping[str, Any], asked_at: str) -> None:
        """Keep what was asked for: the config once by its hash, and each asking in order."""
        name = digest(record)[:16]
        self.root.create(f"{self.path}/configs/{name}.json", canonical_json(record))
        content = canonical_json({"config": name, "asked_at": asked_at})
        number = 1
        while self.root.create(f"{self.path}/asks/{number:06d}.json", content) != content:
            number += 1

    def last_config(self) -> dict[str, Any]:
        """The record of the config asked for last. Raises MissingObject when there is no such run."""
        number = 1
        while self.root.exists(f"{self.path}/asks/{number:06d}.json"):
            number += 1
        if number == 1:
            raise MissingObject(f"{self.root.address(self.path)}: no run was started under this name")
        ask = f"{self.path}/asks/{number - 1:06d}.json"
        path = f"{self.path}/configs/{_parse(self.root.get(ask), self.root.address(ask)).get('config')}.json"
        record = _parse(self.root.get(path), self.root.address(path))
        if not {"config", "units"} <= record.keys():
            raise CorruptObject(f"{self.root.address(path)}: not the record of a config; run the config again")
        return record


def _generation_name(stem: str, generation: int) -> str:
    return f"{stem}.json" if generation == 0 else f"{stem}.g{generation}.json"


def _generation_of(path: str) -> int:
    middle = path.removesuffix(".json").rpartition("/")[2].rpartition(".g")
    return int(middle[2]) if middle[1] and middle[2].isdigit() else 0


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CorruptObject(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CorruptObject(f"{where}: wanted a JSON object, got {type(record).__name__}")
    return record
