"""The data card: the README.md of a dataset version, made from its manifest and funnel.

It says what is inside, what was left out and why, how it was scored and deduplicated, how to read it, and
what it does not promise. Its front matter tells Hugging Face readers which files are data. It measures
nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dataengine.emit.plan import HOLDOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

READ_IT = """\
Every path is relative to this folder; paths within a file are relative to that file's folder. `manifest.json` names
every file with its SHA-256, `samples/*.parquet` holds one row per sample with the place of its bytes.

```python
from dataengine.trainer import DataLoader, ShardDataset  # exactly once, resumable, at any world size

loader = DataLoader(ShardDataset("manifest.json"), global_batch_size=256)

import webdataset  # or any reader of tars

urls = [f"{source}/{line}" for line in open(f"{source}/urls.txt").read().split()]
dataset = webdataset.WebDataset(urls, nodesplitter=webdataset.split_by_node, shardshuffle=100)
```

| reader | opens |
|---|---|
| open_clip | both lines of `train_data.txt`: `--train-data`, `--train-data-upsampling-factors` |
| Megatron-Energon | this folder (`.nv-meta`); `metadataset.yaml` for the mixture of its sources |
| wids | `<source>/wids-meta.json` |
| Hugging Face datasets | this folder: `load_dataset(".")`, or `load_dataset(".", "jpg")` where formats are several |
| Polars, DuckDB | `samples/*.parquet`, `ledger/*.parquet` (why each row was kept or dropped), `stats/*.parquet` |
"""

LIMITS = """\
- Captions are the sources' own; nobody read them. A score says how a model sees a pair, not that a caption is true.
- Images near the duplicate threshold may be missed, at the rate that the recall above gives.
- `repeat` (how often a sample is drawn) is honoured by dataengine's reader; open_clip's factors and Energon's
  metadataset draw each source as often as its repeats say together. Other readers draw every sample once.
- Hugging Face datasets takes its columns from the first samples: captions of merged duplicates that come up later
  (`merged_1`, ...) are in the json members and the samples table, and not in what it shows.
- In the json members a missing text is `""` and a missing number is `-1`; the Parquet tables hold nulls.
- Images belong to their owners under the terms of each source. To have one removed, name its `url` or `key`.
"""


def data_card(manifest: Mapping[str, Any], funnel: pa.Table, shards: pa.Table) -> str:
    """The README of the version that `manifest`, `funnel` (FUNNEL) and `shards` (SHARDS) describe.

    `manifest` is manifest.json, its `files` not needed.
    """
    title = f"{manifest['name']} v{manifest['version']:06d}"
    counts = manifest["counts"]
    sections = {
        "Sources": _sources(manifest["sources"], manifest["mixture"]),
        "What was kept and dropped": _table(
            ("source", "state", "stage", "reason", "candidates", "input rows"),
            ([_number(cell) for cell in row.values()] for row in funnel.to_pylist()),
        ),
        "Scores": _facts(manifest["provenance"]),
        "Duplicates": _facts(manifest["dedup"]),
        "How to read it": READ_IT,
        "Known limits": LIMITS,
    }
    summary = (
        f"{counts['num_samples']:,} image-text pairs ({counts['num_draws']:,} draws an epoch) in "
        f"{counts['num_shards']:,} WebDataset shards, {counts['nbytes']:,} bytes."
    )
    if manifest.get("parent"):
        summary += (
            f" Child of {manifest['parent']}: shards whose rows did not change lie there or in versions before; keep "
            "these beside this one. `urls.txt` of each source lists all shards; readers that scan this folder alone "
            "do not see them."
        )
    body = "".join(f"\n## {heading}\n\n{text}" for heading, text in sections.items())
    return f"{_front_matter(title, shards)}\n# {title}\n\n{summary}\n{body}"


def _front_matter(title: str, shards: pa.Table) -> str:
    matter = {
        "pretty_name": title,
        "task_categories": ["text-to-image", "image-to-text"],
        "configs": list(_configs(shards)),
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n"


def _configs(shards: pa.Table) -> Iterator[dict[str, Any]]:
    """What `load_dataset` may be asked for: everything; or, as it drops images of other extensions, each format."""
    rows = [row for row in shards.select(["path", "format"]).to_pylist() if not row["path"].startswith("../")]
    by_format: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        split = HOLDOUT if row["path"].startswith(f"{HOLDOUT}/") else "train"
        by_format.setdefault(row["format"], {}).setdefault(split, []).append(row["path"])
    if len(by_format) == 1:
        patterns = {"train": "*/*.tar", HOLDOUT: f"{HOLDOUT}/*/*.tar"}
        (splits,) = by_format.values()
        globs = [{"split": split, "path": patterns[split]} for split in patterns if split in splits]
        yield {"config_name": "default", "data_files": globs}
        return
    for form, splits in sorted(by_format.items(), key=lambda item: -sum(map(len, item[1].values()))):
        files = [{"split": split, "path": splits[split]} for split in sorted(splits, reverse=True)]
        yield {"config_name": form, "data_files": files}


def _sources(sources: Mapping[str, Mapping[str, Any]], mixture: Mapping[str, Any]) -> str:
    counts = ("num_rows", "num_candidates", "num_emitted")
    draws = {name: mixture["sources"].get(name, {}) for name in sources}
    totals = {what: sum(of_source.get(what, 0) for of_source in draws.values()) for what in ("asked", "realised")}
    rows = [
        [
            name,
            *(_number(facts[count]) for count in counts),
            *(_draws(draws[name].get(what, 0), totals[what]) for what in ("asked", "realised")),
            facts["license"] or "not stated",
        ]
        for name, facts in sources.items()
    ]
    return _table(("source", "input rows", "candidates", "emitted", "draws asked", "draws realised", "licence"), rows)


def _draws(number: int, total: int) -> str:
    return f"{number:,} ({number / total:.1%})" if total else "0"


def _facts(facts: Mapping[str, Any]) -> str:
    return _table(("fact", "value"), _flat(facts)) if facts else "None.\n"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _number(value)


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """A cell cannot end its column or row, nor start markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
