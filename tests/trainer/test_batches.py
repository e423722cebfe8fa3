"""A batch holds the rows of the plan, however far ahead they were placed, and whole columns or samples alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.errors import StorageError
from dataengine.trainer import Buckets, DataLoader, ShardDataset
from dataengine.trainer.batches import BatchMaker
from dataengine.trainer.decode import Decode
from dataengine.trainer.loader import Tail
from tests.trainer.publishing import publish, write_siblings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("batches") / "pairs", {"alpha": (400, 300), "beta": (200,)})


@settings(max_examples=60, deadline=None)
@given(
    batch=st.sampled_from([4, 8, 12, 64]),
    ranks=st.sampled_from([1, 2, 4]),
    skipped=st.integers(0, 40),
    stride=st.integers(1, 9),
    tail=st.sampled_from(["carry", "drop", "pad"]),
    mixed=st.booleans(),
)
def test_rows_are_those_of_the_plan(
    corpus: Path, batch: int, ranks: int, skipped: int, stride: int, tail: Tail, mixed: bool
) -> None:
    dataset = ShardDataset(corpus, seed=5, mixture={"alpha": 2, "beta": 1} if mixed else None)
    loader = DataLoader(
        dataset, global_batch_size=batch, tail=tail if not mixed else "carry", rank=ranks - 1, world_size=ranks
    )
    plan = loader._batch_plan()
    maker, ticket, point = BatchMaker(plan), None, loader._schedule.start()
    for _ in range(skipped):
        _, point = loader._schedule.step(point)
    for _ in range(60):
        ticket, point = loader._schedule.step(point)
        for _ in range(stride - 1):  # a worker's next batch
            _, point = loader._schedule.step(point)
        draws = plan.draws(ticket)
        for found, wanted in zip(maker._rows(draws), plan.rows(draws), strict=True):
            assert found.tolist() == wanted.tolist()


def test_rows_are_placed_ahead_at_all(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(ShardDataset(corpus), global_batch_size=4)
    plan = loader._batch_plan()
    maker, point, calls = BatchMaker(plan), loader._schedule.start(), 0
    rows = plan.orders[0].rows

    def counted(draws):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return rows(draws)

    monkeypatch.setattr(plan.orders[0], "rows", counted)
    for _ in range(200):
        ticket, point = loader._schedule.step(point)
        maker._rows(plan.draws(ticket))
    assert calls < 25


def same(one: object, other: object) -> bool:
    if isinstance(one, list) and not isinstance(one[0], str | bytes):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type, call-overload]
    return type(one) is type(other) and np.array_equal(np.asarray(one), np.asarray(other))


NO_BUCKETS = [(decode, False, tail) for decode in ("pil", "rgb", "bytes", len) for tail in ("carry", "pad")]
BUCKETS = [(decode, True, "carry") for decode in ("pil", "rgb", "scaled", "bytes", len)]


@pytest.mark.parametrize(("decode", "bucketed", "tail"), [*NO_BUCKETS, *BUCKETS])
def test_whole_columns_are_those_of_collated_samples(
    tmp_path: Path, decode: Decode, bucketed: bool, tail: Tail
) -> None:
    sizes = ((16, 12), (12, 16), (20, 20), (40, 20))
    folder = publish(tmp_path / "pairs", {"alpha": (60, 40)}, picture_size=lambda number: sizes[number % 4])
    write_siblings(folder, "latents")
    buckets = Buckets(((12, 16), (16, 16), (24, 12))) if bucketed else None
    options = {"parts": ("image", "latent", "txt", "json"), "siblings": {"latent": "latents"}, "buckets": buckets}
    columns = ShardDataset(folder, decode=decode, **options)  # type: ignore[arg-type]
    samples = ShardDataset(folder, decode=decode, transform=lambda sample: sample, **options)  # type: ignore[arg-type]
    loaders = (DataLoader(dataset, global_batch_size=8, tail=tail) for dataset in (columns, samples))
    for one, other in zip(*loaders, strict=True):
        assert one.keys() == other.keys()
        assert all(same(one[name], other[name]) for name in one)


@pytest.mark.parametrize("buckets", [None, Buckets(((16, 12),))])
def test_what_a_decode_function_raises_is_not_taken_for_a_fault_of_the_data(
    corpus: Path, buckets: Buckets | None
) -> None:
    calls = []

    def decode(content: bytes) -> int:
        calls.append(content)
        if len(calls) == 20:
            raise StorageError("my disk")
        return len(content)

    dataset = ShardDataset(corpus, parts=("image",), decode=decode, buckets=buckets)
    with pytest.raises(StorageError, match="my disk"):
        list(DataLoader(dataset, global_batch_size=8))
    assert len(calls) == 20


def test_pictures_are_not_decoded_before_another_part_is_known_to_be_sound(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (40,)})
    write_siblings(folder, "latents")
    path = next((folder / "latents").glob("*.tar"))
    content = bytearray(path.read_bytes())
    content[content.index(b"<f2")] = ord(",")  # one bit
    path.write_bytes(content)
    decoded = []
    dataset = ShardDataset(
        folder,
        parts=("image", "latent"),
        siblings={"latent": "latents"},
        decode=lambda picture: decoded.append(picture),
    )
    batches = list(DataLoader(dataset, global_batch_size=8))
    assert sum(int(batch["__replaced__"].sum()) for batch in batches) == 1
    assert len(decoded) <= 41
