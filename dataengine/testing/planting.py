"""Plants of the sample web: a candidate with its truth, the rows that list it and the pages behind it. A
planter gives every plant its own number, and from that its scene, size, format and URL; which plants a web
needs is not its business.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from dataengine.testing.faults import WebFault
from dataengine.testing.pages import Served, page_at
from dataengine.testing.pictures import FORMS, content_type, draw_size, jpeg, suffix
from dataengine.testing.scenes import Scene, captions, draw_scene, render
from dataengine.testing.truth import DROPPED, Planted

Encoder: TypeAlias = Callable[[Scene, int, int], bytes]
"""Makes the file of a scene at a width and height."""

TABLES = ("photos", "shop", "blog")
ARCHIVE = "archive"
SOURCES = (*TABLES, ARCHIVE)
NUM_SHARDS = 3

_SOURCE_SHARES = (0.4, 0.2, 0.2, 0.2)
_FORM_SHARES = {"jpeg": 0.7, "progressive_jpeg": 0.1, "png": 0.08, "webp": 0.12}
_PHRASING = {"photos": "caption", "shop": "alt", "blog": "long", "archive": "caption"}
_URLS = {
    "photos": ("http://photos.test/2021/{:05d}.{}", "http://cdn.test/p/{:05d}.{}"),
    "shop": ("http://shop.test/items/{:05d}/main.{}?w=640&v=2", "http://cdn.test/s/{:05d}.{}"),
    "blog": ("http://blog.test/posts/{:05d}.{}",),
    "archive": ("http://archive.test/{:05d}.{}",),
}


@dataclass(frozen=True)
class Text:
    """What one input row says of its picture; no caption is None. Only some sources hold the ``alt`` text."""

    caption: str | None
    alt: str


@dataclass(frozen=True)
class Plant:
    """One candidate: its truth, the texts of the rows that list it, its picture file, and its pages.

    ``claimed_sha256`` is what the source says the bytes hash to, if it says anything.
    """

    number: int
    truth: Planted
    scene: Scene
    texts: tuple[Text, ...]
    body: bytes | None
    pages: tuple[Served, ...] = ()
    claimed_sha256: str | None = None


def text(scene: Scene, phrasing: str = "caption") -> Text:
    """A true text of the scene: ``caption``, ``alt`` or ``long`` is its caption."""
    wordings = captions(scene)
    return Text(wordings[phrasing], wordings["alt"])


def drop(plant: Plant, stage: str, reason: str) -> Plant:
    """The plant, expected to be dropped; what download drops has no bytes to hash."""
    sha256 = None if stage == "download" else plant.truth.sha256
    truth = replace(plant.truth, expected_state=DROPPED, expected_stage=stage, expected_reason=reason, sha256=sha256)
    return replace(plant, truth=truth)


def group(plant: Plant, base: Plant) -> Plant:
    """The plant as one of those that show the picture of ``base``: one stays, the others are duplicates."""
    name = base.truth.name
    truth = replace(
        plant.truth,
        group=name,
        duplicate_of=None if plant is base else name,
        expected_stage="select",
        expected_reason="duplicate_image",
    )
    return replace(plant, truth=truth)


class Planter:
    """Makes plants, numbered as they are asked for; what is drawn for one follows from seed and number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numbers = itertools.count()

    def draw(self, *, until: Callable[[Scene], bool] = lambda _: True) -> Scene:
        """A scene of its own, that meets a condition; takes a number."""
        rng = self._rng(next(self._numbers))
        while not until(scene := draw_scene(rng)):
            pass
        return scene

    def picture(
        self,
        kind: str = "good",
        *,
        source: str | None = None,
        form: str | None = None,
        scene: Scene | None = None,
        texts: tuple[Text, ...] = (),
        encode: Encoder | None = None,
    ) -> Plant:
        """A plant whose picture arrives; what is not given is drawn, and the text follows the picture.

        ``form`` is a key of ``FORMS``; ``encode`` stands in for it where the file is out of the ordinary.
        """
        number = next(self._numbers)
        rng = self._rng(number)
        scene = scene or draw_scene(rng)
        source = source or str(rng.choice(SOURCES, p=_SOURCE_SHARES))
        drawn = str(rng.choice(list(_FORM_SHARES), p=list(_FORM_SHARES.values())))
        encode = encode or _encoder("jpeg" if source == ARCHIVE else form or drawn)
        body = encode(scene, *draw_size(rng))
        texts = texts or (text(scene, _PHRASING[source]),)
        truth = Planted(source, "", kind, scene=number, num_rows=len(texts))
        return _settle(Plant(number, truth, scene, texts, body))

    def copy(self, base: Plant, kind: str, source: str, body: bytes, texts: tuple[Text, ...]) -> Plant:
        """A plant that shows the picture of ``base``."""
        truth = Planted(source, "", kind, scene=base.number, num_rows=len(texts))
        plant = _settle(Plant(next(self._numbers), truth, base.scene, texts, body))
        return group(plant, base)

    def fault(self, fault: WebFault, source: str) -> Plant:
        """A plant of a URL table whose URL fails in the given way."""
        number = next(self._numbers)
        rng = self._rng(number)
        scene = draw_scene(rng)
        body = jpeg(render(scene, *draw_size(rng)))
        url = fault.url.format(f"{number:05d}-{fault.kind}")
        truth = Planted(source, url, fault.kind, scene=number, sha256=_sha256(body))
        plant = Plant(number, truth, scene, (text(scene),), body, tuple(fault.answer(url, body)))
        return plant if fault.reason is None else drop(plant, "download", fault.reason)

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, number))


def _encoder(form: str) -> Encoder:
    return lambda scene, width, height: FORMS[form](render(scene, width, height))


def _settle(plant: Plant) -> Plant:
    """The plant with its URL, and its place: a member of a tar, or a page of the source's."""
    assert plant.body is not None
    number, source = plant.number, plant.truth.source
    addresses = _URLS[source]
    url = addresses[number % len(addresses)].format(number, suffix(plant.body))
    truth = replace(plant.truth, url=url, sha256=_sha256(plant.body))
    if source == ARCHIVE:
        shard = f"{ARCHIVE}-{number % NUM_SHARDS:06d}.tar"
        return replace(plant, truth=replace(truth, shard=shard, member=f"{number:09d}", occurrence=0))
    page = page_at(url, headers={"Content-Type": content_type(plant.body)})
    claimed = truth.sha256 if source == "photos" and number % 3 else None
    return replace(plant, truth=truth, pages=((page, plant.body),), claimed_sha256=claimed)


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
