"""What other readers do with shards: the rules against the packages themselves, at sizes that run here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.analyst.readers import (
    RULES,
    Job,
    Reading,
    hugging_face_map_style,
    hugging_face_streaming,
    open_clip_plain,
    open_clip_resampled,
    webdataset_plain,
    webdataset_resampled,
    webdataset_with_epoch,
)
from tests.trainer.publishing import publish, read_rows

JOBS = [Job(1, 1, 4), Job(2, 2, 4), Job(3, 1, 4), Job(3, 2, 5)]


def array(sizes: tuple[int, ...]) -> Any:
    return np.array(sizes, dtype=np.int64)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 4), st.integers(1, 8))
def test_counts_are_counts_of_samples(sizes: list[int], world: int, workers: int, batch: int) -> None:
    for rule in RULES:
        reading = rule(array(tuple(sizes)), Job(world, workers, batch))
        assert -1e-6 <= reading.never <= sum(sizes) + 1e-6
        assert -1e-6 <= reading.repeated <= sum(sizes) - reading.never + 1e-6


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(1, 5), st.integers(1, 3))
def test_what_comes_out_even_is_read_once(world: int, workers: int, batch: int, batches: int, shards: int) -> None:
    sizes = np.full(world * workers * shards, batch * batches)
    job = Job(world, workers, batch)
    for rule in RULES:
        if rule not in (webdataset_resampled, open_clip_resampled):
            reading = rule(sizes, job)
            assert (round(reading.never), round(reading.repeated)) == (0, 0)
            assert not reading.hangs
            assert (reading.amplification, reading.idle, reading.refusal) == (1.0, 0, None)


def test_the_case_of_24_million_pairs() -> None:
    """2,400 shards against 3,072, for 128 ranks of 8 workers: shares of the epoch."""
    job = Job(128, 8, 32)
    many, few = (np.full(count, 24_000_000 // count) for count in (3072, 2400))
    lost = open_clip_plain(few, job)
    assert (round(lost.never / 24e6, 3), round(lost.repeated / 24e6, 3)) == (0.096, 0.097)
    assert open_clip_plain(many, job).never / 24e6 < 0.001
    assert hugging_face_streaming(few, job).amplification == 128
    assert hugging_face_streaming(many, job).amplification == 1
    assert webdataset_plain(few, job).hangs
    assert webdataset_plain(few[:1000], job).refusal is not None


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """105 samples in ten shards of 7 to 14."""
    folder = tmp_path_factory.mktemp("uneven") / "datasets" / "uneven"
    return publish(folder, {"alpha": (7, 14, 9, 8, 12, 10, 11, 13, 7, 14)})


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples in ten shards of 8."""
    return publish(tmp_path_factory.mktemp("even") / "datasets" / "even", {"alpha": (8,) * 10})


def shards(folder: Path) -> tuple[list[str], Any]:
    paths = sorted(str(path) for path in folder.rglob("*.tar"))
    counts = Counter(row["shard"] for row in read_rows(folder))
    return paths, array(tuple(counts[Path(path).stem] for path in paths))


def places(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Each (rank, worker) in turn, as webdataset learns of it from the environment."""
    for rank in range(job.world_size):
        for worker in range(job.num_workers):
            for name, value in (("RANK", rank), ("WORLD_SIZE", job.world_size)):
                monkeypatch.setenv(name, str(value))
            for name, value in (("WORKER", worker), ("NUM_WORKERS", job.num_workers)):
                monkeypatch.setenv(name, str(value))
            yield rank, worker


def counted(drawn: Counter[str], steps: list[int], samples: int) -> tuple[int, int, tuple[int, int]]:
    """(never, repeated, steps) as a Reading has them."""
    return samples - len(drawn), sum(times > 1 for times in drawn.values()), (min(steps), max(steps))


def told(reading: Reading) -> tuple[int, int, tuple[int, int]]:
    return round(reading.never), round(reading.repeated), reading.steps


@pytest.mark.parametrize("job", JOBS, ids=str)
@pytest.mark.parametrize("quota", [False, True], ids=["plain", "with_epoch"])
def test_webdataset(job: Job, quota: bool, uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths, sizes = shards(uneven)
    drawn: Counter[str] = Counter()
    steps = [0] * job.world_size
    for rank, _ in places(job, monkeypatch):
        pipeline = webdataset.WebDataset(paths, shardshuffle=False, nodesplitter=webdataset.split_by_node)
        if quota:
            pipeline = pipeline.with_epoch(int(sizes.sum()) // job.num_readers)
        keys = [sample["__key__"] for sample in pipeline]
        drawn.update(keys)
        steps[rank] += -(-len(keys) // job.batch_size)
    rule = webdataset_with_epoch if quota else webdataset_plain
    assert counted(drawn, steps, int(sizes.sum())) == told(rule(sizes, job))


def test_webdataset_refuses_workers_without_a_shard(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    job = Job(6, 2, 4)
    paths, sizes = shards(even)
    refused = 0
    for rank, worker in places(job, monkeypatch):
        pipeline = webdataset.WebDataset(paths, shardshuffle=False, nodesplitter=webdataset.split_by_node)
        if rank + job.world_size * worker >= len(paths):
            with pytest.raises(ValueError, match="fewer shards than workers"):
                list(pipeline)
            refused += 1
        else:
            assert len(list(pipeline)) == 8
    assert refused == webdataset_plain(sizes, job).idle == 2


@pytest.mark.slow
def test_webdataset_resampled(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many epochs the share that is never read comes near what is expected."""
    webdataset = pytest.importorskip("webdataset")
    job = Job(2, 1, 4)
    paths, sizes = shards(even)
    never = []
    for _ in range(60):
        drawn: set[str] = set()
        for _ in places(job, monkeypatch):
            pipeline = webdataset.WebDataset(
                paths, resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_node
            )
            drawn |= {sample["__key__"] for sample in pipeline.with_epoch(40)}
        never.append(80 - len(drawn))
    assert np.mean(never) == pytest.approx(webdataset_resampled(sizes, job).never, rel=0.15)


def open_clip_epoch(
    paths: list[str], samples: int, job: Job, monkeypatch: pytest.MonkeyPatch, *, resampled: bool = False
) -> tuple[Counter[str], list[int]]:
    """Captions that an epoch of open_clip's own pipeline reads, and the steps of each rank."""
    data = pytest.importorskip("open_clip_train.data", reason="open_clip's training code needs pandas")
    if tuple(map(int, version("webdataset").split("."))) > (0, 2, 86):
        pytest.skip(
            "open_clip's training code needs webdataset<=0.2.86; later ones yield markers that it takes for files"
        )
    options = SimpleNamespace(
        train_data="::".join(paths), train_num_samples=samples, dataset_resampled=resampled, seed=0,
        train_data_upsampling_factors=None, workers=job.num_workers, world_size=job.world_size,
        batch_size=job.batch_size,
    )  # fmt: skip
    drawn: Counter[str] = Counter()
    steps = [0] * job.world_size
    for rank, _ in places(job, monkeypatch):
        made = data.get_wds_dataset(options, lambda image: 0, is_train=True, tokenizer=lambda text: [text])
        batches = list(made.dataloader.pipeline[0].dataset)
        steps[rank] += len(batches)
        drawn.update(text for _, texts in batches for text in texts)
    return drawn, steps


@pytest.mark.slow
@pytest.mark.parametrize("job", [Job(1, 1, 4), Job(2, 2, 4), Job(3, 1, 8), Job(3, 2, 8)], ids=str)
def test_open_clip(job: Job, even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of whole batches leave nothing to chance."""
    paths, sizes = shards(even)
    drawn, steps = open_clip_epoch(paths, 80, job, monkeypatch)
    assert counted(drawn, steps, 80) == told(open_clip_plain(sizes, job))


@pytest.mark.slow
def test_open_clip_with_partial_batches(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(2, 2, 3)
    paths, sizes = shards(even)
    wanted = open_clip_plain(sizes, job)
    found = [counted(*open_clip_epoch(paths, 80, job, monkeypatch), 80) for _ in range(40)]
    assert {steps for _, _, steps in found} == {wanted.steps}
    assert np.mean([never for never, _, _ in found]) == pytest.approx(wanted.never, abs=0.5)
    assert np.mean([repeated for _, repeated, _ in found]) == pytest.approx(wanted.repeated, abs=0.5)


@pytest.mark.slow
def test_open_clip_refuses_fewer_shards_than_workers(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, sizes = shards(even)
    with pytest.raises(AssertionError, match="number of shards must be >= total workers"):
        open_clip_epoch(paths, 80, Job(6, 2, 4), monkeypatch)
    assert open_clip_plain(sizes, Job(6, 2, 4)).refusal is not None


@pytest.mark.slow
@pytest.mark.parametrize("job", [Job(1, 2, 4), Job(2, 2, 4), Job(5, 1, 4), Job(3, 2, 5), Job(5, 3, 4)], ids=str)
def test_hugging_face_streaming(job: Job, uneven: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    data = pytest.importorskip("torch.utils.data")
    from datasets.distributed import split_dataset_by_node

    paths, sizes = shards(uneven)
    drawn: Counter[str] = Counter()
    steps = []
    for rank in range(job.world_size):
        whole = datasets.load_dataset(
            "webdataset", data_files=paths, split="train", streaming=True, cache_dir=str(tmp_path)
        )
        mine = split_dataset_by_node(whole.select_columns(["__key__"]), rank, job.world_size)
        loader = data.DataLoader(mine, batch_size=job.batch_size, num_workers=job.num_workers)
        batches = [batch["__key__"] for batch in loader]
        steps.append(len(batches))
        drawn.update(key for batch in batches for key in batch)
    assert counted(drawn, steps, int(sizes.sum())) == told(hugging_face_streaming(sizes, job))


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_hugging_face_map_style(job: Job) -> None:
    """It is torch's sampler that pads."""
    data = pytest.importorskip("torch.utils.data")
    from torch.utils.data.distributed import DistributedSampler

    sizes = array((7, 14, 9, 8))
    samples = int(sizes.sum())
    drawn: Counter[str] = Counter()
    steps = []
    for rank in range(job.world_size):
        sampler = DistributedSampler(range(samples), job.world_size, rank, shuffle=True)  # type: ignore[arg-type]
        batches = list(data.DataLoader(range(samples), batch_size=job.batch_size, sampler=sampler))
        steps.append(len(batches))
        drawn.update(str(number) for batch in batches for number in batch.tolist())
    assert counted(drawn, steps, samples) == told(hugging_face_map_style(sizes, job))
