"""A new source beside published versions: only its own rows are read and signed, and what was published is known."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.cli.caption_set import print_caption_set
from dataengine.config.load import load_config
from dataengine.engine.board import Board
from dataengine.errors import ConfigError, InputError
from dataengine.job import run_job
from tests.cli.command import write_config

OLD = [
    "an old wooden boat in a small harbour at night",
    "a red barn in the snow under a pale winter sky",
    "cat",
    "two children flying a kite on a wide sandy beach",
    "赤い納屋と雪の夜の港と古い木の小舟",
]
NEW = {
    "An old wooden boat, in a small harbour at night!": True,  # the same text
    "a red barn in the snow under a pale winter sky again": True,  # nearly
    "Cat": True,  # too short for a shingle: the same text all the same
    "赤い納屋と雪の夜の港と古い木の小舟。": True,
    "dog": False,
    "a completely different caption about a mountain railway": False,
    "two children eating ice cream in a crowded street": False,
}


def tar_of(path: Path, captions: list[str], seed: int) -> dict[str, Any]:
    """A source of noise pictures with these captions."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture, "PNG")
            for extension, content in (("png", picture.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"kind": "webdataset", "paths": [str(path)]}


def published(folder: Path, texts: list[str], seed: int = 1, *overrides: str, **dedup: Any) -> tuple[str, Board]:
    """The version that a run over these captions publishes, and its board."""
    folder.mkdir(parents=True)
    source = tar_of(folder / "pictures.tar", texts, seed)
    sections = {"captions": {"min_similarity": 0.7}, "images": None, **dedup}
    config = load_config(write_config(folder, source, dedup=sections), overrides)
    done = run_job(config, console=Console(quiet=True))
    assert done.dataset is not None
    return done.dataset, done.board


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a published version's manifest; one of its rows was dropped by a rule, so it is not in there."""
    folder = tmp_path_factory.mktemp("old") / "run"
    rule = "select.rules={wanted: \"caption <> 'two children flying a kite on a wide sandy beach'\"}"
    return published(folder, OLD, 1, rule)[0] + "/manifest.json"


def test_only_new_rows_are_read_and_copies_are_known(old: str, tmp_path: Path) -> None:
    near_to_dropped = "two children flying a kite on a wide sandy beach again"
    captions = [*NEW, near_to_dropped]
    dataset, board = published(tmp_path / "run", captions, 2, against=[old])
    ledger = open_dataset(dataset).ledger().collect()
    samples = dict(open_dataset(dataset).samples().select("caption", "key").collect().iter_rows())
    assert sorted(samples) == sorted([*(caption for caption, known in NEW.items() if not known), near_to_dropped])
    dropped = ledger.filter(pl.col("reason") == "contaminated")
    assert len(dropped) == sum(NEW.values())
    assert dropped["stage"].unique().to_list() == ["select"]
    old_keys = set(open_dataset(old.rpartition("/")[0]).samples().collect()["key"])
    assert {value.split()[0] for value in dropped["rule_value"]} == {"small/v000001"}
    assert {value.split()[1] for value in dropped["rule_value"]} <= old_keys
    assert sorted(dropped["similarity"].to_list())[1:] == [1.0, 1.0, 1.0]
    assert not verify(open_dataset(dataset), full=True, sample=1, progress=lambda *_: None)
    # What the new run read and signed is its own rows; of the old ones, records and the captions that were asked for.
    (texts,), (signed,) = board.commits("dedup/texts.web"), board.commits("dedup/signatures")
    assert texts.rows_in == len(captions)
    assert signed.rows_in == len(captions)
    asked = board.commits("dedup/asked")
    assert [commit.rows_out for commit in asked] == [0, 3], "own part, then the old version's: texts of its candidates"
    (paired,) = board.commits("dedup/pairs")
    num_bands = 26
    assert paired.rows_in == (signed.rows_out + 3) * num_bands, "`cat` has no shingle, and the dropped row is not there"


def test_rows_known_elsewhere_may_be_kept(old: str, tmp_path: Path) -> None:
    dataset, _ = published(tmp_path / "run", list(NEW), 2, "select.contaminated=keep", against=[old])
    assert open_dataset(dataset).samples().collect().height == len(NEW)


def test_a_chain_of_versions(old: str, tmp_path: Path) -> None:
    second, _ = published(tmp_path / "second", ["a lighthouse on a cliff above a stormy sea"], 3, against=[old])
    captions = ["a lighthouse on a cliff above a stormy sea", OLD[0], "nothing of the kind was published before"]
    dataset, _ = published(tmp_path / "third", captions, 4, against=[old, f"{second}/manifest.json"])
    assert open_dataset(dataset).samples().collect()["caption"].to_list() == captions[2:]


def test_another_spec_is_refused(old: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"signed with other settings: .*seed 0 \(wanted 5\)"):
        published(tmp_path / "run", list(NEW), 2, "seed=5", against=[old])


def test_what_is_no_manifest_is_refused(old: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dedup.against: .*no such manifest"):
        published(tmp_path / "absent", list(NEW), 2, against=["datasets/nowhere/v000001/manifest.json"])
    bare, _ = published(tmp_path / "bare", OLD, 1, captions=None)
    with pytest.raises(InputError, match="carries no caption tables"):
        published(tmp_path / "none", list(NEW), 2, against=[f"{bare}/manifest.json"])
    with pytest.raises(ConfigError, match=r"dedup.captions is null"):
        published(tmp_path / "null", list(NEW), 2, captions=None, against=[old])


def test_memory_changes_no_published_byte(tmp_path: Path) -> None:
    found = []
    for memory_bytes in (2**24, 2**30):
        dataset, _ = published(tmp_path / str(memory_bytes), OLD * 30, 1, memory_bytes=memory_bytes)
        folder = Path(dataset)
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert any(name.suffix == ".captions" for name in found[0])


@pytest.mark.parametrize("suffix", ["txt", "parquet"])
def test_prompts_without_images_are_kept_out(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["", *OLD, OLD[0].upper()]
    file = tmp_path / f"prompts.{suffix}"
    if suffix == "txt":
        file.write_text("\n".join(prompts))
    else:
        pl.DataFrame({"prompt": prompts}).write_parquet(file)
    config = write_config(
        tmp_path, tar_of(tmp_path / "none.tar", ["x"], 1), dedup={"captions": {"min_similarity": 0.7}}
    )
    given = (config, [str(file)], str(tmp_path / "sets" / "imagenet"), "prompt")
    print_caption_set(*given, [])
    assert "5 different captions out of 7 rows" in capsys.readouterr().out
    manifest = str(tmp_path / "sets" / "imagenet" / "manifest.json")
    dataset, _ = published(tmp_path / "run", list(NEW), 2, against=[manifest])
    samples = open_dataset(dataset).samples().collect()
    assert sorted(samples["caption"]) == sorted(caption for caption, known in NEW.items() if not known)
    dropped = open_dataset(dataset).ledger().collect().filter(pl.col("reason") == "contaminated")
    assert {value.split()[0] for value in dropped["rule_value"]} == {"imagenet/v000001"}
    assert {int(value.split()[1]) for value in dropped["rule_value"]} == {2, 3, 4, 6}, "the numbers of their rows"
    with pytest.raises(InputError, match="sets never change"):
        print_caption_set(*given, [])
    with pytest.raises(ConfigError, match="signed with other settings"):
        published(tmp_path / "other", list(NEW), 2, "seed=5", against=[manifest])


def test_what_holds_no_prompts_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, tar_of(tmp_path / "none.tar", ["x"], 1), dedup={})
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pl.DataFrame({"text": ["x"]}).write_parquet(tmp_path / "named.parquet")
    wanted = {
        "latin.txt": "not UTF-8 text at byte 3",
        "blank.txt": "says anything",
        "broken.parquet": "not a Parquet file",
        "named.parquet": "no column 'caption'; it has text",
        "absent.txt": "no such file",
    }
    for name, message in wanted.items():
        with pytest.raises(InputError, match=message):
            print_caption_set(config, [str(tmp_path / name)], str(tmp_path / "set"), "caption", [])
    assert not (tmp_path / "set" / "manifest.json").exists()
