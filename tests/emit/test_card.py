"""The card's front matter parses, its tables hold the manifest's numbers, and cells cannot break out."""

from __future__ import annotations

import yaml

from dataengine.emit.card import data_card
from dataengine.schemas import FUNNEL

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


def card(*, has_holdout: bool = False) -> str:
    row = ["photos", "dropped", "download", "http_404 <b>", 100, 120]
    funnel = FUNNEL.table({name: [cell] for name, cell in zip(FUNNEL.arrow.names, row, strict=True)})
    return data_card(MANIFEST, funnel, has_holdout=has_holdout)


def test_front_matter_names_the_tars_only() -> None:
    matter = yaml.safe_load(card().split("---\n")[1])
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "*/*.tar"}]
    matter = yaml.safe_load(card(has_holdout=True).split("---\n")[1])
    assert matter["configs"][0]["data_files"][1] == {"split": "holdout", "path": "holdout/*/*.tar"}


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
