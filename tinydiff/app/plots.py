"""Pictures: a grid of samples, the steps from noise to a digit (film strip and animation), and the loss curves.

Each function takes arrays and a path, and writes a complete file or none (checkpoint.atomic_write).  Images have their
channels last and lie in [-1, 1], like the data and the samples: -1 is black, 1 is white.  One image pixel becomes a
square of `scale` x `scale` screen pixels, without blur.  The loss curves are drawn without pyplot: no window, no
global state.

`import tinydiff` must not load this file, because matplotlib takes longer to import than all the rest.
Read next: axes.py.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tinydiff.app.axes import INK, log_scale, marker_of, step_scale
from tinydiff.app.checkpoint import atomic_write
from tinydiff.backend import to_numpy

_MARGIN = 12  # pixels around a picture
_LEVELS = {1: 16, 3: 6}  # of an animation, by its channels: noise hardly compresses, so 16 greys halve the file
_HOLD_MS = 2000  # how long an animation shows its last frame
_LONGEST = 120  # characters of a title or a label


def tile(images: Any, columns: int, gap: int = 1, scale: int = 1) -> np.ndarray:
    """Put images in rows of `columns`, `gap` white pixels apart.  Values are clipped and rounded: -1 -> 0, 1 -> 255.

    images: (N, H, W, C), N >= 1, C = 1 or 3.  Returns uint8 (rows (H + gap) - gap, columns (W + gap) - gap, C), with
    both sides `scale` times as long.  The places after the last image are white.  Raises ValueError for another shape
    or integers, a NaN or an infinity.
    """
    images = to_numpy(images)
    if images.dtype.kind != "f":
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}")
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


def save_figure(path: Path, figure: Figure, colours: int) -> None:
    """Write a figure as a .png of so many colours: dots and lines then need a quarter of the space."""
    canvas = io.BytesIO()
    figure.savefig(canvas, format="png")
    with atomic_write(path) as file:
        Image.open(canvas).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def save_grid(
    path: Path, images: Any, *, columns: int, title: str = "", row_labels: Sequence[str] | None = None, scale: int = 3
) -> None:
    """Write a .png of images in rows of `columns`, with a title above and a label left of each row.

    images: (N, H, W, C) as for `tile`.  row_labels: None, or one label for each row, else ValueError.  A title or a
    label is one line of at most _LONGEST characters; the rest is cut.
    """
    _check_suffix(path, ".png")
    canvas = tile(images, columns, scale=scale)
    rows = -(-len(images) // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must name each of the {rows} rows, got {len(row_labels)}")
    _save_picture(path, canvas, title, row_labels or ())


def save_filmstrip(path: Path, frames: Any, t_values: Sequence[int], title: str = "", scale: int = 3) -> None:
    """Write a .png with one row for each image and one column for each frame.  The time t stands above its column.

    frames: (K, N, H, W, C); frame k shows all N images at time t_values[k].  From left to right noise becomes a digit.
    """
    _check_suffix(path, ".png")
    frames = _check_frames(frames)
    k, n, *shape = frames.shape
    if len(t_values) != k:
        raise ValueError(f"t_values must name each of the {k} frames, got {len(t_values)}")
    images = frames.swapaxes(0, 1).reshape(n * k, *shape)  # image after image, each with its frames side by side
    _save_picture(path, tile(images, k, scale=scale), title, column_labels=[f"t = {t}" for t in t_values])


def save_gif(path: Path, frames: Any, columns: int, ms: int = 60, scale: int = 2) -> None:
    """Write a looping .gif of the grid, with `ms` milliseconds a frame and two seconds for the last frame.

    frames: (K, N, H, W, C), C = 1 or 3; frame k shows all N images.  The .gif has 16 greys, or 6 x 6 x 6 colours.
    """
    _check_suffix(path, ".gif")
    frames = _check_frames(frames)
    channels = frames.shape[-1]
    if channels not in _LEVELS:
        raise ValueError(f"frames must have 1 or 3 channels in a .gif, got shape {frames.shape}")
    _check_at_least_1(ms=ms)
    levels = _LEVELS[channels]
    step = 255 // (levels - 1)
    palette = np.indices(channels * (levels,)).reshape(channels, -1).T * step  # (levels ** C, C), in order of the index
    pictures = []
    for images in frames:
        digits = np.rint(tile(images, columns, scale=scale) / step).astype(np.uint8)
        index = digits @ levels ** np.arange(channels)[::-1]
        pictures.append(Image.fromarray(index.astype(np.uint8)))
        pictures[-1].putpalette(palette.repeat(3 // channels, 1).reshape(-1).tolist())
    durations = (len(pictures) - 1) * [ms] + [_HOLD_MS]
    with atomic_write(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_loss(
    path: Path, steps: Any, loss: Any, bucket_loss: Any, bucket_names: Sequence[str], title: str = ""
) -> None:
    """Write a .png of two panels over the steps, on a log scale: the loss (left), the loss in each range of t (right).

    steps, loss: (S,), S >= 1, else ValueError.  bucket_loss: (S, B), NaN where a batch had no such t, else ValueError.
    bucket_names: B labels, in the order of t.
    The thin curve is the loss as measured.  A thick curve is the mean over a window of a fiftieth of the run.
    """
    _check_suffix(path, ".png")
    steps, loss, bucket_loss = (np.asarray(to_numpy(a), np.float64) for a in (steps, loss, bucket_loss))
    if steps.ndim != 1 or steps.size == 0 or loss.shape != steps.shape:
        raise ValueError(f"steps and loss must both have shape (S,) with S >= 1, got {steps.shape} and {loss.shape}")
    if bucket_loss.shape != (len(steps), len(bucket_names)):
        raise ValueError(f"bucket_loss must be {(len(steps), len(bucket_names))}, got {bucket_loss.shape}")
    # A logarithmic axis shows positive numbers only.  All other numbers become NaN, a gap in the curve.
    loss, bucket_loss = (np.where(np.isfinite(a) & (a > 0), a, np.nan) for a in (loss, bucket_loss))
    figure = Figure(figsize=(10.5, 4), dpi=128, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharex=True)
    marker = marker_of(steps)
    left.plot(steps, loss, marker=marker, color="C0", alpha=0.3, lw=0.7, label="as measured")
    left.plot(steps, _running_mean(loss), marker=marker, color="C0", lw=1.8, label="running mean")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(bucket_names)))
    for name, colour, values in zip(bucket_names, colours, bucket_loss.T):
        right.plot(steps, _running_mean(values), marker=marker, color=colour, lw=1.5, label=name)
    _dress(left, "training loss", loc="upper right")
    _dress(right, "training loss by time t, running mean", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _save_picture(
    path: Path, pixels: np.ndarray, title: str, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> None:
    """Write uint8 pixels (H, W, C) unchanged on a white page, with text above the picture and left of it."""
    title, row_labels, column_labels = _short(title), [*map(_short, row_labels)], [*map(_short, column_labels)]
    height, width, _ = pixels.shape
    small, large = (ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size) for size in (13, 17))
    left = _MARGIN + max((math.ceil(small.getlength(label)) + _MARGIN for label in row_labels if label), default=0)
    heads = 22 * bool(column_labels)  # a line of small text and a gap
    top = _MARGIN + heads + 26 * bool(title)  # a line of large text and a gap
    page_width = left + max(width, math.ceil(large.getlength(title))) + _MARGIN
    page = Image.new("RGB", (page_width, top + height + _MARGIN), "white")
    page.paste(Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], 2)), (left, top))
    draw = ImageDraw.Draw(page)
    for i, label in enumerate(row_labels):
        draw.text((left - _MARGIN, top + height * (i + 0.5) / len(row_labels)), label, INK, small, "rm")
    for i, label in enumerate(column_labels):
        draw.text((left + width * (i + 0.5) / len(column_labels), top - _MARGIN // 2), label, INK, small, "md")
    draw.text((left, top - _MARGIN // 2 - heads), title, INK, large, "ld")
    with atomic_write(path) as file:
        page.save(file, "PNG")


def _check_suffix(path: Path, suffix: str) -> None:
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"path must end in {suffix}, the kind of picture that is written, got {path}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


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
    axes.legend(**place_of_legend, frameon=False, labelcolor=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    step_scale(axes)
    log_scale(axes, "y")
    axes.grid(color="0.92", linewidth=0.8)
    axes.tick_params(colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
