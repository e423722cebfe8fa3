"""A perceptual hash names whatever is near enough, and each entry that names something is said to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import polars as pl

from dataengine.versions.known import Known
from dataengine.versions.lists import Entry, parse_list
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


@dataclass
class _Urls(_Phashes):
    """Stands for what is known of candidates: URLs and nothing else."""

    def with_column(self, name: str) -> list[pl.LazyFrame]:
        rows = self.phashes.items() if name == "url" else ()
        return [pl.LazyFrame(list(rows), schema={"key": pl.String, name: pl.String}, orient="row")]


def test_a_host_is_matched_by_each_domain_above_it() -> None:
    urls = {"a": "http://x.Shop.test/1", "b": "http://shop.test./", "c": "http://myshop.test/"}
    asked = parse_list(b"domain *.shop.test\nX.shop.test.\nno.test\n", "list.txt")
    found = match(asked, cast(Known, _Urls(urls)), 0)
    assert found.unmatched == (asked[2],)
    assert found.found.rows() == [("a", "domain x.shop.test"), ("b", "domain shop.test")]


def test_a_long_list_of_domains_is_looked_up_at_once() -> None:
    """Domain by domain, 100,000 of them took more than four minutes."""
    many = [Entry("domain", f"host-{number}.test") for number in range(20_000)]
    started = time.process_time()
    found = match(many, cast(Known, _Urls({"a": "http://host-7.test/"})), 0)
    assert found.found.rows() == [("a", "domain host-7.test")]
    assert time.process_time() - started < 10
