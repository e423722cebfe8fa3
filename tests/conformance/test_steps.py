"""What every step of the pipeline must hold, proven on each of its parts in a finished run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from dataengine.config.load import load_config
from dataengine.contract import Inputs, Machine, Outputs, Step
from dataengine.engine.board import Board
from dataengine.pipeline import build_pipeline
from dataengine.storage.rundir import Commit, Part, RunDirectory, canonical_json
from tests.conftest import REPOSITORY, SMALL

STEPS = [step.name for step in build_pipeline(load_config(REPOSITORY / "configs" / "quickstart.yaml")).steps]


@pytest.fixture(scope="module")
def board(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Board:
    """The finished run, in a copy that replayed steps may write to."""
    root = tmp_path_factory.mktemp("replay") / "root"
    shutil.copytree(quickstart_run, root)
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL])
    pipeline = build_pipeline(config)
    found = Board(RunDirectory.open(config.root, {}, config.name), pipeline.steps, dict(pipeline.recipes), store=True)
    # Tars are told by their time of change, which copying sets anew: what stands on them counts as changed.
    for path in (root / "sample-web" / "inputs").iterdir():
        shutil.copystat(quickstart_run / "sample-web" / "inputs" / path.name, path)
    found.survey()
    return found


def parts(board: Board, name: str) -> Iterator[tuple[Step, Part, Inputs, Commit]]:
    state = board.states[name]
    assert state.plan is not None
    for part in state.plan.parts:
        inputs = board.inputs(state.step, part)
        assert inputs is not None
        yield state.step, part, inputs, state.done[part.name]


def replay(board: Board, step: Step, part: Part, inputs: Inputs) -> Commit:
    """Run a part once more, as another attempt, without committing it."""
    hosts = {"photos.test": "127.0.0.1:9"}
    machine = Machine(1, 0, 1, hosts, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    outputs = Outputs(board.states[step.name].directory, part.name, "replayed")
    step.run(part, inputs, outputs, machine)
    return outputs.commit(inputs.reads(), 0.0)


def test_every_step_is_on_the_board(board: Board) -> None:
    assert list(board.states) == STEPS
    assert board.finished


@pytest.mark.parametrize("name", [name for name in STEPS if not name.startswith("download/")])
def test_replay_gives_equal_bytes(board: Board, name: str) -> None:
    for step, part, inputs, commit in parts(board, name):
        again = replay(board, step, part, inputs)
        wanted = {key: item.sha256 for key, item in commit.objects.items()}
        assert {key: item.sha256 for key, item in again.objects.items()} == wanted, part.name
        assert again.digest == commit.digest
        assert (again.rows_in, again.rows_out, again.counts) == (commit.rows_in, commit.rows_out, dict(commit.counts))


@pytest.mark.parametrize("name", STEPS)
def test_step_travels_to_a_worker(board: Board, name: str) -> None:
    step = board.states[name].step
    copy = pickle.loads(pickle.dumps(step))
    assert copy == step
    assert canonical_json(dict(copy.identity())) == canonical_json(dict(step.identity()))
    assert isinstance(step.version, int)


@pytest.mark.parametrize("stage", ["download", "score"])
def test_per_part_tables_are_co_partitioned(board: Board, stage: str) -> None:
    """The same part name holds the same keys in the same order, from sources to score."""
    root = Path(board.root.url)
    for name, state in board.states.items():
        if state.step.stage != stage:
            continue
        source = name.rpartition(".")[2] if stage == "score" else name.partition("/")[2]
        for part, commit in state.done.items():
            below = board.states[f"sources/{source}"].done[part]
            table = "score" if stage == "score" else "sample"
            keys = pl.read_parquet(root / commit.objects[table].path)["key"]
            assert keys.equals(pl.read_parquet(root / below.objects["candidate"].path)["key"])
            assert commit.rows_in == commit.rows_out == len(keys)


@pytest.mark.parametrize("name", STEPS)
def test_objects_are_what_their_commit_says(board: Board, name: str) -> None:
    import hashlib

    root = Path(board.root.url)
    for _, _, _, commit in parts(board, name):
        for item in commit.objects.values():
            content = (root / item.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (item.nbytes, item.sha256)
