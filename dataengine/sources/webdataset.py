"""Candidates of an existing WebDataset tar, indexed in place: an open tar in, CANDIDATE rows out.

Adjacent members that share a key are a sample. Only captions and metadata are read; of the image, the place
is noted. What is wrong with a sample becomes its `fault`: nothing in a tar stops the run. It knows no stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import xxhash

from dataengine.config.sources import IMAGE_EXTENSIONS
from dataengine.keys import member_key
from dataengine.schemas import CANDIDATE, MEMBER
from dataengine.sources.fields import is_nested, parse_object, text_of
from dataengine.storage.tar import Member, TarFault, split_name, walk

if TYPE_CHECKING:
    from dataengine.config.sources import WebDatasetSource

Row = dict[str, Any]

MAX_CONTENT_BYTES = 8 * 2**20
"""Of a caption or metadata member; what lies beyond is not read."""

MAX_DETAIL_CHARS = 200
"""Of what a stranger wrote and a `detail` quotes: a member's name may be a megabyte long."""


@dataclass
class TarSample:
    """Adjacent members of one key, the first at byte `offset`."""

    key: str
    offset: int
    images: list[Member] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Extension → content, of the members that captions and metadata come from."""
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Extension → place and hash, of the extra members."""
    extensions: set[str] = field(default_factory=set)
    cut: TarFault | None = None
    """Where the tar broke, if that was before all that is wanted of the sample was seen."""


def read_samples(file: BinaryIO, where: str, config: WebDatasetSource) -> Iterator[TarSample]:
    """The samples of the tar in a seekable `file`, in order; `where` names it in messages.

    A member name met twice in a row of one key begins a new sample. Of a tar that is corrupt or cut short,
    every sound sample comes first, then one of key "" that is cut and stands for whatever was lost.
    """
    sample = TarSample("", 0)
    try:
        for member in walk(file, where):
            key, extension = _split(member.name, config)
            if key != sample.key or extension in sample.extensions:
                yield from _named(sample)
                sample = TarSample(key, member.offset)
            _add(sample, extension, member, file, config)
    except TarFault as fault:
        found = {*sample.contents, *sample.extras}
        is_whole = sample.images and _wanted(config) | {*config.extra_members} <= found
        sample.cut = None if is_whole else fault
        yield from _named(sample)
        yield TarSample("", fault.offset, cut=fault)
    else:
        yield from _named(sample)


def tar_rows(
    samples: Iterable[TarSample], source: str, shard: str, object_url: str, config: WebDatasetSource
) -> list[Row]:
    """Rows of the tar at `object_url`, one per sample, in its order: what CANDIDATE and MEMBER say of each.

    With two images, the first one counts. Faults: `corrupt_tar` (the sample is cut), `duplicate_member` (its
    key was met before in this tar), `missing_image`, `missing_member` (one of the extra members), `bad_json` (caption
    or URL is wanted of no JSON object). The detail names the tar by its file name, so that it is the same after the
    tar was moved.
    """
    occurrences: Counter[str] = Counter()
    rows = []
    for sample in samples:
        occurrence = occurrences[sample.key]
        occurrences[sample.key] += 1
        row = _row(sample, shard, config, is_duplicate=occurrence > 0)
        row["key"] = member_key(source, shard, sample.key, occurrence)
        row["object"] = None if row["offset"] is None else object_url
        rows.append(row)
    return rows


def candidate_table(rows: list[Row], source: str) -> pa.Table:
    """CANDIDATE, sorted by key, of rows in place: dicts of what differs between them, each one input row.

    Sorts `rows`.
    """
    rows.sort(key=lambda row: str(row["key"]))
    constants = {"num_rows": 1, "source": source, "expected_hash": None}
    columns = {name: [row[name] for row in rows] for name in CANDIDATE.arrow.names if name not in constants}
    return CANDIDATE.table({**columns, **{name: [value] * len(rows) for name, value in constants.items()}})


def member_table(rows: list[Row]) -> pa.Table:
    """MEMBER of the same rows, in the order that `candidate_table` left them in."""
    return MEMBER.table({name: [row[name] for row in rows] for name in MEMBER.arrow.names})


def _row(sample: TarSample, shard: str, config: WebDatasetSource, *, is_duplicate: bool) -> Row:
    """The columns of CANDIDATE that the sample itself gives."""
    metadata = parse_object(sample.contents["json"]) if "json" in sample.contents else {}
    fields = metadata or {}
    named = ((name, _flat_text(fields, config.caption_fields[name])) for name in sorted(config.caption_fields))
    extra = ((name, text_of(fields.get(name))) for name in sorted(config.passthrough))
    image = sample.images[0] if sample.images else None
    fault, detail = _fault(sample, shard, config, is_duplicate=is_duplicate, is_json_sound=metadata is not None)
    return {
        "url": _flat_text(fields, config.url_field),
        "caption": _caption(sample, fields, config),
        "captions": [(name, text) for name, text in named if text],
        "extra": [(name, text) for name, text in extra if text is not None],
        "fault": fault,
        "detail": detail,
        "offset": image.offset if image else None,
        "nbytes": image.nbytes if image else None,
        "extra_members": list(sample.extras.items()),
    }


def _fault(
    sample: TarSample, shard: str, config: WebDatasetSource, *, is_duplicate: bool, is_json_sound: bool
) -> tuple[str, str] | tuple[None, None]:
    """(fault, detail) of a sample."""
    where = f"{shard}.tar: {sample.key[:MAX_DETAIL_CHARS]!r} at byte {sample.offset}"
    if sample.cut is not None:
        return "corrupt_tar", cut_detail(sample.cut, shard)
    if is_duplicate:
        return "duplicate_member", f"{where}: this key was met before in the tar"
    if not sample.images:
        found = ", ".join(sorted(sample.extensions))[:MAX_DETAIL_CHARS]
        return "missing_image", f"{where}: no image among its members ({found})"
    if missing := [name for name in config.extra_members if name not in sample.extras]:
        found = ", ".join(sorted(sample.extensions))[:MAX_DETAIL_CHARS]
        return "missing_member", f"{where}: no member {', '.join(missing)} among its members ({found})"
    is_json_needed = config.caption_field is not None or config.url_field is not None
    if is_json_needed and not is_json_sound:
        return "bad_json", f"{where}: its json member holds no JSON object"
    return None, None


def cut_detail(fault: TarFault, shard: str) -> str:
    """Where and how a tar broke, as a `detail`."""
    return f"{shard}.tar: {fault.fault[:MAX_DETAIL_CHARS]} at byte {fault.offset}"


def _caption(sample: TarSample, fields: dict[str, object], config: WebDatasetSource) -> str:
    if config.caption_field is not None:
        return _flat_text(fields, config.caption_field) or ""
    content = sample.contents.get((config.caption_member or "").lower(), b"")
    return content.decode("utf-8-sig", "replace").rstrip("\r\n")


def _flat_text(fields: dict[str, object], name: str | None) -> str | None:
    value = None if name is None else fields.get(name)
    return None if is_nested(value) else text_of(value)


def _named(sample: TarSample) -> Iterator[TarSample]:
    # Hidden files, such as macOS's ._7.jpg, have no key and belong to no sample in WebDataset's rule.
    if sample.key.rpartition("/")[2]:
        yield sample


def _add(sample: TarSample, extension: str, member: Member, file: BinaryIO, config: WebDatasetSource) -> None:
    sample.extensions.add(extension)
    if extension in IMAGE_EXTENSIONS:
        sample.images.append(member)
    elif extension in config.extra_members:
        sample.extras[extension] = {"offset": member.offset, "nbytes": member.nbytes, "xxh3": _hash(file, member)}
    elif extension in _wanted(config):
        file.seek(member.offset)
        sample.contents[extension] = file.read(min(member.nbytes, MAX_CONTENT_BYTES))


def _hash(file: BinaryIO, member: Member) -> str:
    digest, left = xxhash.xxh3_64(), member.nbytes
    file.seek(member.offset)
    while left and (content := file.read(min(left, MAX_CONTENT_BYTES))):
        digest.update(content)
        left -= len(content)
    return digest.hexdigest()


def _split(name: str, config: WebDatasetSource) -> tuple[str, str]:
    """(key, extension), cut at the first dot, or at the last where only that gives an extension known here.

    The first dot is WebDataset's rule; by the second, `v1.2.jpg` is an image with the key `v1.2`.
    """
    key, extension = split_name(name)
    known = IMAGE_EXTENSIONS | _wanted(config) | {*config.extra_members}
    last = extension.rpartition(".")[2]
    if key.rpartition("/")[2] and extension not in known and last in known:
        return name[: -len(last) - 1], last
    return key, extension


def _wanted(config: WebDatasetSource) -> set[str]:
    """Extensions of the members whose content is read."""
    reads_json = config.caption_field or config.caption_fields or config.url_field or config.passthrough
    reads_member = config.caption_field is None and config.caption_member is not None
    member = {str(config.caption_member).lower()} if reads_member else set()
    return member | ({"json"} if reads_json else set())
