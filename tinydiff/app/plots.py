"""Pictures: a grid of samples, the way from noise to digit (film strip and animation), and the loss curves.

Every function takes arrays and a path, and writes a whole file or none (checkpoint.atomic_write).  Images are channels
last in [-1, 1], as the data and the samplers have them: -1 is black, 1 is white.  One image pixel becomes a square of
`scale` x `scale` screen pixels, never a blur.  Figures are drawn without pyplot: no window, nothing global.

`import tinydiff` must not load this file: matplotlib takes longer to import than all the rest.
Read next: demos/sample.py, which calls it.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform
from PIL import Image

from tinydiff.app.checkpoint import atomic_write
from tinydiff.backend import to_numpy

_DPI = 128  # a power of two: a size in pixels survives the way through inches
_MARGIN = 12  # pixels around a picture
_POINT = 72 / _DPI  # points in a pixel
_INK = "0.2"
_GREYS = 16  # in an animation: noise hardly compresses, and 16 levels halve the file
_HOLD_MS = 2000  # how long an animation rests on its last frame

Path = str | os.PathLike


def tile(images: Any, columns: int, gap: int = 1) -> np.ndarray:
    """Lay images out in rows of `columns`, `gap` white pixels apart: uint8, -1 -> 0 and 1 -> 255, rounded, clipped.

    images: (N, H, W, C), N >= 1, C = 1 or 3.  Returns (rows (H + gap) - gap, columns (W + gap) - gap, C); places after
    the last image are white.  Raises ValueError for another shape, a NaN or an infinity.
    """
    images = to_numpy(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"images must have shape (N, H, W, 1) or (N, H, W, 3) with N >= 1, got {images.shape}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if not np.isfinite(images).all():
        raise ValueError("images must be finite, got a NaN or an infinity")
    n, h, w, c = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + gap, w + gap, c), 255, np.uint8)
    cells[:n, :h, :w] = np.rint(np.clip(images, -1, 1) * 127.5 + 127.5)
    canvas = cells.reshape(rows, columns, h + gap, w + gap, c).swapaxes(1, 2)  # (rows, H + gap, columns, W + gap, C)
    canvas = canvas.reshape(rows * (h + gap), columns * (w + gap), c)
    return canvas[: rows * (h + gap) - gap, : columns * (w + gap) - gap]


def save_grid(
    path: Path,
    images: Any,
    *,
    columns: int,
    title: str = "",
    row_labels: Sequence[str] | None = None,
    scale: int = 3,
) -> None:
    """Write a .png of images in rows of `columns`, with an optional title above and a label left of each row.

    images: (N, H, W, C) as for `tile`.  row_labels: one for each row, else ValueError.
    """
    canvas = tile(images, columns)
    rows = -(-len(images) // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must name each of the {rows} rows, got {len(row_labels)}")
    _save_picture(path, _enlarge(canvas, scale), title, row_labels or ())


def save_filmstrip(path: Path, frames: Any, t_values: Sequence[int], title: str = "", scale: int = 3) -> None:
    """Write a .png with one row for each image and one column for each of its stages, headed by the time t.

    frames: (K, N, H, W, C), stage k of all N images at time t_values[k]; from noise to digit reads left to right.
    """
    frames = _check_frames(frames)
    k, n, *shape = frames.shape
    if len(t_values) != k:
        raise ValueError(f"t_values must name each of the {k} frames, got {len(t_values)}")
    images = frames.swapaxes(0, 1).reshape(n * k, *shape)  # image by image, its stages side by side
    _save_picture(path, _enlarge(tile(images, k), scale), title, column_labels=[f"t = {t}" for t in t_values])


def save_gif(path: Path, frames: Any, columns: int, ms: int = 60, scale: int = 2) -> None:
    """Write a looping .gif of the grid, `ms` milliseconds a frame, the last one held for two seconds.

    frames: (K, N, H, W, 1), stage k of all N images; drawn in 16 greys.
    """
    frames = _check_frames(frames)
    if frames.shape[-1] != 1:
        raise ValueError(f"frames must have one channel in a .gif, got shape {frames.shape}")
    if ms < 1:
        raise ValueError(f"ms must be at least 1, got {ms}")
    step = 255 // (_GREYS - 1)
    pictures = []
    for images in frames:
        greys = np.rint(_enlarge(tile(images, columns), scale)[..., 0] / step).astype(np.uint8)
        pictures.append(Image.fromarray(greys))
        pictures[-1].putpalette([level for i in range(_GREYS) for level in 3 * [i * step]])
    durations = (len(pictures) - 1) * [ms] + [_HOLD_MS]
    with atomic_write(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_loss(
    path: Path, steps: Any, loss: Any, bucket_loss: Any, bucket_names: Sequence[str], title: str = ""
) -> None:
    """Write a .png of the training loss (left) and of the loss in each range of t (right) against the step, log scale.

    steps, loss: (S,), S >= 1.  bucket_loss: (S, B), NaN where a batch held no such t.  bucket_names: B labels, in the
    order of t.  Thin: as measured; thick: mean over a window of a fiftieth of the run.  Raises ValueError for shapes.
    """
    steps, loss, bucket_loss = (np.asarray(to_numpy(a), np.float64) for a in (steps, loss, bucket_loss))
    if steps.ndim != 1 or steps.size == 0 or loss.shape != steps.shape:
        raise ValueError(f"steps and loss must both have shape (S,) with S >= 1, got {steps.shape} and {loss.shape}")
    if bucket_loss.shape != (len(steps), len(bucket_names)):
        raise ValueError(f"bucket_loss must be {(len(steps), len(bucket_names))}, got {bucket_loss.shape}")
    figure = Figure(figsize=(10.5, 4), dpi=_DPI, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharex=True)
    marker = "." if len(steps) < 30 else ""  # a curve of one point shows too
    left.plot(steps, _positive(loss), marker=marker, color="C0", alpha=0.3, lw=0.7, label="as measured")
    left.plot(steps, _smooth(_positive(loss)), color="C0", lw=1.8, label="running mean")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(bucket_names)))
    for name, colour, values in zip(bucket_names, colours, bucket_loss.T):
        right.plot(steps, _smooth(_positive(values)), marker=marker, color=colour, lw=1.5, label=name)
    _dress(left, "training loss")
    _dress(right, "training loss by time t, running mean")
    left.legend(loc="upper right", frameon=False, labelcolor=_INK)
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelcolor=_INK)
    figure.suptitle(title, x=0.01, ha="left", color=_INK)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _save_picture(
    path: Path, pixels: np.ndarray, title: str, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> None:
    """Write uint8 pixels (H, W, C) exactly as they are on a white page, with text above them and left of them."""
    height, width, _ = pixels.shape
    figure = Figure(dpi=_DPI, facecolor="white")
    # Text is placed in pixels, once its size is known: the page grows with it, so that none is cut or on the picture.
    style: dict[str, Any] = {"color": _INK, "fontsize": 13 * _POINT, "transform": IdentityTransform()}
    rows = [figure.text(0, 0, label, ha="right", va="center", **style) for label in row_labels]
    columns = [figure.text(0, 0, label, ha="center", va="bottom", **style) for label in column_labels]
    heading = figure.text(0, 0, title, ha="left", va="bottom", **{**style, "fontsize": 17 * _POINT})
    left = _MARGIN + _extent(rows, "width")
    above_picture = _MARGIN + height + _MARGIN // 2
    above_columns = above_picture + _extent(columns, "height")
    for i, text in enumerate(rows):
        text.set_position((left - _MARGIN, _MARGIN + height * (1 - (i + 0.5) / len(rows))))
    for i, text in enumerate(columns):
        text.set_position((left + width * (i + 0.5) / len(columns), above_picture))
    heading.set_position((left, above_columns))
    page_width = left + max(width + _MARGIN, _extent([heading], "width"))
    page_height = max(above_columns + _extent([heading], "height"), _MARGIN + height + _MARGIN)
    figure.set_size_inches(page_width / _DPI, page_height / _DPI)
    figure.figimage(np.broadcast_to(pixels, (height, width, 3)), left, _MARGIN)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _extent(texts: Sequence[Text], side: str) -> int:
    """The room in pixels that the largest text takes with a margin, 0 for no text."""
    sizes = [getattr(text.get_window_extent(), side) for text in texts if text.get_text()]
    return math.ceil(max(sizes)) + _MARGIN if sizes else 0


def _enlarge(canvas: np.ndarray, scale: int) -> np.ndarray:
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    return canvas.repeat(scale, 0).repeat(scale, 1)


def _check_frames(frames: Any) -> np.ndarray:
    frames = to_numpy(frames)
    if frames.ndim != 5 or len(frames) == 0:
        raise ValueError(f"frames must have shape (K, N, H, W, C) with K >= 1, got {frames.shape}")
    return frames


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show: anything else becomes NaN, a gap in the curve."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a fiftieth of the curve, of the values that are there (not NaN)."""
    window = np.ones(max(1, len(values) // 50) | 1)  # odd: centred
    there = np.isfinite(values)
    total = np.convolve(np.where(there, values, 0), window, "same")
    count = np.convolve(there, window, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("step", color=_INK)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color="0.92", linewidth=0.8)
    axes.tick_params(colors=_INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
