"""Candidates of an existing WebDataset tar, indexed in place: an open tar in, CANDIDATE rows out.

Adjacent members that share a key are a sample. Only captions and metadata are read; of the image, the place
is noted. What is wrong with a sample becomes its `fault`: nothing in a tar stops the run. It knows no stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from dataengine.keys import member_key
from dataengine.schemas import CANDIDATE
from dataengine.sources.fields import is_nested, parse_object, text_of
from dataengine.storage.tar import Member, TarFault, split_name, walk

if TYPE_CHECKING:
    from dataengine.config.sources import WebDatasetSource

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
MAX_CONTENT_BYTES = 8 * 2**20
"""Of a caption or metadata member; what lies beyond is not read."""


@dataclass
class TarSample:
    """Adjacent members of one key; `is_cut` when the tar broke before all that is wanted of it was seen."""

    key: str
    images: list[Member] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Extension → content, of the members that captions and metadata come from."""
    extensions: set[str] = field(default_factory=set)
    is_cut: bool = False


def read_samples(file: BinaryIO, where: str, config: WebDatasetSource) -> Iterator[TarSample]:
    """The samples of the tar in a seekable `file`, in order; `where` names it in messages.

    A member name met twice in a row of one key begins a new sample. Of a tar that is corrupt or cut short,
    every sound sample comes first, then one of key "" that is cut and stands for whatever was lost.
    """
    sample = TarSample("")
    try:
        for member in walk(file, where):
            key, extension = _split(member.name, config)
            if key != sample.key or extension in sample.extensions:
                yield from _named(sample)
                sample = TarSample(key)
            _add(sample, extension, member, file, config)
    except TarFault:
        sample.is_cut = not (sample.images and _wanted(config) <= sample.contents.keys())
        yield from _named(sample)
        sample = TarSample("", is_cut=True)
        yield sample
    else:
        yield from _named(sample)


def index_candidates(
    samples: Iterable[TarSample], source: str, shard: str, object_url: str, config: WebDatasetSource
) -> pa.Table:
    """CANDIDATE rows of the tar at `object_url`, one per sample, sorted by key; the location is the image's.

    With two images, the first one counts. Faults: `corrupt_tar` (the sample is cut), `duplicate_member` (its
    key was met before in this tar), `missing_image`, `bad_json` (caption or URL is wanted of no JSON object).
    """
    occurrences: Counter[str] = Counter()
    rows = []
    for sample in samples:
        occurrence = occurrences[sample.key]
        occurrences[sample.key] += 1
        key = member_key(source, shard, sample.key, occurrence)
        rows.append(_row(sample, key, config, is_duplicate=occurrence > 0))
    if not rows:
        return CANDIDATE.empty()
    rows.sort(key=lambda row: str(row["key"]))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    nothing = [None] * len(rows)
    constants = {"num_rows": [1] * len(rows), "source": [source] * len(rows), "expected_sha256": nothing}
    objects = [None if offset is None else object_url for offset in columns["offset"]]
    return CANDIDATE.table({**columns, **constants, "object": objects})


def _row(sample: TarSample, key: str, config: WebDatasetSource, *, is_duplicate: bool) -> dict[str, object]:
    """The columns of CANDIDATE that differ between the samples of a tar."""
    metadata = parse_object(sample.contents["json"]) if "json" in sample.contents else {}
    fields = metadata or {}
    named = ((name, _flat_text(fields, config.caption_fields[name])) for name in sorted(config.caption_fields))
    extra = ((name, text_of(fields.get(name))) for name in sorted(config.passthrough))
    image = sample.images[0] if sample.images else None
    return {
        "key": key,
        "url": _flat_text(fields, config.url_field),
        "caption": _caption(sample, fields, config),
        "captions": [(name, text) for name, text in named if text],
        "extra": [(name, text) for name, text in extra if text is not None],
        "fault": _fault(sample, config, is_duplicate=is_duplicate, is_json_sound=metadata is not None),
        "offset": image.offset if image else None,
        "nbytes": image.nbytes if image else None,
    }


def _fault(sample: TarSample, config: WebDatasetSource, *, is_duplicate: bool, is_json_sound: bool) -> str | None:
    if sample.is_cut:
        return "corrupt_tar"
    if is_duplicate:
        return "duplicate_member"
    if not sample.images:
        return "missing_image"
    is_json_needed = config.caption_field is not None or config.url_field is not None
    return "bad_json" if is_json_needed and not is_json_sound else None


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
    elif extension in _wanted(config):
        file.seek(member.offset)
        sample.contents[extension] = file.read(min(member.nbytes, MAX_CONTENT_BYTES))


def _split(name: str, config: WebDatasetSource) -> tuple[str, str]:
    """(key, extension), cut at the first dot, or at the last where only that gives an extension known here.

    The first dot is WebDataset's rule; by the second, `v1.2.jpg` is an image with the key `v1.2`.
    """
    key, extension = split_name(name)
    known = IMAGE_EXTENSIONS | _wanted(config)
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
