"""The sample web: equal seeds give equal bytes, and what the truth says is so in the files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from dataengine.testing.faults import EMPTY_URL, FAULTS
from dataengine.testing.pages import HOSTS, page_at
from dataengine.testing.pictures import COPIES, FORMS
from dataengine.testing.plan import MIN_SCENES
from dataengine.testing.web import SampleWeb, render_web

REASONS = {
    *(
        "http_404",
        "http_410",
        "http_500",
        "dns",
        "connect",
        "reset",
        "truncated",
        "timeout",
        "redirects",
        "blocked_address",
        "bad_url",
    ),
    *("too_large", "not_image", "bad_image", "too_many_pixels", "robots", "opt_out", "hash_mismatch"),
    *(
        "missing_image",
        "duplicate_member",
        "min_side",
        "aspect",
        "sharp",
        "clip_score",
        "no_clip_score",
        "duplicate_image",
    ),
}
OTHER_KINDS = {
    *("same_url", "same_caption", "near_caption", "listed_twice", "csv_quotes", "csv_newline", "csv_unicode"),
    *("mismatched_caption", "too_small", "too_wide", "blurred", "hash_mismatch"),
    *("key_bearer", "dotted_key", "no_caption", "corrupt_member", "half_sample", "duplicate_key"),
}
PLAIN_FORMS = {"jpeg", "progressive_jpeg", "png", "webp"}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> SampleWeb:
    return render_web(tmp_path_factory.mktemp("web"), seed=3, num_scenes=MIN_SCENES)


@pytest.fixture(scope="module")
def truth(web: SampleWeb) -> list[Row]:
    return list(web.truth.to_pylist())


def rows_of(truth: list[Row], *kinds: str) -> list[Row]:
    return [row for row in truth if row["kind"] in kinds]


def members(web: SampleWeb) -> dict[str, list[tuple[str, bytes]]]:
    found = {}
    for path in web.inputs["archive"]:
        with tarfile.open(path) as tar:
            found[path.name] = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return found


def body_of(web: SampleWeb, row: Row) -> bytes:
    if row["shard"] is None:
        return (web.directory / page_at(row["url"]).file).read_bytes()
    named = [body for name, body in members(web)[row["shard"]] if name == f"{row['member']}.jpg"]
    return named[row["occurrence"]]


def picture_of(web: SampleWeb, row: Row) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(body_of(web, row)))).convert("RGB")


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_seeds_give_equal_bytes_in_any_process_and_directory(web: SampleWeb, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, dataengine.testing.web as web\n"
        f"web.render_web(pathlib.Path(sys.argv[1]), seed=3, num_scenes={MIN_SCENES})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    paths = os.pathsep.join(sys.path)
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": paths})
    assert digests(tmp_path / "other") == digests(web.directory)


def test_other_seeds_give_other_pictures(truth: list[Row], tmp_path: Path) -> None:
    other = render_web(tmp_path, seed=4, num_scenes=MIN_SCENES).truth.to_pylist()
    hashes = {row["sha256"] for row in truth} - {None}
    assert hashes.isdisjoint({row["sha256"] for row in other} - {None})


def test_a_complete_web_is_only_loaded_and_any_other_is_rendered_anew(tmp_path: Path) -> None:
    first = render_web(tmp_path, num_scenes=MIN_SCENES)
    before, written = digests(tmp_path), (tmp_path / "truth.parquet").stat().st_mtime_ns
    again = render_web(tmp_path, num_scenes=MIN_SCENES)
    assert (again.truth, again.inputs) == (first.truth, first.inputs)
    assert (tmp_path / "truth.parquet").stat().st_mtime_ns == written
    (tmp_path / "web.json").unlink()
    (tmp_path / "pages" / "photos.test" / "stale.jpg").write_bytes(b"stale")
    render_web(tmp_path, num_scenes=MIN_SCENES)
    assert digests(tmp_path) == before


def test_too_small_a_web_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_scenes is 59"):
        render_web(tmp_path, num_scenes=MIN_SCENES - 1)


def test_every_kind_is_planted(truth: list[Row]) -> None:
    wanted = {"good", EMPTY_URL.kind} | {fault.kind for fault in FAULTS} | set(COPIES) | OTHER_KINDS
    assert {row["kind"] for row in truth} == wanted | (set(FORMS) - PLAIN_FORMS)


def test_truth_counts_good_scenes_and_names_its_expectations(truth: list[Row]) -> None:
    failed = {fault.kind for fault in FAULTS if fault.reason is None}
    good = [
        row
        for row in truth
        if row["expected_state"] == "emitted-eligible" and not row["duplicate_of"] and row["kind"] not in failed
    ]
    torn = rows_of(truth, "key_bearer", "dotted_key")
    assert len(good) - len(torn) == MIN_SCENES
    for row in truth:
        dropped = row["expected_state"] == "dropped"
        assert (row["expected_reason"] is None) == (row["expected_stage"] is None)
        assert (row["expected_reason"] is not None) == (dropped or row["group"] is not None)
        assert row["expected_reason"] is None or row["expected_reason"] in REASONS


def test_a_candidate_has_one_row_of_truth(truth: list[Row]) -> None:
    names = Counter((row["source"], row["shard"] or row["url"], row["member"], row["occurrence"]) for row in truth)
    assert max(names.values()) == 1


def test_groups_have_a_base_and_copies_of_its_scene(truth: list[Row]) -> None:
    names = {f"{row['source']} {row['url']}": row for row in truth if row["shard"] is None}
    copies = [row for row in truth if row["duplicate_of"]]
    assert {row["kind"] for row in copies} == {*COPIES, "same_url"}
    for row in copies:
        base = names[row["duplicate_of"]]
        assert (base["group"], base["scene"], base["duplicate_of"]) == (row["group"], row["scene"], None)
    assert {row["group"] for row in truth if row["group"]} == {row["group"] for row in copies}
    assert {row["source"] for row in copies if row["kind"] == "exact_copy"} >= {"archive"}
    assert {row["source"] for row in copies if row["kind"] == "jpeg_copy"} >= {"archive"}


def test_inputs_hold_as_many_rows_as_the_truth_counts(web: SampleWeb, truth: list[Row]) -> None:
    photos = pq.read_table(web.inputs["photos"][0]).to_pylist()
    with web.inputs["shop"][0].open(encoding="utf-8", newline="") as file:
        shop = list(csv.DictReader(file))
    blog = [json.loads(line) for line in web.inputs["blog"][0].read_text().splitlines()]
    for source, urls in {
        "photos": [row["url"] for row in photos],
        "shop": [row["URL"] for row in shop],
        "blog": [row["image"] for row in blog],
    }.items():
        assert Counter(urls) == {row["url"]: row["num_rows"] for row in truth if row["source"] == source}
    twice = rows_of(truth, "listed_twice")[0]["url"]
    assert len({row["TEXT"] for row in shop if row["URL"] == twice}) == 2
    captions = [row["TEXT"] for row in shop]
    assert all(any(quirk in caption for caption in captions) for quirk in ('"', "\n", "写真"))


def test_claimed_hashes_are_true_but_for_the_planted_ones(web: SampleWeb, truth: list[Row]) -> None:
    claims = {row["url"]: row["sha256"] for row in pq.read_table(web.inputs["photos"][0]).to_pylist() if row["sha256"]}
    wrong = {row["url"] for row in rows_of(truth, "hash_mismatch")}
    assert 5 < len(claims) < sum(row["source"] == "photos" for row in truth)
    for url, claimed in claims.items():
        served = hashlib.sha256((web.directory / page_at(url).file).read_bytes()).hexdigest()
        assert (served != claimed) == (url in wrong)


def test_eligible_rows_have_a_picture_with_the_hash_the_truth_gives(web: SampleWeb, truth: list[Row]) -> None:
    for row in truth:
        if row["expected_state"] == "emitted-eligible" and row["kind"] != "moved":
            assert row["shard"] or page_at(row["url"]).host in HOSTS
            assert hashlib.sha256(body_of(web, row)).hexdigest() == row["sha256"]
            assert min(picture_of(web, row).size) >= 64


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L").resize((24, 24), Image.Resampling.BOX), np.float64)


def test_copies_look_like_their_base_and_pictures_of_one_caption_do_not(web: SampleWeb, truth: list[Row]) -> None:
    bases = {f"{row['source']} {row['url']}": row for row in truth if row["shard"] is None}
    for row in rows_of(truth, *COPIES):
        base, copy = (thumbnail(picture_of(web, shown)) for shown in (bases[row["duplicate_of"]], row))
        assert np.abs(base - copy).mean() < 8, row["kind"]
    for row in rows_of(truth, "exact_copy"):
        assert row["sha256"] == bases[row["duplicate_of"]]["sha256"]
    for row in rows_of(truth, "lossless_copy"):
        assert row["sha256"] != bases[row["duplicate_of"]]["sha256"]
        assert picture_of(web, row).tobytes() == picture_of(web, bases[row["duplicate_of"]]).tobytes()
    for kind in ("same_caption", "near_caption"):
        first, second = (thumbnail(picture_of(web, row)) for row in rows_of(truth, kind))
        assert np.abs(first - second).mean() > 8, kind


def test_forms_and_unfit_pictures_are_what_they_are_called(web: SampleWeb, truth: list[Row]) -> None:
    def opened(kind: str) -> Image.Image:
        return Image.open(io.BytesIO(body_of(web, rows_of(truth, kind)[0])))

    modes = {kind: opened(kind).mode for kind in ("alpha_png", "alpha_webp", "cmyk_jpeg", "gray_jpeg", "palette_png")}
    assert list(modes.values()) == ["RGBA", "RGBA", "CMYK", "L", "P"]
    assert opened("exif_orientation").getexif()[274] == 6
    assert max(opened("too_small").size) < 64
    width, height = opened("too_wide").size
    assert (width / height > 3, height >= 64) == (True, True)


def test_tars_are_plain_ustar_and_torn_where_planted(web: SampleWeb, truth: list[Row]) -> None:
    kinds = {row["kind"]: row for row in truth if row["source"] == "archive"}
    for path in web.inputs["archive"]:
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
        assert path.read_bytes()[257:265] == b"ustar\x0000"
    shards = members(web)
    names = {shard: [name for name, _ in found] for shard, found in shards.items()}
    for kind, suffixes in {"half_sample": ["txt", "json"], "no_caption": ["jpg", "json"]}.items():
        key = f"{kinds[kind]['member']}."
        assert [name.removeprefix(key) for name in names[kinds[kind]["shard"]] if name.startswith(key)] == suffixes
    twice = kinds["duplicate_key"]
    places = [place for place, name in enumerate(names[twice["shard"]]) if name == f"{twice['member']}.jpg"]
    assert len(places) == 2
    assert places[1] - places[0] > 3, "the two bearers of a key are neighbours"
    assert kinds["dotted_key"]["member"].count(".") == 2
    with pytest.raises(OSError, match="truncated"):
        picture_of(web, kinds["corrupt_member"])
    fields = json.loads(next(body for name, body in shards[twice["shard"]] if name.endswith(".json")))
    assert set(fields) >= {"url", "width", "height", "license"}
