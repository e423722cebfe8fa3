"""What a worker sends is what its parent gets, through shared memory or not."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.trainer.transport import Receiver, Sender, Unreadable

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
        for number, value in enumerate(values):
            sender.send(number, value)
            found, came = receiver.receive()
            assert found == number
            check_same(came, value)


def travelled(*values: Any) -> list[Any]:
    ours, theirs = Pipe()
    with ours, theirs:
        sender, receiver = Sender(ours, 2), Receiver(theirs)
        found = []
        for number, value in enumerate(values):
            sender.send(number, value)
            found.append(receiver.receive()[1])
        return found


class Marked(np.ndarray[Any, Any]):
    """An array of a kind of the user's own."""


class Box(torch.Tensor):
    """A tensor of a kind of the user's own."""


class Names(list[bytes]):
    """A list of a kind of the user's own."""


def test_what_is_more_than_its_bytes_comes_whole() -> None:
    mask = np.arange(500) % 2 == 0
    masked, record, own, names, texts = travelled(
        np.ma.MaskedArray(np.arange(500), mask=mask),
        np.rec.fromarrays([np.arange(500), np.ones(500)], names="a,b"),
        np.arange(500).view(Marked),
        Names([b"a" * 500]),
        np.array(["x" * 400, "y"], dtype=np.dtypes.StringDType()),
    )
    assert (type(masked), masked.sum()) == (np.ma.MaskedArray, np.arange(500)[~mask].sum())
    assert (type(record), type(own), type(names)) == (np.recarray, Marked, Names)
    assert texts.tolist() == ["x" * 400, "y"]
    parameter, box, sparse, last, negative = travelled(
        torch.nn.Parameter(torch.ones(500)),
        torch.ones(500).as_subclass(Box),
        torch.eye(30).to_sparse(),
        torch.ones(2, 3, 20, 20).to(memory_format=torch.channels_last),
        torch.zeros(500, dtype=torch.complex64).conj().imag,
    )
    assert (type(parameter), parameter.requires_grad, type(box)) == (torch.nn.Parameter, True, Box)
    assert torch.equal(sparse.to_dense(), torch.eye(30))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(negative, torch.zeros(500))
    (columns,) = travelled(np.asfortranarray(np.arange(900).reshape(30, 30)))
    assert columns.flags.f_contiguous


class Fails:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_message_that_cannot_be_read_is_one_message() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        sender, receiver = Sender(ours, 2), Receiver(theirs)
        sender.send(7, {"array": np.arange(900), "wrong": Fails()})
        sender.send(8, {"array": np.arange(900)})
        with pytest.raises(Unreadable, match="message 7: ValueError") as caught:
            receiver.receive()
        assert caught.value.number == 7
        number, value = receiver.receive()
        assert number == 8
        assert np.array_equal(value["array"], np.arange(900))


def test_what_cannot_be_sent_takes_no_slot() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        sender, receiver = Sender(ours, 1), Receiver(theirs)
        for size in (900, 400_000, 900):
            value = {"array": np.full(size, size)}
            with pytest.raises(AttributeError, match="lambda"):
                sender.send(0, {"array": np.zeros(2 * size), "wrong": lambda: 0})
            sender.send(1, value)
            assert np.array_equal(receiver.receive()[1]["array"], value["array"])
