"""The story of a row, from its key, the beginning of its key, or its URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.why import Survivor, why
from dataengine.errors import InputError
from dataengine.keys import url_keys
from tests.trainer.publishing import read_rows


@pytest.mark.parametrize("length", [8, 20, 32])
def test_an_emitted_row_lies_somewhere(published: Path, length: int) -> None:
    row = read_rows(published)[9]
    (outcome,) = why(open_dataset(published), row["key"][:length].upper()).outcomes
    assert (outcome.key, outcome.state, outcome.stage, outcome.survivor) == (
        row["key"],
        "emitted",
        None,
        None,
    )
    placement = outcome.placement
    assert placement is not None
    assert (placement.shard, placement.index_in_shard) == ("alpha-000001", 2)
    tar = (published / placement.path).read_bytes()
    offset, nbytes = placement.members["txt"]
    assert tar[offset : offset + nbytes].decode() == placement.caption
    assert placement.scores["clip_score"] == row["clip_score"]
    assert placement.captions == dict(row["captions"])


def test_a_dropped_row_has_a_reason(published: Path) -> None:
    url = "https://alpha.example/dropped-low_score.jpg"
    story = why(open_dataset(published), url)
    (outcome,) = story.outcomes
    assert (outcome.state, outcome.stage, outcome.reason) == ("dropped", "select", "low_score")
    assert (outcome.rule_value, outcome.placement, outcome.num_rows) == ("clip_score=0.1", None, 2)
    assert (story.query, outcome.key) == (url, url_keys("alpha", [url])[0])


def test_a_duplicate_names_its_survivor(published: Path) -> None:
    (outcome,) = why(open_dataset(published), "https://beta.example/dropped-duplicate_image.jpg").outcomes
    first = next(row for row in read_rows(published) if row["source"] == "beta")
    assert outcome.survivor == Survivor(first["key"], first["url"], "beta-000000")
    assert outcome.similarity == pytest.approx(0.97)


def test_nothing_found_names_the_nearest(published: Path) -> None:
    dataset = open_dataset(published)
    with pytest.raises(InputError, match=r"did you mean .*https://alpha.example/3.jpg"):
        why(dataset, "http://alpha.example/3.jpg")
    with pytest.raises(InputError, match=r"no URLs of it hold 'nowhere\.example'"):
        why(dataset, "https://nowhere.example/a")
    key = read_rows(published)[4]["key"]
    near = f"{int(key, 16) + 1:032x}"
    with pytest.raises(InputError, match=rf"nearest keys are .*{key}"):
        why(dataset, near)
    with pytest.raises(InputError, match="at least 8 characters"):
        why(dataset, key[:7])
