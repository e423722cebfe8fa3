"""Sources whose files change between two runs: every row of the files there are, and no other."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from dataengine.config.sources import TableSource, WebDatasetSource
from dataengine.contract import Machine, Step
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.schemas import CANDIDATE
from dataengine.sources.stage import IndexTars, MergeTable, ScanTable
from dataengine.storage.rundir import RunDirectory, digest
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table

MACHINE = Machine(1, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))


class _Silent:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        pass


def candidates(folder: Path, *steps: Step) -> pa.Table:
    """CANDIDATE of the last step, after a run in `folder`."""
    root = Root(str(folder))
    recipes = {step.name: digest(dict(step.identity())) for step in steps}
    board = Board(RunDirectory(root, "run"), steps, recipes, store=True)
    Runner(board, lambda: SerialExecutor({"sources": MACHINE}), _Silent(), 100.0).run()
    commits = board.states[steps[-1].name].commits()
    return pa.concat_tables(read_table(root, commit.objects["candidate"].path, CANDIDATE) for commit in commits)


def table_steps(*patterns: str) -> tuple[Step, Step]:
    return ScanTable("web", TableSource(kind="table", paths=patterns), part_rows=5), MergeTable("web")


def write_list(path: Path, first: int, num_rows: int) -> set[str]:
    urls = [f"http://web.test/{number}" for number in range(first, first + num_rows)]
    path.write_text("url,caption\n" + "".join(f"{url},a caption\n" for url in urls))
    return set(urls)


def test_rows_follow_the_files_that_come_and_go(tmp_path: Path) -> None:
    ten, seven = write_list(tmp_path / "a.csv", 0, 10), write_list(tmp_path / "b.csv", 100, 7)
    both, one = table_steps("{root}/a.csv", "{root}/b.csv"), table_steps("{root}/a.csv")
    for steps, urls in ((both, ten | seven), (one, ten), (both, ten | seven)):
        found = candidates(tmp_path, *steps)
        assert set(found["url"].to_pylist()) == urls
        assert sum(found["num_rows"].to_pylist()) == len(urls)


def test_a_renamed_tar_is_indexed_anew(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "old.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("7.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"jpg"))
    step = IndexTars("tars", WebDatasetSource(kind="webdataset", paths=("{root}/*.tar",)))
    old = candidates(tmp_path, step)
    (tmp_path / "old.tar").rename(tmp_path / "new.tar")  # size and time of change stay
    new = candidates(tmp_path, step)
    assert (old["object"].to_pylist(), new["object"].to_pylist()) == (["old.tar"], ["new.tar"])
    assert old["key"].to_pylist() != new["key"].to_pylist()
