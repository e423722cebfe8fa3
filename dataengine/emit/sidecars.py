"""The small files that let other readers open the same tars: one table of shards in, path → bytes out.

webdataset and wids (SANA) take URL lists, open_clip takes `sizes.json` beside the shards and one `::` string,
Megatron-Energon takes `.nv-meta`, `.tar.idx` and, for the mixture, `metadataset.yaml`. Paths within a file are relative
to the folder of that file, but for `.nv-meta`, whose names are relative to the dataset version, as Energon wants.
Nothing here opens a tar.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dataengine.emit.plan import HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    Shard = Mapping[str, Any]

_NUMBERED = re.compile(r"(?P<stem>.*-)(?P<number>\d{6})\.tar")


def tar_index(sample_offsets: NDArray[np.uint64]) -> bytes:
    """`<shard>.tar.idx` of Megatron-Energon: each sample's first header and the end, little-endian uint64."""
    return sample_offsets.astype("<u8").tobytes()


def dataset_sidecars(name: str, shards: pa.Table, num_draws: Mapping[str, int]) -> dict[str, bytes]:
    """Every side file of a dataset version but the tar indexes: relative path → bytes.

    `shards` is SHARDS, `num_draws` the sum of repeats of each source's training samples.
    """
    rows = shards.sort_by("shard").to_pylist()
    files = {f".nv-meta/{path}": content for path, content in energon_files(rows).items()}
    sizes = _json({_base(shard): shard["num_samples"] for shard in rows})
    for folder, members in _by_folder(rows).items():
        urls = [posixpath.relpath(shard["path"], folder) for shard in members]
        files[f"{folder}/urls.txt"] = "".join(f"{url}\n" for url in urls).encode()
        files[f"{folder}/wids-meta.json"] = wids_meta(f"{name}/{folder}", members, urls)
        files[f"{folder}/sizes.json"] = sizes  # open_clip looks up every shard in the folder of the first one
    files["train_data.txt"] = open_clip_train_data(rows, num_draws)
    if any(num_draws.values()):
        files["metadataset.yaml"] = energon_metadataset(num_draws, with_holdout=bool(_by_split(rows)[1]))
    return files


def energon_files(rows: Iterable[Shard]) -> dict[str, bytes]:
    """The `.nv-meta` folder: counts in shard order, splits (holdout: `val`), mapping to CaptioningSample."""
    shards = list(rows)
    train, holdout = _by_split(shards)
    splits = {"train": brace_ranges(train), "val": brace_ranges(holdout), "test": []}
    by_source = _by_source(train)
    formats = sorted({shard["format"] for shard in shards})
    sample_type = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    field_map = {"image": ",".join(formats), "caption": "txt"}  # a comma separates alternatives
    return {
        ".info.json": _json({"shard_counts": {shard["path"]: shard["num_samples"] for shard in shards}}),
        "split.yaml": _yaml({"split_parts": splits, "exclude": []}),
        "dataset.yaml": _yaml({"sample_type": sample_type, "field_map": field_map}),
        **{
            _split_config(source): _yaml({"split_parts": {"train": brace_ranges(of_source)}, "exclude": []})
            for source, of_source in by_source.items()
        },
    }


def energon_metadataset(num_draws: Mapping[str, int], *, with_holdout: bool) -> bytes:
    """`metadataset.yaml` of Megatron-Energon: sources blended by their draws, which is the mixture that was realised.

    Each source is this very dataset under a split file of its own.
    """
    blend = [
        {"path": ".", "split_config": _split_config(source), "weight": draws}
        for source, draws in sorted(num_draws.items())
        if draws
    ]
    splits: dict[str, Any] = {"train": {"blend": blend}}
    if with_holdout:
        splits["val"] = {"path": "."}
    return _yaml({"__module__": "megatron.energon", "__class__": "MetadatasetV2", "splits": splits})


def _split_config(source: str) -> str:
    return f"split.{source}.yaml"


def wids_meta(name: str, shards: Iterable[Shard], urls: Iterable[str]) -> bytes:
    """`wids-meta.json`, version 1 of the shard index of wids."""
    entries = [
        {"url": url, "nsamples": shard["num_samples"], "filesize": shard["nbytes"]}
        for shard, url in zip(shards, urls, strict=True)
    ]
    return _json({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": entries})


def open_clip_train_data(rows: Iterable[Shard], num_draws: Mapping[str, int]) -> bytes:
    """Two lines: the `--train-data` of open_clip, and its `--train-data-upsampling-factors`.

    open_clip draws shards in proportion to their factor, so a source is drawn in proportion to factor ×
    samples: the factor that gives it its share of draws is its mean repeat.
    """
    urls, factors = [], []
    for source, shards in _by_source(_by_split(rows)[0]).items():
        factor = num_draws[source] / sum(shard["num_samples"] for shard in shards)
        ranges = brace_ranges(shards)
        urls += ranges
        factors += [f"{factor:.6g}"] * len(ranges)
    return f"{'::'.join(urls)}\n{'::'.join(factors)}\n".encode()


def brace_ranges(shards: Iterable[Shard]) -> list[str]:
    """The paths of `shards`, runs of consecutive numbers written as `a/a-{000000..000127}.tar`."""
    runs: list[tuple[str, int, int]] = []
    for shard in shards:
        match = _NUMBERED.fullmatch(shard["path"])
        if match is None:
            raise ValueError(f"a shard's path ends in -NNNNNN.tar, got {shard['path']!r}")
        stem, number = match["stem"], int(match["number"])
        if runs and runs[-1][0] == stem and runs[-1][2] + 1 == number:
            runs[-1] = (stem, runs[-1][1], number)
        else:
            runs.append((stem, number, number))
    return [
        f"{stem}{first:06d}.tar" if first == last else f"{stem}{{{first:06d}..{last:06d}}}.tar"
        for stem, first, last in runs
    ]


def _by_folder(rows: Iterable[Shard]) -> dict[str, list[Shard]]:
    # A shard that lies in a parent version counts to the folder of the same name here.
    folders: dict[str, list[Shard]] = defaultdict(list)
    for shard in rows:
        folder = f"{HOLDOUT}/{shard['source']}" if _held_out(shard) else shard["source"]
        folders[folder].append(shard)
    return folders


def _by_source(rows: Iterable[Shard]) -> dict[str, list[Shard]]:
    by_source: dict[str, list[Shard]] = defaultdict(list)
    for shard in rows:
        by_source[shard["source"]].append(shard)
    return by_source


def _by_split(rows: Iterable[Shard]) -> tuple[list[Shard], list[Shard]]:
    shards = list(rows)
    return [shard for shard in shards if not _held_out(shard)], [shard for shard in shards if _held_out(shard)]


def _held_out(shard: Shard) -> bool:
    return PurePosixPath(shard["path"]).parts[-3:-2] == (HOLDOUT,)


def _base(shard: Shard) -> str:
    return posixpath.basename(shard["path"])


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _yaml(content: object) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, width=2**20).encode()
