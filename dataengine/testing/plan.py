"""What grows in the sample web: pictures in every form, copies of them, captions that repeat or lie, and
every fault of pictures, hosts and tars. In go a seed and a number of scenes, out comes every plant, bases
before their copies. It writes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

from dataengine.testing.faults import EMPTY_URL, FAULTS
from dataengine.testing.pictures import COPIES, FORMS, blur, half, jpeg
from dataengine.testing.planting import ARCHIVE, SOURCES, TABLES, Plant, Planter, Text, drop, group, text
from dataengine.testing.scenes import Scene, captions, render

MIN_SCENES = 60
"""Fewer have no room for one of every kind."""

_COPY_KINDS = tuple(COPIES)
_SPECIAL_FORMS = tuple(form for form in FORMS if form not in ("jpeg", "progressive_jpeg", "png", "webp"))
_DECORATIONS = {
    "csv_quotes": '{}, "as seen", 24" wide',
    "csv_newline": "{}\nFree shipping, today only",
    "csv_unicode": "{} – naïve café 😀 写真",
}
_PLAIN_CAPTION = "a {} {}"
_NEAR_CAPTIONS = (
    "This picture shows a {} {}. The background is plain and there is one shape in all, in clear light",
    "This picture shows a {} {}! The background is plain, and there is one shape in all, in clear light.",
    "This picture shows the {} {}. The background is plain and there is one shape in all, in clear light",
)


def plan(seed: int, num_scenes: int) -> Iterator[Plant]:
    """Every plant of a web with ``num_scenes`` good pictures; about a fifth as many copies and faults come on
    top.

    Raises ValueError when ``num_scenes`` is less than ``MIN_SCENES``.
    """
    if num_scenes < MIN_SCENES:
        raise ValueError(f"num_scenes is {num_scenes}, but one plant of every kind takes at least {MIN_SCENES}")
    planter = Planter(seed)
    num_each = max(1, num_scenes // 300)
    num_good = 0
    for plant in _good_plants(planter, num_scenes, num_each):
        num_good += plant.truth.duplicate_of is None
        yield plant
    for _ in range(num_scenes - num_good):
        yield planter.picture()
    for _ in range(num_each):
        yield from _rejected_plants(planter)
    yield from _faulty_plants(planter, num_each)
    yield from _torn_plants(planter)


def _good_plants(planter: Planter, num_scenes: int, num_each: int) -> Iterator[Plant]:
    """Pictures that are good in a special way, and copies of pictures."""
    yield from _copies(planter, max(2 * len(_COPY_KINDS), num_scenes // 9))
    for turn in range(max(1, num_scenes // 100)):
        yield from _shared_url(planter, TABLES[1 + turn % 2])
    for turn in range(num_each):
        yield from _special_forms(planter)
        yield from _captions_alike(planter, turn)
        yield from _several_captions(planter, TABLES[(turn + 1) % 3])
        for kind, pattern in _DECORATIONS.items():
            yield _decorated(planter, kind, pattern)


def _copies(planter: Planter, num_copies: int) -> Iterator[Plant]:
    """Bases with one or two copies each; the first copy of a kind shows a photo, in the archive if it may."""
    for turn in range(num_copies):
        lap, order = divmod(turn, len(_COPY_KINDS))
        kind = _COPY_KINDS[order]
        lossless = kind == "lossless_copy"
        if lossless or turn % 3 != 2:
            source = TABLES[(turn + lap) % 3] if lap else "photos"
            base = planter.picture(source=source, form="png" if lossless else "jpeg")
            yield (base := group(base, base))
        places = TABLES if lossless else SOURCES  # tars of the archive hold JPEG files only
        place = places[turn % len(places)] if lap else places[-1]
        yield _copy(planter, base, kind, place, rephrased=(turn + lap) % 2 == 1)


def _copy(planter: Planter, base: Plant, kind: str, source: str, *, rephrased: bool) -> Plant:
    """A copy of ``base`` with the base's text, or with another true one."""
    assert base.body is not None
    texts = base.texts
    if rephrased:
        others = (text(base.scene, phrasing) for phrasing in ("long", "caption"))
        texts = (next(other for other in others if other.caption != base.texts[0].caption),)
    return planter.copy(base, kind, source, COPIES[kind](base.body), texts)


def _shared_url(planter: Planter, source: str) -> Iterator[Plant]:
    """A photo, and another source that lists the same URL."""
    base = planter.picture(source="photos")
    yield (base := group(base, base))
    listed = replace(base, truth=replace(base.truth, source=source, kind="same_url"), pages=(), claimed_sha256=None)
    yield group(listed, base)


def _special_forms(planter: Planter) -> Iterator[Plant]:
    for turn, form in enumerate(_SPECIAL_FORMS):
        scene = planter.draw()
        scene = _without_color(scene) if form == "gray_jpeg" else scene
        yield planter.picture(form, source=TABLES[turn % 3], form=form, scene=scene)


def _without_color(scene: Scene) -> Scene:
    """White and black shapes on gray: a scene whose words stay true without colour."""
    shades = itertools.cycle(("white", "black"))
    shapes = tuple(replace(shape, color=shade) for shape, shade in zip(scene.shapes, shades, strict=False))
    return replace(scene, shapes=shapes, background="gray")


def _captions_alike(planter: Planter, turn: int) -> Iterator[Plant]:
    """Pairs of clearly different pictures whose captions, all true, are the same or nearly so."""
    pairs = {
        "same_caption": (_PLAIN_CAPTION, _PLAIN_CAPTION),
        "near_caption": (_NEAR_CAPTIONS[0], _NEAR_CAPTIONS[1 + turn % 2]),
    }
    for kind, patterns in pairs.items():
        for scene, pattern in zip(_scenes_alike(planter), patterns, strict=True):
            shape = scene.shapes[0]
            caption = pattern.format(shape.color, shape.kind)
            yield planter.picture(kind, scene=scene, texts=(replace(text(scene), caption=caption),))


def _scenes_alike(planter: Planter) -> tuple[Scene, Scene]:
    """Two scenes of one shape of one kind and colour, before different backgrounds."""
    first = planter.draw(until=lambda scene: len(scene.shapes) == 1)
    shape = first.shapes[0]
    second = planter.draw(
        until=lambda scene: (
            len(scene.shapes) == 1
            and scene.shapes[0].color == shape.color
            and scene.background != first.background
            and scene.layout != first.layout
        )
    )
    return first, replace(second, shapes=(replace(second.shapes[0], kind=shape.kind),))


def _several_captions(planter: Planter, source: str) -> Iterator[Plant]:
    """One URL that two rows of one source list with different captions."""
    scene = planter.draw()
    yield planter.picture("listed_twice", source=source, scene=scene, texts=(text(scene), text(scene, "long")))


def _decorated(planter: Planter, kind: str, pattern: str) -> Plant:
    """A caption that is hard to write as CSV."""
    scene = planter.draw()
    caption = pattern.format(captions(scene)["caption"])
    return planter.picture(kind, source="shop", scene=scene, texts=(replace(text(scene), caption=caption),))


def _rejected_plants(planter: Planter) -> Iterator[Plant]:
    """Pictures that arrive and that rules reject."""
    scene = planter.draw()
    lie = planter.draw(until=lambda other: _nothing_in_common(scene, other))
    yield drop(planter.picture("mismatched_caption", scene=scene, texts=(text(lie),)), "select", "clip_score")
    small = planter.picture("too_small", encode=lambda scene, _width, _height: jpeg(render(scene, 56, 48)))
    yield drop(small, "select", "min_side")
    wide = planter.picture("too_wide", encode=lambda scene, _width, _height: jpeg(render(scene, 960, 240)))
    yield drop(wide, "select", "aspect")
    blurred = planter.picture("blurred", encode=lambda scene, *size: jpeg(blur(render(scene, *size))))
    yield drop(blurred, "select", "sharp")


def _nothing_in_common(scene: Scene, other: Scene) -> bool:
    return (
        scene.layout != other.layout
        and len(scene.shapes) != len(other.shapes)
        and scene.texture != other.texture
        and scene.background != other.background
        and {shape.kind for shape in scene.shapes}.isdisjoint(shape.kind for shape in other.shapes)
        and {shape.color for shape in scene.shapes}.isdisjoint(shape.color for shape in other.shapes)
    )


def _faulty_plants(planter: Planter, num_each: int) -> Iterator[Plant]:
    """Rows whose URL fails, spread over the URL tables."""
    for turn, fault in enumerate(FAULTS * num_each):
        yield planter.fault(fault, TABLES[turn % 3])
    yield planter.fault(EMPTY_URL, "photos")
    for _ in range(num_each):
        replaced = planter.picture("hash_mismatch", source="photos")
        replaced = replace(replaced, claimed_sha256=hashlib.sha256(b"the picture that was here").hexdigest())
        yield drop(replaced, "download", "hash_mismatch")


def _torn_plants(planter: Planter) -> Iterator[Plant]:
    """What is wrong in the archive's tars; the second bearer of a key comes last, apart from the first."""
    bearer = planter.picture("key_bearer", source=ARCHIVE)
    yield bearer
    dotted = planter.picture("dotted_key", source=ARCHIVE)
    yield replace(dotted, truth=replace(dotted.truth, member=f"{dotted.truth.member}.v1.2"))
    silent = planter.picture("no_caption", source=ARCHIVE, texts=(Text(None, ""),))
    yield drop(silent, "select", "no_clip_score")
    corrupt = planter.picture("corrupt_member", source=ARCHIVE)
    assert corrupt.body is not None
    yield drop(replace(corrupt, body=half(corrupt.body)), "download", "bad_image")
    imageless = planter.picture("half_sample", source=ARCHIVE)
    yield drop(replace(imageless, body=None), "download", "missing_image")
    second = planter.picture("duplicate_key", source=ARCHIVE)
    place = replace(second.truth, shard=bearer.truth.shard, member=bearer.truth.member, occurrence=1)
    yield drop(replace(second, truth=place), "download", "duplicate_member")
