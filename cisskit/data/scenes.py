"""Embedded scenes: small pictures with pixel labels, drawn with numpy while you wait. No files, no download.

A class is a shape with a texture ("striped square"). It has a colour of its own too, but each object strays from it;
size, proportions, rotation, texture angle and occlusion say nothing. Two to five objects of different classes share
a picture, so that at every step of a scenario the pictures also hold classes of other steps, unlabelled. The ground
is a gradient, a grating or soft blobs, littered with things that are background: thin lines, small bits in the
objects' colours, and soft patches that carry an object's texture and no shape.

Two domains: "day" (pale grounds, strong colours, even light) and "night" (dark grounds, glowing colours, one pool of
light, coarser textures, more noise). One index has the same label in both: the same things by another light.

Everything is a pure function of (seed, split, index, size, domain). Lengths below are in pixels of a 64 px scene and
are scaled to the size asked for.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cisskit.errors import KitError, unknown

SIZES = (64, 96)
SPLITS = ("train", "heldout", "test")
DOMAINS = ("day", "night")

CLASSES: tuple[tuple[str, str], ...] = (
    ("striped", "square"),
    ("dotted", "disc"),
    ("checked", "triangle"),
    ("striped", "ring"),
    ("dotted", "star"),
    ("checked", "square"),
    ("striped", "cross"),
    ("checked", "disc"),
    ("dotted", "crescent"),
)
"""(texture, shape) of labels 1..9. Two shapes come twice and every texture three times: neither alone names a class."""

STRAY = 0.22
"""A class has its own colour, and each object strays from it by up to this share of the way to any other class's."""

PALETTE: NDArray[np.uint8] = np.array(
    [
        (40, 40, 40),
        (213, 94, 0),
        (230, 159, 0),
        (240, 228, 66),
        (0, 158, 115),
        (86, 180, 233),
        (0, 114, 178),
        (140, 90, 230),
        (204, 121, 167),
        (238, 238, 238),
    ],
    dtype=np.uint8,
)
"""Colours of labels 0..9 in label pictures: the seven of Okabe and Ito, which colour-blind eyes tell apart, a violet and
a white. They are close to the colours of the objects by day."""

MIN_VISIBLE = 24
"""Every object keeps at least this many visible pixels: presence in an image means something to see."""

N_OBJECTS = (2, 3, 4, 5)
N_OBJECTS_P = (0.15, 0.30, 0.35, 0.20)

Image = NDArray[np.uint8]
Label = NDArray[np.uint8]
Plane = NDArray[np.floating]  # float32 throughout


@dataclass(frozen=True)
class Domain:
    """How a scene is painted. Colours are RGB in [0, 1]."""

    grounds: Plane  # (n, 3)
    paints: Plane  # (9, 3), the classes' own colours; bits and patches borrow them
    accents: Plane  # (2, 3): the textures' second colour, light or dark
    dark_accents: float  # how often it is dark
    texture_scale: float
    noise: float  # standard deviation, of 1
    pool_of_light: bool


def _rgb(*colours: tuple[int, int, int]) -> Plane:
    return np.array(colours, dtype=np.float32) / 255


_LOOKS = {
    "day": Domain(
        grounds=_rgb((219, 204, 173), (178, 194, 168), (173, 199, 219), (222, 191, 184), (189, 186, 184), (199, 191, 217)),
        paints=_rgb(
            (206, 62, 54), (232, 130, 38), (226, 178, 44), (58, 148, 84), (24, 142, 150), (42, 98, 190), (116, 70, 168),
            (200, 68, 136), (124, 78, 50),
        ),
        accents=_rgb((248, 241, 222), (38, 38, 52)),
        dark_accents=0.2,
        texture_scale=1.0,
        noise=0.035,
        pool_of_light=False,
    ),
    "night": Domain(
        grounds=_rgb((30, 38, 72), (46, 34, 78), (20, 56, 64), (62, 30, 54), (46, 52, 66)),
        paints=_rgb(
            (244, 104, 100), (255, 172, 78), (170, 222, 96), (92, 226, 172), (92, 200, 240), (112, 136, 255), (190, 128, 255),
            (244, 124, 206), (206, 162, 128),
        ),
        accents=_rgb((226, 234, 255), (84, 74, 140)),
        dark_accents=0.5,
        texture_scale=1.35,
        noise=0.05,
        pool_of_light=True,
    ),
}  # fmt: skip


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Plane, Plane]:
    """Column and row coordinates as (1, size) and (size, 1)."""
    line = np.arange(size, dtype=np.float32)
    return line[None, :], line[:, None]


# --- shapes: distance to the outline in pixels, negative inside; u, v are centred and rotated, r is the radius ---


def _disc(u: Plane, v: Plane, r: float) -> Plane:
    return np.sqrt(u * u + v * v) - 0.92 * r


def _ring(u: Plane, v: Plane, r: float) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.69 * r) - 0.33 * r


def _square(u: Plane, v: Plane, r: float) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.80 * r


def _triangle(u: Plane, v: Plane, r: float) -> Plane:
    return np.maximum(0.866025 * np.abs(u) - 0.5 * v, v) - 0.64 * r


def _cross(u: Plane, v: Plane, r: float) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - r, np.minimum(a, b) - 0.40 * r)


def _star(u: Plane, v: Plane, r: float) -> Plane:
    """Five points: two folds bring all ten edges onto one, a line from the tip to the inner corner."""
    x, y = np.abs(u), v
    for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        over = 2 * np.maximum(nx * x + ny * y, 0)
        x, y = x - nx * over, y - ny * over
    tip = 1.15 * r
    edge_x, edge_y = 0.58 * 0.587785, 0.58 * 0.809017 - 1
    return ((y - tip) * edge_x - np.abs(x) * edge_y) / math.hypot(edge_x, edge_y)


def _crescent(u: Plane, v: Plane, r: float) -> Plane:
    bite = u - 0.66 * r
    v2 = v * v
    return np.maximum(np.sqrt(u * u + v2) - r, 0.68 * r - np.sqrt(bite * bite + v2))


_SHAPES = {
    "disc": _disc, "ring": _ring, "square": _square, "triangle": _triangle, "cross": _cross, "star": _star,
    "crescent": _crescent,
}  # fmt: skip


def _texture(kind: str, x: Plane, y: Plane, angle: float, period: float, phase: tuple[float, float]) -> Plane:
    """Share of the second colour in [0, 1] at columns x (1, w) and rows y (h, 1)."""
    k = 2 * math.pi / period
    kx, ky = k * math.cos(angle), k * math.sin(angle)
    a = np.sin(kx * x + (ky * y + np.float32(phase[0])))
    if kind == "striped":
        return np.clip(0.5 + 1.3 * a, 0, 1)
    b = np.sin(-ky * x + (kx * y + np.float32(phase[1])))
    if kind == "checked":
        return np.clip(0.5 + 2.2 * a * b, 0, 1)
    return np.clip(1.3 * (a + b) - 0.35, 0, 1)  # dotted


@dataclass(frozen=True)
class _Thing:
    """One placed object: its class, its window in the image, and its coverage."""

    label: int
    rows: slice
    columns: slice
    distance: Plane
    alpha: Plane


def _place(rng: np.random.Generator, size: int) -> tuple[list[_Thing], Label]:
    """Objects from back to front, and the label. Draws again until every object shows enough of itself."""
    scale = size / 64
    x, y = _grid(size)
    while True:
        n = int(rng.choice(N_OBJECTS, p=N_OBJECTS_P))
        chosen = (rng.permutation(9)[:n] + 1).tolist()
        label = np.zeros((size, size), dtype=np.uint8)
        things: list[_Thing] = []
        taken: list[tuple[float, float, float]] = []
        for c in chosen:
            r, turn, stretch, *spots = rng.random(3 + 2 * 4).tolist()
            r = scale * (11.5 + 5.0 * r)
            inner = 0.75 * r  # a quarter of the radius may leave the image
            span = size - 1 - 2 * inner
            best = None
            for i in range(0, len(spots), 2):  # the roomiest of four spots: occlusion stays, burial is rare
                cx, cy = inner + span * spots[i], inner + span * spots[i + 1]
                room = min((math.hypot(cx - px, cy - py) - r - pr for px, py, pr in taken), default=0.0)
                if best is None or room > best[0]:
                    best = room, cx, cy
            assert best is not None
            _, cx, cy = best
            taken.append((cx, cy, r))
            reach = 1.25 * r + 1
            rows = slice(max(0, int(cy - reach)), min(size, int(cy + reach) + 2))
            columns = slice(max(0, int(cx - reach)), min(size, int(cx + reach) + 2))
            dx, dy = x[:, columns] - np.float32(cx), y[rows] - np.float32(cy)
            cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
            wide = 0.88 + 0.24 * stretch
            u, v = (cos * wide) * dx + (sin * wide) * dy, (-sin / wide) * dx + (cos / wide) * dy
            distance = _SHAPES[CLASSES[c - 1][1]](u, v, r)
            label[rows, columns][distance < 0] = c
            things.append(_Thing(c, rows, columns, distance, np.clip(0.5 - distance, 0, 1)))
        visible = np.bincount(label.ravel(), minlength=10)
        if visible[chosen].min() >= MIN_VISIBLE:
            return things, label


def _ground(rng: np.random.Generator, size: int, look: Domain) -> Plane:
    """(3, size, size): two colours joined by a gradient, a grating or blobs."""
    scale = size / 64
    x, y = _grid(size)
    first, second = look.grounds[rng.permutation(len(look.grounds))[:2]]
    kind, angle, period, phase, strength, other, turn = rng.random(7).tolist()
    angle *= 2 * math.pi
    cos, sin = math.cos(angle), math.sin(angle)
    along = (cos / size) * (x - size / 2) + (sin / size) * (y - size / 2)  # about -0.7..0.7
    mix = 0.5 + 0.5 * along
    if kind < 0.40:  # a grating, coarse or as fine as the objects' stripes
        k = 2 * math.pi / (scale * look.texture_scale * (4.5 + 11 * period))
        a = angle + 3 * turn
        mix = mix + (0.18 + 0.22 * strength) * np.sin((k * math.cos(a)) * x + ((k * math.sin(a)) * y + 6.28 * phase))
    elif kind < 0.75:  # blobs: two slow waves that cross
        k = 2 * math.pi / (scale * (16 + 20 * period))
        a = np.sin((k * cos) * x + ((k * sin) * y + 6.28 * phase))
        b = np.sin((-0.8 * k * sin) * x + ((k * cos) * y + 6.28 * other))
        mix = mix + (0.25 + 0.25 * strength) * (a * b)
    return first[:, None, None] + mix * (second - first)[:, None, None]


def _blend(canvas: Plane, alpha: Plane, colour: Plane) -> None:
    """Paint over a window, in place. canvas (3, h, w), alpha (h, w), colour (3, 1, 1) or (3, h, w)."""
    canvas += alpha * (colour - canvas)


def _litter(rng: np.random.Generator, canvas: Plane, look: Domain) -> None:
    """What is background although it looks like something: texture patches, lines, bits."""
    size = canvas.shape[1]
    scale = size / 64
    x, y = _grid(size)
    n_patches, n_lines, n_bits = (int(n) for n in rng.integers((0, 1, 1), (2, 4, 5)))
    for _ in range(n_patches):
        cx, cy, r, stretch, angle, period, pa, pb, accent, kind, strength = rng.random(11).tolist()
        cx, cy, r = size * cx, size * cy, scale * (6 + 5 * r)
        reach = 1.6 * r
        rows = slice(max(0, int(cy - reach)), min(size, int(cy + reach) + 2))
        columns = slice(max(0, int(cx - reach)), min(size, int(cx + reach) + 2))
        px, py = x[:, columns], y[rows]
        dx, dy = (px - cx) * ((0.75 + 0.5 * stretch) / r), (py - cy) / r
        alpha = np.clip(1.1 - 0.8 * (dx * dx + dy * dy), 0, 0.55 + 0.3 * strength)  # fades out: no outline to speak of
        paint = look.paints[rng.integers(len(look.paints))][:, None, None]
        second = look.accents[int(accent < look.dark_accents)][:, None, None]
        length = scale * look.texture_scale * (6.4 + 1.6 * period)
        t = _texture(("striped", "dotted", "checked")[int(3 * kind)], px, py, 6.28 * angle, length, (6.28 * pa, 6.28 * pb))
        _blend(canvas[:, rows, columns], alpha, paint + t * (second - paint))
    for _ in range(n_lines):
        angle, offset, width, tone = rng.random(4).tolist()
        cos, sin = math.cos(3.1416 * angle), math.sin(3.1416 * angle)
        away = cos * (x - size / 2) + (sin * (y - size / 2) + np.float32(size * (offset - 0.5)))
        alpha = np.clip(0.5 + 0.4 * width + 0.3 - np.abs(away), 0, 0.7)
        colour = look.accents[int(tone < 0.6)] if tone < 0.8 else look.paints[rng.integers(len(look.paints))]
        _blend(canvas, alpha, colour[:, None, None])
    for _ in range(n_bits):
        cx, cy, r, kind = rng.random(4).tolist()
        cx, cy, r = size * cx, size * cy, scale * (1.2 + 1.3 * r)
        rows, columns = slice(max(0, int(cy - 5)), int(cy + 6)), slice(max(0, int(cx - 5)), int(cx + 6))
        dx, dy = np.abs(x[:, columns] - cx), np.abs(y[rows] - cy)
        away = np.sqrt(dx * dx + dy * dy) if kind < 0.5 else np.maximum(dx, dy)
        paint = look.paints[rng.integers(len(look.paints))][:, None, None]
        _blend(canvas[:, rows, columns], np.clip(0.5 + r - away, 0, 1), paint)


def _paint(rng: np.random.Generator, canvas: Plane, thing: _Thing, look: Domain) -> None:
    """One object with its shadow, texture and a darker rim."""
    size = canvas.shape[1]
    scale = size / 64
    angle, period, pa, pb, accent, dim, stray = rng.random(7).tolist()
    x, y = _grid(size)
    texture = CLASSES[thing.label - 1][0]
    length = scale * look.texture_scale * (6.4 + 1.6 * period) * (1.15 if texture == "checked" else 1.0)
    t = _texture(texture, x[:, thing.columns], y[thing.rows], 6.28 * angle, length, (6.28 * pa, 6.28 * pb))
    own, other = look.paints[thing.label - 1], look.paints[rng.integers(len(look.paints))]
    paint = own + (STRAY * stray) * (other - own) + rng.normal(0, 0.04, 3).astype(np.float32)
    paint, second = paint[:, None, None], look.accents[int(accent < look.dark_accents)][:, None, None]
    window = canvas[:, thing.rows, thing.columns]
    shift = round(2 * scale)
    window[:, shift:, shift:] *= 1 - 0.30 * thing.alpha[:-shift, :-shift]
    rim = 1 - 0.45 * np.clip(1 + (thing.distance + 0.4) / scale, 0, 1)
    _blend(window, thing.alpha, (paint + t * (second - paint)) * (rim * (0.85 + 0.2 * dim)))


def _light(rng: np.random.Generator, canvas: Plane, look: Domain) -> Image:
    """Light, pixel noise, and the way to uint8 (size, size, 3)."""
    size = canvas.shape[1]
    x, y = _grid(size)
    angle, strength, cx, cy = rng.random(4).tolist()
    if look.pool_of_light:
        dx, dy = x / size - (0.2 + 0.6 * cx), y / size - (0.2 + 0.6 * cy)
        light = 0.62 + 0.53 * np.exp((-2.2 - 1.5 * strength) * (dx * dx)) * np.exp((-2.2 - 1.5 * strength) * (dy * dy))
    else:
        slope = 0.5 * strength / size
        light = 1 + (slope * math.cos(6.28 * angle)) * (x - size / 2) + (slope * math.sin(6.28 * angle)) * (y - size / 2)
    canvas *= light
    canvas += look.noise * rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas *= 255
    return np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))


def _check(seed: int, split: str, index: int, size: int, domain: str) -> None:
    if split not in SPLITS:
        raise unknown("split of the scenes", split, SPLITS)
    if domain not in DOMAINS:
        raise unknown("domain of the scenes", domain, DOMAINS)
    if size not in SIZES:
        raise KitError(
            f"scenes of {size} px were asked for; the scenes are drawn at {' or '.join(map(str, SIZES))} px. Choose one."
        )
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**32:
            raise KitError(f"the {name} of a scene is {value}; it must lie in 0..2**32 - 1.")


def scene(seed: int, split: str, index: int, size: int = 64, domain: str = "day") -> tuple[Image, Label]:
    """Draw one scene.

    Args:
        seed, index: 0..2**32 - 1. There is no last scene; a data set is the indices one decides to use.
        split: "train", "heldout" or "test": three streams of scenes without a common one.
        size: 64 or 96 pixels a side.
        domain: "day" or "night"; the label does not depend on it.

    Returns:
        image (size, size, 3) uint8 RGB, and label (size, size) uint8: 0 background, 1..9 as in `CLASSES`, no void.
        Two to five classes, one object each, at least `MIN_VISIBLE` pixels of each in sight.

    Raises:
        KitError: for any other size, split or domain, and for a negative seed or index.
    """
    _check(seed, split, index, size, domain)
    where = (seed, SPLITS.index(split), index, size)
    things, label = _place(np.random.default_rng(where), size)
    rng, look = np.random.default_rng((*where, 1 + DOMAINS.index(domain))), _LOOKS[domain]
    canvas = _ground(rng, size, look)
    _litter(rng, canvas, look)
    for thing in things:
        _paint(rng, canvas, thing, look)
    return _light(rng, canvas, look), label


def scenes(seed: int, split: str, count: int, size: int = 64, domain: str = "day") -> tuple[Image, Label]:
    """Scenes 0..count - 1 as images (count, size, size, 3) and labels (count, size, size), both uint8. See `scene`."""
    if count < 0:
        raise KitError(f"{count} scenes were asked for; the count must be 0 or more.")
    _check(seed, split, max(count - 1, 0), size, domain)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    labels = np.empty((count, size, size), dtype=np.uint8)
    for index in range(count):
        images[index], labels[index] = scene(seed, split, index, size, domain)
    return images, labels
