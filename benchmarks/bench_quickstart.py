"""The whole quickstart: first run with Ray and serially, and a second run that has nothing to do.

python -m benchmarks.bench_quickstart            # 1,000 scenes, as `make quickstart`
python -m benchmarks.bench_quickstart --rows 80  # within a minute or so
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.reporting import Goal, Timed, report, run_timed


def measure(root: Path, runner: str, num_scenes: int) -> Timed:
    """One quickstart in `root`. Raises RuntimeError when it fails."""
    overrides = [f"execution.runner={runner}", f"sample_web.num_scenes={num_scenes}"]
    if num_scenes < 1000:
        overrides.append(f"select.balance.target={int(num_scenes * 0.7)}")
    options = [part for override in overrides for part in ("--set", override)]
    timed = run_timed([sys.executable, "-m", "dataengine", "quickstart", str(root), *options])
    if timed.exit_code:
        raise RuntimeError(timed.output)
    return timed


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000, help="scenes of the sample web, at least 60")
    num_scenes = parser.parse_args().rows
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for runner in ("ray", "serial"):
            root = Path(folder) / runner
            for which in ("first run", "second run"):
                timed = measure(root, runner, num_scenes)
                results[f"{runner}, {which}"] = {"wall s": timed.wall_seconds}
    goals = [
        Goal("quickstart wall seconds", results["ray, first run"]["wall s"], 240.0),
        Goal("nothing left to do, wall seconds", results["ray, second run"]["wall s"], 10.0),
    ]
    report("bench_quickstart", results, goals)


if __name__ == "__main__":
    main()
