"""The columns that rows can be judged by: which there are, and which of them some configs look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl
import pyarrow as pa

from dataengine.schemas import CANDIDATE, CELL, LOCATION, SAMPLE, TableSchema, column

CANDIDATE_COLUMNS = ("key", "num_rows", "source", "url", "caption")
SAMPLE_COLUMNS = tuple(name for name in SAMPLE.arrow.names if name not in {"key", *(field.name for field in LOCATION)})
EXTRA, NAMED_CAPTION = "extra_", "captions_"
"""What the names of passthrough columns and of named captions begin with."""


@dataclass(frozen=True)
class Columns:
    """What there is of each row, over all its tables."""

    scores: tuple[tuple[str, TableSchema], ...]
    """SCORE by scorer, the first one first."""
    extras: tuple[str, ...] = ()
    """Passthrough columns of any source."""
    captions: tuple[str, ...] = ()
    """Named captions of any source."""
    with_cell: bool = False
    """Whether dedup makes cells."""

    @property
    def schema(self) -> pa.Schema:
        """Every column: of CANDIDATE, SAMPLE, SCORE and CELL."""
        fields = [CANDIDATE.arrow.field(name) for name in CANDIDATE_COLUMNS]
        fields += [column(f"{EXTRA}{name}", pa.string(), "passthrough", nullable=True) for name in self.extras]
        fields += [column(f"{NAMED_CAPTION}{name}", pa.string(), "caption", nullable=True) for name in self.captions]
        fields += [SAMPLE.arrow.field(name) for name in SAMPLE_COLUMNS]
        for of_scorer in self.of_scores.values():
            fields += of_scorer
        if self.with_cell:
            fields.append(CELL.arrow.field("cell").with_nullable(True))
        return pa.schema(fields)

    @cached_property
    def of_scores(self) -> dict[str, list[pa.Field]]:
        """What each scorer adds to a row; the status is the first scorer's."""
        first = self.scores[0][0]
        return {
            scorer: [
                field
                for field in schema.arrow
                if field.name != "key" and (scorer == first or field.name != "score_status")
            ]
            for scorer, schema in self.scores
        }

    @property
    def types(self) -> dict[str, pl.DataType]:
        """Name → type, as frames have it."""
        return dict(pl.DataFrame(pl.from_arrow(self.schema.empty_table())).schema)
