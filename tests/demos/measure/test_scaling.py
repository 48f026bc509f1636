"""scaling.py in its smallest form: operations are counted exactly, the table has its rows, the picture its panels."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tinydiff.generate import build_unet

from tinydiff.backend import backend_name, xp

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

DEMOS = Path(__file__).parents[2] / "demos"
TINY = {"batch_size": 2, "channels": 16, "size": 8, "workers": 1}


@pytest.fixture
def scaling(monkeypatch):
    """The module, by a name under which the processes that it starts find it too."""
    monkeypatch.syspath_prepend(DEMOS)
    return importlib.import_module("scaling")


@pytest.mark.parametrize(
    ("x", "y", "multiplications"),
    [
        ((7, 8), (8, 9), 7 * 8 * 9),
        ((3, 7, 8), (3, 8, 9), 3 * 7 * 8 * 9),
        ((3, 7, 8), (8, 9), 3 * 7 * 8 * 9),
        ((7, 8), (3, 8, 9), 3 * 7 * 8 * 9),
        ((4, 1, 7, 8), (5, 8, 9), 20 * 7 * 8 * 9),
        ((0, 7, 8), (8, 9), 0),
    ],
)
def test_a_product_is_2_m_k_n_operations_for_each_matrix_of_the_broadcast_batch(scaling, x, y, multiplications):
    """Operations and bytes of one product, of two they add up, into `out` too; the result is matmul's own."""
    x, y = xp.ones(x, "float32"), xp.ones(y, "float32")
    with scaling.counting() as work:
        z = xp.matmul(x, y)
        xp.matmul(x, y, out=xp.empty_like(z))
    np.testing.assert_array_equal(z, np.matmul(x, y))
    assert work["product"].operations == 2 * 2 * multiplications
    assert work["product"].bytes == 2 * 4 * (x.size + y.size + z.size)
    assert work["thin"].operations == work["tanh"].operations == 0


def test_each_kind_of_work_is_counted_apart(scaling):
    """A side of 6, wherever it is, makes a product thin; tanh counts its numbers; behind the block nothing counts."""
    a, b, c = (xp.ones(shape, "float32") for shape in ((6, 7), (7, 8), (8, 6)))
    with scaling.counting() as work:
        xp.matmul(a, b)  # M = 6
        xp.matmul(b, c)  # N = 6
        xp.matmul(c, a)  # K = 6
        xp.tanh(b)
    assert work["thin"].operations == 2 * 3 * 6 * 7 * 8 and work["product"].operations == 0
    assert work["tanh"].operations == 56 and work["tanh"].bytes == 2 * 4 * 56
    assert work["thin"].seconds > 0 and work["tanh"].seconds > 0
    assert xp.matmul is np.matmul and xp.dot is np.dot and xp.tanh is np.tanh


def test_direct_operations_follow_from_the_layers_shapes(scaling):
    """Forward, input gradient and filter gradient are a product each, with 2 operations for a weight and a pixel.

    Winograd's way does fewer in all.  The state is five numbers a parameter.
    """
    n, size, channels = 8, 12, 16  # no side that makes a product thin
    step = scaling.measure_step(TINY | {"batch_size": n, "size": size, "channels": channels}, rounds=1)
    model, pixels = build_unet({"base_channels": channels}, 0), n * size * size
    expected = 0

    def add(part, rows, products=3):
        nonlocal expected
        for name, p in part.named_parameters():
            if name.endswith("gamma"):  # means over groups, as products with a C x C matrix: two each way
                expected += 2 * 4 * n * p.size**2
            elif name.endswith("w"):
                expected += 2 * products * p.size * (n if name == "time.w" else rows)

    add(model.conv_in, pixels, products=2)  # nobody asks for the gradient of the image, nor of the sinusoids
    add(model.time1, n, products=2)
    add(model.time2, n)
    for part in (*model.down, *model.middle, *model.up):
        pixels = {"Downsample": pixels // 4, "Upsample": pixels * 4}.get(type(part).__name__, pixels)
        add(part, pixels)  # those of its output
    add(model.norm_out, pixels)
    add(model.conv_out, pixels)
    expected += 2 * 6 * n * (size // 4) ** 4 * 2 * channels  # attention: two products forward, four backward
    assert step["direct"] == expected
    assert 0 < step["work"]["product"].operations < step["direct"]
    assert step["state"] == 5 * 4 * model.num_parameters()


def test_kept_bytes_grow_by_the_maps_of_each_image(scaling):
    """What a network keeps is a fixed part, its graph, and the same for each image: at least the skips."""
    kept = []
    for n in (8, 16, 24):
        step = scaling.Step(**TINY | {"batch_size": n})
        step.kept_bytes()  # what is made once and kept for good
        kept.append(step.kept_bytes())
    skips = (
        8 * 8 * (1 + 1) + 4 * 4 * (1 + 2) + 2 * 2 * (2 + 2)
    )  # pixels and channels, as multiples of the first level's
    assert kept[1] - kept[0] > 8 * 4 * TINY["channels"] * skips
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.01)  # a Python object more or less


def test_it_prints_its_table_and_draws_its_four_panels(scaling, tmp_path, capsys, monkeypatch):
    """Each rate, each kind of work, each value of each sweep; a picture with something in each quarter of it."""
    monkeypatch.setattr(scaling, "REFERENCE", TINY)
    monkeypatch.setattr(scaling, "available_cores", lambda: 2)
    values = {"batch_size": (1, 2), "channels": (8, 16), "size": (4, 12)}
    tiny = [replace(sweep, values=values[sweep.name]) for sweep in scaling.SWEEPS]
    monkeypatch.setattr(scaling, "SWEEPS", tiny)
    scaling.main(out=tmp_path / "new" / "folder", rounds=1)
    printed = capsys.readouterr().out
    for text in (*scaling.RATES.values(), "a step of 2 images", "direct convolution", "products over channels"):
        assert text in printed
    rows = {line[:40].strip(): line[40:] for line in printed.splitlines()}
    for sweep in tiny:
        assert all(f" {value}: " in rows[sweep.label] for value in sweep.values)
    assert " 1: " in rows["worker processes"] and " 2: " in rows["worker processes"]

    path = tmp_path / "new" / "folder" / "scaling.png"
    assert list(path.parent.iterdir()) == [path] and str(path) in printed
    picture = imread(path)[..., :3]
    height, width, _ = picture.shape
    assert width > 900 and height > 600
    for quarter in (part for half in np.array_split(picture, 2) for part in np.array_split(half, 2, axis=1)):
        assert 0.02 < (quarter.min(-1) < 0.9).mean() < 0.5  # ink, and paper


def test_the_fit_finds_the_power_of_a_power_law(scaling):
    """seconds = 3 value^1.5 has p = 1.5; a speed-up is the first time over each."""
    assert scaling.power_of({value: 3 * value**1.5 for value in (4, 8, 64)}) == pytest.approx(1.5)
    assert scaling.speed_up({1: 6.0, 2: 4.0, 3: 2.0}).tolist() == [1, 1.5, 3]


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "few"], ["--backend", "cupy"]])
def test_wrong_arguments_exit_with_2(arguments, tmp_path):
    """One line names the option and the value."""
    command = [sys.executable, DEMOS / "scaling.py", "--out", tmp_path, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and " ".join(arguments[:1]) in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_exits_with_2(tmp_path):
    """Said before anything is measured."""
    path = tmp_path / "file"
    path.write_text("kept")
    ended = subprocess.run([sys.executable, DEMOS / "scaling.py", "--out", path], capture_output=True, text=True)
    assert ended.returncode == 2 and str(path) in ended.stderr and path.read_text() == "kept"
