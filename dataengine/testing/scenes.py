"""Draws scenes of coloured shapes and renders them as photo-like pictures with true captions. In goes a
seeded generator, out come scenes, pictures, captions and a quality between 1 and 10; the words of a scene say
what is in its picture, and its ``instance`` seeds all that words leave open (light, positions, grain). It
knows no files, formats or models.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from dataengine.testing import drawing, textures

Rgb: TypeAlias = tuple[int, int, int]

KINDS = tuple(drawing.OUTLINES)
COLORS: dict[str, Rgb] = {
    "red": (210, 35, 40),
    "orange": (240, 130, 25),
    "yellow": (245, 215, 45),
    "green": (45, 150, 60),
    "cyan": (40, 190, 205),
    "blue": (40, 75, 205),
    "purple": (130, 50, 165),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (22, 22, 24),
}
SIZES: dict[str, float] = {"small": 0.075, "medium": 0.125, "large": 0.20}  # radius, share of the short side
BACKGROUNDS: dict[str, Rgb] = {
    "gray": (135, 135, 138),
    "navy": (34, 44, 92),
    "beige": (214, 196, 160),
    "mint": (165, 214, 186),
    "lavender": (188, 172, 222),
    "brown": (108, 74, 50),
    "olive": (112, 114, 54),
    "teal": (30, 100, 104),
}
TEXTURES = tuple(textures.TEXTURES)
LAYOUTS: dict[str, tuple[tuple[float, float], ...]] = {  # centres (x, y) of the shapes, in their order
    "center": ((0.5, 0.5),),
    "left": ((0.27, 0.5),),
    "right": ((0.73, 0.5),),
    "top": ((0.5, 0.28),),
    "bottom": ((0.5, 0.72),),
    "left of": ((0.27, 0.5), (0.73, 0.5)),
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "inside": ((0.5, 0.5), (0.5, 0.5)),
    "row": ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
    "column": ((0.5, 0.19), (0.5, 0.5), (0.5, 0.81)),
    "pyramid": ((0.5, 0.27), (0.25, 0.74), (0.75, 0.74)),
}
_SHIFTS = {"row": (0.02, 0.17), "column": (0.17, 0.02), "left of": (0.03, 0.14), "above": (0.14, 0.03)}
_SCALES = {1: 1.4, 2: 1.15, 3: 1.0}  # a lone shape fills more of the picture
_MIN_COLOR_DISTANCE = 95  # RGB distance below which a shape would vanish into its background


@dataclass(frozen=True)
class Shape:
    """One thing in a scene, in words of ``KINDS``, ``COLORS`` and ``SIZES``."""

    kind: str
    color: str
    size: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in words; ``instance`` seeds everything that words leave open.

    ``layout`` relates the shapes in their order: in ``left of`` the first is left of the second, in
    ``inside`` the first is inside the second.
    """

    shapes: tuple[Shape, ...]
    layout: str
    background: str
    texture: str
    instance: int


@dataclass(frozen=True)
class Faults:
    """How far a rendering falls short, each 0 to 1 (worst): grey veil, pale colours, too little light."""

    haze: float
    fade: float
    gloom: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene of one to three shapes whose colours differ from one another and from the background."""
    layout = str(rng.choice(list(LAYOUTS)))
    background = str(rng.choice(list(BACKGROUNDS)))
    num_shapes = len(LAYOUTS[layout])
    colors = rng.choice(_visible_colors(background), num_shapes, replace=False)
    kinds = rng.choice(KINDS, num_shapes)
    shapes = zip(kinds, colors, _draw_sizes(rng, layout), strict=True)
    return Scene(
        shapes=tuple(Shape(str(kind), str(color), size) for kind, color, size in shapes),
        layout=layout,
        background=background,
        texture=str(rng.choice(TEXTURES)),
        instance=int(rng.integers(1 << 48)),
    )


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene's RGB picture, a pure function of its arguments; other sizes show the same, resampled."""
    rng = _generator(scene, "picture")
    outlines = _outlines(scene, rng, width, height)
    light_angle, depth, grain = rng.uniform((0, 0.25, 2), (2 * math.pi, 0.55, 7))
    offset = -0.02 * np.array([math.cos(light_angle), math.sin(light_angle)])
    shadow = drawing.shadows([[contour + offset for contour in outline] for outline in outlines], depth, width, height)
    grid = drawing.backdrop(BACKGROUNDS[scene.background], scene.texture, shadow, rng)
    picture = drawing.enlarge(grid, width, height)
    for shape, outline in reversed(list(zip(scene.shapes, outlines, strict=True))):
        drawing.paint(picture, outline, _shift_color(COLORS[shape.color], rng), light_angle)
    faults = _faults(scene)
    developed = drawing.develop(picture, 1 - 0.4 * faults.haze, 1 - 0.5 * faults.fade, 1 - 0.4 * faults.gloom)
    return Image.fromarray(drawing.add_grain(developed, rng, grain))


def quality(scene: Scene) -> float:
    """Aesthetic quality of the scene's rendering, 1 (worst) to 10: clear, colourful and well lit is good."""
    faults = _faults(scene)
    return 10 - 9 * (0.4 * faults.haze + 0.3 * faults.fade + 0.3 * faults.gloom)


def captions(scene: Scene) -> dict[str, str]:
    """True captions in several wordings, chosen by the scene: ``caption``, ``alt`` (terse), ``long``."""
    rng = _generator(scene, "wording")
    things = [_name(shape, rng) for shape in scene.shapes]
    plain_things = [f"{shape.color} {shape.kind}" for shape in scene.shapes]
    core = _pick(rng, _RELATIONS[scene.layout]).format(*things)
    ground = _pick(rng, _GROUNDS).format(f"{scene.texture} {scene.background}")
    mood = _mood(_faults(scene))
    medium = _pick(rng, _MEDIA).format(f"{mood} " if mood and rng.random() < 0.5 else "")
    return {
        "caption": _pick(rng, ("{0}{1} {2}", "{0}{1}, {2}")).format(medium, core, ground),
        "alt": _pick(rng, _ALTS).format(
            _pick(rng, _RELATIONS[scene.layout]).format(*plain_things), scene.background, scene.texture
        ),
        "long": _pick(rng, _LONGS).format(
            mood or "simple",
            core,
            ground,
            scene.background,
            scene.texture,
            len(things),
            "s" * (len(things) > 1),
        ),
    }


_MEDIA = ("", "", "a {0}photo of ", "a {0}picture of ", "{0}image of ", "{0}rendering of ")
_GROUNDS = (
    "on a {0} background",
    "against a {0} backdrop",
    "in front of a {0} wall",
    "with a {0} background",
)
_ALTS = ("{0}", "{0}", "{0} on {1}", "{0}, {2} {1}", "{1} background, {0}")
_LONGS = (
    "This {0} picture shows {1}. The background is {3} and {4}, with {5} shape{6} on it.",
    "{1}, {2}. A {0} picture on a {4} {3} surface.",
    "We see {1} {2}. It is a {0} picture of {5} shape{6}.",
    "A {4} {3} surface fills the {0} picture; there is {1}.",
)
_SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium", "medium-sized"), "large": ("large", "big")}
_RELATIONS: dict[str, tuple[str, ...]] = {
    "center": ("{0} in the center", "{0} in the middle", "centered {0}"),
    "left": ("{0} on the left", "{0} at the left side"),
    "right": ("{0} on the right", "{0} at the right side"),
    "top": ("{0} at the top", "{0} near the upper edge"),
    "bottom": ("{0} at the bottom", "{0} near the lower edge"),
    "left of": ("{0} left of {1}", "{0} to the left of {1}", "{1} to the right of {0}", "{1} right of {0}"),
    "above": ("{0} above {1}", "{0} over {1}", "{1} below {0}", "{1} under {0}"),
    "inside": ("{0} inside {1}", "{0} within {1}", "{1} with {0} inside", "{1} around {0}"),
    "row": ("{0}, {1} and {2} in a row", "from left to right {0}, {1} and {2}", "a row of {0}, {1}, {2}"),
    "column": (
        "{0}, {1} and {2} in a column",
        "from top to bottom {0}, {1}, {2}",
        "stacked {0}, {1} and {2}",
    ),
    "pyramid": ("{0} on top of {1} and {2}", "{1} and {2} below {0}", "a pyramid of {0}, {1} and {2}"),
}


def _name(shape: Shape, rng: np.random.Generator) -> str:
    return f"a {_pick(rng, _SIZE_WORDS[shape.size])} {shape.color} {shape.kind}"


def _mood(faults: Faults) -> str:
    """Word for the worst fault, "vivid" where there is hardly any, and nothing in between."""
    words = {"hazy": faults.haze, "faded": faults.fade, "dark": faults.gloom}
    worst = max(words, key=lambda word: words[word])
    if words[worst] > 0.6:
        return worst
    return "vivid" if words[worst] < 0.3 else ""


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _generator(scene: Scene, purpose: str) -> np.random.Generator:
    """Randomness that belongs to one scene and purpose, the same on every machine."""
    digest = hashlib.blake2b(f"{purpose} {scene!r}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _faults(scene: Scene) -> Faults:
    haze, fade, gloom = _generator(scene, "faults").uniform(0, 1, 3)
    return Faults(float(haze), float(fade), float(gloom))


def _visible_colors(background: str) -> list[str]:
    ground = np.array(BACKGROUNDS[background])
    return [name for name, rgb in COLORS.items() if np.linalg.norm(ground - rgb) >= _MIN_COLOR_DISTANCE]


def _draw_sizes(rng: np.random.Generator, layout: str) -> list[str]:
    """Sizes that fit: the outer of two is large and the inner small, and of three at most one is large."""
    if layout == "inside":
        return ["small", "large"]
    num_shapes = len(LAYOUTS[layout])
    sizes = [str(size) for size in rng.choice(list(SIZES), num_shapes)]
    first_large = sizes.index("large") if num_shapes == 3 and "large" in sizes else None
    if first_large is None:
        return sizes
    return ["medium" if size == "large" and at > first_large else size for at, size in enumerate(sizes)]


def _outlines(scene: Scene, rng: np.random.Generator, width: int, height: int) -> list[drawing.Contours]:
    """Contours of each shape, relative to the picture, with the instance's shift, turn and stretch."""
    common = rng.uniform(-1, 1, 2) * _SHIFTS.get(scene.layout, (0.07, 0.07))
    scale = _SCALES[len(scene.shapes)] * min(width, height)
    outlines = []
    for order, (shape, center) in enumerate(zip(scene.shapes, LAYOUTS[scene.layout], strict=True)):
        stretch, angle, shift_x, shift_y = rng.uniform((0.9, -0.2, -0.03, -0.03), (1.12, 0.2, 0.03, 0.03))
        outer = 1.6 if scene.layout == "inside" and order == 1 else 1.0
        radius = SIZES[shape.size] * scale * stretch * outer
        place = (center[0] + common[0] + shift_x, center[1] + common[1] + shift_y)
        outlines.append(drawing.outline(shape.kind, place, (radius / width, radius / height), angle))
    return outlines


def _shift_color(color: Rgb, rng: np.random.Generator) -> Rgb:
    red, green, blue = np.clip(np.array(color) + rng.uniform(-14, 14, 3), 0, 255)
    return int(red), int(green), int(blue)
