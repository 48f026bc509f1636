"""The embedded data set: digits 0-9 drawn at 28x28 from the type faces that matplotlib ships, any number of them.

Nothing is downloaded and no system font is touched, so every machine with the same matplotlib draws the same digits.
Each (face, digit) outline is turned once into a signed distance field: d(p) is the distance from p to the outline in
pixels, positive inside.  The ink of an image pixel u is then one look-up of that field at a moved position p,

    p   = M^-1 (u - shift) + bend(u - shift)      M = rotation . shear . scale, bend = two slow sine waves
    ink = clip(0.5 + (d(p) + weight) scale, 0, 1)

so a heavier or lighter stroke is an offset of d, and the edge is anti-aliased because d crosses zero over one pixel.

Read next: __init__.py, which chooses between these digits and the downloaded sets of mnist.py.
"""

import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from tinydiff.backend import default_rng
from tinydiff.data.dataset import DIGITS, DataError, Dataset

# Faces that matplotlib has shipped since 3.7 with ten plain digits: DejaVuSansMono has a dot in its 0, and cmmi10 has
# old-style figures that reach below the line.
FACES = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
SIDE = 28
_HEIGHT = 20.0  # pixels from the foot to the head of a digit before it is scaled, as in MNIST
_STEP = 0.5  # pixels between the points of a distance field: fine enough that bilinear look-ups show no facets
_GRID = 57  # field points a side: _STEP * (_GRID - 1) = 28 pixels, the image's own side
_CHUNK = 500  # images drawn from one random stream


def load_glyphs(split: str, seed: int, num: int | None = None) -> Dataset:
    """Draw `num` digits of `split` ("train" or "test") from `seed`, a non-negative integer; 10,000 take about a second.

    num: 20,000 for training and 10,000 for testing unless given.

    Guaranteed: image i depends on (seed, split, i) alone, so a longer set begins with a shorter one, and the two splits
    come from different random streams.  The bits are the same in every run with the same matplotlib and NumPy; another
    version or processor may round a pixel's grey level differently.  Labels are uniform on 0..9.
    Raises ValueError for num < 1 or seed < 0, DataError if a face is missing from matplotlib's folder.
    """
    if num is None:
        num = {"train": 20_000, "test": 10_000}[split]
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    chunks = -(-num // _CHUNK)
    images = np.empty((chunks * _CHUNK, SIDE, SIDE), np.uint8)
    labels = np.empty(chunks * _CHUNK, np.uint8)
    for chunk in range(chunks):
        rows = slice(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        rng = default_rng("glyphs", split, seed, chunk)
        images[rows], labels[rows] = _draw(rng, _CHUNK)
    source = f"glyphs: {num:,} digits drawn from {len(FACES)} of matplotlib's type faces ({split} split, seed {seed})"
    return Dataset("glyphs", images[:num], labels[:num], source, DIGITS)


def _draw(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `num` digits: images (num, 28, 28) uint8 with ink 255 on 0, labels (num,)."""
    fields, half_width = _distance_fields()

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (num, 1)).astype(np.float32)

    label, face = rng.integers(10, size=num), rng.integers(len(FACES), size=num)
    angle, shear, shift_x, shift_y = uniform(-0.2, 0.2), uniform(-0.2, 0.1), uniform(-1.5, 1.5), uniform(-1.5, 1.5)
    scale, aspect = uniform(0.86, 1.06), uniform(0.9, 1.12)
    weight = np.clip(uniform(0.8, 1.9) - half_width[face, None], 0.12, 0.8)

    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    y, x = (a.reshape(1, -1) - s for a, s in zip(np.meshgrid(axis, axis, indexing="ij"), (shift_y, shift_x)))
    bend_x, bend_y = _bend(x, y, uniform), _bend(x, y, uniform)
    cos, sin = np.cos(angle), np.sin(angle)  # negative shear leans to the right, as most hands do
    x, y = cos * x + sin * y, cos * y - sin * x
    x = (x - shear * y) / (scale * aspect) + bend_x
    y = y / (scale / aspect) + bend_y
    ink = np.clip(0.5 + (_look_up(fields, face * 10 + label, x, y) + weight) * scale, 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(num, SIDE, SIDE), label.astype(np.uint8)


def _bend(x: np.ndarray, y: np.ndarray, uniform: Callable[[float, float], np.ndarray]) -> np.ndarray:
    """One component of a slow displacement in pixels, (num, pixels): two plane waves of random direction and phase."""
    total = np.zeros_like(x)
    for _ in range(2):
        direction, wavelength = uniform(0, 2 * np.pi), uniform(18, 40)
        wave = 2 * np.pi / wavelength * (np.cos(direction) * x + np.sin(direction) * y) + uniform(0, 2 * np.pi)
        total += uniform(0.1, 0.6) * np.sin(wave)
    return total


def _look_up(fields: np.ndarray, index: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """fields[index] at (x, y) pixels from its centre, bilinear; beyond the border the border's (negative) value."""
    x, y = (np.clip(a / _STEP + (_GRID - 1) / 2, 0, _GRID - 1.001) for a in (x, y))
    column, row = np.floor(x), np.floor(y)
    x, y = x - column, y - row
    at = index[:, None].astype(np.int32) * _GRID**2 + (row * _GRID + column).astype(np.int32)
    flat = fields.reshape(-1)
    upper = flat[at] * (1 - x) + flat[at + 1] * x
    lower = flat[at + _GRID] * (1 - x) + flat[at + _GRID + 1] * x
    return upper * (1 - y) + lower * y


@lru_cache(maxsize=1)
def _distance_fields() -> tuple[np.ndarray, np.ndarray]:
    """Distance fields (faces * 10, _GRID, _GRID) float32 in pixels, and each face's half stroke width (faces,)."""
    fields = np.stack([_distance_field(polygons) for face in FACES for polygons in _outlines(face)])
    widest = fields.reshape(len(FACES), 10, -1).max(2)
    return fields, np.median(widest, 1).astype(np.float32)


def _outlines(face: str) -> list[list[np.ndarray]]:
    """The polygons of digits 0 to 9 of a face, y upwards, each closed: its first point is repeated at its end."""
    import matplotlib
    from matplotlib import ft2font
    from matplotlib.path import Path

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face + ".ttf")
    if not os.path.isfile(path):
        raise DataError(
            f"glyphs are drawn from matplotlib's own type faces, and {path} is missing: reinstall matplotlib"
        )
    font = ft2font.FT2Font(path)
    font.set_size(1000, 72)
    if hasattr(ft2font, "LoadFlags"):  # hinting is left out because it differs between FreeType versions
        unhinted = ft2font.LoadFlags.NO_HINTING
    else:  # matplotlib before 3.10
        unhinted = ft2font.LOAD_NO_HINTING  # type: ignore[attr-defined]
    outlines = []
    for digit in DIGITS:
        font.load_char(ord(digit), flags=unhinted)
        vertices, codes = font.get_path()
        polygons = Path(vertices / 10, codes).to_polygons()  # the unit decides how finely curves are cut
        outlines.append([np.asarray(p) for p in polygons])
    return outlines


def _distance_field(polygons: list[np.ndarray]) -> np.ndarray:
    """Signed distance in pixels, positive inside, to polygons set _HEIGHT high and centred: (_GRID, _GRID) float32."""
    points = np.concatenate(polygons)
    low, high = points.min(0), points.max(0)
    size = _HEIGHT / (high[1] - low[1])
    placed = [((p - (low + high) / 2) * [size, -size]).astype(np.float32) for p in polygons]  # rows count downwards
    (ax, ay), (bx, by) = np.concatenate([p[:-1] for p in placed]).T, np.concatenate([p[1:] for p in placed]).T

    axis = ((np.arange(_GRID) - (_GRID - 1) / 2) * _STEP).astype(np.float32)
    px, py = axis[None, :, None], axis[:, None, None]
    dx, dy = bx - ax, by - ay
    along = np.clip(((px - ax) * dx + (py - ay) * dy) / np.maximum(dx * dx + dy * dy, 1e-9), 0, 1)
    distance = np.sqrt(((px - ax - along * dx) ** 2 + (py - ay - along * dy) ** 2).min(-1))
    # Inside is where the edges wind around the point: count those that cross the ray to its right, up minus down.
    left = dx * (py - ay) - dy * (px - ax)
    winding = ((ay <= py) & (by > py) & (left > 0)).sum(-1) - ((by <= py) & (ay > py) & (left < 0)).sum(-1)
    return np.where(winding != 0, distance, -distance).astype(np.float32)
