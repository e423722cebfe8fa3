"""What a user does wrong ends in one message and the right exit code, and nothing is published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dataengine.errors import InputError
from dataengine.trainer.dataset import ShardDataset
from tests.cli.command import CommandLine, manifests, picture_tar, url_table, write_config


def refused(cli: CommandLine, config: Path, code: int, *words: str, sets: tuple[str, ...] = ()) -> None:
    """The run ends with `code`, its message holds `words`, and nothing was published."""
    said = cli("run", config, *(argument for text in sets for argument in ("--set", text)))
    assert said.code == code, said.err
    for word in words:
        assert word in said.err
    assert "\x1b" not in said.err
    assert not manifests(config.parent)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\xff\xfe\x00", "cannot read this config"),
        (b"", "wanted a mapping"),
        (b"- a", "got list, wanted a mapping"),
        (b"a: [1", "not valid YAML"),
        (b"name: a\nname: b", "'name' stands twice"),
        (b"a: &x 1\nb: *x", "aliases are not allowed"),
        (b"? [a, b]\n: 1", "a key must be a word"),
        (b"seed: 2020-99-99", "not valid YAML"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 2000, "nests too deep"),
        (b"name: 2020-01-01", "in quotes"),
        (b"seed: .inf", "finite"),
        (b"name: !!python/object/apply:os.system [true]", "not valid YAML"),
        (b"seed: x", 'seed: got "x"; input should be a valid integer'),
        (b"sede: 1", "did you mean seed?"),
        (b"name: a", "sources: missing; this key is required"),
    ],
)
def test_a_config_that_is_none(cli: CommandLine, tmp_path: Path, content: bytes, word: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    refused(cli, config, 2, "ConfigError", str(config), word)


def test_a_config_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    refused(cli, tmp_path / "none.yaml", 2, "none.yaml", "cannot read", "Give the path")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seed", "wanted key.path=value"),
        ("=3", "wanted key.path=value"),
        ("seed=[", "not valid YAML"),
        ("name.x=3", "which has no keys"),
        ("select.balance.tagret=3", "did you mean target?"),
        ("select.balance.target=0", "greater than or equal to 1"),
        ("execution.runner=spark", "'ray' or 'serial'"),
        ('name="a\\n"', "name: got"),
        ("name=../up", "name: got"),
        ('root=""', "at least 1 character"),
        ("root=s3://", "names no bucket"),
        ("root=ftp://host/x", "no such kind of store"),
        ('sources.web.paths=[""]', "at least 1 character"),
        ('sources.web.paths=["a\\0"]', "sources.web.paths.0"),
        ("download.guard.hosts={gone.test: nonsense}", "wanted address:port"),
        ("download.guard.hosts={gone.test: '127.0.0.1:99999'}", "wanted address:port"),
        ('download.fetch.user_agent="a\\r\\nCookie: b"', "user_agent"),
        ("sample_web.num_scenes=5", "greater than or equal to 60"),
        ("select.balance.weights={wbe: 1}", "names no source: ['wbe']"),
        ("select.balance.weights={web: 1}", "select.balance.target: missing"),
        ("select.balance={target: 3, weights: {web: 0}}", "every weight is 0"),
        ("score.scorers.tiny.heads.clip_score.weights=x", "'clip_score' names another column"),
        ("score.scorers.tiny.heads.verdict.weights=x", "'verdict' names another column"),
        ("select.survivors.prefer=[clip_score]", "wanted `column asc` or `column desc`"),
        ("select.survivors.prefer=[clipscore desc]", "did you mean clip_score?"),
        ("select.balance={target: 9, min: {web: 10}}", "which allow at least 10"),
        ("select.balance={target: 9, max: {web: 8}, if_short: all}", "which allow from 0 to 8"),
        ("select.balance.cap={by: source, at: 0}", "yaml: select.balance.cap.at: got 0"),
        ("select.balance.cap={by: source, att: 3}", "select.balance.cap.att: unknown key; did you mean at?"),
        ("select.balance.cap=[{by: source, at: 3}, {by: source}]", "select.balance.cap.1.at: missing"),
        ("select.balance.cap=3", "select.balance.cap: got 3"),
        ("select.balance={target: 9, temperature: 0.001}", "greater than or equal to 0.05"),
        ("select.rules.good=clp_score > 0", "did you mean clip_score?"),
        ("select.rules.good=clip_score", "wanted true or false"),
        ("select.rules.good=avg(clip_score) > 0", "Mean is not allowed"),
        ("select.rules.good=clip_score >", "not an expression"),
        ("select.rules.good=1 > 0", "names no column"),
        ("select.rules.good=" + " AND ".join(["width > 1"] * 3000), "nests too deep"),
        ("score.scorers.tiny.model=ViT-L-41", "did you mean ViT-L-1"),
        ("score.scorers.tiny={model: ViT-B-32, pretrained: opnai}", "did you mean openai?"),
        ("score.scorers.tiny={model: tiny-clip, pretrained: /none.pt}", "no weights file /none.pt"),
        ("score.scorers.tiny.heads.grade.weights=builtin:none", "there are tiny-aesthetic"),
    ],
)
def test_an_override_that_asks_for_what_cannot_be(cli: CommandLine, tmp_path: Path, text: str, word: str) -> None:
    refused(cli, write_config(tmp_path), 2, "ConfigError", word, sets=(text,))


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_block_lists_are_read_before_anything_runs(cli: CommandLine, tmp_path: Path, verb: str) -> None:
    (tmp_path / "list.txt").write_text("bad.example\nno entry at all\n")
    for name, words in (("list.txt", "list.txt, line 2: got 'no entry at all'"), ("none.txt", "no such file")):
        said = cli(verb, write_config(tmp_path, download={"blocklists": [str(tmp_path / name)]}))
        assert (said.code, words in said.err) == (3, True), said.err
    assert not list(tmp_path.glob("root/runs/*/sources"))


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("rule", "content", "code", "words"),
    [
        ({"blocklist": ["a.txt", "{file}"]}, "bad.example\nno entry\n", 2, "list.txt, line 2: got 'no entry'"),
        ({"blocklist": ["{file}"]}, None, 3, "select.rules.listed: "),
        ({"caption": "caption", "require_any_of": ["{file}"]}, "\n# none\n", 2, "the files hold no phrase"),
        ({"caption": "caption", "require_any_of": ["{file}"]}, None, 3, "no such file"),
    ],
)
def test_files_of_rules_are_read_before_anything_runs(
    cli: CommandLine, tmp_path: Path, verb: str, rule: dict[str, Any], content: str | None, code: int, words: str
) -> None:
    (tmp_path / "a.txt").write_text("\ufeffanother.example\n", encoding="utf-8")
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    names = {"a.txt": str(tmp_path / "a.txt"), "{file}": str(tmp_path / "list.txt")}
    asked = {
        name: [names[item] for item in value] if isinstance(value, list) else value for name, value in rule.items()
    }
    said = cli(verb, write_config(tmp_path, select={"rules": {"listed": asked}}))
    assert (said.code, words in said.err) == (code, True), said.err
    assert not list(tmp_path.glob("root/runs/*/sources"))


def test_plan_knows_the_columns_of_every_table(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,text\nhttp://gone.test/1.jpg,one\n")
    said = cli("plan", write_config(tmp_path, {"kind": "table", "paths": [str(tmp_path / "x.csv")]}))
    assert "no column 'caption'" in said.out


def test_a_folder_is_no_table(cli: CommandLine, tmp_path: Path) -> None:
    config = write_config(tmp_path, {"kind": "table", "paths": [str(tmp_path)]})
    refused(cli, config, 3, "is a folder; name the files in it")


def test_a_head_made_for_another_model(cli: CommandLine, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    head = f"score.scorers.tiny.heads.grade.weights={tmp_path}/head.safetensors"
    config = write_config(tmp_path)
    refused(cli, config, 2, "does not say which embedding", sets=(head,))
    assert not (tmp_path / "root").exists()
    other = "score.scorers.tiny.heads.grade.embedding=ViT-L-14/openai"
    refused(cli, config, 2, "ViT-L-14/openai, and the scorer's is tiny-clip/builtin", sets=(head, other))
    mine = "score.scorers.tiny.heads.grade.embedding=tiny-clip/builtin"
    refused(cli, config, 2, "embeddings of 7 numbers", "the scorer's have 128", sets=(head, mine))


def test_plan_names_a_model_that_does_not_exist(cli: CommandLine, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    said = cli("plan", config, "--set", "score.scorers.tiny={model: ViT-L14, pretrained: openai}")
    assert said.code == 2
    assert "'ViT-L14'; did you mean ViT-L-14" in said.err
    said = cli("plan", config, "--set", "score.scorers.tiny={model: ViT-L-14, pretrained: openia}")
    assert said.code == 2
    assert "no pretrained tag 'openia'; did you mean openai" in said.err


def test_verbs_and_options_that_do_not_exist(cli: CommandLine, tmp_path: Path) -> None:
    assert "No such command 'frob'" in cli("frob").err
    assert (
        cli("frob").code
        == cli("run").code
        == cli("run", "x", "--frob").code
        == cli("verify", "x", "--sample", 0).code
        == 2
    )
    refused(cli, write_config(tmp_path), 2, "known keys are", sets=("frob=1",))
    said = cli("run", write_config(tmp_path), "--until", "scoer")
    assert (said.code, "no such stage; stages are sources, download" in said.err) == (2, True)


TABLES: list[tuple[str, bytes | None, dict[str, Any], tuple[str, ...]]] = [
    ("three.parquet", None, {"url_column": "ulr"}, ("no column 'ulr'", "did you mean 'url'?", "url, caption, numbers")),
    ("three.parquet", None, {"passthrough": ["license"]}, ("no column 'license'",)),
    ("three.parquet", None, {"url_column": "numbers"}, ("column 'numbers' is list<", "wanted text or numbers")),
    ("text.parquet", b"no Parquet at all\n", {}, ("text.parquet: no Parquet file", "wanted b'PAR1'")),
    ("short.parquet", b"", {}, ("no Parquet file",)),
    ("footer.parquet", b"PAR1PAR1", {}, ("a footer of 827474256 bytes in a file of 8",)),
    ("broken.parquet", b"PAR1" + bytes(4) + b"PAR1", {}, ("cannot read this parquet file",)),
    ("empty.csv", b"", {}, ("no header line",)),
    ("twice.csv", b"url,url\na,b\n", {"caption_column": None}, ("column 'url' stands 2 times",)),
    ("\x1b[31m.csv", b"\x1b[2J,b\n", {}, ("no column 'url'", "[2J")),
    ("plain.csv.gz", b"url,caption\n", {}, ("cannot read this csv file",)),
    ("cut.csv.gz", gzip.compress(b"url,caption\n" * 999)[:40], {}, ("cannot read this csv file",)),
    ("table.xlsx", b"", {}, ("the name does not tell the format",)),
    ("none-*.csv", None, {}, ("none-*.csv: no such file", "sources.web.paths")),
]


@pytest.mark.parametrize(("name", "content", "settings", "words"), TABLES)
def test_a_table_that_cannot_be_used(
    cli: CommandLine, tmp_path: Path, name: str, content: bytes | None, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    url_table(tmp_path / "three.parquet")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    config = write_config(tmp_path, {"kind": "table", "paths": [str(tmp_path / name)], **settings})
    refused(cli, config, 3, "InputError", *words)


def test_tars_that_share_a_name(cli: CommandLine, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        picture_tar(tmp_path / folder / "pictures.tar")
    config = write_config(tmp_path, {"kind": "webdataset", "paths": [f"{tmp_path}/*/pictures.tar"]})
    refused(cli, config, 3, "two files are called pictures.tar", "rename one")


def test_broken_rows_are_rows_with_a_reason(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        'url,caption\nhttp://gone.test/1,fine\nonly one\n"open,quote\njavascript:x,bad\n'
    )
    config = write_config(tmp_path, {"kind": "table", "paths": [f"{tmp_path}/rows.csv"]})
    assert cli("run", config).code == 0
    ledger = pl.read_parquet(tmp_path / "root/datasets/small/v000001/ledger/*.parquet")
    assert sorted(ledger["reason"]) == ["bad_row", "bad_row", "bad_url", "connect"]


EMPTY = {
    "header.csv": b"url,caption\n",
    "empty.jsonl": b"",
    "empty.txt": b"",
    "rows.parquet": None,
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_source_without_rows_is_legal(cli: CommandLine, tmp_path: Path, name: str) -> None:
    content = EMPTY[name]
    url_table(tmp_path / name, num_rows=0) if content is None else (tmp_path / name).write_bytes(content)
    config = write_config(tmp_path, {"kind": "table", "paths": [str(tmp_path / name)]})
    said = cli("run", config, "--set", "download.max_failed_share=0")
    assert (said.code, len(manifests(tmp_path))) == (0, 1)
    assert "0 samples" in said.out


def test_a_run_that_drops_every_row_is_legal(cli: CommandLine, tmp_path: Path) -> None:
    tar = picture_tar(tmp_path / "pictures.tar")
    config = write_config(tmp_path, {"kind": "webdataset", "paths": [str(tar)], "license": "[/odd] \x1b[31m"})
    rules = ("--set", "select.rules.wide=width > 100000")
    said = cli("run", config, *rules, "--set", "select.balance={target: 5, if_short: all}")
    assert said.code == 0
    assert "Every row was dropped" in said.out
    assert "\x1b[31m" not in said.out
    (manifest,) = manifests(tmp_path)
    assert json.loads(manifest.read_text())["mixture"]["sources"]["web"] == {"asked": 0, "available": 0, "realised": 0}
    assert "wide" in cli("stats", manifest).out
    assert "sound" in cli("verify", manifest, "--full").out
    assert "complete" in cli("status", tmp_path / "root/runs/small").out.splitlines()
    with pytest.raises(InputError, match="no samples of split 'train'; nothing could ever be drawn"):
        ShardDataset(manifest)


def test_a_target_that_cannot_be_filled(cli: CommandLine, tmp_path: Path) -> None:
    tar = picture_tar(tmp_path / "pictures.tar")
    config = write_config(tmp_path, {"kind": "webdataset", "paths": [str(tar)]})
    words = ("web can give 3 of 10 draws", "the largest target these survivors and weights can fill is 3")
    refused(cli, config, 2, *words, sets=("select.balance.target=10",))
    nothing = ("select.balance.target=10", "select.rules.wide=width > 100000")
    refused(cli, config, 2, "no row survived", "if_short: all", sets=nothing)
    said = cli("run", config, "--set", "select.balance={target: 10, if_short: all}")
    assert (said.code, "3 samples, 3 draws" in said.out) == (0, True)


def test_too_many_failed_rows(cli: CommandLine, tmp_path: Path) -> None:
    words = ("3 of 3 candidates failed (100.0%)", "download.max_failed_share 50.0%", "connect 3")
    refused(cli, write_config(tmp_path), 65, *words, sets=("download.max_failed_share=0.5",))


def test_a_root_where_nothing_can_be_written(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    for root in (file, file / "below"):
        refused(cli, write_config(tmp_path, root=str(root)), 74, "StorageError", "Not a directory")
    assert cli("quickstart", file).code == 74


def test_a_store_that_does_not_answer(cli: CommandLine, tmp_path: Path) -> None:
    options = {"endpoint": "http://127.0.0.1:9", "allow_http": "true", "region": "none"}
    options |= {"access_key_id": "none", "secret_access_key": "none"}
    remote = write_config(tmp_path, root="s3://bucket/x", storage_options=options)
    refused(cli, remote, 74, "s3://bucket/x/runs/small", "check address, credentials and network")
    misspelt = write_config(tmp_path, root="s3://bucket/x", storage_options={"endpiont": "http://127.0.0.1:9"})
    refused(cli, misspelt, 2, "storage_options do not fit", "endpiont")
