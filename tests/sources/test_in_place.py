"""Sources in place, as steps of a run: their files found and told apart, their images there to be read."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataengine.config.download import DownloadConfig
from dataengine.config.sources import ImageParquetSource, Img2DatasetSource
from dataengine.contract import Inputs, Machine, Outputs, PlanContext, Step
from dataengine.download.stage import Download
from dataengine.errors import InputError
from dataengine.schemas import CANDIDATE, SAMPLE
from dataengine.sources import image_parquet
from dataengine.sources.in_place import IndexImages, IndexImg2Dataset
from dataengine.storage.rundir import Commit, Part, UnitDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table
from tests.sources.img2dataset_output import Asked, write_shard

MACHINE = Machine(1, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))


@dataclass
class Context(PlanContext):
    root: Root

    def parts(self, step: str) -> tuple[Part, ...]:
        raise KeyError(step)

    def commits(self, step: str) -> list[Commit]:
        raise KeyError(step)


def commit(root: Root, step: Step, part: Part, attempt: str = "a", below: dict[str, Commit] | None = None) -> Commit:
    """What an attempt at a part gives."""
    outputs = Outputs(UnitDirectory(root, f"runs/r/{step.name}"), part.name, attempt)
    step.run(part, Inputs(root, below or {}, {}), outputs, MACHINE)
    return outputs.commit({}, 0.0)


def run(root: Root, step: Step, attempt: str = "a") -> list[Commit]:
    return [commit(root, step, part, attempt) for part in step.plan(Context(root)).parts]


def rows_of(root: Root, commits: list[Commit]) -> list[dict[str, Any]]:
    return [row for item in commits for row in read_table(root, item.objects["candidate"].path, CANDIDATE).to_pylist()]


def jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 48 + number % 9), 60).save(sink, "JPEG")
    return sink.getvalue()


def write_images(path: Path, num_rows: int, **options: Any) -> list[bytes | None]:
    """A Parquet file in the layout of Hugging Face datasets; every seventh row has no image."""
    contents = [None if number % 7 == 6 else jpeg(number) for number in range(num_rows)]
    structs = [content and {"bytes": content, "path": None} for content in contents]
    images = pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    captions = [f"caption {number}" for number in range(num_rows)]
    table = pa.table({"image": images, "caption": captions, "number": list(range(num_rows))})
    pq.write_table(table, path, row_group_size=10, **options)
    return contents


IMAGES = IndexImages(
    "hub", ImageParquetSource(kind="image_parquet", paths=("{root}/in/*.parquet",), passthrough=("number",))
)
SHARDS = IndexImg2Dataset("old", Img2DatasetSource(kind="img2dataset", paths=("{root}/in/*.tar",)))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "in").mkdir()
    return Root(str(tmp_path))


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_images_in_parquet_are_read_where_the_row_says(
    root: Root, tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_parquet, "MAX_PART_ROWS", 20)
    contents = write_images(tmp_path / "in" / "a.parquet", 45, compression=compression, use_dictionary=False)
    commits = run(root, IMAGES)
    assert [item.rows_in for item in commits] == [item.rows_out for item in commits] == [20, 20, 5]
    rows = sorted(rows_of(root, commits), key=lambda row: int(dict(row["extra"])["number"]))
    read = [row["object"] and root.get_range(row["object"], row["offset"], row["nbytes"]) for row in rows]
    assert read == contents
    assert [row["caption"] for row in rows] == [f"caption {number}" for number in range(45)]
    assert {"images" in item.objects for item in commits} == {compression == "snappy"}


def test_another_attempt_writes_the_same_bytes(root: Root, tmp_path: Path) -> None:
    write_images(tmp_path / "in" / "a.parquet", 12, compression="snappy")
    first, second = run(root, IMAGES, "a"), run(root, IMAGES, "b")
    assert [item.digest for item in first] == [item.digest for item in second]


def test_a_changed_file_gets_copies_of_its_own(root: Root, tmp_path: Path) -> None:
    write_images(tmp_path / "in" / "a.parquet", 12, compression="snappy")
    before = run(root, IMAGES)
    tars = {item.objects["images"].path: root.get(item.objects["images"].path) for item in before}
    write_images(tmp_path / "in" / "a.parquet", 13, compression="snappy")
    after = run(root, IMAGES)
    assert tars.keys().isdisjoint(item.objects["images"].path for item in after)
    assert {path: root.get(path) for path in tars} == tars


def test_a_moved_file_is_the_same_content_at_another_place(root: Root, tmp_path: Path) -> None:
    write_images(tmp_path / "in" / "a.parquet", 12, compression="none", use_dictionary=False)
    before = run(root, IMAGES)
    (tmp_path / "in" / "b").mkdir()
    (tmp_path / "in" / "a.parquet").rename(tmp_path / "in" / "b" / "a.parquet")
    moved = IndexImages("hub", IMAGES.config.model_copy(update={"paths": ("{root}/in/b/a.parquet",)}))
    assert moved.identity() == IMAGES.identity()
    after = run(root, moved)
    assert [item.facts for item in before] == [item.facts for item in after]
    assert [item.digest for item in before] != [item.digest for item in after]


def test_two_files_of_one_name_are_an_input_error(root: Root, tmp_path: Path) -> None:
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        write_images(tmp_path / folder / "a.parquet", 3)
    step = IndexImages("hub", IMAGES.config.model_copy(update={"paths": ("{root}/{b,c}/a.parquet",)}))
    with pytest.raises(InputError, match=r"sources.hub.paths: two files are called a\.parquet: .*rename one"):
        step.plan(Context(root))


def test_a_tar_without_its_parquet_is_an_input_error(root: Root, tmp_path: Path) -> None:
    write_shard(tmp_path / "in", "00000", [Asked("000000", "a", jpeg(0))])
    (tmp_path / "in" / "00000.parquet").unlink()
    with pytest.raises(InputError, match=r"sources.old: .*/in/00000\.parquet: no such file.*kind: webdataset"):
        SHARDS.plan(Context(root))


def test_a_changed_parquet_is_another_part(root: Root, tmp_path: Path) -> None:
    asked = [Asked("000000", "a", jpeg(0)), Asked("000001", "b", None, "timed out")]
    write_shard(tmp_path / "in", "00000", asked[:1])
    before = SHARDS.plan(Context(root)).parts[0].spec["reads"]
    tar = (tmp_path / "in" / "00000.tar").stat()
    write_shard(tmp_path / "in", "00000", asked)
    os.utime(tmp_path / "in" / "00000.tar", ns=(tar.st_atime_ns, tar.st_mtime_ns))
    after = SHARDS.plan(Context(root)).parts[0].spec["reads"]
    assert {name for name in before if before[name] != after[name]} == {"listing"}


def test_download_reads_them_in_place(root: Root, tmp_path: Path) -> None:
    broken = Asked("000002", "c", b"no jpeg at all")
    asked = [Asked("000000", "a", jpeg(0)), Asked("000001", "b", None, "HTTP Error 404: Not Found"), broken]
    write_shard(tmp_path / "in", "00000", asked)
    write_images(tmp_path / "in" / "a.parquet", 12, compression="none", use_dictionary=False)
    write_images(tmp_path / "in" / "b.parquet", 12, compression="snappy")
    hub = IndexImages("hub", IMAGES.config.model_copy(update={"paths": ("{root}/in/[ab].parquet",)}))
    reasons = {}
    for step in (SHARDS, hub):
        download = Download(step.source, DownloadConfig(), in_place=True)
        counts: Counter[str] = Counter()
        for part, below in zip(step.plan(Context(root)).parts, run(root, step), strict=True):
            done = commit(root, download, part, below={step.name: below})
            assert len(read_table(root, done.objects["sample"].path, SAMPLE)) == below.rows_out
            counts.update(done.counts)
        reasons[step.source] = counts
    assert reasons == {
        "old": {"ok": 1, "not_downloaded": 1, "not_image": 1},
        "hub": {"ok": 22, "missing_image": 2},
    }
