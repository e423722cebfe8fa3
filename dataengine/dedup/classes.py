"""Exact copies: rows of equal content hash form a class, named by its smallest key.

A class costs one row per member, so a million copies cost a million rows and not their square. Rows of one
hash bucket in, CLASS rows and representatives out; what was hashed is the caller's business.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.schemas import CLASS


def class_keys(keys: pa.Array, hashes: pa.Array) -> pa.Array:
    """The smallest key that shares each row's hash: string [rows], the row's own where the hash is null."""
    rows = pl.DataFrame({"key": pl.from_arrow(keys), "hash": pl.from_arrow(hashes)})
    smallest = pl.col("key").min().over("hash")
    chosen = rows.select(pl.when(pl.col("hash").is_null()).then("key").otherwise(smallest))
    return chosen.to_series().to_arrow().cast(pa.string())


def classes(keys: pa.Array, hashes: pa.Array, kind: str) -> pa.Table:
    """CLASS rows of every hash that at least two rows share; a null hash is a copy of nothing.

    All rows of a hash must be given, in any order; `keys` and `hashes` are string [rows].
    """
    named = pa.table({"key": keys, "class_key": class_keys(keys, hashes)})
    sizes = named.group_by("class_key").aggregate([("key", "count")])
    shared = sizes.filter(pc.greater(sizes["key_count"], 1))["class_key"]
    members = named.filter(pc.is_in(named["class_key"], value_set=shared))
    table = CLASS.table(
        {"key": members["key"], "kind": pa.repeat(kind, len(members)), "class_key": members["class_key"]}
    )
    return table.sort_by([("class_key", "ascending"), ("key", "ascending")])


def representatives(keys: pa.Array, hashes: pa.Array) -> pa.Array:
    """Which rows speak for their class: bool [rows], the smallest key's and those that are copies of none."""
    return pc.equal(keys, class_keys(keys, hashes))
