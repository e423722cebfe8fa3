"""Images that must not be trained on: evaluation sets, embedded as the samples are, so that dedup can match them.

A set is a folder of images, tars, or embeddings that somebody made with the same model. Nothing of it is published; its
images are known by their path in the set.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.config.download import LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.errors import InputError
from dataengine.imaging import ImageFault, decode_rgb
from dataengine.schemas import EVALUATION
from dataengine.score.clip import Scorer
from dataengine.score.measures import phash
from dataengine.storage.inputs import find_files, input_address, quick_fingerprint
from dataengine.storage.rundir import Part, Plan, digest
from dataengine.storage.store import Root
from dataengine.storage.tar import TarFault, walk

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_PART_IMAGES = 1000
_Named = tuple[str, bytes]


@dataclass(frozen=True)
class ScoreEvaluation(Step):
    """Embeds the images of evaluation sets with the scorer whose embeddings dedup compares."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    stateful: ClassVar[bool] = True
    scorer: str
    config: ScorerConfig
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
        return {"config": self.config.identity(), "sets": list(self.sets)}

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
        model = _load(self.config.model_dump_json(), machine.num_gpus > 0, machine.num_threads)
        if paths[0].endswith(".npy"):
            names, hashes, embeddings = _given_embeddings(inputs.root, paths[0], model.dim)
        else:
            names, hashes, embeddings, num_bad = self._embed(_images(inputs.root, name, paths), model)
            outputs.count({"undecodable": num_bad})
        columns = {"set": pa.repeat(name, len(names)), "name": names, "phash": pa.array(hashes, pa.string())}
        outputs.rows_in = len(names)
        outputs.table("evaluation", EVALUATION, EVALUATION.table(columns))
        outputs.array("embedding", embeddings)

    def _embed(
        self, images: Iterator[_Named], model: Scorer
    ) -> tuple[list[str], list[str | None], NDArray[np.float16], int]:
        """Names, perceptual hashes and embeddings of those that decode, and how many do not."""
        names: list[str] = []
        hashes: list[str | None] = []
        found, num_bad = [np.zeros((0, model.dim), np.float16)], 0
        batch: list[NDArray[np.uint8]] = []
        for name, content in images:
            try:
                rgb = decode_rgb(content, max_pixels=self.limits.max_pixels, max_side=self.limits.max_side)
            except ImageFault:
                num_bad += 1
                continue
            names.append(name)
            hashes.append(f"{phash(rgb):016x}")
            batch.append(rgb)
            if len(batch) == self.config.batch_size:
                found.append(model.encode_images(batch).astype(np.float16))
                batch = []
        if batch:
            found.append(model.encode_images(batch).astype(np.float16))
        return names, hashes, np.concatenate(found), num_bad


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
    """(name within the set, bytes) of the images in these files."""
    folder = f"{input_address(root, address).rstrip('/')}/"
    for path in paths:
        if not path.endswith(".tar"):
            yield path.removeprefix(folder), root.get(path)
            continue
        shard = path.rpartition("/")[2]
        try:
            with root.open(path) as file:
                places = [member for member in walk(file, path) if member.name.lower().endswith(IMAGE_SUFFIXES)]
        except TarFault as error:
            raise InputError(f"dedup.against: {error}; mend the tar or leave it out") from error
        for member in places:
            yield f"{shard}/{member.name}", root.get_range(path, member.offset, member.nbytes)


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
def _load(config: str, gpu: bool, num_threads: int) -> Scorer:
    return Scorer.load(ScorerConfig.model_validate_json(config), "cuda" if gpu else "cpu", num_threads)
