"""A large batch is the smaller batches that follow each other, whoever draws which of its rows."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.blocks import BLOCK, in_blocks
from tinydiff.data import Dataset, load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, draw_batch

pytestmark = pytest.mark.training

GLYPHS, LINEAR = load("glyphs", num=300), Schedule.linear(100)


def from_source(dataset):
    return partial(draw_batch, dataset, LINEAR, 10)


def drawn(n, step, part=lambda n: slice(0, n)):
    return in_blocks(from_source, GLYPHS, part)(TrainConfig(batch_size=n), step)


@pytest.mark.parametrize("n", [1, 64, 511, BLOCK, 521, 2 * 521])  # 521 is a prime: its only smaller block is 1
def test_a_batch_that_is_small_or_cannot_be_cut_stays_whole(n):
    """It is draw_batch's own, bit for bit, for a rank without a row of it too."""
    expected = from_source(GLYPHS)(TrainConfig(batch_size=n), 3)
    for found in (drawn(n, 3), drawn(n, 3, lambda n: slice(0, 0))):
        assert found.keys() == expected.keys()
        for name, a in expected.items():
            np.testing.assert_array_equal(found[name], a)


@pytest.mark.parametrize(("n", "size"), [(513, 171), (1024, 512), (1500, 500), (640, 320)])
def test_a_large_batch_is_the_smaller_ones_in_order(n, size):
    """Step k of n is the n/size steps from k n/size on, of `size`: so each epoch still shows each picture once."""
    config, count = TrainConfig(batch_size=n), n // size
    parts = [from_source(GLYPHS)(replace(config, batch_size=size), 2 * count + k) for k in range(count)]
    for name, a in drawn(n, 2).items():
        np.testing.assert_array_equal(a, np.concatenate([part[name] for part in parts]))


@given(st.sampled_from([1024, 1500, 513]), st.integers(1, 7), st.data())
def test_every_row_is_the_same_whoever_draws_it(n, size, data):
    """A rank's rows are those of the whole batch, and t is right everywhere: the metrics need it."""
    rank = data.draw(st.integers(0, size - 1))
    rows = slice(n * rank // size, n * (rank + 1) // size)
    whole, part = drawn(n, 1), drawn(n, 1, lambda n: rows)
    for name, a in whole.items():
        assert part[name].shape == a.shape and part[name].dtype == a.dtype
        np.testing.assert_array_equal(part[name][rows], a[rows])
    np.testing.assert_array_equal(part["t"], whole["t"])


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(64 * 521, [64] * 521), (63 * 521, [63 * 521]), (512, [512]), (513, [171] * 3), (1024, [512] * 2)],
)
def test_the_blocks_are_the_largest_that_divide_the_batch(n, sizes):
    """From 64 examples to 512; a batch that has no such divisor, as 521 times fewer than 64, stays whole."""
    config, drawn = TrainConfig(batch_size=n), []

    def draw_from(dataset):
        return lambda config, step: drawn.append((config.batch_size, step)) or {"t": np.full(config.batch_size, step)}

    batch = in_blocks(draw_from, [], lambda n: slice(0, n))(config, 3)
    first = 3 * len(sizes)
    assert drawn == [(size, first + k) for k, size in enumerate(sizes)]
    np.testing.assert_array_equal(batch["t"], np.repeat([step for _, step in drawn], sizes))


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [((0, 512), [0]), ((0, 513), [0, 1]), ((512, 1024), [1]), ((511, 1025), [0, 1, 2]), ((1535, 1536), [2])],
)
def test_a_block_is_drawn_if_it_holds_a_row_that_is_wanted(rows, blocks):
    """Three ranks and more: parts that end at a block's border, one row before it and one beyond."""
    real = np.zeros(9)

    def draw_from(dataset):
        return lambda config, step: {"x": np.full((config.batch_size, 1), float(dataset is real))}

    drawn = in_blocks(draw_from, real, lambda n: slice(*rows))(TrainConfig(batch_size=1536), 0)["x"]
    np.testing.assert_array_equal(drawn[:, 0], np.repeat([k in blocks for k in range(3)], 512))


def test_pictures_of_one_pixel_keep_their_shape():
    """No stand-in for a picture is larger than the smallest picture."""
    point = Dataset("point", np.full((9, 1, 1, 1), 7, np.uint8), np.zeros(9, np.uint8), "one pixel", ("0",))
    draw = in_blocks(lambda dataset: partial(draw_batch, dataset, LINEAR, 1), point, lambda n: slice(0, 1))
    assert draw(TrainConfig(batch_size=1024), 0)["x_t"].shape == (1024, 1, 1, 1)


def test_pictures_of_other_blocks_are_not_drawn():
    """Far from the wanted rows x_t is 0: nobody has spent time on it."""
    part = drawn(1024, 0, lambda n: slice(0, 10))
    assert part["x_t"][:BLOCK].any() and not part["x_t"][BLOCK:].any()
