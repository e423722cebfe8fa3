from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup.banding import Banding, alike, banded, choose_banding
from dataengine.dedup.kernels.signatures import band_signatures
from dataengine.dedup.minhash import SignatureSpec, signatures
from dataengine.dedup.shingles import Shingling
from dataengine.dedup.signing import banding_of
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
    assert alike(1.0, 0, 64) == 1.0
    assert banded(0.8, 9, 13) == pytest.approx(0.3988, abs=1e-4)  # what datasketch chooses at 0.8


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
@pytest.mark.parametrize(("bands", "rows"), [(17, 4), (16, 6), (26, 5), (9, 4), (4, 1)])
def test_pairs_are_found_as_often_as_the_curve_says(similarity: float, bands: int, rows: int) -> None:
    """Of random sets of exactly this Jaccard similarity; also with fewer slots than a sketch has bits."""
    num_pairs, size = 6000, 20
    shared = round(size * similarity)
    words = np.arange(num_pairs * size).reshape(num_pairs, size)
    one = [" ".join(f"w{word}" for word in row[: shared + (size - shared) // 2]) for row in words]
    other = [" ".join(f"w{word}" for word in [*row[:shared], *row[shared + (size - shared) // 2 :]]) for row in words]
    matrix, _ = signatures(pa.array(one + other), SignatureSpec(Shingling("word", 1), "poly32", 3, bands, rows))
    hashes, sketches = np.empty((len(matrix), bands), np.uint64), np.empty(len(matrix), np.uint64)
    band_signatures(matrix, rows, hashes, sketches)
    met = (hashes[:num_pairs] == hashes[num_pairs:]).any(axis=1)
    chosen = Banding.of(bands, rows, 0.7, loss=0.001)
    near = np.bitwise_count(sketches[:num_pairs] ^ sketches[num_pairs:]) <= chosen.max_differ
    wanted = chosen.recall(similarity)
    # A band and the sketch speak of the same slots, so pairs that share one are the likelier to share the other.
    deviation = 4 * math.sqrt(wanted * (1 - wanted) / num_pairs) + 1 / num_pairs
    assert wanted - deviation <= (met & near).mean() <= banded(similarity, bands, rows) + deviation


def test_characters_take_longer_signatures_than_words_unless_told() -> None:
    chosen = [
        banding_of(CaptionDedupConfig(min_similarity=similarity, shingle_unit=unit))
        for unit in ("char", "word")
        for similarity in (0.7, 0.8)
    ]
    assert [(item.num_bands, item.rows_per_band) for item in chosen] == [(26, 5), (20, 7), (17, 4), (16, 6)]
    assert banding_of(CaptionDedupConfig(min_similarity=0.7, shingle_unit="word", max_perm=160)) == chosen[0]
