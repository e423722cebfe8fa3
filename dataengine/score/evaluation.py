"""Images that must not be trained on: evaluation sets, embedded as the samples are, so that dedup can match them.

A set is a folder of images, tars, or embeddings that somebody made with the same model. Nothing of it is published; its
images are known by their path in the set.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dataengine.config.download import LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.config.sources import IMAGE_EXTENSIONS
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.errors import InputError
from dataengine.schemas import EVALUATION
from dataengine.score.clip import Scorer, settle_torch
from dataengine.score.metrics import Reporter, Waits
from dataengine.score.part import NOT_FINITE, Looker, PartInput
from dataengine.score.pictures import OK
from dataengine.storage.inputs import find_files, input_address, quick_fingerprint
from dataengine.storage.rundir import Part, Plan, digest
from dataengine.storage.store import Root
from dataengine.storage.tar import TarFault, walk

_REWRITTEN: dict[str, type[BmpImageFile] | type[TiffImageFile]] = {
    ".bmp": BmpImageFile,
    ".tif": TiffImageFile,
    ".tiff": TiffImageFile,
}
"""What benchmarks hold and the web does not: made PNG before it is looked at as the samples are."""
IMAGE_SUFFIXES = tuple(f".{name}" for name in sorted(IMAGE_EXTENSIONS))
_PART_IMAGES = 1000
_Named = tuple[str, "str | tuple[str, int, int]"]
"""Name within the set, and where it lies: a file, or a file, offset and size."""


@dataclass(frozen=True)
class ScoreEvaluation(Step):
    """Embeds the images of evaluation sets with the scorer whose embeddings dedup compares."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = 2
    stateful: ClassVar[bool] = True
    scorer: str
    config: ScorerConfig
    weights: str
    """What its weights are; see `identify_scorer`."""
    limits: LimitsConfig
    sets: tuple[str, ...]
    """Folders, or paths or globs of `.tar` or `.npy` files."""

    @property
    def unit(self) -> str:
        return f"evaluation-images.{self.scorer}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"config": self.config.identity(), "weights": self.weights, "sets": list(self.sets)}

    def plan(self, context: PlanContext) -> Plan:
        parts: list[Part] = []
        for address in self.sets:
            for paths in _pieces(context.root, address):
                prints = digest([quick_fingerprint(context.root, path) for path in paths])
                spec = {"set": address, "paths": paths, "reads": {f"{address} from {paths[0]}": prints}}
                parts.append(Part(f"part-{len(parts):06d}", spec))
        return Plan(tuple(parts), {"sets": digest([dict(part.spec) for part in parts])})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        name, paths = part.spec["set"], part.spec["paths"]
        device = "cuda" if machine.num_gpus > 0 else "cpu"
        settle_torch(device, machine.num_threads)
        model = _load(self.config.model_dump_json(), self.weights, device, machine.num_threads)
        if paths[0].endswith(".npy"):
            names, hashes, embeddings = _given_embeddings(inputs.root, paths[0], model.dim)
        else:
            images = list(_images(inputs.root, name, paths))
            names, hashes, embeddings, unusable = self._embed(inputs.root, images, model, machine)
            outputs.count(unusable)
        columns = {"set": pa.repeat(name, len(names)), "name": names, "phash": pa.array(hashes, pa.string())}
        outputs.rows_in = len(names)
        outputs.table("evaluation", EVALUATION, EVALUATION.table(columns))
        outputs.array("embedding", embeddings)

    def _embed(
        self, root: Root, images: Sequence[_Named], model: Scorer, machine: Machine
    ) -> tuple[list[str], list[str | None], NDArray[np.float16], Mapping[str, int]]:
        """Names, perceptual hashes and embeddings of those that decode, and why others do not.

        They are looked at as the samples are.
        """

        def read() -> Iterator[bytes]:
            for name, place in images:
                content = root.get(place) if isinstance(place, str) else root.get_range(*place)
                yield _as_png(content, name, self.limits.max_pixels)

        looker = Looker({self.scorer: model}, self.limits, machine.num_threads, Reporter(Waits(), machine.report))
        rows = np.arange(len(images), dtype=np.int64)
        (seen,) = looker.look([PartInput(len(images), rows, read, (self.scorer,), measures=True)])
        good = seen.good[self.scorer]
        usable = np.flatnonzero(good).tolist()
        unusable = Counter(np.where(seen.status == OK, NOT_FINITE, seen.status)[~good].tolist())
        hashes = [None if (found := seen.measures[row]) is None else f"{found.phash:016x}" for row in usable]
        embeddings = seen.embeddings[self.scorer][usable].astype(np.float16)
        return [images[row][0] for row in usable], hashes, embeddings, unusable


def _as_png(content: bytes, name: str, max_pixels: int) -> bytes:
    """The image in a format that samples have; as it is where it has one, or cannot be read at all."""
    reader = _REWRITTEN.get(f".{name.lower().rpartition('.')[2]}")
    if reader is None:
        return content
    try:
        with reader(io.BytesIO(content)) as image:
            if image.width * image.height > max_pixels:
                return content
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG", compress_level=0)
            return out.getvalue()
    except Exception:  # noqa: BLE001 - Pillow raises anything on damaged files; undecodable bytes are counted below
        return content


def _pieces(root: Root, address: str) -> Iterator[list[str]]:
    """The files of a set in parts: each tar or array by itself, images by the thousand.

    Raises InputError when there are none.
    """
    if address.endswith((".tar", ".npy")):
        for path in find_files(root, [address], "dedup.against"):
            yield [path]
        return
    folder = input_address(root, address)
    images = [path for path in root.list(folder) if path.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise InputError(
            f"dedup.against: {folder}: no images there; name the manifest.json of a published version, a folder of "
            f"images ({', '.join(IMAGE_SUFFIXES)}), or .tar or .npy files"
        )
    for begin in range(0, len(images), _PART_IMAGES):
        yield images[begin : begin + _PART_IMAGES]


def _images(root: Root, address: str, paths: list[str]) -> Iterator[_Named]:
    """The images in these files, by their names within the set."""
    folder = f"{input_address(root, address).rstrip('/')}/"
    for path in paths:
        if not path.endswith(".tar"):
            yield path.removeprefix(folder), path
            continue
        shard = path.rpartition("/")[2]
        try:
            with root.open(path) as file:
                places = [member for member in walk(file, path) if member.name.lower().endswith(IMAGE_SUFFIXES)]
        except TarFault as error:
            raise InputError(f"dedup.against: {error}; mend the tar or leave it out") from error
        for member in places:
            yield f"{shard}/{member.name}", (path, member.offset, member.nbytes)


def _given_embeddings(root: Root, path: str, dim: int) -> tuple[list[str], list[str | None], NDArray[np.float16]]:
    """The rows of an array, named by their numbers. They have no perceptual hash."""
    where = f"dedup.against: {path}"
    try:
        with root.open(path) as file:
            rows = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{where}: not a readable .npy array: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != dim or not np.issubdtype(rows.dtype, np.floating):
        raise InputError(
            f"{where}: {rows.dtype} {list(rows.shape)}, wanted floats [rows, {dim}]; embed the images with the scorer "
            "that dedup compares, or give the images themselves"
        )
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros(rows.shape), where=lengths > 0)
    name = path.rpartition("/")[2]
    return [f"{name}/{row}" for row in range(len(rows))], [None] * len(rows), units.astype(np.float16)


@functools.lru_cache(maxsize=1)
def _load(config: str, weights: str, device: str, num_threads: int) -> Scorer:
    return Scorer.load(ScorerConfig.model_validate_json(config), device, num_threads, weights)
