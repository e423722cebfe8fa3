"""Sources as steps: every row of the files there are and no other, however the files are cut, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from dataengine.config.sources import TableSource, WebDatasetSource
from dataengine.contract import Machine, Step
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.schemas import CANDIDATE
from dataengine.sources import stage, tables
from dataengine.sources.hosts import HOSTS
from dataengine.sources.in_place import IndexTars
from dataengine.sources.stage import MergeTable, ScanTable
from dataengine.storage.rundir import Commit, RunDirectory, digest
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table

MACHINE = Machine(1, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))


class _Silent:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        pass


def commits(folder: Path, *steps: Step) -> list[list[Commit]]:
    """The commits of each step, after a run in `folder`."""
    recipes = {step.name: digest(dict(step.identity())) for step in steps}
    board = Board(RunDirectory(Root(str(folder)), "run"), steps, recipes, store=True)
    Runner(board, lambda: SerialExecutor({"sources": MACHINE}), _Silent(), 100.0).run()
    return [board.states[step.name].commits() for step in steps]


def candidates(folder: Path, *steps: Step) -> pa.Table:
    """CANDIDATE of the last step, after a run in `folder`."""
    root = Root(str(folder))
    found = commits(folder, *steps)[-1]
    return pa.concat_tables(read_table(root, commit.objects["candidate"].path, CANDIDATE) for commit in found)


def table_steps(*patterns: str, part_rows: int = 5) -> tuple[Step, Step]:
    return ScanTable("web", TableSource(kind="table", paths=patterns), part_rows=part_rows), MergeTable("web")


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


ROWS = pa.table(
    {
        "url": [f"http://Host{number % 5}.test/{number % 50}" for number in range(118)] + ["nothing", ""],
        "caption": [f"caption {number}" for number in range(120)],
    }
)


def write_rows(path: Path, form: str) -> None:
    """ROWS as a file of `form`."""
    if form == "parquet of three":
        pq.write_table(ROWS, path, row_group_size=40)
    elif form == "parquet":
        pq.write_table(ROWS, path)
    elif form == "csv.gz":
        sink = io.BytesIO()
        pa_csv.write_csv(ROWS, sink)
        path.write_bytes(gzip.compress(sink.getvalue()))
    elif form == "json":
        path.write_text(json.dumps(ROWS.to_pylist(), indent=1))


def content(found: Iterable[Commit]) -> list[dict[str, str]]:
    return [{name: item.sha256 for name, item in commit.objects.items()} for commit in found]


@pytest.mark.parametrize("batch_rows", [2**20, 32])
def test_candidates_do_not_depend_on_how_files_are_cut(
    batch_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PIECE_ROWS", 40)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 16)
    monkeypatch.setattr(stage, "_BATCH_ROWS", batch_rows)
    found = {}
    for form, num_parts in (("parquet", 1), ("parquet of three", 3), ("csv.gz", 1), ("json", 1)):
        folder = tmp_path / form.replace(" ", "-")
        folder.mkdir()
        write_rows(folder / f"rows.{form.partition(' ')[0]}", form)
        scanned, merged = commits(folder, *table_steps("{root}/rows.*", part_rows=30))
        assert len(scanned) == num_parts
        assert sum(commit.rows_in for commit in scanned) == sum(commit.rows_in for commit in merged) == 120
        assert all((len(commit.objects) > 1) == (batch_rows == 32) for commit in scanned)
        found[form] = content(merged)
    assert len(found["parquet"]) == 4
    assert all(each == found["parquet"] for each in found.values())


def test_hosts_of_what_can_be_fetched_lie_beside_the_candidates(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", "parquet")
    merged = commits(tmp_path, *table_steps("{root}/rows.parquet", part_rows=30))[-1]
    hosts = pa.concat_tables(read_table(Root(str(tmp_path)), commit.objects["hosts"].path, HOSTS) for commit in merged)
    assert pc.sum(hosts["num_urls"]).as_py() == 50
    assert {*hosts["host"].to_pylist()} == {f"host{number}.test" for number in range(5)}
    assert all(commit.rows_out == commit.objects["candidate"].num_rows for commit in merged)


def test_details_name_the_file_of_a_bad_row_also_after_it_was_renamed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://web.test/1,a\nhttp://web.test/2\n")
    for old, name in (("a.csv", "a.csv"), ("a.csv", "b.csv")):
        (tmp_path / old).rename(tmp_path / name)
        found = candidates(tmp_path, *table_steps("{root}/*.csv"))
        details = [detail for detail in found["detail"].to_pylist() if detail is not None]
        assert details == [f"{name}, line 3: 1 fields, wanted 2"]


def test_two_files_of_one_content_keep_their_order(tmp_path: Path) -> None:
    for name, captions in (("a.csv", "xy"), ("b.csv", "z"), ("c.csv", "z")):
        lines = "".join(f"http://web.test/1,{caption}\n" for caption in captions)
        (tmp_path / name).write_text(f"url,caption\n{lines}")
    steps = table_steps("{root}/a.csv", "{root}/b.csv", "{root}/c.csv")
    assert candidates(tmp_path, *steps)["captions"].to_pylist() == [[("caption_2", "y"), ("caption_3", "z")]]
    # The same parts by name and content, at another place.
    steps = table_steps("{root}/b.csv", "{root}/a.csv", "{root}/c.csv")
    assert candidates(tmp_path, *steps)["caption"].to_pylist() == ["z"]


def test_a_file_without_rows_is_a_part_without_rows(tmp_path: Path) -> None:
    pq.write_table(ROWS.slice(0, 0), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("url,caption\n")
    scanned, merged = commits(tmp_path, *table_steps("{root}/a.parquet", "{root}/b.csv"))
    assert [commit.rows_out for commit in (*scanned, *merged)] == [0, 0, 0]


BIG_ROWS = 3_000_000

SCAN = f"""
import sys
from pathlib import Path
from tests.sources.test_stage import commits, table_steps
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # KiB, since exec
before = peak()
scanned, = commits(Path(sys.argv[1]), table_steps("{{root}}/big.parquet", part_rows=10_000)[0])
assert sum(commit.rows_out for commit in scanned) == {BIG_ROWS}
print(len(scanned), sum(len(commit.objects) for commit in scanned), (peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("group_rows", "num_parts"), [(2**18, 3), (2**26, 1)])
def test_a_large_table_never_lies_in_memory(group_rows: int, num_parts: int, tmp_path: Path) -> None:
    with pq.ParquetWriter(
        tmp_path / "big.parquet", pa.schema([("url", pa.string()), ("caption", pa.string())])
    ) as writer:
        urls = [f"http://host{number % 9999}.test/{number * 7919:0>72}.jpg" for number in range(BIG_ROWS)]
        captions = [f"a caption of number {number}" for number in range(BIG_ROWS)]
        table = pa.table({"url": urls, "caption": captions})
        del urls, captions
        writer.write_table(table, row_group_size=group_rows)
    assert table.nbytes > 350 * 2**20
    done = subprocess.run([sys.executable, "-c", SCAN, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts, num_objects, growth_mib = map(int, done.stdout.split())
    assert parts == num_parts
    assert num_objects >= 3
    assert growth_mib < 600, f"{growth_mib} MiB"


def test_tables_may_be_named_by_braces(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(f"url,caption\nhttp://{name}.test/1,one\n")
    found = candidates(tmp_path / "run", *table_steps(f"{tmp_path}/{{a,c}}.csv"))
    assert sorted(found.column("url").to_pylist()) == ["http://a.test/1", "http://c.test/1"]
