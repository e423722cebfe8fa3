"""Datasets from anywhere: whatever a manifest or table holds, it is read right or refused by name, and quickly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import DataEngineError, InputError, StorageError
from dataengine.trainer import Buckets, DataLoader, ShardDataset
from tests.trainer.publishing import publish

GONE = object()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXTS: dict[str, list[Any]] = {
    "nulls": [None, "a"], "numbers": [1, 2], "floats": [1.5, 2.0], "bytes": [b"a", b"b"], "lists": [["a"], ["b"]],
}  # fmt: skip
NUMBERS: dict[str, list[Any]] = {
    "nulls": [None, 1], "texts": ["1", "2"], "floats": [1.5, 2.0], "nan": [float("nan"), 1.0], "bytes": [b"1", b"2"],
    "lists": [[1], [2]], "huge": [2**40, 2**62],
}  # fmt: skip


def each(columns: tuple[str, ...], kinds: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, values, id=f"{name}-{kind}") for name in columns for kind, values in kinds.items()]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 samples, some drawn twice, so that the samples table is read."""
    folder = tmp_path_factory.mktemp("sound") / "datasets/pairs"
    return publish(folder, repeat=lambda position: 1 + (position % 3 == 0))


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pairs/v000001"))


def read(folder: Path) -> int:
    """Everything that reads: rows by condition, hashes, buckets, batches, a position."""
    buckets = Buckets(((12, 16), (16, 12)))
    dataset = ShardDataset(folder, where="width > 1", check_hashes=True, buckets=buckets)
    loader = DataLoader(dataset, global_batch_size=8, on_corrupt="raise")
    json.dumps(loader.state_dict())
    return len(list(loader))


def changed(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    """`table` with a column of the values, in turn."""
    place = table.schema.get_field_index(column)
    return table.set_column(place, column, pa.array([values[row % len(values)] for row in range(len(table))]))


@pytest.mark.parametrize("value", [GONE, None, True, -1, 1.5, "", [], [5]], ids=str)
@pytest.mark.parametrize(
    "path",
    ["name", "version", "counts", "counts.num_samples", "counts.num_draws", "counts.num_shards", "sources",
     "mixture.sources", "dedup", "files", "files.0", "files.0.path", "files.0.nbytes", "files.0.sha256"],
)  # fmt: skip
def test_a_field_of_the_manifest_that_is_none_is_named(copy: Path, path: str, value: Any) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("."))
    inner: Any = manifest
    for name in parents:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    if path == "files.0" and value is GONE:
        assert read(copy) > 0  # a list without one of its files is a list
        return
    with pytest.raises(InputError, match=r"manifest\.json: (not a dataset manifest .*: .* wanted|lists no samples)"):
        read(copy)


@given(ANYTHING, st.sampled_from(["", "counts", "mixture", "files", "sources", "dedup", "name", "version", "format"]))
@settings(max_examples=150)
def test_a_manifest_of_anything_is_read_or_refused(tmp_path_factory: Any, sound: Path, value: Any, where: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "anything"
    if not folder.exists():
        shutil.copytree(sound, folder)
    manifest = json.loads((sound / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {where: value} if where else value))
    with suppress(InputError):
        assert len(ShardDataset(folder)) > 0


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"x"', b"\xff\xfe", b"{" * 10**5, b'{"a":' * 20000 + b"1" + b"}" * 20000]
)
def test_a_manifest_that_is_no_json_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: not a dataset manifest"):
        read(copy)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        *each(("shard", "source", "path"), TEXTS),
        *each(("nbytes", "num_samples"), NUMBERS),
        *(("path", [path]) for path in ("", ".", "/etc/passwd", "../../../x.tar", "s3://x/y.tar", "a\0b")),
        *(("shard", [name]) for name in ("alpha-000000", "", "../x", "a\0b")),
        ("num_samples", [-1]),
        ("nbytes", [-1]),
    ],
)
def test_a_table_of_shards_that_is_none_is_refused(copy: Path, column: str, values: list[Any]) -> None:
    table = pq.read_table(copy / "shards.parquet")
    pq.write_table(changed(table, column, values), copy / "shards.parquet")
    with pytest.raises((InputError, StorageError), match=r"shards.parquet: |outside its dataset|the manifest says"):
        read(copy)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        *each(("key", "shard", "split", "xxh3"), TEXTS),
        *each(("index_in_shard", "repeat", "width", "height"), NUMBERS),
        ("index_in_shard", [-1]),
        ("index_in_shard", [0]),
        ("repeat", [-1]),
        ("repeat", [10**9]),
        ("width", [0]),
        ("height", [2**21]),
        ("shard", ["x"]),
    ],
)
def test_a_table_of_samples_that_is_none_is_refused(copy: Path, column: str, values: list[Any]) -> None:
    part = copy / "samples/part-000000.parquet"
    pq.write_table(changed(pq.read_table(part), column, values), part)
    with pytest.raises(InputError, match=r"samples[^ ]*: .*(wanted|verify|another tool)"):
        read(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(0, 0),
        lambda table: pa.concat_tables([table, table]),
        lambda table: changed(table, "num_samples", [0, 12, 6]),
    ],
)
def test_other_counts_than_the_manifests_are_refused(copy: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(copy / "shards.parquet")), copy / "shards.parquet")
    with pytest.raises(InputError, match="run `dataengine verify` on it"):
        read(copy)


def test_tables_that_another_writer_has_packed_are_read(copy: Path, sound: Path) -> None:
    """Large strings, dictionaries and wider integers hold the same."""
    for path in (copy / "shards.parquet", *(copy / "samples").iterdir()):
        table = pq.read_table(path)
        wide = [
            pa.field(field.name, {pa.string(): pa.large_string(), pa.int32(): pa.int64()}.get(field.type, field.type))
            for field in table.schema
        ]
        packed = table.cast(pa.schema(wide))
        place = packed.schema.get_field_index("shard")
        packed = packed.set_column(place, "shard", table.column("shard").combine_chunks().dictionary_encode())
        pq.write_table(packed, path)
    assert read(copy) == read(sound)


def test_every_refusal_is_the_engines_own(copy: Path) -> None:
    """A file in place of a folder, a folder in place of a file."""
    shutil.rmtree(copy / "samples")
    (copy / "samples").write_text("no folder")
    with pytest.raises(DataEngineError, match=r"samples/part-000000\.parquet"):
        read(copy)
    (copy / "shards.parquet").unlink()
    (copy / "shards.parquet").mkdir()
    with pytest.raises(DataEngineError, match=r"shards\.parquet"):
        read(copy)
