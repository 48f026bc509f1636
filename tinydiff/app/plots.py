"""Pictures: a grid of samples, the way from noise to digit (film strip and animation), and the loss curves.

Each function takes arrays and a path, and writes a whole file or none (checkpoint.atomic_write).  Images are channels
last in [-1, 1], like the data and the samples: -1 is black, 1 is white.  One image pixel becomes a square of
`scale` x `scale` screen pixels, without blur.  Figures are drawn without pyplot: no window, no global state.

`import tinydiff` must not load this file, because matplotlib takes longer to import than all the rest.
Read next: generate.py.
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

_DPI = 128  # a power of two: the conversion between pixels and inches is exact
_MARGIN = 12  # pixels around a picture
_INK = "0.2"
_GREYS = 16  # of an animation: noise hardly compresses, and 16 levels halve the file
_HOLD_MS = 2000  # how long an animation rests on its last frame

Path = str | os.PathLike


def tile(images: Any, columns: int, gap: int = 1, scale: int = 1) -> np.ndarray:
    """Put images in rows of `columns`, `gap` white pixels apart: uint8, -1 -> 0 and 1 -> 255, rounded, clipped.

    images: (N, H, W, C), N >= 1, C = 1 or 3.  Returns (rows (H + gap) - gap, columns (W + gap) - gap, C), both sides
    `scale` times as long; the places after the last image are white.  Raises ValueError for another shape, a NaN or an
    infinity.
    """
    images = to_numpy(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"images must have shape (N, H, W, 1) or (N, H, W, 3) with N >= 1, got {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("images must be finite, got a NaN or an infinity")
    _check_at_least_1(columns=columns, scale=scale)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + gap, w + gap, c), 255, np.uint8)
    cells[:n, :h, :w] = np.rint(np.clip(images, -1, 1) * 127.5 + 127.5)
    canvas = cells.reshape(rows, columns, h + gap, w + gap, c).swapaxes(1, 2)  # (rows, H + gap, columns, W + gap, C)
    canvas = canvas.reshape(rows * (h + gap), columns * (w + gap), c)
    canvas = canvas[: rows * (h + gap) - gap, : columns * (w + gap) - gap]
    return canvas.repeat(scale, 0).repeat(scale, 1)


def save_grid(
    path: Path, images: Any, *, columns: int, title: str = "", row_labels: Sequence[str] | None = None, scale: int = 3
) -> None:
    """Write a .png of images in rows of `columns`, with a title above and a label left of each row.

    images: (N, H, W, C) as for `tile`.  row_labels: None, or one label for each row, else ValueError.
    """
    canvas = tile(images, columns, scale=scale)
    rows = -(-len(images) // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must name each of the {rows} rows, got {len(row_labels)}")
    _save_picture(path, canvas, title, row_labels or ())


def save_filmstrip(path: Path, frames: Any, t_values: Sequence[int], title: str = "", scale: int = 3) -> None:
    """Write a .png with one row for each image and one column for each frame.  The time t stands above its column.

    frames: (K, N, H, W, C); frame k shows all N images at time t_values[k].  From left to right noise becomes a digit.
    """
    frames = _check_frames(frames)
    k, n, *shape = frames.shape
    if len(t_values) != k:
        raise ValueError(f"t_values must name each of the {k} frames, got {len(t_values)}")
    images = frames.swapaxes(0, 1).reshape(n * k, *shape)  # image by image, the frames of an image side by side
    _save_picture(path, tile(images, k, scale=scale), title, column_labels=[f"t = {t}" for t in t_values])


def save_gif(path: Path, frames: Any, columns: int, ms: int = 60, scale: int = 2) -> None:
    """Write a looping .gif of the grid, `ms` milliseconds a frame; the last frame is shown for two seconds.

    frames: (K, N, H, W, 1); frame k shows all N images.  The .gif has 16 greys.
    """
    frames = _check_frames(frames)
    if frames.shape[-1] != 1:
        raise ValueError(f"frames must have one channel in a .gif, got shape {frames.shape}")
    _check_at_least_1(ms=ms)
    step = 255 // (_GREYS - 1)
    pictures = []
    for images in frames:
        greys = np.rint(tile(images, columns, scale=scale)[..., 0] / step).astype(np.uint8)
        pictures.append(Image.fromarray(greys))
        pictures[-1].putpalette([level for i in range(_GREYS) for level in 3 * [i * step]])
    durations = (len(pictures) - 1) * [ms] + [_HOLD_MS]
    with atomic_write(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_loss(
    path: Path, steps: Any, loss: Any, bucket_loss: Any, bucket_names: Sequence[str], title: str = ""
) -> None:
    """Write a .png of the training loss (left) and of the loss in each range of t (right) against the step, log scale.

    steps, loss: (S,), S >= 1, else ValueError.  bucket_loss: (S, B), NaN where a batch had no such t, else ValueError.
    bucket_names: B labels, in the order of t.
    The thin curve is the loss as measured.  A thick curve is the mean over a window of a fiftieth of the run.
    """
    steps, loss, bucket_loss = (np.asarray(to_numpy(a), np.float64) for a in (steps, loss, bucket_loss))
    if steps.ndim != 1 or steps.size == 0 or loss.shape != steps.shape:
        raise ValueError(f"steps and loss must both have shape (S,) with S >= 1, got {steps.shape} and {loss.shape}")
    if bucket_loss.shape != (len(steps), len(bucket_names)):
        raise ValueError(f"bucket_loss must be {(len(steps), len(bucket_names))}, got {bucket_loss.shape}")
    # A logarithmic axis shows positive numbers only: anything else becomes NaN, a gap in the curve.
    loss, bucket_loss = (np.where(np.isfinite(a) & (a > 0), a, np.nan) for a in (loss, bucket_loss))
    figure = Figure(figsize=(10.5, 4), dpi=_DPI, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharex=True)
    marker = "." if len(steps) < 30 else ""  # a curve of one point shows too
    left.plot(steps, loss, marker=marker, color="C0", alpha=0.3, lw=0.7, label="as measured")
    left.plot(steps, _running_mean(loss), color="C0", lw=1.8, label="running mean")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(bucket_names)))
    for name, colour, values in zip(bucket_names, colours, bucket_loss.T):
        right.plot(steps, _running_mean(values), marker=marker, color=colour, lw=1.5, label=name)
    _dress(left, "training loss", loc="upper right")
    _dress(right, "training loss by time t, running mean", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, x=0.01, ha="left", color=_INK)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _save_picture(
    path: Path, pixels: np.ndarray, title: str, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> None:
    """Write uint8 pixels (H, W, C) unchanged on a white page, with text above the picture and left of it."""
    height, width, _ = pixels.shape
    figure = Figure(dpi=_DPI, facecolor="white")
    # Texts get their places, in pixels, once their sizes are known: the page grows, so that no text is cut.
    style: dict[str, Any] = {"color": _INK, "transform": IdentityTransform()}
    small, large = (pixels * 72 / _DPI for pixels in (13, 17))  # in points
    rows = [figure.text(0, 0, label, ha="right", va="center", size=small, **style) for label in row_labels]
    columns = [figure.text(0, 0, label, ha="center", va="bottom", size=small, **style) for label in column_labels]
    heading = figure.text(0, 0, title, ha="left", va="bottom", size=large, **style)
    left = _MARGIN + _extent(rows, "width")
    top = _MARGIN + height + _MARGIN // 2  # of the picture, and half a margin
    top_of_columns = top + _extent(columns, "height")
    for i, label in enumerate(rows):
        label.set_position((left - _MARGIN, _MARGIN + height * (1 - (i + 0.5) / len(rows))))
    for i, label in enumerate(columns):
        label.set_position((left + width * (i + 0.5) / len(columns), top))
    heading.set_position((left, top_of_columns))
    page_width = left + max(width + _MARGIN, _extent([heading], "width"))
    page_height = max(top_of_columns + _extent([heading], "height"), _MARGIN + height + _MARGIN)
    figure.set_size_inches(page_width / _DPI, page_height / _DPI)
    figure.figimage(np.broadcast_to(pixels, (height, width, 3)), left, _MARGIN)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _extent(texts: Sequence[Text], side: str) -> int:
    """The pixels that the largest text needs, and a margin; 0 without a text.  side: "width" or "height"."""
    sizes = [getattr(text.get_window_extent(), side) for text in texts if text.get_text()]
    return math.ceil(max(sizes)) + _MARGIN if sizes else 0


def _check_at_least_1(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def _check_frames(frames: Any) -> np.ndarray:
    frames = to_numpy(frames)
    if frames.ndim != 5 or len(frames) == 0:
        raise ValueError(f"frames must have shape (K, N, H, W, C) with K >= 1, got {frames.shape}")
    return frames


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a fiftieth of the curve; NaN counts as absent."""
    window = np.ones(max(1, len(values) // 50) | 1)  # odd: centred
    total, count = (np.convolve(a, window, "same") for a in (np.nan_to_num(values), np.isfinite(values)))
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _dress(axes: Axes, title: str, **place_of_legend: Any) -> None:
    axes.legend(**place_of_legend, frameon=False, labelcolor=_INK)
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("step", color=_INK)
    axes.set_yscale("log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.xaxis.set(major_locator=MaxNLocator(5, integer=True), major_formatter="{x:,.0f}")
    axes.grid(color="0.92", linewidth=0.8)
    axes.tick_params(colors=_INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
