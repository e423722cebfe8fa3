"""The score stage in whole runs: facts that are never made twice, one decode for all, and nothing that is no number."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from dataengine import job
from dataengine.config.load import parse_config
from dataengine.config.run import RunConfig
from dataengine.engine.progress import ProgressView
from dataengine.errors import ConfigError, DriftError
from dataengine.imaging import OpenImage
from dataengine.job import Finished, run_job
from dataengine.pipeline import build_pipeline
from dataengine.score import metrics, part, pictures, stage
from dataengine.score.clip import Scorer
from dataengine.score.loaded import LEAST_KEPT, MODELS
from dataengine.score.memory import MemoryShort
from dataengine.score.weights import MODELS as WEIGHTS
from dataengine.score.weights import file_sha256
from dataengine.storage.rundir import Commit, RunDirectory
from dataengine.storage.tables import read_npy
from dataengine.testing.scenes import captions, draw_scene, render
from scripts.tiny_clip.views import draw_scenes

TINY = {"model": "tiny-clip", "pretrained": "builtin"}
LOW = TINY | {"precision": "bfloat16"}
NUM_TARS, NUM_EACH = 3, 7


def write_tar(path: Path, rows: list[tuple[bytes, dict[str, str]]]) -> None:
    """A WebDataset tar of images and the JSON of their captions."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (image, texts) in enumerate(rows):
            for name, content in ((f"{number:05d}.png", image), (f"{number:05d}.json", json.dumps(texts).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def png(picture: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    rng = np.random.default_rng(5)
    for number in range(NUM_TARS):
        rows = []
        for _ in range(NUM_EACH):
            scene = draw_scene(rng)
            rows.append((png(render(scene, 200, 160)), captions(scene)))
        write_tar(folder / f"t{number}.tar", rows)
    return folder


def config_of(root: Path, tars: Path, scorers: dict[str, Any], **sections: Any) -> RunConfig:
    source = {"kind": "webdataset", "paths": [f"{tars}/*.tar"], "caption_field": "caption", "url_field": None}
    tree = {
        "name": "scored",
        "root": str(root),
        "sources": {"tars": source | {"caption_fields": {"alt": "alt"}}},
        "score": {"scorers": scorers},
        "dedup": {"captions": None, "images": None, "num_class_buckets": 1},
        "emit": {"shard_multiple": 1},
        "execution": {"runner": "serial"},
    }
    return parse_config(yaml.safe_dump(tree | sections, sort_keys=False))


def scored(root: Path, tars: Path, scorers: dict[str, Any], until: str = "score", **sections: Any) -> Finished:
    return run_job(config_of(root, tars, scorers, **sections), until=until, console=Console(quiet=True))


def commits(finished: Finished, scorer: str) -> list[Commit]:
    return finished.board.commits(f"score/{scorer}.tars")


def tables(root: Path, finished: Finished, scorer: str) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(root / commit.objects["score"].path) for commit in commits(finished, scorer))


def bits(found: list[Commit]) -> list[tuple[str, str]]:
    """What was scored, without the provenance that tables carry along."""
    return [(commit.part, commit.objects["embedding"].sha256) for commit in found]


def test_a_second_scorer_runs_alone_and_joins_by_part_name(tars: Path, tmp_path: Path) -> None:
    first = scored(tmp_path, tars, {"tiny": TINY})
    before = commits(first, "tiny")
    second = scored(tmp_path, tars, {"tiny": TINY, "low": LOW})
    assert second.num_parts_run == NUM_TARS
    assert commits(second, "tiny") == before
    assert [commit.part for commit in commits(second, "low")] == [commit.part for commit in before]
    mine, theirs = tables(tmp_path, second, "tiny"), tables(tmp_path, second, "low")
    assert mine["key"].to_list() == theirs["key"].to_list()
    assert set(theirs.columns) == {"key", "score_status", "clip_score_low_caption", "clip_score_low_alt"}
    assert np.abs(mine["clip_score"] - theirs["clip_score_low_caption"]).max() < 5e-3
    third = scored(tmp_path, tars, {"tiny": TINY, "low": LOW})
    assert third.num_parts_run == 0


def test_scorers_share_one_read_and_one_decode(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[int] = Counter()
    open_once = pictures.open_image

    def counting(content: bytes, **limits: int) -> OpenImage:
        decoded[hash(content)] += 1
        return open_once(content, **limits)

    monkeypatch.setattr(pictures, "open_image", counting)
    scorers = {"tiny": TINY, "low": LOW, "exact": TINY | {"preprocess": "exact"}}
    together = scored(tmp_path / "together", tars, scorers)
    assert sorted(decoded.values()) == [1] * (NUM_TARS * NUM_EACH)
    for name in scorers:  # alone, each gives the same bits
        alone = scored(tmp_path / name, tars, {"tiny": TINY} | {name: scorers[name]})
        assert bits(commits(alone, name)) == bits(commits(together, name))


def test_order_of_work_and_company_change_no_bit(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = scored(tmp_path / "usual", tars, {"tiny": TINY})
    monkeypatch.setattr("dataengine.score.part.GPU_CHUNKS_AHEAD", 7)
    other = scored(tmp_path / "threads", tars, {"tiny": TINY}, execution={"runner": "serial", "score": {"num_cpus": 2}})
    for left, right in zip(commits(usual, "tiny"), commits(other, "tiny"), strict=True):
        assert left.objects["embedding"].sha256 == right.objects["embedding"].sha256
    columns = ["key", "clip_score", "clip_score_tiny_alt", "phash", "sharpness"]
    assert tables(tmp_path / "usual", usual, "tiny")[columns].equals(
        tables(tmp_path / "threads", other, "tiny")[columns]
    )


def test_batches_across_parts_say_so_and_stay_near(tars: Path, tmp_path: Path) -> None:
    apart = scored(tmp_path / "apart", tars, {"tiny": TINY})
    section = {"scorers": {"tiny": TINY | {"batch_size": 16}, "low": LOW}, "parts_per_batch": 2}
    scored(tmp_path / "across", tars, {}, until="download", score=section)  # so that all parts are ready at once
    across = scored(tmp_path / "across", tars, {}, score=section)
    for name in section["scorers"]:
        told = [commit.facts["provenance"]["batches"] for commit in commits(across, name)]
        assert told == ["across 2 parts", "across 2 parts", "of one part"]  # those that were, not those asked for
    metrics = [commit.metrics for name in section["scorers"] for commit in commits(across, name)]
    assert sum(item.get("num_images", 0) for item in metrics) == NUM_TARS * NUM_EACH
    left, right = tables(tmp_path / "apart", apart, "tiny"), tables(tmp_path / "across", across, "tiny")
    assert left["key"].to_list() == right["key"].to_list()
    assert np.abs(left["clip_score"] - right["clip_score"]).max() < 1e-5
    assert left["phash"].to_list() == right["phash"].to_list()


def test_every_named_caption_has_its_own_score(tars: Path, tmp_path: Path) -> None:
    finished = scored(tmp_path, tars, {"tiny": TINY, "exact": TINY | {"preprocess": "exact"}})
    table = tables(tmp_path, finished, "tiny").join(tables(tmp_path, finished, "exact"), on="key")
    pairs = (("clip_score", "clip_score_exact_caption"), ("clip_score_tiny_alt", "clip_score_exact_alt"))
    for mine, theirs in pairs:
        assert table[mine].null_count() == 0
        assert np.abs(table[mine] - table[theirs]).max() < 2e-3
    assert np.abs(table["clip_score"] - table["clip_score_tiny_alt"]).max() > 0.01


def test_provenance_stands_in_the_tables_and_in_the_manifest(tars: Path, tmp_path: Path) -> None:
    heads = {"aesthetic": {"weights": "builtin:tiny-aesthetic"}}
    finished = scored(tmp_path, tars, {"tiny": TINY | {"heads": heads}}, until="emit")
    (first, *_) = commits(finished, "tiny")
    schema = pq.read_schema(tmp_path / first.objects["score"].path)
    in_table = json.loads(schema.metadata[b"provenance"])
    assert finished.dataset is not None
    manifest = json.loads((Path(finished.dataset) / "manifest.json").read_text())
    assert manifest["provenance"] == {"tiny": in_table}
    assert in_table["weights_sha256"] == file_sha256(WEIGHTS / "tiny-clip.safetensors")
    assert in_table["heads"]["aesthetic"]["weights_sha256"] == file_sha256(WEIGHTS / "tiny-aesthetic.safetensors")
    assert in_table["heads"]["aesthetic"]["embedding"] == "tiny-clip/builtin"
    assert in_table["preprocess"]["variant"] == "fast"
    assert in_table["activation"] in ("gelu", "quick_gelu")
    assert {"torch", "open_clip_torch"} <= in_table["libraries"].keys()


def broken_head(folder: Path) -> Path:
    """A head that overflows: infinity minus infinity in its second layer."""
    huge = torch.full((2, 128), 3e38)
    tensors = {"layers.0.weight": huge * torch.tensor([[1.0], [-1.0]]), "layers.0.bias": torch.zeros(2)}
    tensors |= {"layers.1.weight": torch.full((2, 2), 3e38), "layers.1.bias": torch.zeros(2)}
    for layer in range(2, 9):
        tensors |= {f"layers.{layer}.weight": torch.full((2, 2), 3e38), f"layers.{layer}.bias": torch.zeros(2)}
    tensors |= {"layers.9.weight": torch.tensor([[1.0, -1.0]]), "layers.9.bias": torch.zeros(1)}
    save_file(tensors, folder / "broken.safetensors", metadata={"embedding": "tiny-clip/builtin"})
    return folder / "broken.safetensors"


def test_a_head_that_gives_nan_is_null_with_a_status(tars: Path, tmp_path: Path) -> None:
    heads = {"broken": {"weights": str(broken_head(tmp_path))}, "aesthetic": {"weights": "builtin:tiny-aesthetic"}}
    finished = scored(tmp_path / "root", tars, {"tiny": TINY | {"heads": heads}}, until="emit")
    table = tables(tmp_path / "root", finished, "tiny")
    assert table["broken"].null_count() == len(table)
    assert table["aesthetic"].null_count() == 0
    assert table["score_status"].unique().to_list() == ["not_finite"]
    assert finished.dataset is not None
    ledger = pl.read_parquet(Path(finished.dataset) / "ledger" / "*.parquet")
    assert ledger.select("stage", "reason").unique().rows() == [("score", "not_finite")]


def test_an_image_without_an_embedding_is_null_with_a_status(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_images, calls = Scorer.run_images, []

    def spoiled(self: Scorer, batch: torch.Tensor) -> torch.Tensor:
        found = run_images(self, batch).clone()
        calls.append(len(batch))
        if len(calls) == 2:  # the first is the golden batch
            found[3] = float("nan")
        return found

    monkeypatch.setattr(Scorer, "run_images", spoiled)
    finished = scored(tmp_path, tars, {"tiny": TINY})
    table = tables(tmp_path, finished, "tiny")
    bad = table.filter(pl.col("score_status") == "not_finite")
    assert len(bad) == 1
    assert bad.select("clip_score", "clip_score_tiny_alt").row(0) == (None, None)
    assert bad["phash"].null_count() == 0
    (first, *_) = commits(finished, "tiny")
    assert first.counts == {"ok": NUM_EACH - 1, "not_finite": 1}
    embedding = read_npy(RunDirectory.open(str(tmp_path), {}, "x").root, first.objects["embedding"])
    assert np.isfinite(embedding).all()


def test_a_part_that_runs_out_of_memory_is_begun_again_in_one_shape(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = scored(tmp_path / "small", tars, {"tiny": TINY | {"batch_size": 4}})
    run_images, room = Scorer.run_images, [100]

    def narrow(self: Scorer, batch: torch.Tensor) -> torch.Tensor:
        with self._room():
            if len(batch) > room[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run_images(self, batch)

    monkeypatch.setattr(Scorer, "run_images", narrow)
    MODELS.forget()
    load, narrowed = stage.Score.load, []

    def load_then_narrow(*arguments: Any) -> Any:
        found = load(*arguments)
        room[0] = 5  # of the golden batch all was well; then somebody else takes the memory
        narrowed.append(found.scorer.batch_size)
        return found

    monkeypatch.setattr(stage.Score, "load", load_then_narrow)
    finished = scored(tmp_path / "narrow", tars, {"tiny": TINY | {"batch_size": 16}})
    MODELS.forget()
    assert narrowed == [16, 4, 4]
    assert bits(commits(finished, "tiny")) == bits(commits(small, "tiny"))
    assert [commit.metrics["num_memory_short"] for commit in commits(finished, "tiny")] == [2, 0, 0]
    assert {commit.facts["provenance"]["batch_size"] for commit in commits(finished, "tiny")} == {4}
    with pytest.raises(MemoryShort):
        raise MemoryShort


def test_a_worker_that_drifts_is_stopped_before_it_scores(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(tmp_path, tars, {"tiny": TINY}, score={"scorers": {"tiny": TINY}})
    MODELS.forget()
    encode = Scorer.encode_texts

    def drifted(self: Scorer, texts: Any) -> Any:
        return encode(self, [text.upper() + " and more" for text in texts])

    monkeypatch.setattr(Scorer, "encode_texts", drifted)
    more = tmp_path / "more"
    more.mkdir()
    for number in range(NUM_TARS + 1):
        (more / f"t{number}.tar").write_bytes((tars / f"t{number % NUM_TARS}.tar").read_bytes())
    with pytest.raises(DriftError, match=r"score/tiny\.tars part-.*cosines of the golden batch"):
        scored(tmp_path, more, {"tiny": TINY})
    MODELS.forget()


def test_weights_that_move_do_not_start_another_recipe_and_other_weights_do(tars: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes((WEIGHTS / "tiny-clip.safetensors").read_bytes())

    def scorer(path: Path) -> dict[str, Any]:
        return {"tiny": {"model": "tiny-clip", "pretrained": str(path)}}

    root = tmp_path / "root"
    assert scored(root, tars, scorer(tmp_path / "here" / "w.safetensors")).num_parts_run > 0
    assert scored(root, tars, scorer(tmp_path / "there" / "w.safetensors")).num_parts_run == 0
    tensors = load_file(tmp_path / "there" / "w.safetensors")
    tensors["text_projection"] = tensors["text_projection"] * 2
    save_file(tensors, tmp_path / "there" / "w.safetensors")
    assert scored(root, tars, scorer(tmp_path / "there" / "w.safetensors")).num_parts_run == NUM_TARS


def test_matched_captions_outscore_mismatched_ones_on_combinations_never_trained(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    scenes = draw_scenes(rng, 120, held_out=True)
    rolled = [captions(scene)["caption"] for scene in [*scenes[1:], scenes[0]]]
    rows = [
        (png(render(scene, 240, 200)), captions(scene) | {"alt": wrong})
        for scene, wrong in zip(scenes, rolled, strict=True)
    ]
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", rows)
    finished = scored(tmp_path, tmp_path / "tars", {"tiny": TINY})
    table = tables(tmp_path, finished, "tiny")
    matched, mismatched = table["clip_score"].to_numpy(), table["clip_score_tiny_alt"].to_numpy()
    area = float((matched[:, None] > mismatched[None]).mean())
    assert area >= 0.98, area


def test_metrics_say_what_towers_waited_for(tars: Path, tmp_path: Path) -> None:
    finished = scored(tmp_path, tars, {"tiny": TINY})
    for commit in commits(finished, "tiny"):
        told = commit.metrics
        assert (told["num_images"], 0 <= told["idle_share"] <= 1) == (NUM_EACH, True)
        parts = ("read_seconds", "decode_seconds", "transfer_seconds", "token_seconds", "tower_seconds", "text_seconds")
        assert 0 < sum(told[name] for name in parts) <= told["seconds"] * 1.01


def test_a_head_that_is_exchanged_while_a_run_goes_on_is_stopped(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(1, 128), "bias": torch.ones(1)}, path)
    planned = job.build_pipeline

    def exchange(config: RunConfig) -> Any:
        pipeline = planned(config)
        save_file({"weight": torch.zeros(1, 128), "bias": 2 * torch.ones(1)}, path)
        return pipeline

    monkeypatch.setattr(job, "build_pipeline", exchange)
    heads = {"grade": {"weights": str(path), "embedding": "tiny-clip/builtin"}}
    with pytest.raises(ConfigError, match=r"head .* the run was planned with"):
        scored(tmp_path / "root", tars, {"tiny": TINY | {"heads": heads}})


def test_a_picture_that_memory_is_refused_for_is_a_row_with_a_status(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_once, calls = pictures.render, []

    def short(image: OpenImage) -> Any:
        calls.append(image)
        if len(calls) == 3:
            raise MemoryError
        return render_once(image)

    monkeypatch.setattr(pictures, "render", short)
    finished = scored(tmp_path, tars, {"tiny": TINY})
    assert [commit.counts for commit in commits(finished, "tiny")] == [
        {"ok": NUM_EACH - 1, "decoder_memory": 1},
        {"ok": NUM_EACH},
        {"ok": NUM_EACH},
    ]
    table = tables(tmp_path, finished, "tiny").filter(pl.col("score_status") == "decoder_memory")
    assert table.select("clip_score", "phash").row(0) == (None, None)


def test_any_number_of_scorers_is_loaded_once(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = Scorer.load, []

    def counting(config: Any, *arguments: Any) -> Scorer:
        loaded.append(config.batch_size)
        return load(config, *arguments)

    monkeypatch.setattr(Scorer, "load", counting)
    MODELS.forget()
    scored(tmp_path, tars, {f"s{number}": TINY | {"batch_size": 7 + number} for number in range(LEAST_KEPT + 2)})
    assert sorted(loaded) == list(range(7, 7 + LEAST_KEPT + 2))
    few = {"tiny": TINY | {"batch_size": 40}}
    scored(tmp_path / "few", tars, few)
    assert len(MODELS._kept) == LEAST_KEPT
    MODELS.forget()


def test_a_part_tells_of_its_captions_too(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPORT_SECONDS", -1.0)
    monkeypatch.setattr(part, "TEXTS_AT_ONCE", 5)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ProgressView, "report", lambda _, job, found: told.append({"part": job.part.name} | found))
    scored(tmp_path, tars, {"tiny": TINY | {"batch_size": 2}})
    first = [item for item in told if item["part"] == "part-000000" and "num_texts" in item]
    # A report for each picture, then of 14 captions three at least while they become tokens, and one per batch.
    seen_all = [item for item in first if item["num_images"] == NUM_EACH]
    assert len(first) - len(seen_all) == NUM_EACH - 1
    assert len([item for item in seen_all if not item["token_seconds"]]) == 1 + 3
    assert len([item for item in seen_all if item["token_seconds"]]) >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_fetched(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"execution\.score\.num_gpus"):
        scored(tmp_path, tars, {"tiny": TINY}, execution={"runner": "serial", "score": {"num_gpus": 1}})
    assert not list(tmp_path.rglob("commits/*"))


def told_commit(**provenance: Any) -> Commit:
    return Commit("part-000003", "a", {}, {}, 1, 1, {}, {"provenance": {"weights_sha256": "w"} | provenance}, 0.0, {})


def test_a_part_that_was_scored_with_another_head_than_planned_is_refused(tars: Path, tmp_path: Path) -> None:
    heads = {"aesthetic": {"weights": "builtin:tiny-aesthetic"}}
    config = config_of(tmp_path, tars, {"tiny": TINY | {"heads": heads}})
    (step,) = [step for step in build_pipeline(config).steps if step.name == "score/tiny.tars"]
    planned = file_sha256(WEIGHTS / "tiny-aesthetic.safetensors")
    fine, other = (told_commit(heads={"aesthetic": {"weights_sha256": sha256}}) for sha256 in (planned, "0" * 64))
    step.check([fine, fine])
    with pytest.raises(DriftError, match=f"head aesthetic of part part-000003 .* 0000.* planned with {planned}"):
        step.check([fine, other])
    with pytest.raises(DriftError, match="different weights"):
        step.check([fine, told_commit(weights_sha256="v")])
