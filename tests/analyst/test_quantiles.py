"""Quantiles without sorting, against sorting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataengine.analyst import quantiles
from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.quantiles import at_ranks, score_values, summary
from dataengine.analyst.stats import score_quantiles
from dataengine.errors import CorruptObject
from tests.trainer.publishing import publish

FLOATS = st.floats(width=32, allow_nan=False)


@given(
    arrays(np.float32, st.integers(1, 60), elements=FLOATS | st.sampled_from([0.0, -0.0, 0.25, 0.2500001])), st.data()
)
def test_ranks_are_those_of_sorting(values: np.ndarray, data: st.DataObject) -> None:
    ranks = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)), np.int64)
    np.testing.assert_array_equal(at_ranks(values, ranks), np.sort(values)[ranks])


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: np.ndarray, quantile: float) -> None:
    found = summary(np.concatenate([[np.float32("nan")], values]).astype(np.float32), [quantile])
    assert (found["num_scored"], found["num_missing"]) == (len(values), 1)
    wanted = np.quantile(values.astype(np.float64), quantile)
    assert found[f"q{quantile * 100:g}"] == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert (found["min"], found["max"]) == (values.min(), values.max())


def test_nothing_scored_has_no_quantiles() -> None:
    found = summary(np.full(3, np.nan, np.float32), [0.5])
    assert found == {"num_scored": 0, "num_missing": 3, "min": None, "q50": None, "max": None}


def test_scores_in_passes_are_scores_at_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(published)
    at_once = score_quantiles(dataset)
    monkeypatch.setattr(quantiles, "MAX_HELD_VALUES", 1)
    assert score_quantiles(dataset).equals(at_once)


@pytest.mark.parametrize("count", [11, 13])
def test_samples_that_the_manifest_does_not_count_are_refused(count: int, tmp_path: Path) -> None:
    dataset = open_dataset(publish(tmp_path / "pairs"))
    assert dataset.version.manifest["sources"]["alpha"]["num_emitted"] == 12
    dataset.version.manifest["sources"]["alpha"]["num_emitted"] = count
    with pytest.raises(CorruptObject, match=r"rows that manifest\.json counts"):
        list(score_values(dataset, ["clip_score"]))
