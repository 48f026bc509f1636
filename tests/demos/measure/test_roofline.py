"""A step's operations and bytes are counted exactly: they follow from the shapes of the network's layers."""

import numpy as np
import pytest

from tinydiff.app.generate import build_unet
from tinydiff.backend import backend_name, xp

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

TINY = {"batch_size": 2, "channels": 16, "size": 8, "cores": 1}


@pytest.fixture
def roofline(module):
    return module("roofline")


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
def test_a_product_is_2_m_k_n_operations_for_each_matrix_of_the_broadcast_batch(roofline, x, y, multiplications):
    """Operations and bytes of one product, of two they add up, into `out` too; the result is matmul's own."""
    x, y = xp.ones(x, "float32"), xp.ones(y, "float32")
    with roofline.counting() as work:
        z = xp.matmul(x, y)
        xp.matmul(x, y, out=xp.empty_like(z))
    np.testing.assert_array_equal(z, np.matmul(x, y))
    assert work["product"].operations == 2 * 2 * multiplications
    assert work["product"].bytes == 2 * 4 * (x.size + y.size + z.size)
    assert work["thin"].operations == work["tanh"].operations == 0


def test_each_kind_of_work_is_counted_apart(roofline):
    """A side of 6, wherever it is, makes a product thin; tanh counts its numbers; behind the block nothing counts."""
    a, b, c = (xp.ones(shape, "float32") for shape in ((6, 7), (7, 8), (8, 6)))
    with roofline.counting() as work:
        xp.matmul(a, b)  # M = 6
        xp.matmul(b, c)  # N = 6
        xp.matmul(c, a)  # K = 6
        xp.tanh(b)
    assert work["thin"].operations == 2 * 3 * 6 * 7 * 8 and work["product"].operations == 0
    assert work["tanh"].operations == 56 and work["tanh"].bytes == 2 * 4 * 56
    assert work["thin"].seconds > 0 and work["tanh"].seconds > 0
    assert xp.matmul is np.matmul and xp.dot is np.dot and xp.tanh is np.tanh


def test_direct_operations_follow_from_the_layers_shapes(roofline):
    """Forward, input gradient and filter gradient are a product each, with 2 operations for a weight and a pixel.

    Winograd's way does fewer in all.  The state is five numbers a parameter.
    """
    n, size, channels = 8, 12, 16  # no side that makes a product thin
    step = roofline.measure_step(TINY | {"batch_size": n, "size": size, "channels": channels}, rounds=1)
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


def test_kept_bytes_grow_by_the_maps_of_each_image(roofline):
    """What a network keeps is a fixed part, its graph, and the same for each image: at least the skips."""
    kept = []
    for n in (8, 16, 24):
        step = roofline.Step(backend="numpy", **TINY | {"batch_size": n})
        step.kept_bytes()  # what is made once and kept for good
        kept.append(step.kept_bytes())
    skips = (
        8 * 8 * (1 + 1) + 4 * 4 * (1 + 2) + 2 * 2 * (2 + 2)
    )  # pixels and channels, as multiples of the first level's
    assert kept[1] - kept[0] > 8 * 4 * TINY["channels"] * skips
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.01)  # a Python object more or less
