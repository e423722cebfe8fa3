"""Download beside img2dataset 1.47 and a bare floor: the same URLs from a local server, the same output.

python -m benchmarks.download                    # 2,000 rows
python -m benchmarks.download --rows 200         # within a minute or so, without img2dataset

img2dataset needs an environment of its own: name its interpreter by --img2dataset-python or
DATAENGINE_IMG2DATASET_PYTHON. Start-up is what a contender costs on 20 rows; marginal is what the other rows cost more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.download_contenders import Contender, Floor, Img2dataset, Location, Ours, Outcomes, Output
from benchmarks.download_corpus import VERSION, Picture, build_corpus
from benchmarks.download_fetch import NAME, NUM_BYTES
from benchmarks.download_floor import has_curl
from benchmarks.download_quality import mean_psnr
from benchmarks.download_server import serving
from benchmarks.download_watch import Cost, run_watched
from benchmarks.reporting import Goal, report

OUTPUTS = {"512": Output(512, "keep_ratio_largest"), "256 crop": Output(256, "center_crop")}
ADDRESS = "127.0.0.1"
START_UP_ROWS = 20
NUM_STARTS, MANY_ROWS = 3, 1000
NUM_WORKERS = 2
NUM_COMPARED = 200  # pictures: the mean of their PSNR differences is good to some hundredths of a decibel
RUN_SECONDS = 3600.0
OURS, PEER, FLOOR = "ours", "img2dataset", "floor"


@dataclass(frozen=True)
class Web:
    """What is served, and where."""

    folder: Path
    pictures: list[Picture]
    port: int

    @property
    def urls(self) -> list[str]:
        """One per picture."""
        return [f"http://{ADDRESS}:{self.port}/{picture.name}" for picture in self.pictures]

    @property
    def plain(self) -> dict[str, Path]:
        """Files of the first plain pictures, by URL."""
        pairs = zip(self.urls, self.pictures, strict=True)
        files = {url: self.folder / picture.name for url, picture in pairs if picture.oddity == "plain"}
        return dict(list(files.items())[:NUM_COMPARED])


@dataclass(frozen=True)
class Start:
    """What a contender costs on a few rows."""

    cpu_seconds: float
    num_stored: int


def measure(contender: Contender, urls: list[str], output: Output, folder: Path) -> tuple[Cost, Outcomes]:
    """Run `contender` in `folder`, which is made anew. Raises RuntimeError when it fails, or stores nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # img2dataset's dependency albumentations would ask the network for a newer version of itself.
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1"}
    command = contender.command(urls, output, folder)
    cost = run_watched(command, timeout_seconds=RUN_SECONDS, environment=quiet)
    outcomes = contender.outcomes(folder)
    if not outcomes.stored:
        raise RuntimeError(f"{contender.name} stored none of {len(urls)} pictures: {dict(outcomes.reasons)}")
    return cost, outcomes


def row_of(contender: Contender, cost: Cost, outcomes: Outcomes, start: Start, urls: list[str]) -> dict[str, Any]:
    """One line of the table."""
    num_ok, start_cpu = len(outcomes.stored), start.cpu_seconds
    return {
        "ok": num_ok,
        "unaccounted": outcomes.num_unaccounted(urls),
        "ok/s": num_ok / cost.wall_seconds,
        "CPU-s per 1k": cost.cpu_seconds / num_ok * 1e3,
        "marginal": (cost.cpu_seconds - start_cpu) / (num_ok - start.num_stored) * 1e3,
        "peak PSS MB": cost.peak_pss_bytes / 1e6,
        "start-up CPU-s": start_cpu,
        "per worker": start_cpu / contender.num_workers,
    }


def start_up(contender: Contender, web: Web, folder: Path) -> Start:
    """Its start-up; of several runs the median, where it is subtracted from enough rows to be worth that."""
    costs = []
    for _ in range(NUM_STARTS if len(web.urls) >= MANY_ROWS else 1):
        cost, outcomes = measure(contender, web.urls[:START_UP_ROWS], OUTPUTS["512"], folder)
        costs.append(cost.cpu_seconds)
    return Start(statistics.median(costs), len(outcomes.stored))


def compare(contenders: list[Contender], web: Web, scratch: Path) -> dict[str, dict[str, Any]]:
    """The table: contenders one after another, for every output."""
    results: dict[str, dict[str, Any]] = {}
    starts = {contender.name: start_up(contender, web, scratch / "start") for contender in contenders}
    for label, output in OUTPUTS.items():
        stored: dict[str, dict[str, Location]] = {}
        for contender in contenders:
            name = f"{contender.name} {label}"
            print(f"running {name} on {len(web.urls):,} rows ...", file=sys.stderr, flush=True)
            cost, outcomes = measure(contender, web.urls, output, scratch / name)
            results[name] = row_of(contender, cost, outcomes, starts[contender.name], web.urls)
            stored[name] = dict(outcomes.stored)
        if output.mode == "keep_ratio_largest":  # a crop's offset is a matter of rounding, and would count as error
            for name, decibels in mean_psnr(stored, web.plain).items():
                results[name]["PSNR dB"] = decibels
        for name in stored:
            shutil.rmtree(scratch / name)
    return results


def fetch_alone(folder: Path, port: int, num_urls: int) -> float:
    """CPU-microseconds of our process per URL."""
    (folder / NAME).write_bytes(os.urandom(NUM_BYTES))
    command = [sys.executable, "-m", "benchmarks.download_fetch", str(port), str(num_urls)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def goals_of(results: dict[str, dict[str, Any]]) -> list[Goal]:
    """What was asked for; a goal beside a contender that is absent is left out."""
    goals = [Goal("fetching alone, CPU-us per URL", results["fetch alone"]["CPU-us per URL"], 400.0)]
    ours = {label: results[f"{OURS} {label}"] for label in OUTPUTS if f"{OURS} {label}" in results}
    if "512" in ours:
        goals.append(Goal("start-up, CPU-s per worker", ours["512"]["per worker"], 3.0))
    for label, row in ours.items():
        goals.append(Goal(f"rows unaccounted for, {label}", row["unaccounted"], 0))
        floor, peer = results.get(f"{FLOOR} {label}"), results.get(f"{PEER} {label}")
        if floor:
            goals.append(Goal(f"marginal CPU over the floor's, {label}", row["marginal"] / floor["marginal"], 1.2))
        if peer:
            goals.append(Goal(f"marginal CPU over img2dataset's, {label}", row["marginal"] / peer["marginal"], 0.6))
            memory = row["peak PSS MB"] / peer["peak PSS MB"]
            goals.append(Goal(f"peak memory over img2dataset's, {label}", memory, 0.5))
        if peer and "PSNR dB" in peer:
            goals.append(Goal(f"PSNR below img2dataset's, dB, {label}", peer["PSNR dB"] - row["PSNR dB"], 0.3))
    return goals


def contenders_of(names: list[str], python: str | None) -> list[Contender]:
    """Those to run, in turn."""
    everyone: dict[str, Contender] = {
        FLOOR: Floor(FLOOR, NUM_WORKERS),
        # As many cores as the others: one worker that fetches, with a decoder on each core.
        OURS: Ours(OURS, 1, "serial", NUM_WORKERS, ADDRESS),
        "ours, Ray": Ours("ours, Ray", NUM_WORKERS, "ray", 1, ADDRESS),
    }
    if python is not None:
        everyone = {PEER: Img2dataset(PEER, NUM_WORKERS, python)} | everyone
    return [contender for name, contender in everyone.items() if name in names or not names]


@contextmanager
def served_corpus(arguments: argparse.Namespace) -> Iterator[Web]:
    """The corpus that the command line asks for, while its server runs."""
    origin = "drawn" if arguments.photos is None else "photos"
    folder = arguments.cache / f"web-v{VERSION}-seed{arguments.seed}-{origin}"
    pictures = build_corpus(folder, arguments.rows, arguments.seed, arguments.photos, os.cpu_count() or 1)
    mean_pixels = sum(picture.width * picture.height for picture in pictures) / len(pictures)
    mean_bytes = sum((folder / picture.name).stat().st_size for picture in pictures) / len(pictures)
    with serving(folder) as (server, port):
        print(f"{len(pictures):,} pictures ({origin}), {mean_pixels / 1e6:.2f} Mpix and {mean_bytes / 1e3:.0f} kB on "
              f"average, served by {server}", flush=True)  # fmt: skip
        yield Web(folder, pictures, port)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dataengine" / "benchmark"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="URLs, 50 or more; fewer than 1,000 tell little")
    parser.add_argument("--photos", type=Path, help="folder of photos to cut pictures from (default: drawn ones)")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures")
    parser.add_argument("--cache", type=Path, default=cache, help="where pictures are kept")
    parser.add_argument("--only", action="append", default=[], help="run this contender; may be given several times")
    variable = "DATAENGINE_IMG2DATASET_PYTHON"
    parser.add_argument("--img2dataset-python", default=os.environ.get(variable), help=f"default: ${variable}")
    arguments = parser.parse_args()
    if arguments.rows < 50:
        parser.error("--rows: wanted 50 or more")
    return arguments


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments()
    if arguments.img2dataset_python is None:
        print("img2dataset is left out, and the goals beside it: no --img2dataset-python is given")
    if not has_curl():
        print("the floor fetches with aiohttp: pycurl is not installed")
    with served_corpus(arguments) as web, tempfile.TemporaryDirectory() as scratch:
        contenders = contenders_of(arguments.only, arguments.img2dataset_python)
        results = compare(contenders, web, Path(scratch))
        cost = fetch_alone(web.folder, web.port, max(5000, 10 * arguments.rows))
        results["fetch alone"] = {"CPU-us per URL": cost}
    report("download", results, goals_of(results))


if __name__ == "__main__":
    main()
