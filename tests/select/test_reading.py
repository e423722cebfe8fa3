"""Tables of parts are read side by side, a row for each candidate."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dataengine.contract import Inputs, Outputs, WholeUnit
from dataengine.errors import LedgerError
from dataengine.keys import url_keys
from dataengine.schemas import CANDIDATE, SAMPLE, TableSchema, score_schema
from dataengine.select.columns import Columns
from dataengine.select.reading import Reader
from dataengine.storage.rundir import Part, Plan, RunDirectory
from dataengine.storage.store import Root

SCORE = score_schema((), (), measures=True)
KEYS = sorted(url_keys("web", [str(number) for number in range(12)]))
STEPS = (
    ("sources", "web", "candidate", CANDIDATE),
    ("download", "web", "sample", SAMPLE),
    ("score", "clip.web", "score", SCORE),
)


def filled(schema: TableSchema, keys: list[str], first: int) -> pa.Table:
    """Rows with nulls or zeros but for the key, and `width`, which counts them."""
    columns = {field.name: pa.nulls(len(keys), field.type) for field in schema.arrow}
    columns |= {
        field.name: pa.repeat("" if pa.types.is_string(field.type) else 0, len(keys)).cast(field.type)
        for field in schema.arrow
        if not field.nullable and not pa.types.is_nested(field.type) and not pa.types.is_timestamp(field.type)
    }
    columns |= {
        field.name: pa.array([[]] * len(keys), field.type)
        for field in schema.arrow
        if not field.nullable and pa.types.is_nested(field.type)
    }
    columns["key"] = pa.array(keys)
    if "width" in schema.arrow.names:
        columns["width"] = pa.array(range(first, first + len(keys)), pa.int32())
    return schema.table(columns)


def reader_of(folder: Path, sizes: dict[str, list[int]]) -> Reader:
    """A run of one source, whose parts have so many rows in each table."""
    run = RunDirectory(Root(str(folder)), "run")
    whole = {}
    for stage, unit, name, schema in STEPS:
        directory = run.unit(stage, unit, "0" * 8)
        commits, first = [], 0
        for number, size in enumerate(sizes[name]):
            outputs = Outputs(directory, f"part-{number:06d}", "first")
            outputs.table(name, schema, filled(schema, KEYS[first : first + size], first))
            commits.append(outputs.commit({}, 0.0))
            first += size
        path = directory.store_complete(Plan(tuple(Part(commit.part) for commit in commits)), commits)
        whole[f"{stage}/{unit}"] = WholeUnit(directory, path)
    return Reader(Inputs(run.root, {}, whole), ("web",), Columns((("clip", SCORE),)), (), 2)


@pytest.mark.parametrize("sizes", [[12], [5, 0, 7], [1, 2, 3, 6]])
def test_rows_stand_side_by_side_in_the_order_of_parts(tmp_path: Path, sizes: list[int]) -> None:
    reader = reader_of(tmp_path, dict.fromkeys(("candidate", "sample", "score"), sizes))
    runs = list(reader.runs(["key", "width", "caption_chars"], lambda table: table))
    assert [part for parts, _ in runs for part in parts] == [
        ("web", f"part-{number:06d}", size) for number, size in enumerate(sizes)
    ]
    table = pa.concat_tables(found for _, found in runs)
    assert table.column("key").to_pylist() == KEYS
    assert table.column("width").to_pylist() == list(range(12))


def test_a_table_of_fewer_rows_than_candidates_is_an_error(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, {"candidate": [6, 6], "sample": [6, 5], "score": [6, 5]})
    with pytest.raises(LedgerError, match="not one per candidate"):
        list(reader.runs(["width", "caption_chars"], lambda table: table))
