"""Batches of samples, and what is pinned of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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


def test_tensors_are_pinned_wherever_they_lie() -> None:
    tensor = Pinnable()
    assert pinned(Pair(tensor, ["text", (tensor, 1)])) == Pair("pinned", ["text", ("pinned", 1)])
    assert type(pinned(Pair(tensor, 1))) is Pair
    assert pinned({"a": tensor, "b": "c"}) == {"a": "pinned", "b": "c"}
