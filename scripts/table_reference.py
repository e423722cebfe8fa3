"""Writes docs/tables.md: every column of every table, from the schemas themselves.

`python -m scripts.table_reference` rewrites the file; a test fails when it is behind the schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from dataengine import schemas
from dataengine.schemas import TableSchema

TARGET = Path(__file__).parent.parent / "docs" / "tables.md"

HEAD = """\
# Table reference

Made from `dataengine/schemas.py` by `python -m scripts.table_reference`; do not edit by hand.
Questions that these tables answer are in [analyst.md](analyst.md).

Every table is Parquet under an explicit schema that is checked when it is written and when it is read. A column is
required unless it says *null*. Floating-point columns hold no NaN.
"""

PUBLISHED: tuple[tuple[str, str, TableSchema], ...] = (
    (
        "samples",
        "`samples/part-*.parquet`, one row per emitted sample. After `extra` follows one `float` column per configured "
        "score: `clip_score` (first scorer, primary caption), `clip_score_<scorer>_<caption>`, and one per head.",
        schemas.manifest_schema(()),
    ),
    ("ledger", "`ledger/part-*.parquet`, one row per candidate, emitted or dropped.", schemas.LEDGER),
    ("shards", "`shards.parquet`, one row per tar.", schemas.SHARDS),
    ("funnel", "`stats/funnel.parquet`, candidates and input rows by where they ended.", schemas.FUNNEL),
    (
        "histogram",
        "`stats/histogram.parquet`, scores of all scored samples and of the emitted ones.",
        schemas.HISTOGRAM,
    ),
)
INTERNAL: tuple[tuple[str, str, TableSchema], ...] = (
    ("candidate", "Stage sources: one row per key.", schemas.CANDIDATE),
    ("member", "Stage sources, of tars whose extra members are carried: row for row with candidate.", schemas.MEMBER),
    ("sample", "Stage download: one row per candidate, fetched or not.", schemas.SAMPLE),
    (
        "score",
        "Stage score: row for row with sample. Before the measures stand the configured scores; only the first scorer "
        "writes the measures.",
        schemas.score_schema((), (), measures=True),
    ),
    ("class", "Stage dedup: exact copies.", schemas.CLASS),
    ("edge", "Stage dedup: verified pairs of near-duplicates.", schemas.EDGE),
    ("cell", "Stage dedup: where an embedding lies.", schemas.CELL),
    ("selection", "Stage select: one row per candidate.", schemas.SELECTION),
)


def render() -> str:
    """The whole of docs/tables.md."""
    published = "".join(_section(*table) for table in PUBLISHED)
    internal = "".join(_section(*table) for table in INTERNAL)
    return (
        f"{HEAD}\n## Published, in `<root>/datasets/<name>/vNNNNNN/`\n{published}"
        f"\n## Of a run, in `<root>/runs/<name>/`\n\nCommits name their objects; these are for looking, not for "
        f"building on.\n{internal}"
    )


def _section(name: str, about: str, schema: TableSchema) -> str:
    order = ", ".join(f"`{column}`" for column in schema.sorted_by)
    return f"\n### {name}\n\n{about} Sorted by {order}.\n\n| column | type | meaning |\n|---|---|---|\n" + "".join(
        _rows(schema.arrow)
    )


def _rows(schema: pa.Schema) -> Iterator[str]:
    for field in schema:
        kind = str(field.type).replace("map<string, string>", "map of text to text")
        doc = field.metadata[b"doc"].decode()
        yield f"| `{field.name}` | {kind}{', null' if field.nullable else ''} | {doc} |\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
