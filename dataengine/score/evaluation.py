"""Images that must not be trained on: evaluation sets, embedded as the samples are, so that dedup can match them.

A set is a folder of images, tars, or embeddings that somebody made with the same model. Nothing of it is published; its
images are known by their path in the set.
"""

from __future__ import annotations

import functools
import io
import posixpath
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
from dataengine.score.embedding_file import EmbeddingFile
from dataengine.score.metrics import Reporter, Waits
from dataengine.score.part import NOT_FINITE, Looker, PartInput
from dataengine.score.pictures import OK
from dataengine.storage.inputs import find_files, input_address, quick_fingerprint
from dataengine.storage.rundir import Commit, Part, Plan, digest
from dataengine.storage.store import Root
from dataengine.storage.tar import TarFault, walk

_REWRITTEN: dict[str, type[BmpImageFile] | type[TiffImageFile]] = {
    ".bmp": BmpImageFile,
    ".tif": TiffImageFile,
    ".tiff": TiffImageFile,
}
"""What benchmarks hold and the web does not: made PNG before it is looked at as the samples are."""
IMAGE_SUFFIXES = tuple(f".{name}" for name in sorted(IMAGE_EXTENSIONS))
_PACKED = (".tar", ".npy")
_PART_IMAGES = 1000
_PART_EMBEDDINGS = 65_536
_SHOWN = 5
"""Names or suffixes that a message lists."""
_Named = tuple[str, "str | tuple[str, int, int]"]
"""Name within the set, and where it lies: a file, or a file, offset and size."""


@dataclass(frozen=True)
class _Seen:
    """What a part of a set comes to."""

    names: pa.Array
    """Of the images that can be compared, within the set: string [usable]."""
    phashes: pa.Array
    """string [usable], null where there is none."""
    embeddings: NDArray[np.float16]
    """[usable, dim]"""
    unusable: Mapping[str, int]
    """Reason → images that cannot be compared."""

    @property
    def num_images(self) -> int:
        """All that were given, usable or not."""
        return len(self.names) + sum(self.unusable.values())


@dataclass(frozen=True)
class ScoreEvaluation(Step):
    """Embeds the images of evaluation sets with the scorer whose embeddings dedup compares."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = 3
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
            for piece in _pieces(context.root, address):
                # With the piece: a part of this number may have been other rows or names of the same files.
                prints = digest([piece, [quick_fingerprint(context.root, path) for path in piece["paths"]]])
                spec = {"set": address, **piece, "reads": {f"{address} from {piece['paths'][0]}": prints}}
                parts.append(Part(f"part-{len(parts):06d}", spec))
        return Plan(tuple(parts), {"sets": digest([dict(part.spec) for part in parts])})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        spec, root = part.spec, inputs.root
        device = "cuda" if machine.num_gpus > 0 else "cpu"
        settle_torch(device, machine.num_threads)
        model = _load(self.config.model_dump_json(), self.weights, device, machine.num_threads)
        if "rows" in spec:
            seen = _given_embeddings(root, spec["of"], range(*spec["rows"]), model.dim)
        else:
            seen = self._embed(root, list(_images(root, spec["set"], spec["paths"])), model, machine)
        columns = {"set": pa.repeat(spec["set"], len(seen.names)), "name": seen.names, "phash": seen.phashes}
        outputs.rows_in = seen.num_images
        outputs.count(seen.unusable)
        # A fact, so that whoever publishes it is told when it changes.
        outputs.facts["evaluation"] = {
            "set": spec["set"],
            "of": root.within(spec["of"]),
            "num_images": seen.num_images,
            "unusable": dict(sorted(seen.unusable.items())),
        }
        outputs.table("evaluation", EVALUATION, EVALUATION.table(columns))
        outputs.array("embedding", seen.embeddings)

    def check(self, commits: Sequence[Commit]) -> None:
        """Raises InputError for a file, or a folder, of which no image can be compared."""
        num_images: Counter[str] = Counter()
        unusable: dict[str, Counter[str]] = {}
        for found in (commit.facts["evaluation"] for commit in commits):
            num_images[found["of"]] += found["num_images"]
            unusable.setdefault(found["of"], Counter()).update(found["unusable"])
        for of, reasons in unusable.items():
            if reasons.total() == num_images[of]:
                told = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
                raise InputError(
                    f"dedup.against: {of}: none of its {num_images[of]:,} images can be compared ({told}), so that it "
                    "would keep nothing out; mend the files or leave them out"
                )

    def _embed(self, root: Root, images: Sequence[_Named], model: Scorer, machine: Machine) -> _Seen:
        """The images looked at as the samples are."""

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
        names = pa.array([images[row][0] for row in usable], pa.string())
        return _Seen(names, pa.array(hashes, pa.string()), embeddings, unusable)


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


def _pieces(root: Root, address: str) -> Iterator[dict[str, Any]]:
    """The set in parts: each tar by itself, rows of an array by 65,536, images of a folder by the thousand.

    A part is told by `of` (the file or folder that it is of), `paths` and, of an array, `rows` [begin, end]. Raises
    InputError where there are none.
    """
    if not address.endswith(_PACKED):
        folder = input_address(root, address)
        images = _folder_images(root, folder)
        for begin in range(0, len(images), _PART_IMAGES):
            yield {"of": folder, "paths": images[begin : begin + _PART_IMAGES]}
        return
    for path in find_files(root, [address], "dedup.against"):
        if path.endswith(".tar"):
            yield {"of": path, "paths": [path]}
            continue
        with root.open(path) as file:
            num_rows = EmbeddingFile.open(file, _where(path)).num_rows
        for begin in range(0, num_rows, _PART_EMBEDDINGS):
            yield {"of": path, "paths": [path], "rows": [begin, min(begin + _PART_EMBEDDINGS, num_rows)]}


def _folder_images(root: Root, folder: str) -> list[str]:
    """The images in `folder`; raises InputError when there are none, or tars or arrays, which would be passed over."""
    paths = root.list(folder)
    images = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    packed = [path for path in paths if path.lower().endswith(_PACKED)]
    if packed:
        pattern = f"{posixpath.dirname(packed[0])}/*{posixpath.splitext(packed[0])[1]}"
        raise InputError(
            f"{_where(folder)}: holds {len(packed):,} .tar or .npy files ({_some(packed)}) and {len(images):,} images, "
            f"wanted images alone; name the files by a pattern of their own, such as {pattern}, and keep images to be "
            "read in a folder without them"
        )
    if not images:
        raise InputError(
            f"{_where(folder)}: no images there; name the manifest.json of a published version, a folder of "
            f"images ({', '.join(IMAGE_SUFFIXES)}), or .tar or .npy files"
        )
    return images


def _images(root: Root, address: str, paths: list[str]) -> Iterator[_Named]:
    """The images in these files, by their names within the set."""
    folder = f"{input_address(root, address).rstrip('/')}/"
    for path in paths:
        if path.endswith(".tar"):
            yield from _tar_images(root, path)
        else:
            yield path.removeprefix(folder), path


def _tar_images(root: Root, path: str) -> Iterator[_Named]:
    """The images in a tar; raises InputError when it is broken or holds none."""
    try:
        with root.open(path) as file:
            members = list(walk(file, path))
    except TarFault as error:
        raise InputError(f"dedup.against: {error}; mend the tar or leave it out") from error
    images = [member for member in members if member.name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        suffixes = [posixpath.splitext(member.name)[1] or "no suffix" for member in members]
        raise InputError(
            f"{_where(path)}: no images among its {len(members):,} members ({_some(suffixes)}), wanted some that "
            f"end in {', '.join(IMAGE_SUFFIXES)}; pack the images themselves, or leave the tar out"
        )
    for member in images:
        yield f"{posixpath.basename(path)}/{member.name}", (path, member.offset, member.nbytes)


def _given_embeddings(root: Root, path: str, rows: range, dim: int) -> _Seen:
    """Rows of an array, named by their numbers. They have no perceptual hash."""
    with root.open(path) as file:
        found = EmbeddingFile.open(file, _where(path))
        found.check_dim(dim)
        units = found.units(file, rows.start, rows.stop)
    name = posixpath.basename(path)
    names = pa.array([f"{name}/{row}" for row in units.rows.tolist()], pa.string())
    return _Seen(names, pa.nulls(len(names), pa.string()), units.embeddings, units.unusable)


def _where(path: str) -> str:
    return f"dedup.against: {path}"


def _some(names: Sequence[str]) -> str:
    """The first few different ones, in a message."""
    different = list(dict.fromkeys(names))
    return ", ".join(different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "") or "it is empty"


@functools.lru_cache(maxsize=1)
def _load(config: str, weights: str, device: str, num_threads: int) -> Scorer:
    return Scorer.load(ScorerConfig.model_validate_json(config), device, num_threads, weights)
