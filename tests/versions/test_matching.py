"""A perceptual hash names whatever is near enough, and each entry that names something is said to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import polars as pl

from dataengine.versions.known import Known
from dataengine.versions.lists import Entry
from dataengine.versions.matching import match


@dataclass
class _Phashes:
    """Stands for what is known of candidates: perceptual hashes and nothing else."""

    phashes: dict[str, str]
    dataset: _Phashes | None = None

    def __post_init__(self) -> None:
        self.dataset = self

    def ledger(self) -> pl.LazyFrame:
        text = dict.fromkeys(["key", "reason", "survivor_key"], pl.String)
        return pl.LazyFrame(schema=text | {"similarity": pl.Float32})

    def with_column(self, name: str) -> list[pl.LazyFrame]:
        rows = self.phashes.items() if name == "phash" else ()
        return [pl.LazyFrame(list(rows), schema={"key": pl.String, name: pl.String}, orient="row")]

    def classes(self) -> list[pl.LazyFrame]:
        return []

    edges = classes


def test_entries_near_one_row_are_all_matched() -> None:
    known = cast(Known, _Phashes({"a": f"{0b0111:016x}", "b": f"{0b1111_0000:016x}"}))
    asked = [Entry("phash", f"{bits:016x}") for bits in (0b0001, 0b0011, 0b1111 << 20)]
    found = match(asked, known, 2)
    assert found.unmatched == (asked[2],)
    assert found.found.rows() == [("a", f"within 1 bits of phash {0b0011:016x}")]
    assert found.num_named == 1
