"""A changed config recomputes exactly what it touches: which recipes change with which key."""

from __future__ import annotations

import pytest
import yaml

from dataengine.config.load import parse_config
from dataengine.pipeline import STAGES, build_pipeline
from dataengine.score.weights import builtin_weights, file_sha256
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "configs" / "quickstart.yaml").read_text()


def recipes(*overrides: str, text: str = TEXT) -> dict[str, str]:
    return dict(build_pipeline(parse_config(text, overrides)).recipes)


def changed(*overrides: str) -> set[str]:
    """Steps whose recipe differs from the plain quickstart's; steps that only one of them has count as changed."""
    before, after = recipes(), recipes(*overrides)
    return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    "override",
    [
        "root=/elsewhere",
        "execution.runner=serial",
        "execution.score.num_gpus=1",
        "execution.task_retries=9",
        "download.fetch.concurrency=3",
        "download.fetch.total_seconds=99.0",
        "download.guard.hosts={photos.test: '127.0.0.1:1'}",
        "download.max_failed_share=0.5",
        "score.scorers.tiny.batch_size=7",
        "sources.photos.paths=[/other/place.parquet]",
        "sample_web=null",
        "storage_options={region: x}",
        "dedup.memory_bytes=100000000",
    ],
)
def test_execution_settings_change_no_recipe(override: str) -> None:
    assert changed(override) == set()


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("part_rows=50", "sources"),
        ("download.image.size=300", "download"),
        ("download.limits.max_body_bytes=5000000", "download"),
        ("download.honor_opt_out=false", "download"),
        ("score.scorers.tiny.precision=bfloat16", "score"),
        ("dedup.num_class_buckets=3", "dedup"),
        ("dedup.captions.min_similarity=0.7", "dedup"),
        ("dedup.captions.max_degree=9", "dedup"),
        ("dedup.images.border=0.7", "dedup"),
        ("select.contaminated=keep", "select"),
        ("select.rules.sharp=sharpness >= 4", "select"),
        ("select.balance.target=100", "select"),
        ("emit.shard_multiple=4", "emit"),
    ],
)
def test_identity_changes_its_stage_and_those_above(override: str, first: str) -> None:
    stages = {name.partition("/")[0] for name in changed(override)}
    assert stages == set(STAGES[STAGES.index(first) :])


def test_one_sources_key_touches_that_source_and_what_spans_sources() -> None:
    touched = changed("sources.shop.passthrough=[SKU]")
    per_source = {
        name for name in touched if name.startswith(("sources/", "download/", "score/", "dedup/route", "dedup/texts"))
    }
    assert per_source == {
        "sources/shop.scan",
        "sources/shop",
        "download/shop",
        "score/tiny.shop",
        "dedup/route.shop",
        "dedup/texts.shop",
    }


def test_another_scorer_leaves_the_first_one_alone() -> None:
    touched = changed("score.scorers.second={model: tiny-clip, pretrained: builtin}")
    assert not {name for name in touched if name.startswith(("sources/", "download/", "score/tiny.", "dedup/"))}
    assert {name for name in touched if name.startswith("score/")} == {
        f"score/second.{source}" for source in ("archive", "blog", "photos", "shop")
    }


def test_another_source_leaves_the_others_alone() -> None:
    touched = changed("sources.more={kind: table, paths: [/x.parquet]}")
    assert {name for name in touched if name.startswith(("sources/", "download/", "score/"))} == {
        "sources/more.scan", "sources/more", "download/more", "score/tiny.more",
    }  # fmt: skip


def test_order_of_sources_means_nothing_and_order_of_rules_does() -> None:
    tree = yaml.safe_load(TEXT)
    tree["sources"] = dict(reversed(tree["sources"].items()))
    assert recipes(text=yaml.safe_dump(tree, sort_keys=False)) == recipes()
    tree["select"]["rules"] = dict(reversed(tree["select"]["rules"].items()))
    assert recipes(text=yaml.safe_dump(tree, sort_keys=False)) != recipes()


def test_writing_down_what_files_are_changes_no_recipe() -> None:
    tiny = yaml.safe_load(TEXT)["score"]["scorers"]["tiny"]
    (column,) = tiny["heads"]
    head = file_sha256(builtin_weights(tiny["heads"][column]["weights"].removeprefix("builtin:"), "head"))
    for override in (
        f"weights_sha256={file_sha256(builtin_weights('tiny-clip', 'scorer'))}",
        "embedding=tiny-clip/builtin",
        f"heads.{column}.sha256={head}",
        f"heads.{column}.embedding=tiny-clip/builtin",
    ):
        assert changed(f"score.scorers.tiny.{override}") == set(), override
