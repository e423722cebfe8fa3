"""What is made of a sample: its caption, its generator, and what functions of the user's own are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine.errors import ConfigError
from dataengine.trainer import Caption, ShardDataset
from dataengine.trainer.samples import sample_rng
from tests.trainer.publishing import read_rows


def test_captions_are_chosen_by_weight_and_dropped(published: Path) -> None:
    choice = Caption({"caption": 1, "alt": 3}, drop=0.25)
    record = {"caption": "primary", "captions": {"alt": "the alt", "empty": ""}}
    chosen = Counter(choice.choose(record, f"{number:032x}", 7, 0)[1] for number in range(4000))
    for name, share in (("", 0.25), ("caption", 0.1875), ("alt", 0.5625)):
        assert abs(chosen[name] / 4000 - share) < 0.03
    assert Caption({"empty": 1, "absent": 1}).choose(record, "k", 0, 0) == ("primary", "caption")
    assert choice.choose(record, "k", 0, 0) == choice.choose(record, "k", 0, 0)
    sample = ShardDataset(published, parts=("txt",), caption=Caption({"caption": 1}))[0]
    assert (sample["caption"], sample["__caption__"]) == (sample["txt"], "caption")
    assert "json" not in sample
    for options in ({"weights": {}}, {"weights": {"a": 0}}, {"weights": {"a": 1}, "drop": 2}):
        with pytest.raises(ConfigError, match="caption"):
            Caption(**options)


def test_a_generator_belongs_to_seed_epoch_and_key(published: Path) -> None:
    def crop(sample: dict[str, Any], rng: np.random.Generator) -> tuple[str, float]:
        return sample["__key__"], rng.random()

    drawn = dict(ShardDataset(published, transform=crop, seed=3))
    again = dict(reversed(ShardDataset(published, transform=crop, seed=3).__getitems__(range(18))))
    assert drawn == again
    assert len(set(drawn.values())) == 18
    assert drawn != dict(ShardDataset(published, transform=crop, seed=4))
    first = next(iter(drawn))
    assert drawn[first] == sample_rng(3, 0, first).random() != sample_rng(3, 1, first).random()


def by_name(sample: dict[str, Any], rng: Any = None) -> Any:
    return rng


def by_keyword(sample: dict[str, Any], *, rng: Any) -> Any:
    return rng


def by_place(sample: dict[str, Any], chance: Any) -> Any:
    return chance


def with_an_option(sample: dict[str, Any], size: Any = None) -> Any:
    return size


def with_any(sample: dict[str, Any], *more: Any, **others: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("transform", "given"),
    [(by_name, True), (by_keyword, True), (by_place, True), (with_an_option, False), (with_any, False), (id, False)],
)
def test_who_asks_for_a_generator_is_given_one(published: Path, transform: Any, given: bool) -> None:
    assert isinstance(ShardDataset(published, parts=("txt",), transform=transform)[0], np.random.Generator) == given


@pytest.mark.parametrize("what", ["transform", "decode"])
def test_an_error_of_the_users_own_names_the_sample(published: Path, what: str) -> None:
    def fails(_: Any) -> None:
        raise ZeroDivisionError("own")

    with pytest.raises(ZeroDivisionError, match="own") as caught:
        ShardDataset(published, **{what: fails})[7]
    (note,) = caught.value.__notes__
    assert f"{what} was given shard alpha-000001, key {read_rows(published)[7]['key']}" in note
