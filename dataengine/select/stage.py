"""The select stage: every narrow column of every source in, SELECTION out, part for part with the candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from dataengine.config.select import SelectConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.schemas import CANDIDATE, CLASS, EDGE, LOCATION, SAMPLE, SELECTION, TableSchema
from dataengine.select.balance import Mixture
from dataengine.select.rules import compile_rules
from dataengine.select.selection import select
from dataengine.select.survivors import preference
from dataengine.storage.rundir import Part, Plan

_CANDIDATE_COLUMNS = ["key", "num_rows", "source", "url", "caption"]
_SAMPLE_COLUMNS = [name for name in SAMPLE.arrow.names if name not in {"key", *(field.name for field in LOCATION)}]
_ALWAYS = ("key", "source", "caption", "status", "reason", "detail", "score_status")


def rule_schema(scores: Mapping[str, TableSchema]) -> pa.Schema:
    """The columns that rules may name: of CANDIDATE and SAMPLE, and of the SCORE tables by scorer."""
    fields = [CANDIDATE.arrow.field(name) for name in _CANDIDATE_COLUMNS]
    fields += [SAMPLE.arrow.field(name) for name in _SAMPLE_COLUMNS]
    for columns in score_columns(scores).values():
        fields += columns
    return pa.schema(fields)


def needed_columns(config: SelectConfig, scores: Mapping[str, TableSchema]) -> list[str]:
    """The columns that a selection looks at, in the order of `rule_schema`.

    Raises ConfigError when a rule or preference does not fit the columns there are.
    """
    columns = pl.DataFrame(pl.from_arrow(rule_schema(scores).empty_table())).schema
    named = [name for rule in compile_rules(config.rules, dict(columns)) for name in rule.columns]
    preferred = [name for name, _ in preference(config.survivors.prefer, columns.names())]
    return [name for name in columns if name in {*_ALWAYS, *named, *preferred}]


def score_columns(scores: Mapping[str, TableSchema]) -> dict[str, list[pa.Field]]:
    """What each scorer adds to a row; the status is the first scorer's."""
    first = next(iter(scores))
    return {
        scorer: [
            field for field in schema.arrow if field.name != "key" and (scorer == first or field.name != "score_status")
        ]
        for scorer, schema in scores.items()
    }


@dataclass(frozen=True)
class Select(Step):
    """Decides over every candidate at once: rules, survivors, balance."""

    stage: ClassVar[str] = "select"
    version: ClassVar[int] = 2
    sources: tuple[str, ...]
    scores: tuple[tuple[str, TableSchema], ...]
    config: SelectConfig
    edge_steps: tuple[str, ...]
    seed: int

    @property
    def unit(self) -> str:
        return "selection"

    @property
    def needs(self) -> tuple[Need, ...]:
        per_source = [
            f"{stage}.{source}" if stage.startswith("score/") else f"{stage}/{source}"
            for source in self.sources
            for stage in ("sources", "download", *(f"score/{scorer}" for scorer, _ in self.scores))
        ]
        return tuple(Need(name, whole=True) for name in (*per_source, "dedup/classes", *self.edge_steps))

    def identity(self) -> Mapping[str, Any]:
        return {"sources": list(self.sources), "config": self.config.identity(), "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        tables = dict(self._parts(inputs))
        rows = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables.values())))
        steps = ("dedup/classes", "dedup/caption-classes")
        classes = pa.concat_tables([table for step in steps for table in inputs.tables(step, "class", CLASS)])
        edges = [table for step in self.edge_steps for table in inputs.tables(step, "edge", EDGE)]
        chosen = select(rows, classes, pa.concat_tables([EDGE.empty(), *edges]), self.config, self.seed)
        selection = pl.DataFrame(pl.from_arrow(chosen.table))
        for name, table in tables.items():
            mine = pl.DataFrame({"key": pl.from_arrow(table.column("key"))})
            outputs.table(
                name, SELECTION, _as_selection(mine.join(selection, on="key", how="left", maintain_order="left"))
            )
        outputs.rows_in = outputs.rows_out = len(rows)
        outputs.count(Counter(reason or "kept" for reason in chosen.table.column("reason").to_pylist()))
        outputs.facts["mixture"] = self._mixture(chosen.mixture)

    def _mixture(self, mixture: Mixture) -> dict[str, Any]:
        """Draws by source: what survived, what was asked for, what came of it."""
        of_source = {
            source: {
                "available": mixture.available.get(source, 0),
                "asked": mixture.asked.get(source, 0),
                "realised": mixture.realised.get(source, 0),
            }
            for source in self.sources
        }
        return {"target": self.config.balance.target, "sources": of_source}

    def _parts(self, inputs: Inputs) -> Iterator[tuple[str, pa.Table]]:
        """(`<source>.<part>`, the needed columns of its candidates), every table in the same row order."""
        # All columns of 24 million rows would be tens of gigabytes.
        needed = needed_columns(self.config, dict(self.scores))
        schema = pa.schema([rule_schema(dict(self.scores)).field(name) for name in needed])
        added = {
            scorer: [field.name for field in fields if field.name in needed]
            for scorer, fields in score_columns(dict(self.scores)).items()
        }
        of_candidate = [name for name in _CANDIDATE_COLUMNS if name in needed]
        of_sample = [name for name in _SAMPLE_COLUMNS if name in needed]
        for source in self.sources:
            columns = [
                inputs.tables(f"sources/{source}", "candidate", CANDIDATE, of_candidate),
                inputs.tables(f"download/{source}", "sample", SAMPLE, of_sample),
                *(
                    inputs.tables(f"score/{scorer}.{source}", "score", table, added[scorer])
                    for scorer, table in self.scores
                ),
            ]
            names = [commit.part for commit in inputs.commits(f"sources/{source}")]
            for name, *pieces in zip(names, *columns, strict=True):
                arrays = [column for piece in pieces for column in piece.columns]
                yield f"{source}.{name}", pa.Table.from_arrays(arrays, schema=schema)


def _as_selection(frame: pl.DataFrame) -> pa.Table:
    """`frame` under SELECTION's exact types."""
    table = frame.select(SELECTION.arrow.names).to_arrow()
    arrays = [table.column(field.name).cast(field.type) for field in SELECTION.arrow]
    return pa.Table.from_arrays(arrays, schema=SELECTION.arrow)
