"""A saved position is loaded whole or refused with the field, what it holds and what is wanted; never half believed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataengine.errors import InputError
from dataengine.trainer import Buckets, DataLoader, Mixture, ShardDataset
from dataengine.trainer.adapters.torch_data import BatchDataset
from tests.trainer.publishing import publish

FIELDS = ("format", "view", "tail", "weights", "order_batch", "step", "drawn", "cursors", "owed_groups", "owed_streams")
NUMBERS = st.one_of(
    st.integers(), st.integers(-3, 3), st.sampled_from([2**53 + 1, 2**64, -(2**63), 10**999]), st.floats()
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WEIGHT = st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 samples in 5 shards of 2 sources and 2 shapes; never written to."""
    return publish(
        tmp_path_factory.mktemp("positions") / "datasets/pairs",
        {"alpha": (40, 40, 30), "beta": (20, 20)},
        picture_size=lambda number: (16, 12) if number % 3 else (12, 16),
    )


def mixed_loader(folder: Path, batch: int = 8) -> DataLoader:
    """Four streams in two groups, whose batches differ in size."""
    buckets = Buckets(((12, 16), (20, 15)), max_batch_pixels=1600, batch_multiple=1)
    dataset = ShardDataset(folder, parts=("txt",), mixture=Mixture({"alpha": 1, "beta": 2}), buckets=buckets)
    return DataLoader(dataset, global_batch_size=batch)


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, Any]:
    """Of a run under a mixture that has changed."""
    loader = mixed_loader(folder)
    loader.set_mixture({"alpha": 3, "beta": 1})
    list(islice(loader, 7))
    return loader.state_dict()


def refused(folder: Path, state: Any) -> str:
    """What loading says against `state`; the loader stays where it was."""
    loader = mixed_loader(folder)
    before = loader.state_dict()
    with pytest.raises(InputError) as caught:
        loader.load_state_dict(state)
    assert loader.state_dict() == before
    assert len(str(caught.value)) < 4000
    return str(caught.value)


@given(st.sampled_from(FIELDS), JSON)
@example("step", 1)
@example("step", 7.0)
@example("order_batch", 8.0)
@example("order_batch", True)
@settings(max_examples=150)
def test_a_changed_field_is_refused_by_name_or_as_changed(
    folder: Path, state: dict[str, Any], field: str, value: Any
) -> None:
    if type(value) is type(state[field]) and value == state[field]:
        return
    message = refused(folder, state | {field: value})
    names = {"view": list(state["view"]), "cursors": ["cursors", "drawn"]}.get(field, [field])
    assert any(name in message for name in [*names, "one of them was changed"])


@given(st.sampled_from(["cursors", "owed_groups", "owed_streams"]), st.data())
@settings(max_examples=100)
def test_an_entry_of_anything_is_refused_by_name(
    folder: Path, state: dict[str, Any], field: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(state[field]) - 1))
    entry = data.draw(JSON.filter(lambda value: type(value) is not int or value != state[field][place]))
    wrong = [*state[field][:place], entry, *state[field][place + 1 :]]
    message = refused(folder, state | {field: wrong})
    assert f"{field}[{place}] is" in message or f"{field} is" in message or "drawn is" in message


@given(
    st.sets(st.sampled_from(FIELDS), min_size=1), st.sets(st.text(max_size=5).filter(lambda name: name not in FIELDS))
)
@settings(max_examples=30)
def test_missing_and_unknown_fields_are_named(
    folder: Path, state: dict[str, Any], left_out: set[str], added: set[str]
) -> None:
    kept = {name: value for name, value in state.items() if name not in left_out}
    message = refused(folder, kept | dict.fromkeys(added, 1))
    assert str([name for name in FIELDS if name in left_out]) in message
    assert "not the checkpoint around it" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order_batch": 0}, "order_batch is 0, wanted a whole number from 1 to 1048576"),
        ({"order_batch": 2**20 + 1}, "order_batch is 1048577, wanted"),
        ({"order_batch": True}, "order_batch is True"),
        ({"order_batch": 8.0}, r"order_batch is 8\.0"),
        ({"step": "7"}, "step is '7', wanted a whole number from 0 to 9007199254740992"),
        ({"step": 0}, "step is 0, wanted 1 to"),
        ({"step": 10**5000}, "step is a int of 16610 bits"),
        ({"drawn": 1}, "drawn is 1, wanted the sum of cursors"),
        ({"cursors": {"0": 1}}, "cursors is {'0': 1}, wanted 4 whole numbers"),
        ({"owed_streams": [1, 0, 0, 0]}, r"owed_streams is \[1, 0\], wanted numbers .* that sum to 0"),
        ({"owed_groups": [2**40, -(2**40)]}, r"owed_groups is \[1099511627776, .* wanted numbers from -"),
        ({"weights": {"gamma": 1.0}}, r"weights is {'gamma': 1.0}, .* names \['gamma'\]; wanted some of"),
        ({"weights": {"alpha": "1"}}, "weights is {'alpha': '1'}, wanted null or an object of numbers by name"),
        ({"weights": {"alpha": -1.0}}, "weights is {'alpha': -1.0}"),
        ({"weights": {"alpha": float("nan")}}, "weights is {'alpha': nan}"),
        ({"weights": {"alpha": 0}}, "weights is {'alpha': 0}"),
        ({"tail": ["carry"]}, r"tail is \['carry'\], this dataset has 'carry'"),
        ({"order_batch": 16}, "check is not that of the other fields: one of them was changed"),
        ({"check": "0" * 16}, "check is not that of the other fields"),
        ({"format": "dataengine-position/1"}, "this dataengine reads 'dataengine-position/3'"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, state: dict[str, Any], change: dict[str, Any], message: str) -> None:
    assert re.search(message, refused(folder, state | change))


@pytest.mark.parametrize("value", [True, 0.0, "0", np.zeros(3)])
def test_a_seed_of_another_type_is_another_seed(folder: Path, state: dict[str, Any], value: Any) -> None:
    assert "seed is" in refused(folder, state | {"view": state["view"] | {"seed": value}})


@pytest.mark.parametrize("value", [None, 5, "state", [1, 2], ["format"]])
def test_no_state_at_all_is_refused(folder: Path, value: Any) -> None:
    assert "wanted the dict that state_dict() returned" in refused(folder, value)
    batches = BatchDataset(ShardDataset(folder, parts=("txt",)), 8)
    for wrong in (value, {"position": batches.state_dict()["position"]}, {"position": value, "begin": None}):
        with pytest.raises(InputError, match="state_dict: is"):
            batches.load_state_dict(wrong)
    for begin in (-1, 1, "0"):
        with pytest.raises(InputError, match=r"begin is .*, wanted null or a whole number from 0 to 0"):
            batches.load_state_dict(batches.state_dict() | {"begin": begin})


def test_weights_mean_nothing_without_a_mixture(folder: Path) -> None:
    loader = DataLoader(ShardDataset(folder, parts=("txt",)), global_batch_size=8)
    with pytest.raises(InputError, match=r"weights is {'all': 1.0}, wanted null, since .* without a mixture"):
        loader.load_state_dict(loader.state_dict() | {"weights": {"all": 1.0}})


@given(st.lists(st.tuples(st.integers(0, 9), WEIGHT, WEIGHT, st.sampled_from([2, 8, 64])), min_size=1, max_size=6))
@settings(max_examples=30)
def test_every_state_that_a_loader_gives_is_taken(folder: Path, legs: list[tuple[int, float, float, int]]) -> None:
    """Whatever mixtures, stops and batch sizes led to it."""
    state: Mapping[str, Any] | None = None
    for steps, alpha, beta, batch in legs:
        loader = mixed_loader(folder, batch)
        if state is not None:
            loader.load_state_dict(state)
        if alpha + beta > 0:
            loader.set_mixture({"alpha": alpha, "beta": beta})
        list(islice(loader, steps))
        state = json.loads(json.dumps(loader.state_dict()))
        again = mixed_loader(folder, batch)
        again.load_state_dict(state)
        assert again.state_dict() == state


def test_a_rest_below_a_larger_batch_is_dropped_when_tails_are(folder: Path) -> None:
    """Otherwise it would be filled up from the next epoch, which would then draw those samples again."""
    dataset = ShardDataset(folder, parts=("txt",))
    first = DataLoader(dataset, global_batch_size=16, tail="drop")
    list(islice(first, 8))
    larger = DataLoader(dataset, global_batch_size=64, tail="drop")
    larger.load_state_dict(first.state_dict())
    assert larger.epoch == 1
    drawn = [pair for batch in larger for pair in zip(batch["__epoch__"].tolist(), batch["__key__"], strict=True)]
    assert Counter(epoch for epoch, _ in drawn) == {1: 128}
    assert len(set(drawn)) == 128
