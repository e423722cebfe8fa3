"""Stopped and resumed, twice in a row, a published dataset of some thousand samples gives the sequence of no stop."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataengine.storage.store import Root
from dataengine.testing.given import GivenSource
from dataengine.trainer import DataLoader, Mixture, ShardDataset
from tests.emit.publishing import publish

GIVEN = (
    GivenSource("birds", 2200, 1000, holdout_every=50, max_repeat=2),
    GivenSource("cats", 1400, 500, formats=("jpg", "png")),
)
BATCH = 48
LEG = 30  # percent of an epoch that a resumed run goes on
VIEWS: dict[str, dict[str, Any]] = {
    "whole": {},  # of repeated samples, too
    "mixture": {"mixture": Mixture({"birds": 0.3, "cats": 0.7}), "repeats": False},
}
WORKERS = [(0, "process"), (1, "process"), (4, "process"), (1, "thread"), (4, "thread")]

Drawn = tuple[int, str, int]
"""Epoch, key and checksum of the image."""
State = dict[str, Any]
Straight = tuple[str, list[list[Drawn]], int]
"""The view, every batch of two epochs and some of the third without a stop, and how many an epoch has."""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,272 samples of two sources and two formats, some repeated, some held out; published by emit's own steps."""
    folder = tmp_path_factory.mktemp("resume")
    return folder / publish(Root(str(folder)), GIVEN, shard_multiple=8)


def loader_of(version: Path, view: str, workers: tuple[int, str], **options: Any) -> DataLoader:
    dataset = ShardDataset(version, parts=("image",), decode="bytes", seed=9, **VIEWS[view])
    kind: Any = workers[1]
    return DataLoader(dataset, global_batch_size=BATCH, num_workers=workers[0], workers=kind, **options)


def batches(loader: DataLoader) -> Iterator[list[Drawn]]:
    """Batch after batch, over the ends of epochs."""
    while True:
        for batch in loader:
            checksums = map(zlib.crc32, batch["image"])
            yield list(zip(batch["__epoch__"].tolist(), batch["__key__"], checksums, strict=True))


def saved(loader: DataLoader) -> State:
    """The state as a checkpoint brings it back."""
    state: State = json.loads(json.dumps(loader.state_dict()))
    return state


@pytest.fixture(scope="module", params=["whole", pytest.param("mixture", marks=pytest.mark.slow)])
def straight(request: pytest.FixtureRequest, version: Path) -> Straight:
    loader = loader_of(version, request.param, (0, "process"))
    steps = len(loader)
    return request.param, list(islice(batches(loader), 2 * steps + steps // 5)), steps


def test_the_sequence_holds_every_draw_once(straight: Straight, version: Path) -> None:
    """What the others are compared with is itself right: an epoch of the view's rows, each as often as it says."""
    view, wanted, _ = straight
    if view == "mixture":
        assert set(Counter(one[:2] for batch in wanted for one in batch).values()) == {1}
        return
    rows = [row for row in pq.read_table(version / "samples").to_pylist() if row["split"] == "train"]
    assert len(rows) > 3000
    first = Counter(one[1] for batch in wanted for one in batch if one[0] == 0)
    assert first == Counter({row["key"]: row["repeat"] for row in rows})


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_resumed_twice_in_a_row_the_sequence_is_that_of_no_stop(
    straight: Straight, version: Path, share: float, workers: tuple[int, str], persistent: bool
) -> None:
    """Stops, is resumed, goes on by a part of an epoch, over its end or not, is saved, and is resumed again."""
    view, wanted, steps = straight
    stop = max(1, round(share * steps))
    wanted = wanted[: stop + 2 * LEG * steps // 100]
    got: list[list[Drawn]] = []
    state: State | None = None
    for end in (stop, stop + LEG * steps // 100, len(wanted)):
        loader = loader_of(version, view, workers, persistent_workers=persistent)
        if state is not None:
            loader.load_state_dict(state)
        got += islice(batches(loader), end - len(got))
        state = saved(loader)
        assert state["step"] == end
        loader.close()
    assert got == wanted


@pytest.mark.parametrize("workers", WORKERS)
def test_workers_that_live_on_are_taken_back_to_a_position(
    straight: Straight, version: Path, workers: tuple[int, str]
) -> None:
    """One loader, whose workers have made batches ahead and are not ended, is loaded twice with what it said before."""
    view, wanted, steps = straight
    loader = loader_of(version, view, workers, persistent_workers=True)
    states, stops = [], [round(share * steps) or 1 for share in (0.01, 0.5, 0.99)]
    position = 0
    for stop in stops:
        assert list(islice(batches(loader), stop - position)) == wanted[position:stop]
        states.append(saved(loader))
        position = stop
    for stop, state in [*zip(stops, states, strict=True), *zip(stops, states, strict=True)]:
        loader.load_state_dict(state)
        assert list(islice(batches(loader), 7)) == wanted[stop : stop + 7]
    loader.close()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_every_leg_may_have_other_ranks_and_workers(straight: Straight, version: Path, share: float) -> None:
    view, wanted, steps = straight
    stop = max(1, round(share * steps))
    wanted = wanted[: stop + 2 * LEG * steps // 100]
    middle = stop + LEG * steps // 100
    legs = [(stop, 4, (1, "process")), (middle, 2, (4, "thread")), (len(wanted), 1, (4, "process"))]
    got: list[list[Drawn]] = []
    state: State | None = None
    for end, world_size, workers in legs:
        ranks = [loader_of(version, view, workers, rank=rank, world_size=world_size) for rank in range(world_size)]
        for loader in ranks if state is not None else []:
            loader.load_state_dict(state)
        parts = zip(*(islice(batches(loader), end - len(got)) for loader in ranks), strict=True)
        got += [[one for part in batch for one in part] for batch in parts]
        states = [saved(loader) for loader in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
        for loader in ranks:
            loader.close()
    assert got == wanted
