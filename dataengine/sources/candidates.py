"""Candidates of a URL source: blocks of foreign text columns in, CANDIDATE rows out.

`route_rows` gives every input row a key, `deal_rows` deals rows out to buckets by key, `rows_of_range` picks those of
one range, and `merge_rows` makes one candidate of all rows that share a key. What is wrong with a row becomes its
`fault` and `detail`; no row is dropped. It knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.config.sources import TableSource
from dataengine.keys import key_ranges, url_keys
from dataengine.schemas import CANDIDATE, CAPTIONS, TableSchema, column
from dataengine.sources.tables import MALFORMED

ROUTED = TableSchema(
    "routed",
    pa.schema(
        [
            column("position", pa.int64(), "place of the row among all rows of its source"),
            *(
                CANDIDATE.arrow.field(name)
                for name in ("key", "url", "caption", "captions", "extra", "expected_hash", "fault", "detail")
            ),
        ]
    ),
    sorted_by=("position",),
)

# Scheme, user name if any, host, port if any, the rest. U+FFFD stands for bytes that were no UTF-8.
_HTTP_URL = "^\\s*(?i:https?)://([^/?#@\\s]*@)?(\\[[^/\\]]+\\]|[^/?#@:\\s\ufffd]+)(:[0-9]*)?([/?#][^\ufffd]*)?\\s*$"
_HASH = "^([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})$"  # MD5, SHA-1, SHA-256

MAX_DETAIL_CHARS = 120
"""Of what a stranger wrote and a `detail` quotes."""

_MAX_BUCKETS = 256  # 10,000 row groups are a footer of 13 MB and 130 ms, met once per range and file; 256 are 3 ms


def columns_of(config: TableSource, format: str) -> list[str]:
    """The columns to read from a file of `format`, URL first, each once; TXT files have no caption column."""
    captions = [] if format == "txt" or config.caption_column is None else [config.caption_column]
    hashes = [] if config.hash_column is None else [config.hash_column]
    return list(
        dict.fromkeys([config.url_column, *captions, *config.caption_columns.values(), *hashes, *config.passthrough])
    )


def route_rows(table: pa.Table, source: str, config: TableSource, first_position: int) -> pa.Table:
    """ROUTED rows of a block that `read_columns` gave, one per input row, in input order.

    The rows take the positions from `first_position` on. Faults: `bad_row` (MALFORMED; each has a key of its
    own), `bad_url` (not http(s)://host), `bad_hash` (the expected hash is not 32, 40 or 64 hex characters).
    """
    positions = np.arange(first_position, first_position + len(table), dtype=np.int64)
    malformed = table.column(MALFORMED).combine_chunks()
    urls = _texts(table, config.url_column, "")
    expected = _expected_hash(table, config.hash_column)
    faults, details = _faults(malformed, urls, expected)
    return ROUTED.table(
        {
            "position": pa.array(positions),
            "key": url_keys(source, _identities(urls, malformed, positions)),
            "url": urls,
            "caption": _texts(table, config.caption_column, ""),
            "captions": _named_texts(table, config.caption_columns, is_empty_kept=False),
            "extra": _named_texts(table, {name: name for name in config.passthrough}, is_empty_kept=True),
            "expected_hash": expected,
            "fault": faults,
            "detail": details,
        }
    )


def batched(tables: Iterable[pa.Table], max_rows: int, max_bytes: int) -> Iterator[pa.Table]:
    """`tables` one after the other in batches that end with the table that reaches `max_rows` or `max_bytes`."""
    batch: list[pa.Table] = []
    for table in tables:
        batch.append(table)
        if sum(map(len, batch)) >= max_rows or sum(item.nbytes for item in batch) >= max_bytes:
            yield pa.concat_tables(batch)
            batch = []
    if batch:
        yield pa.concat_tables(batch)


def bucket_width(num_ranges: int) -> int:
    """Ranges of keys that share a bucket: range `i` lies in bucket `i // bucket_width(num_ranges)`."""
    return -(-num_ranges // _MAX_BUCKETS)


def deal_rows(routed: pa.Table, num_ranges: int) -> list[pa.Table]:
    """The rows of each bucket of `num_ranges` equal ranges of keys, in the order they came in."""
    ranges = [key_ranges(keys, num_ranges) for keys in routed.column("key").chunks]  # a key in Python takes 80 bytes
    buckets = np.concatenate([np.empty(0, np.int64), *ranges]) // bucket_width(num_ranges)
    dealt = routed.take(pa.array(np.argsort(buckets, kind="stable")))
    num_buckets = -(-num_ranges // bucket_width(num_ranges))
    bounds = np.searchsorted(np.sort(buckets), np.arange(num_buckets + 1))
    return [dealt.slice(begin, end - begin) for begin, end in pairwise(bounds.tolist())]


def rows_of_range(routed: pa.Table, number: int, num_ranges: int) -> pa.Table:
    """Those rows of a bucket whose key lies in range `number` of `num_ranges`."""
    return routed.filter(pa.array(key_ranges(routed.column("key"), num_ranges) == number))


def merge_rows(routed: pa.Table, source: str) -> pa.Table:
    """CANDIDATE rows, one per key, whatever the order of `routed`.

    The row of lowest position gives every value; the other rows' primary captions, where they differ, follow
    as named captions `caption_2`, `caption_3` ... in input order.
    """
    if not len(routed):
        return CANDIDATE.empty()
    rows = routed.take(pc.sort_indices(routed, [("key", "ascending"), ("position", "ascending")])).combine_chunks()
    keys = rows.column("key")
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy()
    starts = np.flatnonzero(is_first)
    first = rows.take(pa.array(starts)).combine_chunks()
    nothing = pa.nulls(len(first))
    return CANDIDATE.table(
        {
            **{
                name: first.column(name)
                for name in ("key", "url", "caption", "extra", "expected_hash", "fault", "detail")
            },
            "num_rows": np.diff(starts, append=len(rows)),
            "source": pa.repeat(source, len(first)),
            "captions": _with_further(first, _further_captions(rows.column("caption"), is_first)),
            "object": nothing,
            "offset": nothing,
            "nbytes": nothing,
        }
    )


def _identities(urls: pa.Array, malformed: pa.Array, positions: NDArray[np.int64]) -> list[str]:
    identities: list[str] = urls.to_pylist()
    for row in np.flatnonzero(malformed.is_valid().to_numpy(zero_copy_only=False)):
        identities[row] = f"\0row:{positions[row]}"
    return identities


def _texts(table: pa.Table, name: str | None, missing: str) -> pa.Array:
    if name is None or name not in table.column_names:
        return pa.repeat(missing, len(table))
    return pc.fill_null(table.column(name).combine_chunks(), missing)


def _expected_hash(table: pa.Table, name: str | None) -> pa.Array:
    hashes = pc.utf8_lower(pc.utf8_trim_whitespace(_texts(table, name, "")))
    return pc.if_else(pc.equal(hashes, ""), pa.scalar(None, pa.string()), hashes)


def _faults(malformed: pa.Array, urls: pa.Array, expected: pa.Array) -> tuple[pa.Array, pa.Array]:
    """`fault` and `detail` of each row: where it could not be read, or the text that is wrong."""
    bad_url = pc.invert(pc.match_substring_regex(urls, _HTTP_URL))
    bad_hash = pc.fill_null(pc.invert(pc.match_substring_regex(expected, _HASH)), False)
    conditions = pc.make_struct(malformed.is_valid(), bad_url, bad_hash)
    shown = pc.if_else(pc.equal(urls, ""), "(empty)", pc.utf8_slice_codeunits(urls, 0, MAX_DETAIL_CHARS))
    details = malformed, shown, pc.utf8_slice_codeunits(expected, 0, MAX_DETAIL_CHARS)
    faults = (pa.scalar(fault) for fault in ("bad_row", "bad_url", "bad_hash"))
    return pc.case_when(conditions, *faults), pc.case_when(conditions, *details)


def _named_texts(table: pa.Table, columns: Mapping[str, str], *, is_empty_kept: bool) -> pa.MapArray:
    """Map of name → text per row, names sorted; nulls are left out, and empty texts unless they are kept."""
    names = sorted(columns)
    if not names:
        return _map_of(np.empty(0, np.int64), pa.array([], pa.string()), pa.array([], pa.string()), len(table))
    texts = [table.column(columns[name]).combine_chunks() for name in names]
    is_present = [pc.is_valid(text) if is_empty_kept else pc.fill_null(pc.not_equal(text, ""), False) for text in texts]
    rows, choices = np.nonzero(np.stack([mask.to_numpy(zero_copy_only=False) for mask in is_present], axis=1))
    items = pa.concat_arrays(texts).take(pa.array(choices * len(table) + rows))
    return _map_of(rows, pa.array(names, pa.string()).take(pa.array(choices)), items, len(table))


def _further_captions(captions: pa.ChunkedArray, is_first: NDArray[np.bool_]) -> pl.DataFrame:
    """(candidate, name, text) of every caption that is not its candidate's primary one, in order."""
    frame = pl.DataFrame({"candidate": np.cumsum(is_first) - 1, "text": pl.from_arrow(captions)})
    return (
        frame.filter(pl.col("text") != pl.col("text").first().over("candidate"), pl.col("text") != "")
        .unique(["candidate", "text"], keep="first", maintain_order=True)
        .with_columns(name=pl.format("caption_{}", pl.int_range(2, pl.len() + 2).over("candidate")))
    )


def _with_further(first: pa.Table, further: pl.DataFrame) -> pa.MapArray:
    """The captions of `first`, each map followed by its further ones."""
    own = first.column("captions").combine_chunks()
    owners = np.concatenate([_owners(own), further["candidate"].to_numpy()])
    order = np.argsort(owners, kind="stable")
    names = pa.concat_arrays([own.keys, further["name"].to_arrow().cast(pa.string())]).take(pa.array(order))
    texts = pa.concat_arrays([own.items, further["text"].to_arrow().cast(pa.string())]).take(pa.array(order))
    return _map_of(owners[order], names, texts, len(first))


def _owners(maps: pa.MapArray) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(maps)), np.diff(maps.offsets.to_numpy()))


def _map_of(owners: NDArray[np.int64], names: pa.Array, texts: pa.Array, num_rows: int) -> pa.MapArray:
    """The map array in which row `owners[i]` (ascending) holds `names[i]` → `texts[i]`."""
    offsets = np.searchsorted(owners, np.arange(num_rows + 1)).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), names, texts).cast(CAPTIONS)
