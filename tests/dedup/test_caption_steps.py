from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup import caption_steps, text_steps
from dataengine.dedup.shingles import Shingling
from dataengine.engine.worker import run_job
from dataengine.errors import ConfigError
from dataengine.keys import url_keys
from tests.dedup import running
from tests.dedup.reference import similarity

WORDS = ["red", "barn", "snow", "old", "boat", "harbour", "night", "cat", "window", "green", "赤い納屋", "🔥", "café"]
CHARS = Shingling("char", 5)


def captions_like(seed: int, num_captions: int, boilerplate: float = 0.0) -> list[str]:
    """Captions, half of them a word away from another, some of them copies, some from one template."""
    rng = np.random.default_rng(seed)
    made: list[str] = []
    while len(made) < num_captions:
        chance = rng.random()
        if chance < boilerplate:
            made.append(f"a very long boilerplate caption about a product, number {rng.integers(0, 10_000):05}")
        elif made and chance < 0.4:
            words = str(rng.choice(made)).split()
            words[rng.integers(len(words))] = str(rng.choice(WORDS))
            made.append(" ".join(words))
        elif made and chance < 0.55:
            made.append(str(rng.choice(made)).upper())
        else:
            made.append(" ".join(rng.choice(WORDS, rng.integers(1, 14))))
    return made


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> object:
    """Parts and batches so small that a few hundred captions take several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_steps, "PART_BYTES", 8_000)
        patch.setattr(caption_steps, "_BANDED_ROWS", 70)
        yield None


def found(
    tmp: Path, captions: list[str], config: CaptionDedupConfig, **shape: int
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Edges, classes and counts."""
    shape = {"part_rows": 1000, "memory_bytes": 2**29, **shape}
    board = running.board_of(tmp, running.caption_steps(tuple(captions), config, **shape))
    running.run_steps(board)
    return running.edges_of(board), running.classes_of(board), running.counts_of(board, "dedup/captions")


def test_equals_brute_force_up_to_the_recall_of_banding(tmp_path: Path) -> None:
    captions = captions_like(5, 500)
    edges, classes, _ = found(
        tmp_path, captions, CaptionDedupConfig(min_similarity=0.7, target_recall=0.999, max_perm=400)
    )
    from dataengine.dedup.captions import normalise_captions

    normal = normalise_captions(pa.array(captions)).to_pylist()
    keys = url_keys("s", running.captions_names(tuple(captions), 0))
    leaders: dict[str, str] = {}
    for key, text in zip(keys, normal, strict=True):
        leaders[text] = min(key, leaders.get(text, key))
    copies = {key: leaders[text] for key, text in zip(keys, normal, strict=True) if text and normal.count(text) > 1}
    assert dict(zip(classes["key"].to_pylist(), classes["class_key"].to_pylist(), strict=True)) == copies
    true = {}
    for (one, first), (other, second) in combinations(sorted(leaders.items()), 2):
        value = similarity(one, other, CHARS)
        if value >= 0.7:
            true[min(first, second), max(first, second)] = value
    got = {(row["left_key"], row["right_key"]): row["similarity"] for row in edges.to_pylist()}
    assert len(got) == len(edges), "each pair once"
    assert len(true) > 60
    assert set(got) <= set(true), "nothing below the threshold"
    assert len(got) >= 0.99 * len(true)
    assert all(value == pytest.approx(true[pair], rel=1e-6) for pair, value in got.items())


@pytest.mark.parametrize("max_degree", [8, 200])
def test_parts_buckets_memory_and_order_do_not_matter(
    tmp_path: Path, max_degree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = captions_like(7, 400, boilerplate=0.3)
    config = CaptionDedupConfig(min_similarity=0.7, max_degree=max_degree)
    wanted, _, counted = found(tmp_path / "one", captions, config)
    assert len(wanted) > 100
    assert (counted["dense_rows"] > 0) == (max_degree < 200)
    # Another order gives other keys to the rows, which are named by place: so texts are compared.
    for name, part_rows, memory_bytes, part_bytes in (("a", 37, 2**16, 3000), ("b", 9, 2**29, 10**9)):
        monkeypatch.setattr(text_steps, "PART_BYTES", part_bytes)
        edges, _, counts = found(tmp_path / name, captions, config, part_rows=part_rows, memory_bytes=memory_bytes)
        assert edges.equals(wanted)
        assert counts == counted
    shuffled = [captions[at] for at in np.random.default_rng(1).permutation(len(captions))]
    edges, _, counts = found(tmp_path / "d", shuffled, config)
    assert sorted(edges["similarity"].to_pylist()) == sorted(wanted["similarity"].to_pylist())
    assert counts == counted


@pytest.mark.parametrize(
    "captions",
    [
        [],
        ["", "  ", "...", None],
        ["a", "ab", "abc", "abcd", "cat", "dog", "a cat", "the cat sat"],
        ["🔥", "🔥🔥", "🔥🔥🔥🔥🔥", "🔥🔥🔥🔥🔥🔥"],
        ["語", "語語語語語語語語語", "語語語語語語語語語語", "赤い納屋と雪の夜の港", "赤い納屋と雪の夜の湊"],
        ["word " * 2000 + "one", "word " * 2000 + "two", "x" * 10_000, "x" * 9_999],
    ],
    ids=["none", "empty", "short", "emoji", "cjk", "long"],
)
@pytest.mark.parametrize("shingling", [CHARS, Shingling("word", 3)], ids=["char5", "word3"])
def test_captions_of_every_kind(tmp_path: Path, captions: list[str], shingling: Shingling) -> None:
    config = CaptionDedupConfig(
        min_similarity=0.6, shingle_unit=shingling.unit, shingle_size=shingling.size, target_recall=0.9999, max_perm=600
    )
    from dataengine.dedup.captions import normalise_captions

    edges, _, _ = found(tmp_path, captions, config)
    texts = sorted(set(normalise_captions(pa.array(captions, pa.string())).to_pylist()) - {""})
    true = [v for a, b in combinations(texts, 2) if (v := similarity(a, b, shingling)) >= 0.6]
    assert sorted(edges["similarity"].to_pylist()) == pytest.approx(sorted(true), rel=1e-6)


@pytest.mark.parametrize("times", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_one_caption_many_times_is_a_class_and_no_pairs(tmp_path: Path, times: int) -> None:
    captions = ["the same old caption"] * times + ["the same old captions"]
    edges, classes, counts = found(tmp_path, captions, CaptionDedupConfig(min_similarity=0.7), part_rows=200_000)
    assert len(classes) == times
    assert (len(edges), counts["candidates"]) == (1, 1)


def test_dense_neighbourhoods_are_bounded_counted_and_audited(tmp_path: Path) -> None:
    captions = captions_like(3, 700, boilerplate=0.9)
    config = CaptionDedupConfig(min_similarity=0.8, max_degree=16)
    _, _, counts = found(tmp_path, captions, config)
    whole, _, all_counts = found(tmp_path / "whole", captions, CaptionDedupConfig(min_similarity=0.8, max_degree=4096))
    assert counts["dense_rows"] > 400
    assert counts["candidates"] < all_counts["candidates"]
    assert counts["audited_pairs"] >= counts["leaked_pairs"] > 0
    assert all_counts["dense_rows"] == all_counts["leaked_pairs"] == 0
    # The audit samples the pairs that dense runs leave out: about as many of them leak as it says.
    true_leak = 1 - counts["edges"] / len(whole)
    assert counts["leaked_pairs"] / counts["audited_pairs"] == pytest.approx(true_leak, abs=0.15)


QUICK = ("dedup/signatures", "dedup/captions")
PHASES = [
    "dedup/texts.given",
    "dedup/caption-classes",
    "dedup/signatures",
    "dedup/pairs",
    "dedup/asked",
    "dedup/captions",
]


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=[] if phase in QUICK else pytest.mark.slow) for phase in PHASES]
)
def test_killed_in_every_phase_and_resumed(tmp_path: Path, phase: str) -> None:
    """The process dies in the middle of a phase, objects written and not committed; the next one gives the same."""
    captions = captions_like(11, 200, boilerplate=0.2)
    config = CaptionDedupConfig(min_similarity=0.7, max_degree=8)
    wanted, classes, counts = found(tmp_path / "whole", captions, config, part_rows=60, memory_bytes=2**18)
    code = f"""
import os
from pathlib import Path
from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup import caption_steps, text_steps
from dataengine.storage.rundir import UnitDirectory
from tests.dedup import running
from tests.dedup.test_caption_steps import captions_like
text_steps.PART_BYTES, caption_steps._BANDED_ROWS = 8_000, 70
config = CaptionDedupConfig(min_similarity=0.7, max_degree=8)
steps = running.caption_steps(tuple(captions_like(11, 200, boilerplate=0.2)), config, 60, 2**18)
board = running.board_of(Path({str(tmp_path / "killed")!r}), steps)
store, seen = UnitDirectory.store_commit, []
def dying(self, commit):
    if self.path.split("/")[-1].rpartition("-")[0] == {phase.partition("/")[2]!r}:
        if seen or len(board.states[{phase!r}].plan.parts) == 1:
            os.kill(os.getpid(), 9)
        seen.append(commit.part)
    return store(self, commit)
UnitDirectory.store_commit = dying
running.run_steps(board)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    board = running.board_of(tmp_path / "killed", running.caption_steps(tuple(captions), config, 60, 2**18))
    assert running.run_steps(board) > 0
    assert running.edges_of(board).equals(wanted)
    assert running.classes_of(board).equals(classes)
    assert running.counts_of(board, "dedup/captions") == counts
    again = running.board_of(tmp_path / "killed", running.caption_steps(tuple(captions), config, 60, 2**18))
    assert running.run_steps(again) == 0


def test_band_tables_of_another_spec_are_refused(tmp_path: Path) -> None:
    captions = tuple(captions_like(2, 50))
    one = running.caption_steps(captions, CaptionDedupConfig(), 50, 2**29)
    board = running.board_of(tmp_path, one)
    running.run_steps(board)
    other = running.caption_steps(captions, CaptionDedupConfig(), 50, 2**29, seed=2)[3]
    state = board.states["dedup/pairs"]
    part = state.plan.parts[0]
    inputs = board.inputs(state.step, part)
    from dataengine.engine.board import Job

    outcome = run_job(Job(other, part, state.directory, inputs), running.Machine(1, 0, 1, {}, lambda: None))
    assert isinstance(outcome.error, ConfigError)
    assert "seed 1 (wanted 2)" in str(outcome.error)
