"""Pictures show every pixel exactly and every label whole, and a picture that fails leaves no file behind."""

import os
import re
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from tinydiff.app import plots
from tinydiff.app.axes import log_scale, step_scale
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.plots import save_filmstrip, save_gif, save_grid, save_loss, tile
from tinydiff.backend import default_rng

pytestmark = pytest.mark.program

MARGIN = 12  # white pixels around a picture


def _images(seed, n, h=6, w=5, c=1):
    return default_rng(seed).uniform(-1.3, 1.3, (n, h, w, c))  # a sampler overshoots too


def _page(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _enlarged(canvas, scale):
    return np.kron(np.broadcast_to(canvas, (*canvas.shape[:2], 3)), np.ones((scale, scale, 1), np.uint8))


def _ink(page, axis):
    """Which columns (axis 0) or rows (axis 1) hold anything but white."""
    return (page < 255).any((axis, 2))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


@given(
    n=st.integers(1, 9),
    columns=st.integers(1, 6),
    gap=st.integers(0, 3),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    c=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_tile_puts_image_i_in_row_i_div_columns(n, columns, gap, h, w, c, seed):
    """Pixel (y, x) of image i lies in cell (i // columns, i % columns) as round(127.5 (v + 1)); the rest is white."""
    images = _images(seed, n, h, w, c)
    rows = (n + columns - 1) // columns
    expected = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                for k in range(c):
                    value = min(max(float(images[i, y, x, k]), -1), 1)
                    expected[i // columns * (h + gap) + y, i % columns * (w + gap) + x, k] = round(127.5 * (value + 1))
    found = tile(images, columns, gap)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_byte_survives_the_way_to_float_and_back():
    """All 256 greys b, scaled to [-1, 1] as b / 127.5 - 1 in float32 or float64, come out of tile as b."""
    for dtype in ("float32", "float64"):
        images = (np.arange(256, dtype=dtype) / 127.5 - 1).astype(dtype).reshape(1, 16, 16, 1)
        assert tile(images, 1).ravel().tolist() == list(range(256))


@pytest.mark.parametrize("c", [1, 3])
def test_the_grid_file_holds_the_tiling_pixel_by_pixel(path, c):
    """Without text the page is the enlarged tiling and a white margin, exactly: no blur, no shift, no resampling."""
    images = _images(1, 7, c=c)
    for scale in range(1, 5):  # pages of many sizes: a size that is rounded somewhere loses a pixel
        save_grid(path, images, columns=3, scale=scale)
        page = _page(path).copy()
        np.testing.assert_array_equal(page[MARGIN:-MARGIN, MARGIN:-MARGIN], _enlarged(tile(images, 3), scale))
        page[MARGIN:-MARGIN, MARGIN:-MARGIN] = 255
        assert (page == 255).all()


@pytest.mark.parametrize("title", ["", "short", "a title that is much wider than these nine little pictures"])
@pytest.mark.parametrize("labels", [None, ["0", "1", "2"], ["T-shirt/top", "", "Ankle boot"]])
def test_text_never_touches_the_picture_or_the_edge(path, title, labels):
    """Whatever the labels and title, the pixels stay exact, all text is outside them and none is cut by the page."""
    images = np.full((9, 6, 5, 1), -1.0)
    canvas = _enlarged(tile(images, 3), 3)
    height, width, _ = canvas.shape
    save_grid(path, images, columns=3, title=title, row_labels=labels)
    page = _page(path).copy()
    black = np.argwhere((page == 0).all(2))  # text is dark grey, never black
    top, left = black.min(0)
    assert (page[top : top + height, left : left + width] == canvas).all()
    assert page.shape[0] == top + height + MARGIN
    page[top : top + height, left : left + width] = 255
    assert _ink(page[:top], 1).any() == bool(title)
    assert _ink(page[top:, :left], 0).any() == bool(labels)
    assert not _ink(page[top:, left:], 0).any()
    blank = np.ones(page.shape[:2], bool)
    blank[3:-3, 3:-3] = False  # the edge of the page
    blank[top:, left - 3 : left] = True  # between labels and picture
    blank[top - 3 : top] = True  # between title and picture
    assert (page[blank] == 255).all()


def test_row_label_i_stands_beside_row_i(path):
    """The ink of the only label that is not blank lies in the height of its own row."""
    for i in range(3):
        labels = ["", "", ""]
        labels[i] = "xx"
        save_grid(path, np.full((6, 20, 20, 1), -1.0), columns=2, row_labels=labels, scale=1)
        page = _page(path)
        left = np.flatnonzero((page == 0).all(2).any(0))[0]
        rows = np.flatnonzero(_ink(page[:, :left], 1)) - MARGIN
        assert rows.size and rows.min() >= i * 21 and rows.max() < i * 21 + 20


def test_the_film_strip_runs_from_left_to_right_under_its_times(path):
    """Cell (i, k) is image i at stage k, and the head t_values[k] stands above column k alone."""
    frames = _images(2, 4 * 3, 20, 20).reshape(4, 3, 20, 20, 1)
    save_filmstrip(path, frames, [1000, 500, 9, 0])
    page = _page(path)
    height, width = 3 * (3 * 21 - 1), 3 * (4 * 21 - 1)
    top = page.shape[0] - MARGIN - height
    picture = page[top : top + height, MARGIN : MARGIN + width]
    for i in range(3):
        for k in range(4):
            cell = picture[63 * i : 63 * i + 60, 63 * k : 63 * k + 60]
            assert (cell == _enlarged(tile(frames[k, i : i + 1], 1), 3)).all()
    heads = np.flatnonzero(_ink(page[: top - 1], 0)) - MARGIN
    centres = [heads[(heads >= 63 * k - 2) & (heads < 63 * k + 61)] for k in range(4)]
    assert sum(map(len, centres)) == len(heads)
    for k, head in enumerate(centres):
        assert abs((head.min() + head.max()) / 2 - (63 * k + 30)) < 3  # pixels: the column's centre, and rounding


def test_a_film_strip_names_its_own_times_in_order(path, monkeypatch):
    """Column k is headed by t_values[k], whatever the order; the title goes with them."""
    seen = []
    monkeypatch.setattr(plots, "_save_picture", lambda *args, **options: seen.append((args[2], options)))
    save_filmstrip(path, np.zeros((3, 1, 4, 4, 1)), [50, 9, 0], title="a title")
    assert seen == [("a title", {"column_labels": ["t = 50", "t = 9", "t = 0"]})]


def test_the_title_of_a_film_strip_is_clear_of_its_times(path):
    """Above the picture there are exactly two bands of ink: the title and the times."""
    save_filmstrip(path, np.full((2, 1, 20, 20, 1), -1.0), [9, 0], title="from noise to digit: pqgj")
    page = _page(path)
    above = _ink(page[: np.argwhere((page == 0).all(2))[0][0]], 1).astype(int)
    assert np.count_nonzero(np.diff(above) == 1) == 2 and above[0] == above[-1] == 0


@pytest.mark.parametrize("channels, error", [(1, 8), (3, 25)])  # 255 / 15 / 2 = 8.5 and 255 / 5 / 2 = 25.5
def test_the_animation_shows_every_frame_and_rests_on_the_last(tmp_path, channels, error):
    """K frames of `ms` each, the last for two seconds, for ever; each pixel within half a level of the exact one."""
    path = tmp_path / "way.gif"
    frames = _images(3, 5 * 4, c=channels).reshape(5, 4, 6, 5, channels)
    save_gif(path, frames, columns=2, ms=70)
    with Image.open(path) as movie:
        assert movie.n_frames == 5 and movie.info["loop"] == 0
        for k in range(5):
            movie.seek(k)
            assert movie.info["duration"] == (2000 if k == 4 else 70)
            exact = _enlarged(tile(frames[k], 2), 2).astype(int)
            assert np.abs(np.asarray(movie.convert("RGB")) - exact).max() <= error


@pytest.fixture
def figure(monkeypatch):
    """The figure that a function draws, kept as it is saved."""
    kept = []
    savefig = plots.Figure.savefig
    monkeypatch.setattr(plots.Figure, "savefig", lambda self, *a, **k: (kept.append(self), savefig(self, *a, **k)))
    return kept


def _loss_curves(n, rng):
    steps = 50 * np.arange(1, n + 1)
    loss = np.exp(rng.standard_normal(n)) + 0.01
    buckets = np.exp(rng.standard_normal((n, 3)))
    buckets[rng.random((n, 3)) < 0.3] = np.nan
    return steps, loss, buckets


@pytest.mark.parametrize("n", [1, 60, 200])
def test_the_loss_curves_are_the_data_and_its_running_mean(path, figure, rng, n):
    """Left: the loss itself and its windowed mean; right: one windowed mean for each range of t, of what is there."""
    steps, loss, buckets = _loss_curves(n, rng)
    loss[n // 2] = np.inf  # a logarithmic axis shows no infinity, zero or negative: a gap, left out of the mean
    loss[0] = 0.0 if n > 1 else loss[0]
    save_loss(path, steps, loss, buckets, ["early", "middle", "late"], title="run")
    half = max(1, n // 50) // 2

    def mean(values, i):
        window = [v for v in values[max(0, i - half) : i + half + 1] if np.isfinite(v) and v > 0]
        return np.mean(window) if window else np.nan

    left, right = figure[0].axes
    titles = "training loss", "training loss by time t, running mean"
    assert tuple(axes.get_title("left") for axes in (left, right)) == titles and figure[0].get_suptitle() == "run"
    raw, smooth = left.lines
    assert (raw.get_label(), smooth.get_label()) == ("as measured", "running mean")
    assert raw.get_xdata().tolist() == steps.tolist()
    np.testing.assert_array_equal(raw.get_ydata(), np.where((loss > 0) & np.isfinite(loss), loss, np.nan))
    np.testing.assert_allclose(smooth.get_ydata(), [mean(loss, i) for i in range(n)], rtol=1e-12)  # float64 sums
    for line, name, values in zip(right.lines, ["early", "middle", "late"], buckets.T, strict=True):
        assert line.get_label() == name
        np.testing.assert_allclose(line.get_ydata(), [mean(values, i) for i in range(n)], rtol=1e-12)
    assert left.get_yscale() == right.get_yscale() == "log"


@pytest.mark.parametrize("last", [7, 20_000, 300_000])
def test_nothing_overlaps_in_the_loss_figure(path, figure, rng, last):
    """Tick labels keep clear of each other, and the legend of the ranges keeps clear of the curves."""
    _, loss, buckets = _loss_curves(7, rng)
    save_loss(path, np.linspace(1, last, 7), loss, buckets, ["1-100", "101-500", "501-1000"], title="a run")
    for axes in figure[0].axes:
        for axis, low, high in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
            boxes = sorted(boxes, key=lambda box: getattr(box, low))
            assert len(boxes) >= 2
            assert all(getattr(a, high) < getattr(b, low) for a, b in pairwise(boxes))
    right = figure[0].axes[1]
    legend = right.get_legend().get_window_extent()
    assert legend.x0 >= right.get_window_extent().x1 and legend.x1 <= figure[0].bbox.x1


def gif(path):
    return path.with_suffix(".gif")


@pytest.mark.parametrize("name", ["a.jpeg", "a.xyz", "a.png.tmp", "a", "a.gif", "a.png"])
def test_a_file_is_what_its_name_says(tmp_path, name):
    """A picture of another kind than its name says is a ValueError with the kind that would be written; no file."""
    path, images = tmp_path / name, _images(0, 1)
    writers = {".png": [partial(save_grid, path, images, columns=1), partial(save_filmstrip, path, images[None], [0])]}
    writers[".png"].append(partial(save_loss, path, [1], [1.0], np.ones((1, 1)), ["a"]))
    writers[".gif"] = [partial(save_gif, path, images[None], columns=1)]
    for suffix, functions in writers.items():
        for write in functions if path.suffix != suffix else ():
            with pytest.raises(
                ValueError, match=rf"path must end in \{suffix}, the kind of picture that is written, got"
            ):
                write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda p: save_grid(p, np.zeros((2, 6, 5)), columns=2), "(2, 6, 5)"),
        (lambda p: save_grid(p, np.zeros((2, 6, 5, 2)), columns=2), "(2, 6, 5, 2)"),
        (lambda p: save_grid(p, np.zeros((0, 6, 5, 1)), columns=2), "(0, 6, 5, 1)"),
        (lambda p: save_grid(p, np.full((1, 6, 5, 1), np.nan), columns=2), "finite"),
        (lambda p: save_grid(p, np.zeros((2, 6, 5, 1)), columns=0), "columns must be at least 1, got 0"),
        (lambda p: save_grid(p, np.zeros((2, 6, 5, 1)), columns=2, scale=0), "scale must be at least 1, got 0"),
        (lambda p: save_grid(p, np.zeros((3, 6, 5, 1)), columns=2, row_labels=["a"]), "each of the 2 rows, got 1"),
        (lambda p: save_grid(p, np.zeros((2, 6, 5, 1), np.uint8), columns=2), "floats in [-1, 1], got uint8"),
        (lambda p: save_grid(p, np.zeros((2, 6, 5, 1), bool), columns=2), "floats in [-1, 1], got bool"),
        (lambda p: save_filmstrip(p, np.zeros((2, 6, 5, 1)), [1, 0]), "(2, 6, 5, 1)"),
        (lambda p: save_filmstrip(p, np.zeros((2, 1, 6, 5, 1)), [0]), "each of the 2 frames, got 1"),
        (lambda p: save_gif(gif(p), np.zeros((0, 1, 6, 5, 1)), 1), "(0, 1, 6, 5, 1)"),
        (lambda p: save_gif(gif(p), np.zeros((1, 1, 6, 5, 2)), 1), "1 or 3 channels"),
        (lambda p: save_gif(gif(p), np.zeros((1, 1, 6, 5, 1)), 1, ms=0), "ms must be at least 1, got 0"),
        (lambda p: save_loss(p, [], [], np.zeros((0, 1)), ["a"]), "S >= 1, got (0,)"),
        (lambda p: save_loss(p, [1, 2], [1.0], np.zeros((2, 1)), ["a"]), "got (2,) and (1,)"),
        (lambda p: save_loss(p, [1, 2], [1.0, 1], np.zeros((2, 2)), ["a"]), "must be (2, 1), got (2, 2)"),
    ],
)
def test_bad_input_is_named_and_leaves_no_file(path, draw, message):
    """A wrong shape, count or value is a ValueError that shows it, before anything is written."""
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("writer", "draw"),
    [
        ((Image.Image, "save"), lambda p: save_grid(p, _images(0, 1), columns=1)),
        ((Image.Image, "save"), lambda p: save_gif(gif(p), _images(0, 1)[None], columns=1)),
        ((plots.Figure, "savefig"), lambda p: save_loss(p, [1], [1.0], np.ones((1, 1)), ["a"])),
    ],
)
def test_a_picture_is_whole_or_the_old_one(path, monkeypatch, writer, draw):
    """When writing fails half-way, the picture that was there stays, alone, and the error names it."""

    def half(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    for name in (path, gif(path)):
        name.write_bytes(b"old")
    monkeypatch.setattr(*writer, half)
    with pytest.raises(CheckpointError, match=f"cannot write {re.escape(str(path.with_suffix('')))}.*: No space left"):
        draw(path)
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == {
        path.name: b"old",
        gif(path).name: b"old",
    }


_IMPORTS = """
import sys
import tinydiff, tinydiff.app.checkpoint
assert not {"matplotlib", "PIL"} & set(sys.modules)
from tinydiff.app import plots
plots.save_grid(sys.argv[1], [[[[0.0]]]], columns=1)
plots.save_loss(sys.argv[1], [1], [1.0], [[1.0]], ["a"])
assert "matplotlib.pyplot" not in sys.modules
"""


def test_matplotlib_loads_only_for_pictures_and_pyplot_never(path):
    """`import tinydiff` stays free of matplotlib, and drawing leaves no global figures."""
    root = str(Path(plots.__file__).parents[2])
    subprocess.run([sys.executable, "-c", _IMPORTS, str(path)], env={**os.environ, "PYTHONPATH": root}, check=True)


def labels_in_view(axes, which):
    """The texts of the ticks that lie within the limits of an axis."""
    axes.figure.draw_without_rendering()
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    return [text.get_text() for text, place in zip(axis.get_ticklabels(), axis.get_ticklocs()) if low <= place <= high]


@given(
    st.floats(-12, 12), st.sampled_from([0, 1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.3, 0.7, 1, 2, 5, 20]), st.sampled_from("xy")
)
def test_a_log_axis_always_has_labels(exponent, decades, which):
    """Two ticks or more with different labels, and not too many: within a decade, without any range, over twenty."""
    axes, values = Figure(figsize=(5, 4)).subplots(), [10.0**exponent, 10.0 ** (exponent + decades)]
    axes.plot(*((values, [1, 2]) if which == "x" else ([1, 2], values)))
    log_scale(axes, which)
    labels = labels_in_view(axes, which)
    assert 2 <= len(set(labels)) == len(labels) <= 14, (values, labels)
    places = {f"{place:,g}" for place in getattr(axes, f"{which}axis").get_ticklocs()}  # to six digits
    assert {label.replace("\N{MINUS SIGN}", "-") for label in labels} <= places


@pytest.mark.parametrize("steps", [1, 2, 3, 30, 2000])
def test_steps_are_whole_numbers(steps):
    """No label occurs twice, not even where there is one step only."""
    axes = Figure().subplots()
    axes.plot(np.arange(1, steps + 1), np.ones(steps))
    step_scale(axes)
    labels = labels_in_view(axes, "x")
    assert 1 <= len(labels) == len(set(labels)) and ("1" in labels or steps > 3)


@pytest.mark.parametrize("steps", [1, 29, 30])
def test_every_curve_of_a_short_run_is_seen(tmp_path, monkeypatch, steps):
    """A curve of one point has no line, so it has a dot: the loss, its mean, and the loss in each range of t."""
    figures = []
    monkeypatch.setattr(plots, "Figure", lambda **options: figures.append(Figure(**options)) or figures[-1])
    save_loss(tmp_path / "loss.png", np.arange(1, steps + 1), np.full(steps, 0.5), np.full((steps, 2), 0.5), ["a", "b"])
    curves = [line for axes in figures[0].axes for line in axes.get_lines()]
    assert len(curves) == 4 and all((curve.get_marker() == ".") == (steps < 30) for curve in curves)
    assert all(len(labels_in_view(axes, "y")) > 1 for axes in figures[0].axes)  # equal values: no range


def test_a_long_name_is_cut_and_stays_on_one_line(tmp_path):
    """A title or a label of any length, with any white space, makes a page of bounded size."""
    names = ["x" * 100_000, "two\nlines\tand a tab"]
    save_grid(tmp_path / "g.png", np.zeros((2, 4, 4, 1)), columns=1, title="a\n" * 100_000, row_labels=names)
    save_filmstrip(tmp_path / "f.png", np.zeros((1, 1, 4, 4, 1)), [10**50], title="y" * 100_000)
    for name in ("g.png", "f.png"):
        with Image.open(tmp_path / name) as page:
            assert page.width < 3000 and page.height < 200


@pytest.mark.parametrize("colours", [32, 128])
def test_a_figure_is_saved_in_few_colours(colours, tmp_path):
    """As large as the figure."""
    figure = Figure(figsize=(2, 1), dpi=100)
    figure.subplots().imshow(np.arange(5000).reshape(50, 100), cmap="hsv")
    figure.suptitle("hues")
    plots.save_figure(tmp_path / "p.png", figure, colours)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (200, 100) and picture.mode == "P"
        assert colours / 2 < len(picture.convert("RGB").getcolors(10_000)) <= colours
