"""Raw parts without what was taken down: the next generation of a part of download, its good rows in a new tar.

A part keeps its keys and their order; rows taken down become failed ones, as if they had never been fetched, and the
tars that held them are no longer named by any row. Steps above a changed part are redone by the next run.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.contract import AGAIN, AGAIN_FOR, Outputs
from dataengine.errors import CorruptObject
from dataengine.schemas import SAMPLE
from dataengine.storage.located import places_of, read_located
from dataengine.storage.rundir import Commit, UnitDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table
from dataengine.storage.takedowns import TAKEDOWN
from dataengine.storage.tar import END, append

_STAYS = ("key", "num_attempts")
_PLAN = re.compile(r"runs/[^/]+/download/[^/]+/plan\.json")


@dataclass(frozen=True)
class RawPart:
    """A part of download whose tars hold something that was taken down."""

    unit: UnitDirectory
    commit: Commit
    objects: tuple[str, ...]
    """Its tars in the run: what is deleted once the part is written anew."""


def raw_parts(root: Root, keys: frozenset[str]) -> tuple[list[RawPart], set[str]]:
    """The parts of any run's download that hold pictures of `keys`; and objects outside the runs that hold some."""
    parts, outside = [], set[str]()
    gone = pa.array(sorted(keys), pa.string())
    for path in root.list("runs"):
        if not _PLAN.fullmatch(path):
            continue
        unit = UnitDirectory(root, path.rpartition("/")[0])
        for commit in _current(unit):
            rows = read_table(root, commit.objects["sample"].path, SAMPLE, ["key", "object"])
            held, doomed = _objects(rows), _objects(rows.filter(pc.is_in(rows.column("key"), value_set=gone)))
            own = {name for name in held if name.startswith(f"{unit.path}/data/")}
            if doomed & own:
                parts.append(RawPart(unit, commit, tuple(sorted(own))))
            outside |= doomed - own
    return parts, outside


def rewrite(parts: Sequence[RawPart], keys: frozenset[str]) -> None:
    """Write `parts` anew and delete their old tars; killed in between, the same call goes on."""
    for path in sorted({part.unit.path for part in parts}):
        mine = [part for part in parts if part.unit.path == path]
        unit = mine[0].unit
        written = {part.commit.part: _rewritten(part, keys) for part in mine}
        for name in sorted({name for part in mine for name in part.objects}):
            unit.root.delete(name)
        # Last: until then the unit's completion names the old parts, by which the work is found again.
        commits = {commit.part: commit for commit in _current(unit)} | written
        plan = unit.load_plans()[-1]
        if commits.keys() == {part.name for part in plan.parts}:
            unit.store_complete(plan, [commits[part.name] for part in plan.parts])


def _current(unit: UnitDirectory) -> list[Commit]:
    """The commits that a run would take: those of the last completion, else the newest."""
    complete = unit.find_complete(unit.load_plans()[-1])
    return unit.standing()[1] if complete is None else complete[1]


def _rewritten(part: RawPart, keys: frozenset[str]) -> Commit:
    unit, root = part.unit, part.unit.root
    reads = {**part.commit.reads, AGAIN: f"{part.commit.digest} of {part.commit.attempt}", AGAIN_FOR: TAKEDOWN}
    known = unit.load_commits().get(part.commit.part, [])
    if (stored := next((commit for commit in known if commit.reads == reads), None)) is not None:
        return stored
    rows = read_table(root, part.commit.objects["sample"].path, SAMPLE).to_pylist()
    left = [row for row in rows if row["object"] in part.objects and row["key"] not in keys]
    outputs = Outputs(unit, part.commit.part, secrets.token_hex(8))
    with outputs.stream("raw", "raw.tar") as tar:
        places = places_of({name: [row[name] for row in left] for name in ("object", "offset", "nbytes")})
        for row, content in zip(left, read_located(root, places), strict=True):
            if content is None or len(content) != row["nbytes"]:
                raise CorruptObject(f"{root.address(row['object'])}: cannot read the picture of {row['key']}")
            offset = append(tar, f"{row['key']}.{row['format']}", content)
            row |= {"object": outputs.path("raw.tar"), "offset": offset}
        tar.write(END)
    told = [_taken(row) if row["key"] in keys and row["object"] is not None else row for row in rows]
    outputs.table("sample", SAMPLE, SAMPLE.table({name: [row[name] for row in told] for name in SAMPLE.arrow.names}))
    outputs.count(Counter(row["reason"] or "ok" for row in told))
    changed = replace(part.commit, attempt=outputs.attempt, reads=reads, objects=outputs.objects, metrics={})
    return unit.store_commit(replace(changed, counts=outputs.counts))


def _taken(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in _STAYS}
    return dict.fromkeys(SAMPLE.arrow.names) | kept | {"status": "failed", "reason": TAKEDOWN}


def _objects(rows: pa.Table) -> set[str]:
    return set(rows.column("object").unique().drop_null().to_pylist())
