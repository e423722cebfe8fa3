from __future__ import annotations

from dataengine.cli.inspect import _recall

MEASURED = {
    "num_found": 99, "num_pairs": 100, "num_rows": 500, "value": 0.99, "low": 0.94, "high": 0.998, "target": 0.999,
    "reached": False, "num_bounded_pairs": 40,
}  # fmt: skip
NOTHING = MEASURED | {"num_found": 0, "num_pairs": 0, "value": None, "low": 0.0, "high": 1.0, "reached": True}


def test_recall_is_told_with_its_interval_and_target() -> None:
    line = _recall(MEASURED)
    assert "99 of 100 true pairs" in line
    assert "0.9900 (95 %: 0.9400 to 0.9980), target 0.999 NOT reached" in line


def test_recall_that_had_nothing_to_find_is_no_recall() -> None:
    assert _recall(NOTHING).endswith("a sample of 500 rows has no true pairs but 40 in groups too dense to keep all")
    assert _recall(NOTHING | {"num_bounded_pairs": 0}).endswith("has no true pairs")
