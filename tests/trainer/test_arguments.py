"""Whatever a user gives in place of an argument: the argument is named, what it is, and what is wanted; at once."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine.errors import ConfigError, InputError
from dataengine.trainer import Buckets, Caption, DataLoader, Mixture, Patience, Repeats, ShardDataset
from dataengine.trainer.adapters.torch_data import BatchDataset, DrawDataset, DrawSampler
from tests.trainer.publishing import publish, read_rows

NO_WEIGHTS: tuple[Any, ...] = (
    5, "alpha", [("alpha", 1)], {}, {"alpha": 0}, {"alpha": -1, "beta": 2}, {"alpha": "1"}, {"alpha": None}, {5: 1},
    {"alpha": float("nan")}, {"alpha": float("inf")}, {"alpha": 10**400}, {"alpha": True},
)  # fmt: skip
NO_COUNTS: tuple[Any, ...] = (-1, "2", 1.5, None, True, 10**30)
NO_SECONDS: tuple[Any, ...] = (0, -1, "5", None, float("nan"), float("inf"), True)
NO_FLAGS: tuple[Any, ...] = ("no", 1, None)
NO_FUNCTIONS: tuple[Any, ...] = (5, "resize", {"type": "x"})
DATASET: dict[str, tuple[Any, ...]] = {
    "manifest": (None, 5, "", "  ", b"x", "s3://", "file://", "\0"),
    "parts": (None, 5, (), "image", ("image", "image"), (5,), ("",), {"image": 1}),
    "where": ("", "  ", 5, True, "width >", "width > 1; width > 2", "select 1", "sum(width) > 3", "count(*) > 1",
              "width > avg(width)", "width in (select 1)", "random() > 0.5", "true", "null", "width > 'a'", "nope > 1"),
    "mixture": NO_WEIGHTS,
    "caption": (5, "alt", {"alt": 1}),
    "buckets": (5, [(4, 4)]),
    "split": (None, 5, "test"),
    "shuffle": NO_FLAGS,
    "repeats": NO_FLAGS,
    "check_hashes": NO_FLAGS,
    "seed": (None, "a", 1.5, -1, 2**64, True),
    "decode": (None, 5, "cv2"),
    "transform": NO_FUNCTIONS,
    "siblings": (5, "x", ["a"], {"latent": 5}, {"": "x"}, {"latent": ""}, {"latent": "latents"}),
    "cache": (5, "/tmp/cache", {}),
    "patience": (5, {}),
    "storage_options": (5, "x", {"endpoint": None}, {5: "x"}),
}  # fmt: skip
LOADER: dict[str, tuple[Any, ...]] = {
    "global_batch_size": (0, 4.0, 2**20 + 1, *NO_COUNTS),
    "num_workers": NO_COUNTS,
    "prefetch_batches": (0, *NO_COUNTS),
    "workers": (None, 5, "fiber"),
    "tail": (None, 5, "keep"),
    "on_corrupt": (None, 5, "skip"),
    "collate_fn": NO_FUNCTIONS,
    "persistent_workers": NO_FLAGS,
    "pin_memory": NO_FLAGS,
    "timeout_seconds": NO_SECONDS,
    "max_restarts": NO_COUNTS[:-1],
    "max_skipped": NO_COUNTS[:-1],
    "multiprocessing_context": (5, "forks"),
}


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in table.items()
        for number, value in enumerate(values)
    ]


def refused(call: Any, *said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert all(text in message for text in said), message
    assert len(message) < 2000


@pytest.mark.parametrize(("name", "value"), cases(DATASET))
def test_a_dataset_refuses_what_is_no_argument(published: Path, name: str, value: Any) -> None:
    options = {"manifest": published, name: value}
    refused(lambda: ShardDataset(options.pop("manifest"), **options), name)


@pytest.mark.parametrize(("name", "value"), cases(LOADER))
def test_a_loader_refuses_what_is_no_argument(published: Path, name: str, value: Any) -> None:
    options = {"global_batch_size": 4, name: value}
    refused(lambda: DataLoader(ShardDataset(published), **options), f"{name}=", "wanted")


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        *((Caption, {"weights": weights}, "caption: weights") for weights in NO_WEIGHTS),
        *((Caption, {"weights": {"alt": 1}, "drop": drop}, "caption: drop=") for drop in ("x", None, -0.1, 2, True)),
        *((Mixture, {"weights": weights}, "mixture: weights") for weights in NO_WEIGHTS),
        *((Repeats, {"times": times}, "mixture: times") for times in NO_WEIGHTS),
        (Mixture, {"weights": {"alpha": 1}, "where": 5}, "mixture: where=5"),
        (Mixture, {"weights": {"alpha": 1}, "where": {"alpha": 5}}, "mixture: where="),
        (Mixture, {"weights": {"alpha": 1}, "where": {"sharp": "width > 1"}}, "where names ['sharp']"),
        (Mixture, {"weights": {"alpha": 1}, "per": "epoch"}, "mixture: per='epoch'"),
        *(
            (Buckets, {"shapes": shapes}, "buckets: shapes")
            for shapes in (5, "4x4", (), ((1.5, 2),), (("a", "b"),), ((1, 2, 3),), ((0, 4),), ((4, 2**21),))
        ),
        (Buckets, {"shapes": ((4, 4),), "max_batch_pixels": "x"}, "max_batch_pixels='x'"),
        (Buckets, {"shapes": ((4, 4),), "batch_multiple": 1.5}, "batch_multiple=1.5"),
        (Buckets.around, {"side": 0}, "buckets: side=0"),
        (Buckets.around, {"side": 64, "multiple": 0}, "buckets: multiple=0"),
        *((Patience, {"timeout_seconds": seconds}, "patience: timeout_seconds=") for seconds in NO_SECONDS),
        *((Patience, {"tries": tries}, "patience: tries=") for tries in (0, *NO_COUNTS)),
        (Patience, {"pause_seconds": -1}, "patience: pause_seconds=-1"),
    ],
)
def test_the_small_classes_refuse_what_is_no_argument(kind: Any, arguments: dict[str, Any], said: str) -> None:
    refused(lambda: kind(**arguments), said)


@pytest.mark.parametrize(
    ("rank", "world_size", "said"),
    [
        (0, 3, "3 ranks do not divide a global batch of 4; near that, [1, 2, 4] do, and batches of 3 or 6 would"),
        (5, 3, "rank=5, world_size=3: wanted 0 <= rank < world_size"),
        ("a", "b", "world_size='b': wanted a whole number from 1"),
        (0.0, 2, "rank=0.0: wanted a whole number from 0"),
        (0, 0, "world_size=0"),
        (-1, 2, "rank=-1"),
    ],
)
def test_ranks_that_do_not_fit(published: Path, rank: Any, world_size: Any, said: str) -> None:
    dataset = ShardDataset(published)
    refused(lambda: DataLoader(dataset, global_batch_size=4, rank=rank, world_size=world_size), said)
    refused(lambda: BatchDataset(dataset, 4, rank=rank, world_size=world_size), said)
    refused(lambda: DrawSampler(dataset, 4, rank=rank, world_size=world_size), said)


@pytest.mark.parametrize("size", [0, -1, "4", None])
def test_adapters_refuse_the_same_batches(published: Path, size: Any) -> None:
    dataset = ShardDataset(published)
    for adapter in (BatchDataset, DrawSampler, DrawDataset):
        refused(lambda adapter=adapter: adapter(dataset, size), f"global_batch_size={size!r}")


def test_methods_refuse_what_is_no_argument(published: Path) -> None:
    loader = DataLoader(ShardDataset(published, mixture={"alpha": 1, "beta": 1}), global_batch_size=4)
    for weights in NO_WEIGHTS:
        refused(lambda weights=weights: loader.set_mixture(weights), "set_mixture", "wanted")
    for epoch in NO_COUNTS:
        refused(lambda epoch=epoch: loader.set_epoch(epoch), "epoch=", "wanted a whole number")
    for world_size in (0, *NO_COUNTS[:-1]):
        if world_size is not None:
            refused(lambda world_size=world_size: loader.plan(world_size), "world_size=", "wanted a whole number")
    for other in (5, [1], "dataset"):
        refused(lambda other=other: DataLoader(other, global_batch_size=4), "wanted a ShardDataset")


def test_numpys_numbers_are_numbers_and_a_position_stays_json(published: Path) -> None:
    dataset = ShardDataset(published, parts=("txt",), seed=np.int64(5))  # type: ignore[arg-type]
    loader = DataLoader(dataset, global_batch_size=np.int32(4), rank=np.int64(0), world_size=np.int64(1))  # type: ignore[arg-type]
    plain = DataLoader(ShardDataset(published, parts=("txt",), seed=5), global_batch_size=4)
    assert json.loads(json.dumps(loader.state_dict())) == plain.state_dict()
    assert [batch["__key__"] for batch in loader] == [batch["__key__"] for batch in plain]


@pytest.mark.parametrize("number", [np.float64(3), np.float32(3), np.int64(3), Fraction(3)])
def test_a_position_with_weights_of_any_kind_is_json_and_loads(published: Path, number: Any) -> None:
    def loader() -> DataLoader:
        mixture = Mixture({"alpha": number, "beta": number})
        return DataLoader(ShardDataset(published, parts=("txt",), mixture=mixture), global_batch_size=4)

    first = loader()
    first.set_mixture({"alpha": number, "beta": 1})
    state = json.loads(json.dumps(first.state_dict()))
    assert state == first.state_dict()
    assert {type(weight) for weight in first.state_dict()["weights"].values()} <= {int, float}
    again = loader()
    again.load_state_dict(state)
    assert [batch["__key__"] for batch in again] == [batch["__key__"] for batch in first]


def test_indices_are_whole_numbers(published: Path) -> None:
    dataset = ShardDataset(published, parts=("txt",))
    assert dataset[np.int64(3)]["__key__"] == dataset[3]["__key__"] == dataset[-15]["__key__"]
    assert dataset.__getitems__([]) == []
    for wrong in ("a", 1.5, slice(2), None):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            dataset[wrong]  # type: ignore[index]
    with pytest.raises(IndexError, match="of 18 samples"):
        dataset[10**30]


@pytest.mark.parametrize("on_corrupt", ["replace", "raise"])
def test_a_part_that_no_sample_has_is_no_corruption(published: Path, on_corrupt: Any) -> None:
    dataset = ShardDataset(published, parts=("image", "npz"))
    said = r"parts: shard .*, sample \d+ has no member 'npz', but \['image', 'json', 'txt'\]; ask for parts that every"
    with pytest.raises(ConfigError, match=said):
        list(DataLoader(dataset, global_batch_size=4, on_corrupt=on_corrupt))


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ({"gamma": 1}, r"mixture names \['gamma'\]; wanted some of \['alpha', 'beta'\]"),
        (Repeats({"alpha": 0.01}), r"times {'alpha': 0.01} of {'alpha': 12} samples draw 0 in an epoch; wanted 1 to"),
        (Repeats({"alpha": 1e300}), "draw 1.2e[+]301 in an epoch; wanted 1 to 1099511627776"),
        (Mixture({"fine": 1}, {"fine": "sum(width) > 1"}), r"mixture.where\['fine'\]='sum\(width\) > 1': Count is not"),
    ],
)
def test_mixtures_that_cannot_be_drawn(published: Path, mixture: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DataLoader(ShardDataset(published, mixture=mixture), global_batch_size=4)


def test_whole_weights_of_any_size_are_shares(published: Path) -> None:
    """Beyond what 64 bits hold, whole numbers are rounded as others are."""
    sources = {row["key"]: row["source"] for row in read_rows(published)}
    found = []
    for unit in (1, 10**18):
        loader = DataLoader(ShardDataset(published, mixture={"alpha": 3 * unit, "beta": unit}), global_batch_size=4)
        found.append([[sources[key] for key in batch["__key__"]] for batch in loader])
    assert found[0] == found[1]
    assert all(batch.count("alpha") == 3 for batch in found[0])


def test_a_batch_below_a_buckets_multiple_is_named(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    buckets = Buckets(((16, 12),), max_batch_pixels=10**9)
    said = "batch_multiple=8 is more than a global batch of 4; lower it, to a multiple of the ranks"
    with pytest.raises(ConfigError, match=re.escape(said)):
        DataLoader(ShardDataset(folder, buckets=buckets), global_batch_size=4)


def test_conditions_count_in_whole_numbers_of_any_size(published: Path) -> None:
    """Products of pixels do not wrap around, and a division by zero is no large number."""
    assert len(ShardDataset(published, where="width * 1000000 * 1000000 > 1")) == 18
    with pytest.raises(InputError, match="no samples of split 'train' where width / "):
        ShardDataset(published, where="width / (width - width) > 1")
