"""Batches of samples, and what is pinned of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dataengine.errors import ConfigError
from dataengine.trainer.collate import collate, pinned


class Pair(NamedTuple):
    left: Any
    right: Any


class Pinnable:
    """Has what tensors have; real ones need a GPU for it."""

    def pin_memory(self) -> str:
        return "pinned"


def test_arrays_of_one_shape_stack_and_others_stay() -> None:
    alike, unlike = (collate([{"a": np.zeros(2)}, {"a": np.zeros(size)}])["a"] for size in (2, 3))
    assert alike.shape == (2, 2)
    assert [len(array) for array in unlike] == [2, 3]
    assert collate([{"flag": True}, {"flag": False}])["flag"].dtype == np.bool_


def test_masks_stay() -> None:
    column = collate([np.ma.masked_equal([1, 2, 3], 2)] * 2)
    assert (type(column), column.sum()) == (np.ma.MaskedArray, 8)


def test_what_is_no_number_stays_what_it_is() -> None:
    mixed = [{"a": 1, "b": torch.zeros(2)}, {"a": "x", "b": None}]
    assert collate(mixed)["a"] == [1, "x"]
    assert collate(mixed)["b"][1] is None
    assert collate([{"a": 1.5}, {"a": None}])["a"] == [1.5, None]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([{"a": 1}, {"a": 1, "b": 2}], r"sample 1 of a batch is a dict of \['a', 'b'\], the first a dict of \['a'\]"),
        ([{"a": 1}, {"b": 2}], "sample 1 of a batch is a dict of"),
        (
            [{"a": 1}, {"a": 1}, None],
            r"sample 2 of a batch is a NoneType, the first a dict of \['a'\]; make them alike",
        ),
        ([(1, 2), (1,)], "sample 1 of a batch is a tuple of 1, the first a tuple of 2"),
        ([(1, 2), Pair(1, 2)], "sample 1 of a batch is a Pair of 2, the first a tuple of 2"),
    ],
)
def test_samples_that_make_no_batch_are_named(samples: list[Any], said: str) -> None:
    """An entry that the first sample lacks was dropped from all."""
    with pytest.raises(ConfigError, match=said):
        collate(samples)


def test_tensors_are_pinned_wherever_they_lie() -> None:
    tensor = Pinnable()
    assert pinned(Pair(tensor, ["text", (tensor, 1)])) == Pair("pinned", ["text", ("pinned", 1)])
    assert type(pinned(Pair(tensor, 1))) is Pair
    assert pinned({"a": tensor, "b": "c"}) == {"a": "pinned", "b": "c"}
