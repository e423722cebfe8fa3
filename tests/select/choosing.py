"""Selecting from rows that a test spells out, as the stage does it: part by part into a pool, and out as SELECTION."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.config.select import SelectConfig
from dataengine.keys import url_keys
from dataengine.schemas import CLASS, EDGE, SELECTION
from dataengine.select.balance import Mixture
from dataengine.select.duplicates import DuplicatesBuilder
from dataengine.select.judging import Judge
from dataengine.select.keyed import KeyIndex
from dataengine.select.pool import Pool, PoolBuilder
from dataengine.select.question import Question
from dataengine.select.rules import compile_rules
from dataengine.select.selection import Selector
from dataengine.select.verdicts import Merged, donors_and_heirs, merge_captions, selection_table

KEYS = sorted(url_keys("web", [str(number) for number in range(60)]))
ALWAYS = {"key": pl.String, "status": pl.String, "reason": pl.String, "detail": pl.String, "score_status": pl.String}


@dataclass(frozen=True)
class Selection:
    """What came out, its rows in key order."""

    table: pa.Table
    mixture: Mixture


class FrameColumns:
    """`Columns` of a frame that a test made up."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.types = dict(frame.schema)


def pool_of(rows: pl.DataFrame, question: Question, part_rows: int = 7, sources: Sequence[str] | None = None) -> Pool:
    """The pool of `rows`, in parts of a few rows of one source each."""
    names = tuple(sorted(sources or rows["source"].unique()))
    judge = Judge(question.row_rules, question.kept)
    builder = PoolBuilder(names, tuple(judge.rules), judge.columns)
    for source in names:
        mine = rows.filter(pl.col("source") == source)
        for number, start in enumerate(range(0, len(mine), part_rows)):
            table = mine.slice(start, part_rows).sort("key").to_arrow()
            plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
            builder.add([(source, f"part-{number:06d}", len(table))], judge.judge(table.cast(plain)))
    return builder.finish()


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def select(
    rows: pl.DataFrame,
    classes: pa.Table | None,
    edges: pa.Table | None,
    config: SelectConfig,
    seed: int = 3,
    lines: Mapping[str, Sequence[str]] | None = None,
    part_rows: int = 7,
) -> Selection:
    """The selection of `rows`, whose columns are those that a rule may name."""
    question = Question.ask([config], FrameColumns(rows), lines)  # type: ignore[arg-type]
    pool = pool_of(rows, question, part_rows)
    builder = DuplicatesBuilder(KeyIndex.build(pool.keys), question.respects)
    builder.add_edges(edges or EDGE.empty())
    builder.add_classes(classes or CLASS.empty())
    decision = Selector(pool, builder.finish(), seed).decide(config, question.rules[0])
    merged = Merged.none()
    if config.survivors.merge_captions and config.survivors.policy == "image" and "caption" in rows.columns:
        wanted = donors_and_heirs(decision)
        keys = pl.Series(pool.keys.texts(np.arange(len(pool))))
        captions = pl.DataFrame({"key": keys}).join(rows, on="key", how="left", maintain_order="left")["caption"]
        merged = merge_captions(decision, pool, np.flatnonzero(wanted), captions.filter(pl.Series(wanted)))
    parts = [selection_table(decision, pool, merged, block.begin, block.end) for block in pool.blocks]
    table = pa.concat_tables([SELECTION.empty(), *parts]).sort_by("key").combine_chunks()
    return Selection(SELECTION.check(table), decision.mixture)


def judged(
    rows: pl.DataFrame, rules: Mapping[str, object], lines: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str | None, str | None]]:
    """(reason, evidence) of each of `rows` under `rules` alone; a key and the states of a good row are added."""
    good = {"status": "ok", "score_status": "ok", "reason": None, "detail": None}
    extra = {"key": pl.Series(KEYS[: len(rows)], dtype=pl.String)}
    extra |= {name: pl.Series([value] * len(rows), dtype=pl.String) for name, value in good.items()}
    extra |= {"source": pl.Series(["web"] * len(rows), dtype=pl.String)} if "source" not in rows.columns else {}
    config = SelectConfig.model_validate({"rules": rules, "survivors": {"policy": "none", "prefer": []}})
    compile_rules(config.rules, dict(rows.schema), lines)
    frame = rows.with_columns(**extra)
    table = select(frame, None, None, config, lines=lines).table
    return list(zip(table["reason"].to_pylist(), table["rule_value"].to_pylist(), strict=True))
