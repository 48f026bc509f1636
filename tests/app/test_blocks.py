"""A large batch is the smaller batches that follow each other, whoever draws which of its rows."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.blocks import BLOCK, in_blocks
from tinydiff.data import load
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
    """It is draw_batch's own, bit for bit."""
    expected = from_source(GLYPHS)(TrainConfig(batch_size=n), 3)
    found = drawn(n, 3)
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


def test_pictures_of_other_blocks_are_not_drawn():
    """Far from the wanted rows x_t is 0: nobody has spent time on it."""
    part = drawn(1024, 0, lambda n: slice(0, 10))
    assert part["x_t"][:BLOCK].any() and not part["x_t"][BLOCK:].any()
