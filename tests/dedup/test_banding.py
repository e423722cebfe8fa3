from __future__ import annotations

import pytest

from dataengine.dedup.banding import alike, banded, choose_banding
from dataengine.errors import ConfigError


@pytest.mark.parametrize(
    ("similarity", "recall", "max_perm", "wanted"),
    [(0.7, 0.99, 160, (26, 5)), (0.8, 0.99, 160, (20, 7)), (0.8, 0.99, 100, (16, 6)), (0.9, 0.95, 160, None)],
)
def test_the_longest_bands_that_reach_the_recall(
    similarity: float, recall: float, max_perm: int, wanted: tuple[int, int] | None
) -> None:
    chosen = choose_banding(similarity, recall, max_perm)
    assert chosen.num_bands * chosen.rows_per_band <= max_perm
    assert chosen.recall(similarity) >= recall
    one_row_more = chosen.rows_per_band + 1
    assert banded(similarity, max_perm // one_row_more, one_row_more) < recall + 0.001
    if wanted is not None:
        assert (chosen.num_bands, chosen.rows_per_band) == wanted


def test_numbers_set_by_hand_are_taken() -> None:
    assert choose_banding(0.8, 0.999999, 64, num_bands=8, rows_per_band=16).num_bands == 8
    assert choose_banding(0.8, 0.9, 128, num_bands=8).rows_per_band == 6


def test_a_recall_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise max_perm, or lower target_recall"):
        choose_banding(0.05, 0.99, 64)


def test_the_curve_rises() -> None:
    chosen = choose_banding(0.8, 0.99, 160)
    values = [recall for _, recall in chosen.curve()]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1.0)
    assert alike(1.0, 0) == 1.0
    assert banded(0.8, 9, 13) == pytest.approx(0.3988, abs=1e-4)  # what datasketch chooses at 0.8
