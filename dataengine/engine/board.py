"""The board: for every step its parts, which of them are committed, and which may start now.

Everything on it is read from commits, so a new driver sees what the last one left. Nothing here runs work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dataengine.contract import AGAIN, AGAIN_FOR, Inputs, Need, PlanContext, Step, WholeUnit
from dataengine.errors import InputError, StorageError
from dataengine.storage.rundir import Commit, Part, Plan, RunDirectory, UnitDirectory


@dataclass(frozen=True)
class Job:
    """A part that may start: everything a worker must be told."""

    step: Step
    part: Part
    directory: UnitDirectory
    inputs: Inputs
    partners: tuple[Job, ...] = ()
    """Others of the same bundle, done by the same worker in the same go."""

    @property
    def bundle(self) -> str | None:
        """Ready jobs of one bundle go together."""
        return self.step.bundle(self.part)


@dataclass
class StepState:
    """What is known of one step."""

    step: Step
    directory: UnitDirectory
    plan: Plan | None = None
    stored: dict[str, list[Commit]] = field(default_factory=dict)
    done: dict[str, Commit] = field(default_factory=dict)
    reused: int = 0
    waiting: dict[str, Part] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    """Waiting parts of which a need was met since they were last looked at: looking at all would be quadratic."""
    again: dict[str, Commit] = field(default_factory=dict)
    """Parts that are done again, by the commit that each is done on top of."""
    complete_path: str | None = None
    problem: str | None = None
    """Why its inputs cannot be planned; only a board that is not stored goes on without them."""

    @property
    def complete(self) -> bool:
        """Whether every planned part is committed."""
        return self.plan is not None and len(self.done) == len(self.plan.parts)

    def commits(self) -> list[Commit]:
        """Commits in part order; the step must be complete."""
        assert self.plan is not None
        return [self.done[part.name] for part in self.plan.parts]


class Board(PlanContext):
    """Tracks steps in topological order. With `store=False` nothing is written, and only what exists is shown."""

    def __init__(self, run: RunDirectory, steps: Sequence[Step], recipes: dict[str, str], *, store: bool) -> None:
        self.root = run.root
        self._store = store
        self.states = {
            step.name: StepState(step, run.unit(step.stage, step.unit, recipes[step.name])) for step in steps
        }

    def parts(self, step: str) -> tuple[Part, ...]:
        plan = self.states[step].plan
        assert plan is not None
        return plan.parts

    def commits(self, step: str) -> list[Commit]:
        return self.states[step].commits()

    @property
    def finished(self) -> bool:
        """Whether every step is complete."""
        return all(state.complete for state in self.states.values())

    def advance(self) -> Iterator[Job]:
        """Plan what can be planned and yield the parts that may start and are not committed yet, each once."""
        for state in self.states.values():
            if state.plan is None and state.problem is None and self._plannable(state.step):
                self._open(state)
            if state.plan is None:
                continue
            names, state.touched = sorted(state.touched & state.waiting.keys()), set()
            for name in names:
                part = state.waiting[name]
                inputs = self.inputs(state.step, part)
                if inputs is None:
                    continue
                del state.waiting[name]
                found = self._matching(state, part, inputs)
                if found is None:
                    yield Job(state.step, part, state.directory, inputs)
                else:
                    state.reused += 1
                    self.commit(state.step.name, found)
            if state.complete and state.complete_path is None:
                self._close(state)

    def commit(self, step: str, commit: Commit) -> None:
        """Note that a part exists."""
        state = self.states[step]
        state.done[commit.part] = commit
        for other in self._above(step, whole=False):
            other.touched.add(commit.part)
        if state.complete:
            self._close(state)

    def _above(self, step: str, *, whole: bool) -> list[StepState]:
        """The steps that need `step`, wholly or part by part."""
        wanted = Need(step, whole)
        return [state for state in self.states.values() if wanted in state.step.needs]

    def _plannable(self, step: Step) -> bool:
        needs = all(self.states[need.step].plan is not None for need in step.needs)
        return needs and all(self.states[name].complete_path is not None for name in step.plan_needs)

    def _open(self, state: StepState) -> None:
        plan = self._plan(state)
        if plan is None:
            return
        state.plan = plan
        state.waiting = {part.name: part for part in plan.parts}
        state.touched = set(state.waiting)
        found = state.directory.find_complete(plan)
        if found is not None:
            state.stored = {commit.part: [commit] for commit in found[1]}
        if found is None or not self._all_fit(state):
            state.stored = state.directory.load_commits()

    def _plan(self, state: StepState) -> Plan | None:
        if self._store:
            return state.directory.store_plan(state.step.plan(self))
        try:
            return state.step.plan(self)
        except (InputError, StorageError) as error:
            state.problem = str(error)
            return None

    def _all_fit(self, state: StepState) -> bool:
        assert state.plan is not None
        for part in state.plan.parts:
            inputs = self.inputs(state.step, part)
            if inputs is None or self._matching(state, part, inputs) is None:
                return False
        return True

    def _matching(self, state: StepState, part: Part, inputs: Inputs) -> Commit | None:
        stored = state.stored.get(part.name)
        if not stored:
            return None
        reads = part_reads(part, inputs)
        return next((commit for commit in reversed(stored) if _fits(commit.reads, reads)), None)

    def inputs(self, step: Step, part: Part) -> Inputs | None:
        """What `part` would read; None while something that it needs is not committed."""
        by_part: dict[str, Commit] = {}
        whole: dict[str, WholeUnit] = {}
        for need in step.needs:
            state = self.states[need.step]
            if need.whole:
                if state.complete_path is None:
                    return None
                whole[need.step] = WholeUnit(state.directory, state.complete_path)
            elif part.name in state.done:
                by_part[need.step] = state.done[part.name]
            else:
                return None
        last = self.states[step.name].again.get(part.name)
        return Inputs(self.root, by_part if last is None else {**by_part, AGAIN: last}, whole)

    def repeat(self, step: Step, names: Iterable[str], asked: str) -> None:
        """Do parts of a complete step again with `step` in its place, each on top of its last commit.

        Parts that an interrupted repetition finished already are found, not done a third time, when it `asked` for
        the same.
        """
        state = self.states[step.name]
        assert state.plan is not None
        parts = {part.name: part for part in state.plan.parts}
        state.step, state.complete_path = step, None
        state.stored = state.directory.load_commits()
        for name in names:
            state.again[name] = state.done.pop(name)
            spec = parts[name].spec
            state.waiting[name] = Part(name, {**spec, "reads": {**spec.get("reads", {}), AGAIN_FOR: asked}})
            state.touched.add(name)

    def _close(self, state: StepState) -> None:
        assert state.plan is not None
        commits = state.commits()
        state.step.check(commits)
        found = state.directory.find_complete(state.plan)
        if found is not None and found[1] == commits:
            state.complete_path = found[0]
        elif self._store:
            state.complete_path = state.directory.store_complete(state.plan, commits)
        if state.complete_path is not None:
            for other in self._above(state.step.name, whole=True):
                other.touched |= other.waiting.keys()

    def survey(self) -> None:
        """Look as far as commits allow without running anything; a step that cannot be planned says why."""
        before = -1
        while self._known() != before:
            before = self._known()
            for _ in self.advance():
                pass

    def _known(self) -> int:
        return sum(len(state.done) + (state.plan is not None) for state in self.states.values())

    def require_progress(self) -> None:
        """Raise StorageError when nothing runs and nothing can start, as only a damaged run directory causes."""
        stuck = [name for name, state in self.states.items() if not state.complete]
        if stuck:
            raise StorageError(
                f"{self.root.url}: no part of {', '.join(stuck)} can start; the run directory is incomplete"
            )


def _fits(stored: Mapping[str, str], reads: Mapping[str, str]) -> bool:
    """Whether a commit that read `stored` is one of what reads `reads`: also when it was done again since."""
    if AGAIN in reads:
        return stored == reads
    return {name: content for name, content in stored.items() if name not in (AGAIN, AGAIN_FOR)} == reads


def part_reads(part: Part, inputs: Inputs) -> dict[str, str]:
    """What a commit of `part` names as read: its needs, and the outside objects that the plan fingerprinted."""
    return {**inputs.reads(), **part.spec.get("reads", {})}
