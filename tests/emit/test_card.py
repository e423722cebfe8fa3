"""The card's front matter parses, its tables hold the manifest's numbers, and cells cannot break out."""

from __future__ import annotations

import pyarrow as pa
import yaml

from dataengine.emit.card import data_card
from dataengine.schemas import FUNNEL, SHARDS

MANIFEST = {
    "name": "web",
    "version": 3,
    "parent": "v000002",
    "sources": {
        "photos": {
            "num_rows": 12000,
            "num_candidates": 11000,
            "num_emitted": 900,
            "num_draws": 1800,
            "license": "CC | BY",
        },
        "blog": {"num_rows": 5, "num_candidates": 5, "num_emitted": 0, "num_draws": 0, "license": ""},
    },
    "mixture": {"target": 1800, "sources": {"photos": {"asked": 1800, "realised": 1350}}},
    "provenance": {"clip": {"model": "ViT-B-32", "weights_sha256": "ab" * 32}},
    "dedup": {"recall": {"estimate": 0.991, "low": 0.987, "high": 0.994}},
    "counts": {"num_samples": 900, "num_draws": 1800, "num_shards": 8, "nbytes": 123456789},
}


def shards_of(*paths: str) -> pa.Table:
    """SHARDS of some paths; the format is in the name."""
    blank = {"source": "photos", "num_samples": 9, "nbytes": 9, "sha256": "0", "min_key": "0", "max_key": "1"}
    rows = [{**blank, "shard": path, "path": path, "format": path.partition("/")[0][-3:]} for path in paths]
    return SHARDS.table({name: [row[name] for row in rows] for name in SHARDS.arrow.names})


def card(*paths: str) -> str:
    row = ["photos", "dropped", "download", "http_404 <b>", 100, 120]
    funnel = FUNNEL.table({name: [cell] for name, cell in zip(FUNNEL.arrow.names, row, strict=True)})
    return data_card(MANIFEST, funnel, shards_of(*(paths or ("jpg/a-000000.tar",))))


def configs(*paths: str) -> list[dict[str, object]]:
    return yaml.safe_load(card(*paths).split("---\n")[1])["configs"]


def test_front_matter_names_the_tars_only() -> None:
    train = {"split": "train", "path": "*/*.tar"}
    assert configs() == [{"config_name": "default", "data_files": [train]}]
    # Only the folder's first three letters matter to `shards_of`, so the held-out shard needs the same format.
    held = shards_of("jpg/a-000000.tar").to_pylist()[0] | {"shard": "b", "path": "holdout/jpg/b-000001.tar"}
    both = pa.concat_tables([shards_of("jpg/a-000000.tar"), pa.Table.from_pylist([held], SHARDS.arrow)])
    (found,) = yaml.safe_load(data_card(MANIFEST, FUNNEL.empty(), both).split("---\n")[1])["configs"]
    assert found["data_files"] == [train, {"split": "holdout", "path": "holdout/*/*.tar"}]


def test_formats_are_configs_of_their_own() -> None:
    """datasets takes its columns from the first tar, and would leave out the images of the others without a word."""
    paths = ("jpg/a-000000.tar", "jpg/a-000001.tar", "png/a-000002.tar", "../v000001/a/a-000003.tar")
    assert configs(*paths) == [
        {"config_name": "jpg", "data_files": [{"split": "train", "path": list(paths[:2])}]},
        {"config_name": "png", "data_files": [{"split": "train", "path": [paths[2]]}]},
    ]


def test_the_numbers_are_there() -> None:
    text = card()
    assert "# web v000003" in text
    assert "| photos | 12,000 | 11,000 | 900 | 1,800 (100.0%) | 1,350 (100.0%) | CC \\| BY |" in text
    assert "| blog | 5 | 5 | 0 | 0 (0.0%) | 0 (0.0%) | not stated |" in text
    assert "| photos | dropped | download | http_404 &lt;b> | 100 | 120 |" in text
    assert "| recall.estimate | 0.991 |" in text
    assert "| clip.model | ViT-B-32 |" in text
    assert "Child of v000002" in text


def test_every_table_is_rectangular() -> None:
    for block in card().split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_it_is_a_pure_function() -> None:
    assert card() == card()
