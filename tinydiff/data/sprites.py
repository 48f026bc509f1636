"""The embedded colour data set: ten kinds of small pictures in two colours on a third, at any size, any number of them.

Nothing is downloaded.  Each kind has two layers, a body and a detail on top of it, and each layer is an outline in a
square of side 2.  The outline is turned once into a signed distance field (fields.py).  A pixel u of an image is

    p     = M^-1 (u - shift)                           M = rotation . scale . mirror
    share = clip(0.5 + d(p), 0, 1)                     of each layer: soft edges
    pixel = background (1 - share) + colour share      the body first, then the detail

Shape alone tells the kind: hues, size, direction, place and background are drawn for each image, the same way for all
kinds.  Read next: cifar.py.
"""

from functools import lru_cache

import numpy as np

from tinydiff.backend import default_rng
from tinydiff.data.dataset import Dataset
from tinydiff.data.fields import look_up, signed_distance
from tinydiff.data.limits import check_memory

KINDS = ("heart", "star", "moon", "sun", "tree", "house", "fish", "flower", "mushroom", "boat")
SIZE = 16  # of an image, unless another one is asked for: two cores learn it in ten minutes
_RADIUS = 10.0  # of an outline within its field, in pixels of the field
_BLOCK = 500  # number of images drawn from one random stream
_PIXELS = 1 << 18  # drawn at a time


def load_sprites(split: str, seed: int, num: int | None = None, size: int = SIZE) -> Dataset:
    """Draw `num` sprites of a split, "train" or "test": (num, size, size, 3).  10,000 of 32 x 32 take 3 seconds.

    num: 20,000 for training and 5,000 for testing by default.  size: 8 to 256.
    Image i depends on (seed, split, i) and on size alone: a longer set begins with the images of a shorter one, and
    another size shows the same sprites.  The two splits come from different random streams.  Labels are uniform.
    Raises ValueError for num < 1, seed < 0 or another size, and TinydiffError if the images need more memory than this
    machine has.
    """
    from tqdm import tqdm

    num = {"train": 20_000, "test": 5_000}[split] if num is None else num
    if num < 1 or seed < 0 or not 8 <= size <= 256:
        raise ValueError(f"num must be at least 1, seed at least 0 and size 8 to 256, got {num}, {seed} and {size}")
    check_memory(f"{num:,} sprites", num * (3.0 * size**2 + 1))
    images, labels = np.empty((num, size, size, 3), np.uint8), np.empty(num, np.uint8)
    step = max(1, _PIXELS // size**2)
    for start in tqdm(range(0, num, _BLOCK), "drawing sprites", unit="img", unit_scale=_BLOCK, delay=5, leave=False):
        kinds, places, colours = _choose(default_rng("sprites", split, seed, start // _BLOCK), _BLOCK)
        labels[start : start + _BLOCK] = kinds[: num - start]  # the last block may be cut
        for row in range(start, min(start + _BLOCK, num), step):
            some = slice(row - start, min(row - start + step, num - start))
            drawn = _draw(kinds[some], places[some], colours[some], size)
            images[row : row + len(drawn)] = drawn
    source = f"sprites: {num:,} drawn pictures of {size} x {size} ({split} split, seed {seed})"
    return Dataset("sprites", images, labels, source, KINDS)


def _choose(rng: np.random.Generator, num: int) -> tuple[np.ndarray, ...]:
    """Draw the kinds (num,), the places (num, 6) and the colours (num, 3 layers, 3) of `num` sprites.

    A place: angle, radius, the shift right and down in half sides, the aspect, and 1 or -1 for a mirrored sprite.
    """
    from matplotlib.colors import hsv_to_rgb

    kinds, radius = rng.integers(len(KINDS), size=num), rng.uniform(0.62, 0.88, num)
    shift = rng.uniform(-1, 1, (num, 2)) * (1 - radius[:, None])  # the sprite stays within the image
    aspect, mirror = rng.uniform(0.9, 1.1, num), rng.choice([-1.0, 1.0], num)
    places = np.stack([rng.uniform(-0.35, 0.35, num), radius, *shift.T, aspect, mirror], 1)
    # Dark on bright or bright on dark; the detail has nearly the opposite hue of the body.
    hue, dark = rng.random(num), rng.random((num, 1)) < 0.5
    hues = np.stack([rng.random(num), hue, (hue + rng.uniform(0.35, 0.65, num)) % 1], 1)
    saturation = rng.uniform([0.1, 0.7, 0.7], [0.3, 1, 1], (num, 3))
    value = rng.uniform(np.where(dark, [0.1, 0.8, 0.8], [0.9, 0.4, 0.4]), np.where(dark, [0.3, 1, 1], [1, 0.7, 0.7]))
    return kinds, places, hsv_to_rgb(np.stack([hues, saturation, value], -1))


def _draw(kinds: np.ndarray, places: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """Draw the sprites that _choose has chosen: (N, size, size, 3) uint8."""
    fields, places = _distance_fields(), places.astype(np.float32)
    angle, radius, right, down, aspect, mirror = places.T[..., None]
    axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
    half = np.float32(size / 2)
    # x, y: (N, size^2) coordinates of every pixel of every image, in pixels from the sprite's centre
    y, x = (a.reshape(1, -1) - half * s for a, s in zip(np.meshgrid(axis, axis, indexing="ij"), (down, right)))
    scale = radius * half / np.float32(_RADIUS)  # pixels of the image for a pixel of the field
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = mirror * (cos * x + sin * y) / aspect, (cos * y - sin * x) * aspect
    ground, *layers = np.float32(255) * colours.astype(np.float32).swapaxes(0, 1)[:, :, None]  # each (N, 1, 3)
    pixels = ground
    for layer, colour in enumerate(layers):
        share = np.clip(0.5 + look_up(fields, 2 * kinds + layer, x, y) * scale, 0, 1)[..., None]
        pixels = pixels + (colour - pixels) * share
    return np.rint(pixels).astype(np.uint8).reshape(len(kinds), size, size, 3)


@lru_cache(maxsize=1)
def _distance_fields() -> np.ndarray:
    """The distance fields of body and detail of each kind, (2 kinds, GRID, GRID): rows 2 k and 2 k + 1 are kind k.

    Where polygons overlap, the largest distance is that of their union, so that no seam shows.
    """
    to_rows = np.array([_RADIUS, -_RADIUS])
    layers = ([np.concatenate([p, p[:1]]) * to_rows for p in layer] for kind in KINDS for layer in _outlines()[kind])
    return np.stack([np.max([signed_distance([p]) for p in layer], 0) for layer in layers])


def _outlines() -> dict[str, list[list[np.ndarray]]]:
    """The polygons of body and detail of each kind, in -1..1, y upwards."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    heart = [16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)]
    petals = [_arc(0.42 * np.sin(a), 0.38 + 0.42 * np.cos(a), 0.3, 0.3) for a in np.arange(5) * 0.4 * np.pi]
    ray = np.array([[-0.12, 0.54], [0, 1], [0.12, 0.54]])
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.arange(8) * np.pi / 4]
    crescent = np.concatenate([_arc(0, 0, 0.95, 0.95, 0.75, 2.25), _arc(0.28, 0, 0.55, 0.67, 0.75, 2.25)[::-1]])
    return {
        "heart": [[np.stack(heart, 1) / 17], [np.stack(heart, 1) / 34]],
        "star": [[_star(5, 0.45, 1)], [_star(5, 0.45, 0.5)]],
        "moon": [[crescent * [1, -1]], [_star(4, 0.4, 0.4) + [0.45, 0.1]]],
        "sun": [[ray @ turn for turn in turns], [_arc(0, 0, 0.5, 0.5)]],
        "tree": [
            [_flat(-w, y, w, y, 0, y + 0.8) for w, y in ((0.8, -0.55), (0.65, -0.15), (0.45, 0.2))],
            [_box(0.15, -1, -0.55)],
        ],
        "house": [[_box(0.65, -0.8, 0.1)], [_flat(-0.9, 0.1, 0.9, 0.1, 0, 0.85), _box(0.2, -0.8, -0.25)]],
        "fish": [[_arc(0.2, 0, 0.75, 0.5)], [_flat(-0.4, 0, -1, 0.5, -1, -0.5), _arc(0.55, 0.12, 0.13, 0.13)]],
        "flower": [petals, [_arc(0, 0.38, 0.25, 0.25), _box(0.08, -1, 0.05)]],
        "mushroom": [[_arc(0, -0.05, 0.95, 0.9, -0.5, 0.5)], [_box(0.28, -0.85, -0.05)]],
        "boat": [
            [_flat(-0.95, -0.35, 0.95, -0.35, 0.6, -0.85, -0.6, -0.85)],
            [_flat(-0.1, -0.25, -0.1, 0.95, 0.75, -0.25)],
        ],
    }


def _flat(*numbers: float) -> np.ndarray:
    return np.reshape(numbers, (-1, 2))  # x, y of each corner


def _box(half: float, low: float, high: float) -> np.ndarray:
    return _flat(-half, low, half, low, half, high, -half, high)


def _arc(x: float, y: float, width: float, height: float, start: float = 0, end: float = 2) -> np.ndarray:
    """An arc of an ellipse about (x, y).  start, end: in half turns from the top, clockwise."""
    a = np.pi * np.linspace(start, end, 60)
    return np.stack([x + width * np.sin(a), y + height * np.cos(a)], 1)


def _star(points: int, inner: float, size: float) -> np.ndarray:
    a, r = np.arange(2 * points) * np.pi / points, size * np.resize([1, inner], 2 * points)
    return np.stack([r * np.sin(a), r * np.cos(a)], 1)
