"""What a worker sends is what its parent gets, through shared memory or not."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.trainer.transport import Receiver, Sender

RECORD = [("a", "<f4"), ("b", "<i4")]
ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    st.sampled_from(["u1", "<f4", "<i8", "?", "O", "<M8[s]", RECORD]),
    st.sampled_from([(), (0,), (3,), (40, 7), (0, 5), (1000,)]),
    st.integers(0, 9),
)
BYTES = st.sampled_from([b"", b"x", b"y" * 5000])
COLUMNS = st.one_of(
    ARRAYS,
    st.lists(BYTES, max_size=4),
    st.lists(ARRAYS, max_size=3),
    st.lists(st.one_of(BYTES, ARRAYS, st.none()), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)
VALUES = st.one_of(COLUMNS, st.dictionaries(st.text(max_size=3), COLUMNS, max_size=4), st.tuples(COLUMNS, COLUMNS))


def check_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        check_same(list(found.values()), list(wanted.values()))
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_same(one, other)
    else:
        assert found == wanted


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5))
def test_everything_comes_as_it_went(values: list[Any]) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        sender, receiver = Sender(ours, 2), Receiver(theirs)
        for value in values:
            sender.send(value)
            check_same(receiver.receive(), value)
