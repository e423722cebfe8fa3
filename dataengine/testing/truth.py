"""What is planted in the sample web: one row of truth per candidate, saying what must become of it. It names
faults, duplicates and expectations, and knows neither how pages are served nor how an engine finds out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ELIGIBLE = "emitted-eligible"
DROPPED = "dropped"

TRUTH = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("shard", pa.string()),
        pa.field("member", pa.string()),
        pa.field("occurrence", pa.int32()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("expected_state", pa.string(), nullable=False),
        pa.field("expected_stage", pa.string()),
        pa.field("expected_reason", pa.string()),
        pa.field("group", pa.string()),
        pa.field("duplicate_of", pa.string()),
        pa.field("scene", pa.int32(), nullable=False),
        pa.field("num_rows", pa.int32(), nullable=False),
        pa.field("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Planted:
    """One candidate, and what must become of it.

    A row without a ``group`` is either eligible (no stage or reason expected) or dropped at
    ``expected_stage`` for ``expected_reason``. Rows of one ``group`` show the same picture: each is eligible,
    exactly one of them may be emitted, and the others are dropped at the expected stage for the expected
    reason; which one stays is the engine's choice. ``sha256`` is of the bytes that a patient client gets,
    null where it gets none.
    """

    source: str
    url: str
    kind: str
    scene: int
    shard: str | None = None
    member: str | None = None
    occurrence: int | None = None
    expected_state: str = ELIGIBLE
    expected_stage: str | None = None
    expected_reason: str | None = None
    group: str | None = None
    duplicate_of: str | None = None
    num_rows: int = 1
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Unique name: the source, and the URL or the place in the source's tars."""
        place = self.url if self.shard is None else f"{self.shard}/{self.member}#{self.occurrence}"
        return f"{self.source} {place}"


def write_truth(path: Path, planted: Iterable[Planted]) -> None:
    """Writes the truth table, rows in the order given."""
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in planted], schema=TRUTH), path)


def read_truth(path: Path) -> pa.Table:
    """The truth table, in the columns of ``TRUTH``."""
    return pq.read_table(path, schema=TRUTH)
