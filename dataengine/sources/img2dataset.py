"""Candidates of a shard that img2dataset wrote: its tar and the Parquet beside it in, CANDIDATE rows out.

The tar is indexed in place, as any WebDataset. The Parquet has a row for every URL that was asked for, so the rows
that the tar lacks are candidates too, with their URL and the reason. Members that the Parquet does not name are kept:
they are there. It knows no stores. Layout: img2dataset 1.47, `writer.py` and `downloader.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from dataengine.config.sources import WebDatasetSource
from dataengine.errors import InputError
from dataengine.keys import member_key
from dataengine.sources.parquet_fields import GroupFault, open_groups, read_fields, require_columns
from dataengine.sources.webdataset import (
    MAX_DETAIL_CHARS,
    Row,
    TarSample,
    candidate_table,
    cut_detail,
    read_samples,
    tar_rows,
)

if TYPE_CHECKING:
    from dataengine.config.sources import Img2DatasetSource
    from dataengine.storage.tar import TarFault

_REQUIRED = ("key", "status", "url")
_OPTIONAL = ("caption", "error_message")

Fields = dict[str, str | None]


def index_shard(
    tar: BinaryIO, listing: BinaryIO, listing_path: str, source: str, shard: str, object_url: str,
    config: Img2DatasetSource,
) -> pa.Table:  # fmt: skip
    """CANDIDATE rows of the tar at `object_url` and of its Parquet at `listing_path`, sorted by key.

    Faults, besides those of a WebDataset: `not_downloaded` (img2dataset got no image, and why), `missing_image` (it
    says that it did, and the tar lacks it), `corrupt_tar` (the same, where the tar breaks off). Raises InputError when
    the Parquet cannot be read.
    """
    layout = _layout(config)
    samples = list(read_samples(tar, object_url, layout))
    # What a torn tar lost is known from the Parquet, row by row, so nothing need stand for the rest of it.
    cut = samples.pop().cut if samples and not samples[-1].key else None
    rows = tar_rows(samples, source, shard, object_url, layout)
    listed = _listed(listing, listing_path, config)
    return candidate_table([*rows, *_lacking(listed, samples, cut, source, shard, config)], source)


def _layout(config: Img2DatasetSource) -> WebDatasetSource:
    return WebDatasetSource(
        kind="webdataset",
        paths=config.paths,
        caption_member=None,
        caption_field="caption",
        caption_fields=config.caption_fields,
        passthrough=config.passthrough,
    )


def _listed(listing: BinaryIO, path: str, config: Img2DatasetSource) -> Iterator[Fields]:
    """The rows of the Parquet, in order."""
    parquet = open_groups(listing, path)
    wanted = (*_REQUIRED, *config.caption_fields.values(), *config.passthrough)
    require_columns(parquet, wanted)
    optional = [name for name in _OPTIONAL if name in parquet.schema.names]
    columns = list(dict.fromkeys((*wanted, *optional)))
    try:
        for group in range(len(parquet.num_rows)):
            yield from read_fields(parquet, group, columns)
    except GroupFault as fault:
        raise InputError(
            f"{path}: cannot read this Parquet file: {fault}; let img2dataset write the shard again, or leave it out"
        ) from fault


def _lacking(
    listed: Iterable[Fields],
    samples: Sequence[TarSample],
    cut: TarFault | None,
    source: str,
    shard: str,
    config: Img2DatasetSource,
) -> Iterator[Row]:
    """A row for each listed one that has no sample; of several that share a key, the first have the samples."""
    num_samples = Counter(sample.key for sample in samples)
    num_listed: Counter[str] = Counter()
    for position, fields in enumerate(listed):
        member = fields["key"] or f"\0row:{position}"  # no tar has such a name
        occurrence = num_listed[member]
        num_listed[member] += 1
        if occurrence >= num_samples[member]:
            fault, detail = _why(fields, cut, shard)
            key = member_key(source, shard, member, occurrence)
            yield _row(fields, config) | {"key": key, "fault": fault, "detail": detail}


def _why(fields: Fields, cut: TarFault | None, shard: str) -> tuple[str, str]:
    if fields["status"] != "success":
        why = fields.get("error_message") or fields["status"] or "img2dataset names no reason"
        return "not_downloaded", why[:MAX_DETAIL_CHARS]
    if cut is not None:
        return "corrupt_tar", cut_detail(cut, shard)
    member = str(fields["key"])[:MAX_DETAIL_CHARS]
    return "missing_image", f"{shard}.tar: no member {member!r}, though {shard}.parquet calls it a success"


def _row(fields: Fields, config: Img2DatasetSource) -> Row:
    named = ((name, fields[config.caption_fields[name]]) for name in sorted(config.caption_fields))
    extra = ((name, fields[name]) for name in sorted(config.passthrough))
    return {
        "url": fields["url"],
        "caption": fields.get("caption") or "",
        "captions": [(name, text) for name, text in named if text],
        "extra": [(name, text) for name, text in extra if text is not None],
        **dict.fromkeys(("object", "offset", "nbytes")),
    }
