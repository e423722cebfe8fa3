"""The golden batch: the first worker settles it, equals pass, and whatever quietly differs is stopped by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dataengine.errors import CorruptObject, DriftError
from dataengine.score.clip import Scorer
from dataengine.score.golden import CAPTIONS, SIZES, check_golden, golden_pictures
from dataengine.score.heads import Head
from tests.score.conftest import make_weights
from tests.score.test_clip import CPU_SHORT, Narrow


class Store:
    """Keeps the first content of every name, as a run does."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def __call__(self, name: str, content: bytes) -> bytes:
        return self.kept.setdefault(name, content)


def head(scale: float = 1.0) -> Head:
    weight = np.linspace(-1, 1, 16, dtype=np.float32)[None] * np.float32(scale)
    return Head(((weight, np.zeros(1, np.float32)),), "00", "a/b")


def test_pictures_are_whole_numbers_that_no_library_decides() -> None:
    pictures = golden_pictures()
    assert [(picture.shape, picture.dtype) for picture in pictures] == [((*size, 3), np.uint8) for size in SIZES]
    sums = [int(picture.astype(np.int64).sum()) for picture in pictures]
    assert sums == [19169584, 134942480, 88825100, 10754561]


def test_equal_workers_pass_and_the_first_ones_values_stay(load: Callable[..., Scorer], scorer: Scorer) -> None:
    store = Store()
    check_golden(scorer, {"grade": head()}, "ab", store)
    (content,) = store.kept.values()
    values = json.loads(content)["values"]
    assert np.array(values["cosines"]).shape == (len(SIZES) + len(CAPTIONS),) * 2
    assert np.diag(values["cosines"]) == pytest.approx(1)
    check_golden(load(batch_size=7), {"grade": head()}, "ab", store)
    assert list(store.kept.values()) == [content]


def test_other_weights_are_stopped(load: Callable[..., Scorer], scorer: Scorer, tmp_path: Path) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    other = load(pretrained=str(make_weights(tmp_path, 1)))
    with pytest.raises(DriftError, match=r"cosines of the golden batch differ by .*weights_sha256: .* there, .* here"):
        check_golden(other, {}, "ab", store)


def test_a_small_drift_of_one_tower_is_stopped(scorer: Scorer, load: Callable[..., Scorer]) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    drifted = load()
    tower = drifted.image_tower
    drifted.image_tower = lambda batch: tower(batch) + 0.02 * torch.linspace(-1, 1, 16)
    with pytest.raises(DriftError, match="differ by"):
        check_golden(drifted, {}, "ab", store)


def test_another_head_is_stopped(scorer: Scorer) -> None:
    store = Store()
    check_golden(scorer, {"grade": head()}, "ab", store)
    with pytest.raises(DriftError, match="head grade of the golden batch"):
        check_golden(scorer, {"grade": head(1.3)}, "ab", store)


def test_bfloat16_has_a_tolerance_of_its_own_and_holds_it(load: Callable[..., Scorer], scorer: Scorer) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    check_golden(load(precision="bfloat16"), {}, "ab", store)


def test_a_head_without_a_number_is_a_matter_of_its_rows(scorer: Scorer) -> None:
    class Broken(Head):
        def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.full(len(embeddings), np.nan, np.float32)

    broken = Broken((), "00", "a/b")
    store = Store()
    for _ in range(2):
        check_golden(scorer, {"grade": broken}, "ab", store)


def test_only_what_differs_is_told(load: Callable[..., Scorer], scorer: Scorer, tmp_path: Path) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    with pytest.raises(DriftError) as caught:
        check_golden(load(pretrained=str(make_weights(tmp_path, 1)), batch_size=7), {}, "ab", store)
    told = str(caught.value)
    assert "weights_sha256: " in told
    assert "batch_size: 4 there, 7 here." in told
    assert "preprocess" not in told
    assert "libraries" not in told
    (name,) = store.kept
    tree = json.loads(store.kept[name])
    tree["provenance"]["libraries"]["torch"] = "1.0"
    tree["values"]["cosines"][0][1] += 1
    store.kept[name] = json.dumps(tree).encode()
    with pytest.raises(
        DriftError, match=rf"libraries.torch: 1.0 there, {torch.__version__.split('+')[0]}.* here. Make"
    ):
        check_golden(scorer, {}, "ab", store)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"values": {}}', '{"values": {"cosines": "x"}}', "short"])
def test_a_damaged_golden_batch_is_named(scorer: Scorer, damage: str) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    (name,) = store.kept
    tree = json.loads(store.kept[name])
    tree["values"]["cosines"].pop()
    store.kept[name] = (json.dumps(tree) if damage == "short" else damage).encode()
    with pytest.raises(CorruptObject, match=r"settled/golden-ab\.json.*restore the object"):
        check_golden(scorer, {}, "ab", store)


def test_a_cpu_that_is_short_of_memory_scores_the_golden_batch_in_smaller_pieces(
    load: Callable[..., Scorer], scorer: Scorer
) -> None:
    store = Store()
    check_golden(scorer, {}, "ab", store)
    narrow = load(batch_size=32)
    narrow.image_tower = tower = Narrow(narrow.image_tower, 1, CPU_SHORT)
    check_golden(narrow, {}, "ab", store)
    assert tower.sizes == [4, 2, *[1] * len(SIZES)]
    assert narrow.batch_size == 32  # the parts find out for themselves
