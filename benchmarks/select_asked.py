"""What dataengine answers about a published version in the benchmark of select: its statistics, and `why` of a key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.stats import funnel_table, per_source, score_quantiles
from dataengine.analyst.why import why


def stats_ours(folder: Path, _: int) -> dict[str, Any]:
    """What `dataengine stats` computes."""

    dataset = open_dataset(folder / "datasets" / "bench")
    funnel_table(dataset)
    per_source(dataset)
    found = score_quantiles(dataset)
    return {"median": round(float(found.filter(source="laion", score="clip_score")["q50"][0]), 6)}


def why_key(folder: Path, num_rows: int) -> dict[str, Any]:
    """The story of one key, once the process is up; the slowest of a few keys."""

    dataset = open_dataset(folder / "datasets" / "bench")
    keys = dataset.ledger().select("key").slice(num_rows // 2, 5).collect()["key"].to_list()
    seconds = []
    for key in keys:
        started = time.perf_counter()
        (outcome,) = why(open_dataset(folder / "datasets" / "bench"), key).outcomes
        seconds.append(time.perf_counter() - started)
        assert outcome.key == key
    return {"each s": max(seconds)}
