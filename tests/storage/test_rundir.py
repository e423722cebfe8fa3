"""Plans and commits: created once, found by what they read, never edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dataengine.errors import CorruptObject, MissingObject
from dataengine.storage.rundir import Commit, ObjectRef, Part, Plan, RunDirectory, UnitDirectory, canonical_json
from dataengine.storage.store import Root

COMMIT = Commit("part-000000", "a1", {"sources/x": "1"}, {"t": ObjectRef("p", 3, "ab", 2)}, 2, 2, {"ok": 2}, {"f": 1})


@pytest.fixture
def unit(tmp_path: Path) -> UnitDirectory:
    return RunDirectory(Root(str(tmp_path)), "run").unit("score", "tiny.x", "0123456789ab")


def test_commit_survives_a_round_trip(unit: UnitDirectory) -> None:
    assert unit.store_commit(COMMIT) == COMMIT
    assert unit.load_commits() == {"part-000000": [COMMIT]}


def test_second_attempt_from_the_same_reads_meets_the_first(unit: UnitDirectory) -> None:
    unit.store_commit(COMMIT)
    assert unit.store_commit(replace(COMMIT, attempt="b2")) == COMMIT


def test_changed_reads_make_a_new_generation_and_keep_the_old_one(unit: UnitDirectory) -> None:
    changed = replace(COMMIT, attempt="b2", reads={"sources/x": "2"})
    unit.store_commit(COMMIT)
    assert unit.store_commit(changed) == changed
    assert unit.load_commits() == {"part-000000": [COMMIT, changed]}
    assert unit.root.list(f"{unit.path}/commits") == [
        f"{unit.path}/commits/part-000000.g1.json",
        f"{unit.path}/commits/part-000000.json",
    ]


def test_plan_is_found_again_among_its_generations(unit: UnitDirectory) -> None:
    first = Plan((Part("part-000000", {"path": "a"}),), {"a": "1"})
    second = Plan((Part("part-000000"), Part("part-000001")), {"a": "2"})
    assert [unit.store_plan(plan) for plan in (first, second, first)] == [first, second, first]
    assert unit.load_plans() == [first, second]


def test_complete_names_its_plan(unit: UnitDirectory) -> None:
    plan, other = Plan((Part("part-000000"),), {}), Plan((), {"x": "y"})
    path = unit.store_complete(plan, [COMMIT])
    assert unit.find_complete(plan) == (path, [COMMIT])
    assert unit.find_complete(other) is None
    assert unit.store_complete(plan, [COMMIT]) == path


def test_digest_follows_content_not_attempt_or_time() -> None:
    assert COMMIT.digest == replace(COMMIT, attempt="other", seconds=9.0).digest
    assert COMMIT.digest != replace(COMMIT, objects={"t": ObjectRef("p", 3, "cd", 2)}).digest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"part": "x"}', b'{"objects": {"t": {"size": 1}}}'])
def test_damaged_commit_is_an_error_that_names_it(unit: UnitDirectory, content: bytes) -> None:
    unit.root.put(f"{unit.path}/commits/part-000000.json", content)
    with pytest.raises(CorruptObject, match=r"commits/part-000000\.json"):
        unit.load_commits()


def test_last_config_is_the_one_asked_for_last(tmp_path: Path) -> None:
    run = RunDirectory(Root(str(tmp_path)), "run")
    with pytest.raises(MissingObject, match="no run was started"):
        run.last_config()
    for number, time in ((1, "t1"), (2, "t2"), (1, "t3")):
        run.record_config({"config": {"number": number}, "units": []}, time)
    assert run.last_config()["config"] == {"number": 1}
    assert len(run.root.list("runs/run/configs")) == 2


def test_canonical_json_refuses_what_has_no_stable_form() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises((TypeError, ValueError)):
            canonical_json(value)
