"""Summaries against the rows they summarise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.stats import funnel_table, per_source, score_quantiles
from dataengine.schemas import manifest_schema
from tests.trainer.publishing import publish, read_rows, write_manifest


def test_the_funnel_sums_to_its_sources(published: Path) -> None:
    funnel = funnel_table(open_dataset(published))
    assert funnel.group_by("source").agg(pl.col("share_rows").sum().round(9)).sort("source")[
        "share_rows"
    ].to_list() == [1, 1]
    first = funnel.row(0, named=True)
    assert (first["source"], first["state"], first["num_rows"]) == ("alpha", "emitted", 12)
    assert first["share_rows"] == pytest.approx(12 / 18)


def test_per_source_counts_kept_and_drawn(published: Path) -> None:
    alpha, beta = per_source(open_dataset(published)).iter_rows(named=True)
    assert (alpha["num_rows"], alpha["num_candidates"], alpha["num_emitted"]) == (18, 15, 12)
    assert alpha["share_kept"] == pytest.approx(12 / 15)
    assert (alpha["num_draws"], beta["num_draws"]) == (16, 8)
    assert alpha["share_draws"] + beta["share_draws"] == pytest.approx(1)
    assert (beta["asked"], beta["license"]) == (10, "CC-BY-4.0")


def test_quantiles_are_those_of_the_samples(published: Path) -> None:
    table = score_quantiles(open_dataset(published), (0.5,))
    assert table.columns == ["source", "score", "num_scored", "num_missing", "min", "q50", "max"]
    assert table.select("source", "score").rows() == [
        (source, score) for source in ("alpha", "beta") for score in ("aesthetic", "clip_score")
    ]
    for row in table.iter_rows(named=True):
        values = [sample[row["score"]] for sample in read_rows(published) if sample["source"] == row["source"]]
        present = [value for value in values if value is not None]
        assert (row["num_scored"], row["num_missing"]) == (len(present), len(values) - len(present))
        assert row["q50"] == pytest.approx(np.median(present))


def test_a_dataset_without_scores_has_no_quantiles(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    for part in (folder / "samples").iterdir():
        pq.write_table(pq.read_table(part).select(manifest_schema(()).arrow.names), part)
    write_manifest(folder)
    assert score_quantiles(open_dataset(folder)).is_empty()
