"""Reads what a selection looks at: the tables of a run into a pool and its duplicates, a few parts at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.config.select import BlocklistRule, CaptionRule, SelectConfig
from dataengine.contract import Inputs
from dataengine.errors import LedgerError
from dataengine.schemas import CANDIDATE, CELL, CLASS, EDGE, SAMPLE, SELECTION, TableSchema
from dataengine.select.columns import CANDIDATE_COLUMNS, EXTRA, NAMED_CAPTION, SAMPLE_COLUMNS, Columns
from dataengine.select.duplicates import Duplicates, DuplicatesBuilder
from dataengine.select.judging import Judge, Judged
from dataengine.select.keyed import ABSENT, KeyIndex, Keys
from dataengine.select.pool import Block, Pool, PoolBuilder
from dataengine.select.question import Question
from dataengine.storage.ahead import map_ahead
from dataengine.storage.inputs import find_files
from dataengine.storage.rundir import Commit
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table, read_tables
from dataengine.storage.takedowns import TAKEDOWN, standing_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_STEPS = ("dedup/classes", "dedup/caption-classes")
_ROWS_AT_ONCE = 1_000_000  # judged together: calls cost nothing then, and a few such runs fit anywhere
_PARTS_AHEAD = 64
Part = TypeVar("Part")
Made = TypeVar("Made")
PartRows = tuple[str, str, int]
"""Source, name and number of rows of a part."""
SourcePart = tuple[str, tuple[Commit, ...]]
"""A part's source, and the commits of its candidates, samples and of each scorer."""


def cells_step(source: str) -> str:
    """The step that gives the images of a source their cells."""
    return f"dedup/cells.{source}"


def under_takedowns(config: SelectConfig, files: Mapping[str, Sequence[str]]) -> SelectConfig:
    """`config` with the take-downs among `files` (as `rule_files` gives them) as its first rule."""
    if TAKEDOWN not in files:
        return config
    rule = BlocklistRule(blocklist=tuple(files[TAKEDOWN]))
    return config.model_copy(update={"rules": {TAKEDOWN: rule, **config.rules}})


def rule_files(root: Root, config: SelectConfig) -> dict[str, list[str]]:
    """The files that rules refer to, by rule, and the root's standing take-downs as `takedown`.

    Raises InputError when one is absent.
    """
    patterns = {}
    for name, rule in config.rules.items():
        if isinstance(rule, BlocklistRule):
            patterns[name] = rule.blocklist
        elif isinstance(rule, CaptionRule) and rule.require_any_of:
            patterns[name] = rule.require_any_of
    standing = list(standing_lists(root))
    found = {TAKEDOWN: standing} if standing else {}
    return found | {name: find_files(root, globs, f"select.rules.{name}") for name, globs in patterns.items()}


def read_lines(root: Root, files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The lines of the files of each rule."""
    return {
        name: [line for path in paths for line in root.get(path).decode("utf-8-sig", "replace").splitlines()]
        for name, paths in files.items()
    }


@dataclass(frozen=True)
class Reader:
    """Reads the tables of the steps that select needs."""

    inputs: Inputs
    sources: tuple[str, ...]
    columns: Columns
    edge_steps: tuple[str, ...]
    num_threads: int

    def pool(self, question: Question, *, with_evidence: bool = True) -> Pool:
        """The pool, with the columns that the question looks at. Raises ConfigError when a rule breaks on a row."""
        cells = self._cells() if "cell" in question.read else None
        judge = Judge(question.row_rules, question.kept, with_evidence)
        builder = PoolBuilder(self.sources, tuple(judge.rules), judge.columns)

        def judged(table: pa.Table) -> Judged:
            return judge.judge(table if cells is None else cells.added_to(table))

        for parts, found in self.runs(question.read, judged):
            builder.add(parts, found)
        return builder.finish()

    def runs(self, read: Sequence[str], make: Callable[[pa.Table], Made]) -> Iterator[tuple[list[PartRows], Made]]:
        """What `make` makes of the columns `read` of a run of parts, and which those are; in the order of the pool.

        `make` is called in the threads that read.
        """

        def work(run: list[SourcePart]) -> tuple[list[PartRows], Made]:
            named = [(source, commits[0].part, _num_rows(commits)) for source, commits in run]
            rows = self._rows([commits for _, commits in run], read)
            if len(rows) != sum(num_rows for *_, num_rows in named):
                first, last = (" ".join(part[:2]) for part in (named[0], named[-1]))
                raise LedgerError(f"{first} to {last}: {len(rows)} rows, not one per candidate; run these parts anew")
            return named, make(rows)

        # Commits of a source are parsed while tables of the one before are read.
        runs = (run for source in self.sources for run in self._cut([(source, found) for found in self._parts(source)]))
        return map_ahead(work, runs, self.num_threads, self.num_threads)

    def _cut(self, parts: list[SourcePart]) -> Iterator[list[SourcePart]]:
        """Runs of parts of about equal rows; several for each thread."""
        sizes = [_num_rows(commits) for _, commits in parts]
        num_rows = max(1, min(_ROWS_AT_ONCE, sum(sizes) // (2 * self.num_threads)))
        ends = np.cumsum(sizes)
        run = (ends - sizes) // num_rows
        for first, last in itertools.pairwise([*np.flatnonzero(np.diff(run, prepend=-1)), len(parts)]):
            yield parts[first:last]

    def duplicates(self, pool: Pool, question: Question) -> Duplicates:
        """What dedup found among the pool's rows, in the respects that the question asks about."""
        builder = DuplicatesBuilder(KeyIndex.build(pool.keys), question.respects, self.num_threads)
        for step in self.edge_steps:
            for table in self._tables(step, "edge", EDGE):
                builder.add_edges(table)
        for step in CLASS_STEPS:
            for table in self._tables(step, "class", CLASS):
                builder.add_classes(table)
        return builder.finish()

    def captions(self, pool: Pool, wanted: NDArray[np.bool_]) -> pl.Series:
        """The primary captions of the pool's `wanted` rows (bool [rows]), in their order."""
        commits = [commit for source in self.sources for commit in self.inputs.commits(f"sources/{source}")]
        parts = list(zip(pool.blocks, commits, strict=True))

        def read(part: tuple[Block, Commit]) -> pa.Table:
            block, commit = part
            table = read_table(self.inputs.root, commit.objects["candidate"].path, CANDIDATE, ["caption"])
            return table.filter(pa.array(wanted[block.begin : block.end]))

        texts = [table.column("caption") for _, table in self._each(parts, read)]
        captions = pl.from_arrow(pa.chunked_array([chunk for text in texts for chunk in text.chunks], pa.string()))
        return pl.Series(captions)

    def kept_before(self, pool: Pool, selected: Commit) -> NDArray[np.bool_]:
        """Which of the pool's rows an earlier selection of the run kept: bool [rows]."""
        kept = np.zeros(len(pool), np.bool_)
        same = {source for source in self.sources if self._same_candidates(source, selected)}
        parts = [name for name in selected.objects if name.partition(".")[0] not in same]
        index = KeyIndex.build(pool.keys) if parts else None
        blocks = {f"{block.source}.{block.part}": block for block in pool.blocks if block.source in same}

        def read(name: str) -> pa.Table:
            columns = ["verdict"] if name in blocks else ["key", "verdict"]
            return read_table(self.inputs.root, selected.objects[name].path, SELECTION, columns)

        for name, table in self._each([*blocks, *parts], read):
            verdict = pc.equal(table.column("verdict"), "kept").to_numpy()
            if index is None or name in blocks:
                kept[blocks[name].begin : blocks[name].end] = verdict
            else:
                rows = index.find(Keys.parse(table.column("key")), self.num_threads)
                kept[rows[verdict & (rows != ABSENT)]] = True
        return kept

    def _same_candidates(self, source: str, selected: Commit) -> bool:
        """Whether a selection was made of the very parts of a source that are there now, so that rows are in order."""
        step = f"sources/{source}"
        return selected.reads.get(step) == self.inputs.whole[step].digest()

    def _each(self, parts: Sequence[Part], read: Callable[[Part], pa.Table]) -> Iterator[tuple[Part, pa.Table]]:
        """Each part with what `read` makes of it, in order."""
        return zip(parts, map_ahead(read, parts, self.num_threads, _PARTS_AHEAD), strict=True)

    def _tables(self, step: str, name: str, schema: TableSchema) -> Iterator[pa.Table]:
        def read(commit: Commit) -> pa.Table:
            return read_table(self.inputs.root, commit.objects[name].path, schema)

        for _, table in self._each(self.inputs.commits(step), read):
            yield table

    def _parts(self, source: str) -> Iterator[tuple[Commit, ...]]:
        """By part: the commits of candidates, samples and of each scorer."""
        scorers = [f"score/{scorer}.{source}" for scorer in self.columns.of_scores]
        steps = (f"sources/{source}", f"download/{source}", *scorers)
        return zip(*(self.inputs.commits(step) for step in steps), strict=True)

    def _rows(self, run: Sequence[tuple[Commit, ...]], read: Sequence[str]) -> pa.Table:
        """The columns `read` of the parts of a run, one part after the other."""
        candidates, samples, *scores = zip(*run, strict=True)
        found = dict(self._candidates(candidates, read))
        tables = [(samples, "sample", SAMPLE, list(SAMPLE_COLUMNS))]
        for commits, (scorer, schema) in zip(scores, self.columns.scores, strict=True):
            tables.append((commits, "score", schema, [field.name for field in self.columns.of_scores[scorer]]))
        for commits, name, schema, of_table in tables:
            names = [name for name in of_table if name in read]
            if names:
                table = read_tables(self.inputs.root, _paths(commits, name), schema, names)
                found |= dict(zip(names, table.columns, strict=True))
        return pa.table({name: found[name] for name in read if name in found})

    def _candidates(self, commits: Sequence[Commit], read: Sequence[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
        plain = [name for name in CANDIDATE_COLUMNS if name in read]
        maps = {"extra": (EXTRA, self.columns.extras), "captions": (NAMED_CAPTION, self.columns.captions)}
        inside = {
            column: [name for name in names if f"{begin}{name}" in read] for column, (begin, names) in maps.items()
        }
        wanted = [*plain, *(column for column, names in inside.items() if names)]
        if not wanted:
            return
        order = [name for name in CANDIDATE.arrow.names if name in wanted]
        table = read_tables(self.inputs.root, _paths(commits, "candidate"), CANDIDATE, order)
        yield from ((name, table.column(name)) for name in plain)
        for column, names in inside.items():
            for name in names:
                yield f"{maps[column][0]}{name}", pc.map_lookup(table.column(column), name, "first")

    def _cells(self) -> _Cells:
        of_sources = [table for source in self.sources for table in self._tables(cells_step(source), "cell", CELL)]
        tables = [CELL.empty(), *of_sources]
        cells = pa.concat_tables(tables)
        copies = [
            table.filter(pc.equal(table["kind"], "image_bytes"))
            for table in self._tables("dedup/classes", "class", CLASS)
        ]
        members = pa.concat_tables([CLASS.empty(), *copies])
        spoken_for = KeyIndex.build(Keys.parse(cells.column("key")))
        return _Cells(
            spoken_for,
            cells.column("cell").to_numpy(),
            KeyIndex.build(Keys.parse(members.column("key"))),
            spoken_for.find(Keys.parse(members.column("class_key")), self.num_threads),
        )


def _num_rows(commits: tuple[Commit, ...]) -> int:
    return commits[0].objects["candidate"].num_rows


def _paths(commits: Sequence[Commit], name: str) -> list[str]:
    return [commit.objects[name].path for commit in commits]


@dataclass(frozen=True)
class _Cells:
    """The cell of every sample: its own, or that of the class that speaks for it."""

    spoken_for: KeyIndex
    cells: NDArray[np.int32]
    members: KeyIndex
    speakers: NDArray[np.int32]

    def added_to(self, table: pa.Table) -> pa.Table:
        keys = Keys.parse(table.column("key"))
        found = self.spoken_for.find(keys)
        member = self.members.find(keys)
        if len(self.speakers):
            found = np.where((found == ABSENT) & (member != ABSENT), self.speakers[member], found)
        none = found == ABSENT
        cells = self.cells[np.where(none, 0, found)] if len(self.cells) else np.zeros(len(found), np.int32)
        return table.append_column("cell", pa.array(cells, mask=none | (cells < 0)))
