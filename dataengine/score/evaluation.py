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
from dataengine.storage.inputs import (
    files_beneath,
    find_files,
    input_address,
    pattern_folder,
    quick_fingerprint,
)
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
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_BESIDE = frozenset(
    {".cls", ".csv", ".htm", ".html", ".json", ".jsonl", ".md", ".npy", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Suffixes of what plainly tells of images, and is none."""
_OTHER_FILE = "other_file"
"""Reason of files that are neither read as images nor plainly something else: some may be images."""
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
    version: ClassVar[int] = 4
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
            images, num_others = _images(root, spec)
            seen = self._embed(root, images, num_others, model, machine)
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

    def _embed(self, root: Root, images: Sequence[_Named], num_others: int, model: Scorer, machine: Machine) -> _Seen:
        """The images looked at as the samples are; `num_others` files beside them are counted."""

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
        if num_others:
            unusable[_OTHER_FILE] = num_others
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

    A part is told by `of` (the file or folder that it is of), `paths` and, of an array, `rows` [begin, end]; a folder's
    first tells the number of its `others`. Raises InputError where there are none.
    """
    if not address.endswith(_PACKED):
        folder = input_address(root, address)
        images, num_others = _folder_images(root, folder)
        for begin in range(0, len(images), _PART_IMAGES):
            others = num_others if begin == 0 else 0
            yield {"of": folder, "paths": images[begin : begin + _PART_IMAGES], "others": others}
        return
    for path in find_files(root, [address], "dedup.against"):
        if path.endswith(".tar"):
            yield {"of": path, "paths": [path]}
            continue
        with root.open(path) as file:
            num_rows = EmbeddingFile.open(file, _where(path)).num_rows
        for begin in range(0, num_rows, _PART_EMBEDDINGS):
            yield {"of": path, "paths": [path], "rows": [begin, min(begin + _PART_EMBEDDINGS, num_rows)]}


def _folder_images(root: Root, folder: str) -> tuple[list[str], int]:
    """The images in `folder`, and how many files there may be others.

    Raises InputError when there are no images, or tars or arrays, which would be passed over.
    """
    paths = files_beneath(root, folder, "dedup.against")
    images = [path for path in paths if _is_image(path)]
    packed = [path for path in paths if path.lower().endswith(_PACKED)]
    if packed:
        pattern = f"{posixpath.dirname(packed[0])}/*{posixpath.splitext(packed[0])[1]}"
        raise InputError(
            f"{_where(folder)}: holds {len(packed):,} .tar or .npy files ({_some(packed)}) and {len(images):,} images, "
            f"wanted images alone; name the files by a pattern of their own, such as {pattern}, and keep images to be "
            "read in a folder without them"
        )
    if not images:
        raise InputError(f"{_where(folder)}: {_why_none(root, folder, paths)}")
    return images, _num_others(paths)


def _why_none(root: Root, folder: str, paths: Sequence[str]) -> str:
    """Why no image is found at an address that is read as a folder's, in which `paths` lie, and what to do."""
    if paths or _is_local_folder(root, folder):
        return (
            f"no images there ({_some(_suffixes(paths))}); name the manifest.json of a published version, a folder of "
            f"images ({', '.join(IMAGE_SUFFIXES)}), or .tar or .npy files"
        )
    if folder.lower().endswith(_COMPRESSED):
        return "compressed tars are not read: unpack it or make a plain tar"
    if root.exists(folder):
        if _is_image(folder):
            return f"is one image: name its folder, {posixpath.dirname(folder)}"
        return "is a file, but neither a .tar nor a .npy: name a folder of images, or .tar or .npy files"
    if (fixed := pattern_folder(folder)) is not None:
        return f"patterns are for .tar and .npy files: name the folder, such as {fixed or '/'}"
    return "does not exist; check the path, and that this machine can reach it"


def _is_local_folder(root: Root, folder: str) -> bool:
    local = root.local_path(folder)
    return local is not None and local.is_dir()


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _num_others(names: Sequence[str]) -> int:
    """How many are not read, though they may be images."""
    return sum(not _is_image(name) and posixpath.splitext(name)[1].lower() not in _BESIDE for name in names)


def _images(root: Root, spec: Mapping[str, Any]) -> tuple[list[_Named], int]:
    """The images of a part, by their names within the set, and how many files beside them may be others."""
    if "others" not in spec:
        return _tar_images(root, spec["of"])
    folder = f"{input_address(root, spec['set']).rstrip('/')}/"
    return [(path.removeprefix(folder), path) for path in spec["paths"]], spec["others"]


def _tar_images(root: Root, path: str) -> tuple[list[_Named], int]:
    """The images in a tar, and how many members may be others; raises InputError when it is broken or holds none."""
    try:
        with root.open(path) as file:
            members = list(walk(file, path))
    except TarFault as error:
        raise InputError(f"dedup.against: {error}; mend the tar or leave it out") from error
    images = [member for member in members if _is_image(member.name)]
    names = [member.name for member in members]
    if not images:
        raise InputError(
            f"{_where(path)}: no images among its {len(members):,} members ({_some(_suffixes(names))}), wanted some "
            f"that end in {', '.join(IMAGE_SUFFIXES)}; pack the images themselves, or leave the tar out"
        )
    base = posixpath.basename(path)
    return [(f"{base}/{item.name}", (path, item.offset, item.nbytes)) for item in images], _num_others(names)


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


def _suffixes(names: Sequence[str]) -> list[str]:
    return [posixpath.splitext(name)[1] or "no suffix" for name in names]


def _some(names: Sequence[str]) -> str:
    """The first few different ones, in a message."""
    different = list(dict.fromkeys(names))
    return ", ".join(different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "") or "it is empty"


@functools.lru_cache(maxsize=1)
def _load(config: str, weights: str, device: str, num_threads: int) -> Scorer:
    return Scorer.load(ScorerConfig.model_validate_json(config), device, num_threads, weights)
