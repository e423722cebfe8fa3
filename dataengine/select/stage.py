"""The select stage: every narrow column of every source in, SELECTION out, part for part with the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataengine.config.select import BlocklistRule, SelectConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.errors import ConfigError
from dataengine.schemas import SELECTION
from dataengine.select.balance import Mixture
from dataengine.select.blocklist import parse_lines
from dataengine.select.columns import Columns
from dataengine.select.pool import Block, Pool
from dataengine.select.question import Question
from dataengine.select.reading import Reader, cells_step, read_lines, rule_files, under_takedowns
from dataengine.select.selection import Decision, Selector
from dataengine.select.verdicts import Merged, donors_and_heirs, merge_captions, num_by_reason, selection_table
from dataengine.storage.inputs import content_fingerprint
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.store import Root
from dataengine.storage.takedowns import TAKEDOWN, standing_lists

_WRITERS = 8
"""Parts written at once: a store takes milliseconds to make one safe, in which others are encoded."""
_RUN_ROWS = 100_000
"""Rows whose verdicts are spelt out together: per part, that would be mostly overhead."""


def _runs(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks in runs of about so many rows."""
    run: list[Block] = []
    for block in blocks:
        run.append(block)
        if block.end - run[0].begin >= _RUN_ROWS:
            yield run
            run = []
    if run:
        yield run


@dataclass(frozen=True)
class Select(Step):
    """Decides over every candidate at once: rules, survivors, balance."""

    stage: ClassVar[str] = "select"
    version: ClassVar[int] = 4
    sources: tuple[str, ...]
    columns: Columns
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
            for stage in ("sources", "download", *(f"score/{scorer}" for scorer, _ in self.columns.scores))
        ]
        cells = [cells_step(source) for source in self.sources] if self.columns.with_cell else []
        return tuple(Need(name, whole=True) for name in (*per_source, "dedup/classes", *self.edge_steps, *cells))

    def identity(self) -> Mapping[str, Any]:
        return {"sources": list(self.sources), "config": self.config.identity(), "seed": self.seed}

    def plan(self, context: PlanContext) -> Plan:
        files = rule_files(context.root, self.config)
        reads = {path: content_fingerprint(context.root, path) for paths in files.values() for path in paths}
        standing = standing_lists(context.root)
        reads |= {path: standing[path] for path in files.get(TAKEDOWN, ())}
        return Plan((Part("part-000000", {"files": files, "reads": reads} if files else {}),), reads)

    def prove(self, root: Root) -> None:
        """Refuse a file of a rule that is absent or holds what is none, before anything runs.

        Raises InputError and ConfigError.
        """
        files = rule_files(root, self.config)
        lines = read_lines(root, files)
        try:
            Question.ask([under_takedowns(self.config, files)], self.columns, lines)
        except ConfigError:
            for name, path in ((name, path) for name, paths in files.items() for path in paths):
                if name == TAKEDOWN or isinstance(self.config.rules[name], BlocklistRule):
                    parse_lines(read_lines(root, {name: [path]})[name], f"select.rules.{name}: {path}")
            raise

    def reader(self, inputs: Inputs, num_threads: int) -> Reader:
        """Reads what this step needs."""
        return Reader(inputs, self.sources, self.columns, self.edge_steps, num_threads)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        files = part.spec.get("files", {})
        config = under_takedowns(self.config, files)
        question = Question.ask([config], self.columns, read_lines(inputs.root, files))
        reader = self.reader(inputs, machine.num_threads)
        pool = reader.pool(question)
        decision = Selector(pool, reader.duplicates(pool, question), self.seed).decide(config, question.rules[0])
        merged = self._merged(decision, pool, reader)

        def write(blocks: Sequence[Block]) -> None:
            begin = blocks[0].begin
            table = selection_table(decision, pool, merged, begin, blocks[-1].end)
            for block in blocks:
                rows = table.slice(block.begin - begin, block.end - block.begin)
                outputs.table(f"{block.source}.{block.part}", SELECTION, rows)

        with ThreadPoolExecutor(max(_WRITERS, machine.num_threads)) as threads:
            list(threads.map(write, _runs(pool.blocks)))
        outputs.rows_in = outputs.rows_out = len(pool)
        outputs.count(num_by_reason(decision))
        outputs.facts["mixture"] = self._mixture(decision.mixture)

    def _merged(self, decision: Decision, pool: Pool, reader: Reader) -> Merged:
        survivors = self.config.survivors
        if not survivors.merge_captions or survivors.policy != "image":
            return Merged.none()
        wanted = donors_and_heirs(decision)
        return merge_captions(decision, pool, np.flatnonzero(wanted), reader.captions(pool, wanted))

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
