"""The selection: one verdict per candidate, in the order download, score, rules, against, survivors, balance.

Decides what a row is dropped for: the first thing that stands against it. All columns of all candidates in,
one SELECTION row per candidate and the mixture out; it reads no store, and no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.errors import LedgerError
from dataengine.keys import draws
from dataengine.schemas import SELECTION
from dataengine.select.balance import Mixture, apportion, draw_rows
from dataengine.select.rules import apply_rules, compile_rules
from dataengine.select.survivors import choose_survivors

if TYPE_CHECKING:
    from dataengine.config.select import BalanceConfig, SelectConfig

_VERDICT = {
    "stage": pl.String,
    "reason": pl.String,
    "rule_value": pl.String,
    "group_key": pl.String,
    "survivor_key": pl.String,
    "similarity": pl.Float32,
    "repeat": pl.Int32,
    "draw": pl.Float64,
}


_MET = pl.Schema({"key": pl.String, "rule_value": pl.String, "similarity": pl.Float32})
_ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Selection:
    """What to publish, and why nothing else."""

    table: pa.Table
    """SELECTION, sorted by key."""
    mixture: Mixture


def select(rows: pl.DataFrame, classes: pa.Table, edges: pa.Table, config: SelectConfig, seed: int) -> Selection:
    """One SELECTION row per candidate.

    `rows` has a row per candidate: key, source, caption, status, reason and detail of SAMPLE, score_status of SCORE
    (null when not scored), and every column that rules and `prefer` name. Raises ConfigError when a rule, a
    preference or the balance does not fit these columns and rows.
    """
    candidates = rows.sort("key").with_row_index("row")
    rules = compile_rules(config.rules, rows.schema)
    judged = apply_rules(candidates.filter(_usable()), rules)
    passed = judged.filter(pl.col("failed_rule").is_null())
    met = contamination(passed, _frame(classes), _frame(edges)) if config.against == "drop" else _nothing_met()
    contaminated = passed.drop("rule_value").join(met, on="key")
    passed = passed.join(met, on="key", how="anti")
    found = choose_survivors(passed, _frame(classes), _frame(edges), config.survivors)
    verdicts = pl.concat([passed.select("row", "key", "source", "caption"), found], how="horizontal")
    survivors = verdicts.filter(pl.col("survivor_key").is_null())
    held_out = _held_out(survivors, config.holdout_share, seed)
    trained = survivors.filter(~held_out)
    mixture = _mixture(candidates, trained, config.balance)
    decided = _in_order(
        candidates,
        _failed(candidates),
        _broke_rule(judged),
        contaminated.select("row", "rule_value", "similarity", stage=pl.lit("select"), reason=pl.lit("contaminated")),
        verdicts.filter(pl.col("survivor_key").is_not_null()).with_columns(stage=pl.lit("select")),
        _drawn(trained, mixture, config.balance, seed),
        survivors.filter(held_out).with_columns(repeat=pl.lit(1, pl.Int32)),
    )
    merges = config.survivors.merge_captions and config.survivors.policy == "image"
    captions = _merged_captions(decided, verdicts if merges else verdicts.clear())
    return Selection(_table(decided, captions, config.holdout_share, seed), mixture)


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()


def _usable() -> pl.Expr:
    return (pl.col("status") == "ok") & (pl.col("score_status") == "ok").fill_null(value=False)


def _failed(candidates: pl.DataFrame) -> pl.DataFrame:
    """Candidates without an image or without scores."""
    downloaded = pl.col("status") == "ok"
    return candidates.filter(~_usable()).select(
        "row",
        stage=pl.when(downloaded).then(pl.lit("score")).otherwise(pl.lit("download")),
        reason=pl.when(downloaded).then(pl.col("score_status").fill_null("missing")).otherwise("reason"),
        rule_value=pl.when(~downloaded).then("detail"),
    )


def _broke_rule(judged: pl.DataFrame) -> pl.DataFrame:
    broke = judged.filter(pl.col("failed_rule").is_not_null())
    return broke.select("row", "rule_value", stage=pl.lit("select"), reason="failed_rule")


def contamination(rows: pl.DataFrame, classes: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
    """key, rule_value and similarity of rows that stand in an earlier dataset or evaluation set, too, or nearly.

    `rule_value` is the dataset and the key of the most similar row there. What an edge says of a class representative
    holds for every row of its class, whichever of them passed the rules.
    """
    order = ["similarity", "against", "right_key"]
    ends = edges.filter(pl.col("against").is_not_null())
    if ends.is_empty():
        return _nothing_met()
    image = pl.col("kind").is_in(["image_bytes", "pixels", "image_embedding"])
    met = [
        _speakers(rows, classes.filter(of_kind)).join(
            ends.filter(of_kind).select(*order, class_key="left_key"), on="class_key"
        )
        for of_kind in (image, ~image)
    ]
    nearest = (
        pl.concat(met).sort(order, descending=[True, False, False]).unique("key", keep="first", maintain_order=True)
    )
    return nearest.with_columns(rule_value=pl.format("{} {}", "against", "right_key")).select(_MET.names())


def _speakers(rows: pl.DataFrame, classes: pl.DataFrame) -> pl.DataFrame:
    """key and class_key: every row by itself, and by each row that speaks for it."""
    themselves = rows.select("key", class_key="key")
    copies = classes.select("key", "class_key").join(rows.select("key"), on="key", how="semi")
    return pl.concat([themselves, copies]).unique()


def _nothing_met() -> pl.DataFrame:
    return pl.DataFrame(schema=_MET)


def _mixture(candidates: pl.DataFrame, survivors: pl.DataFrame, config: BalanceConfig) -> Mixture:
    available = dict.fromkeys([*candidates["source"].unique(), *config.weights], 0)
    return apportion(available | dict(survivors.group_by("source").len().iter_rows()), config)


def _drawn(survivors: pl.DataFrame, mixture: Mixture, config: BalanceConfig, seed: int) -> pl.DataFrame:
    """Survivors with their repeats; those never drawn are dropped for `balance`."""
    drawn = [survivors.clear().with_columns(repeat=pl.lit(0, pl.Int32), draw=pl.lit(0.0))]
    for (source,), rows in survivors.group_by("source", maintain_order=True):
        # Without a target a source is drawn once whatever max_repeat says, so the limit never bites there.
        repeats, numbers = draw_rows(rows["key"].to_arrow(), mixture.realised[str(source)], config.max_repeat, seed)
        drawn.append(rows.with_columns(repeat=pl.Series(repeats), draw=pl.Series(numbers)))
    left_out = pl.col("repeat") == 0
    return pl.concat(drawn).with_columns(
        stage=pl.when(left_out).then(pl.lit("select")), reason=pl.when(left_out).then(pl.lit("balance"))
    )


def _in_order(candidates: pl.DataFrame, *decisions: pl.DataFrame) -> pl.DataFrame:
    """One row per candidate, in key order: each is decided exactly once."""
    decided = pl.concat(
        [decision.drop("key", "source", "caption", strict=False) for decision in decisions], how="diagonal"
    )
    missing = [pl.lit(None, kind).alias(name) for name, kind in _VERDICT.items() if name not in decided.columns]
    decided = decided.with_columns(missing).sort("row")
    if not decided["row"].equals(candidates["row"]):
        raise LedgerError(f"select: {len(candidates)} candidates, but {len(decided)} decisions about them")
    return pl.concat([candidates.select("key", "source"), decided.select(*_VERDICT)], how="horizontal")


def _merged_captions(decided: pl.DataFrame, verdicts: pl.DataFrame) -> pa.ChunkedArray:
    """The captions that kept rows take over from those that yielded: map `merged_1` ... → text, [rows]."""
    own = verdicts.select(survivor_key="key", own_caption="caption")
    yielded = (
        verdicts.filter(pl.col("survivor_key").is_not_null())
        .join(own, on="survivor_key", maintain_order="left")
        .filter((pl.col("caption") != pl.col("own_caption")) & (pl.col("caption") != ""))
        .unique(["survivor_key", "caption"], keep="first", maintain_order=True)
        .group_by("survivor_key", maintain_order=True)
        .agg("caption")
    )
    carried = decided.join(yielded, left_on="key", right_on="survivor_key", how="left", maintain_order="left")
    lists = carried.select(pl.when(pl.col("stage").is_null()).then("caption")).to_series()
    # Piece by piece, because the texts of one array end at 2 GiB.
    starts = range(0, max(len(lists), 1), _ROWS_AT_ONCE)
    return pa.chunked_array([_numbered(lists.slice(start, _ROWS_AT_ONCE)) for start in starts])


def _numbered(lists: pl.Series) -> pa.MapArray:
    """Each list of texts as a map `merged_1`, `merged_2` ... → text; null as an empty one."""
    counts = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    captions = lists.drop_nulls().explode()
    numbers = np.arange(len(captions)) - np.repeat(offsets[:-1], counts) + 1
    names = pl.select(pl.format("merged_{}", pl.Series(numbers))).to_series()
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()),
        names.to_arrow().cast(pa.string()),
        captions.to_arrow().cast(pa.string()),
    )


def _held_out(rows: pl.DataFrame, holdout_share: float, seed: int) -> pl.Series:
    """Which rows are kept out of training: bool [rows].

    Whole groups of duplicates are, so that a near-duplicate never straddles the splits.
    """
    if not holdout_share:
        return pl.repeat(value=False, n=len(rows), eager=True)
    groups = rows.select(pl.coalesce("group_key", "key")).to_series().to_arrow()
    return pl.Series(draws(groups, seed, "holdout") < holdout_share)


def _table(decided: pl.DataFrame, captions: pa.ChunkedArray, holdout_share: float, seed: int) -> pa.Table:
    frame = decided.with_columns(
        verdict=pl.when(pl.col("stage").is_null()).then(pl.lit("kept")).otherwise(pl.lit("dropped")),
        split=pl.when(_held_out(decided, holdout_share, seed)).then(pl.lit("holdout")).otherwise(pl.lit("train")),
        repeat=pl.col("repeat").fill_null(0),
    )
    names = [name for name in SELECTION.arrow.names if name != "merged_captions"]
    columns = {name: frame[name].to_arrow() for name in names}
    return SELECTION.table({**columns, "merged_captions": captions})
