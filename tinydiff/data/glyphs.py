"""The embedded data set: digits 0-9 drawn at 28x28 from the type faces that matplotlib ships, any number of them.

Nothing is downloaded and no system font is used, so every machine with the same matplotlib draws the same digits.
Each outline of a digit in a face is turned once into a signed distance field: d(p) is the distance in pixels from the
point p to the outline, positive inside.  The ink of an image pixel u is one look-up of that field at a moved point p:

    p   = M^-1 (u - shift) + bend(u - shift)      M = rotation . shear . scale, bend = two slow sine waves
    ink = clip(0.5 + (d(p) + weight) scale, 0, 1)

Adding a weight to d makes the stroke heavier.  The edge is anti-aliased because the ink rises from 0 to 1 while d(p)
rises by one pixel.

Read next: fields.py.
"""

import os
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from tinydiff.backend import default_rng
from tinydiff.data.dataset import DIGITS, DataError, Dataset
from tinydiff.data.fields import look_up, signed_distance
from tinydiff.data.limits import check_memory

# matplotlib has shipped these faces since 3.7.  Two faces are left out: the 0 of DejaVuSansMono contains a dot, and
# cmmi10 has old-style figures, some of which reach below the line.
FACES = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10"),
)
SIDE = 28
_HEIGHT = 20.0  # height of a digit in pixels before it is scaled, as in MNIST
_BLOCK = 500  # number of images drawn from one random stream


def load_glyphs(split: str, seed: int, num: int | None = None) -> Dataset:
    """Draw `num` digits of a split, "train" or "test".  10,000 digits take about a second.

    num: 20,000 for training and 10,000 for testing by default.
    Image i depends on (seed, split, i) alone, so a longer set begins with the images of a shorter one.  The two splits
    come from different random streams.  The same matplotlib and NumPy draw the same bits in every run; with another
    version or processor the grey level of a pixel may be rounded differently.  Labels are uniform on 0..9.
    A progress bar appears if the drawing takes long.  Raises ValueError for num < 1 or seed < 0, DataError if the file
    of a face is missing, and TinydiffError if the images need more memory than this machine has.
    """
    from tqdm import tqdm

    num = {"train": 20_000, "test": 10_000}[split] if num is None else num
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    check_memory(f"{num:,} glyphs", num * (SIDE**2 + 1.0))
    images, labels = np.empty((num, SIDE, SIDE), np.uint8), np.empty(num, np.uint8)
    for start in tqdm(range(0, num, _BLOCK), "drawing glyphs", unit="img", unit_scale=_BLOCK, delay=5, leave=False):
        rows = slice(start, start + _BLOCK)  # the last block may be cut
        for a, drawn in zip((images, labels), _draw(default_rng("glyphs", split, seed, start // _BLOCK), _BLOCK)):
            a[rows] = drawn[: len(a[rows])]
    source = f"glyphs: {num:,} digits drawn from {len(FACES)} of matplotlib's type faces ({split} split, seed {seed})"
    return Dataset("glyphs", images[..., None], labels, source, DIGITS)


def _draw(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `num` digits: images (num, 28, 28) uint8, 0 background and 255 ink, and labels (num,) uint8."""
    fields, half_width = _distance_fields()

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (num, 1)).astype(np.float32)

    digit, face = rng.integers(10, size=num), rng.integers(len(FACES), size=num)
    # A negative shear leans to the right, as most handwriting does.
    angle, shear, shift_x, shift_y = uniform(-0.2, 0.2), uniform(-0.2, 0.1), uniform(-1.5, 1.5), uniform(-1.5, 1.5)
    scale, aspect = uniform(0.86, 1.06), uniform(0.9, 1.12)
    weight = np.clip(uniform(0.8, 1.9) - half_width[face, None], 0.12, 0.8)

    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    # x, y: (num, 784) coordinates of every pixel of every image, in pixels from the digit's centre
    y, x = (a.reshape(1, -1) - s for a, s in zip(np.meshgrid(axis, axis, indexing="ij"), (shift_y, shift_x)))
    bend_x, bend_y = _bend(x, y, uniform), _bend(x, y, uniform)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = cos * x + sin * y, cos * y - sin * x
    x = (x - shear * y) / (scale * aspect) + bend_x
    y = y / (scale / aspect) + bend_y
    ink = np.clip(0.5 + (look_up(fields, face * 10 + digit, x, y) + weight) * scale, 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(num, SIDE, SIDE), digit.astype(np.uint8)


def _bend(x: np.ndarray, y: np.ndarray, uniform: Callable[[float, float], np.ndarray]) -> np.ndarray:
    """Return x or y of a slow displacement in pixels, (num, 784): two plane waves of random direction and phase."""

    def wave() -> np.ndarray:
        direction, wavelength = uniform(0, 2 * np.pi), uniform(18, 40)
        phase = 2 * np.pi / wavelength * (np.cos(direction) * x + np.sin(direction) * y) + uniform(0, 2 * np.pi)
        return uniform(0.1, 0.6) * np.sin(phase)

    return wave() + wave()


@lru_cache(maxsize=1)
def _distance_fields() -> tuple[np.ndarray, np.ndarray]:
    """Return the distance fields (faces * 10, GRID, GRID) in pixels and each face's half stroke width (faces,)."""
    fields = np.stack([_distance_field(polygons) for face in FACES for polygons in _outlines(face)])
    # The largest distance inside a digit is half its stroke width.  The median is over the ten digits of a face.
    return fields, np.median(fields.reshape(len(FACES), 10, -1).max(2), 1).astype(np.float32)


def _outlines(face: str) -> Iterator[list[np.ndarray]]:
    """Yield the polygons of each digit of a face, y upwards.  The last point of a polygon repeats the first."""
    from matplotlib import ft2font, get_data_path
    from matplotlib.path import Path

    path = os.path.join(get_data_path(), "fonts", "ttf", face + ".ttf")
    if not os.path.isfile(path):
        raise DataError(f"glyphs are drawn from matplotlib's type faces, but {path} is missing: reinstall matplotlib")
    font = ft2font.FT2Font(path)
    font.set_size(1000, 72)
    # FreeType versions differ in how they hint (fit an outline to the pixels), so the outline is read without hinting.
    # matplotlib 3.10 gave the flag a new name.
    unhinted = ft2font.LoadFlags.NO_HINTING if hasattr(ft2font, "LoadFlags") else ft2font.LOAD_NO_HINTING  # type: ignore
    for digit in DIGITS:
        font.load_char(ord(digit), flags=unhinted)
        vertices, codes = font.get_path()
        # A curve is cut into pieces whose length depends on the unit: after / 10 they are short enough.
        yield [np.asarray(polygon) for polygon in Path(vertices / 10, codes).to_polygons()]


def _distance_field(polygons: list[np.ndarray]) -> np.ndarray:
    """Scale and centre polygons to _HEIGHT pixels; return the signed distance to them as signed_distance does."""
    points = np.concatenate(polygons)
    low, high = points.min(0), points.max(0)
    size = _HEIGHT / (high[1] - low[1])
    return signed_distance([(p - (low + high) / 2) * [size, -size] for p in polygons])  # rows count downwards
