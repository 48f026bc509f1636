"""Laws of the order in which images are read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.data.epochs import epoch_indices

pytestmark = pytest.mark.data

NUM, BATCH, SEED = st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**40)


@given(NUM, BATCH, SEED, st.integers(0, 10**12))
def test_a_batch_is_int64_rows_of_the_set(num, batch_size, seed, step):
    """Every batch has batch_size rows in 0..num-1, however far the run has come."""
    rows = epoch_indices(num, batch_size, seed, step)
    assert rows.shape == (batch_size,)
    assert rows.dtype == np.int64
    assert rows.min() >= 0
    assert rows.max() < num


@given(NUM, BATCH, SEED)
def test_each_epoch_holds_each_image_once(num, batch_size, seed):
    """The batches laid end to end and cut into lengths of num are permutations of 0..num-1."""
    steps = -(-4 * num // batch_size)
    rows = np.concatenate([epoch_indices(num, batch_size, seed, step) for step in range(steps)])
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(rows[epoch * num : (epoch + 1) * num]), np.arange(num))


@given(NUM, BATCH, BATCH, SEED)
def test_the_batch_size_only_cuts_the_sequence(num, small, large, seed):
    """One sequence underlies all batch sizes: other cuts of it agree where they overlap."""
    length = 3 * max(small, large)
    a, b = (
        np.concatenate([epoch_indices(num, size, seed, step) for step in range(-(-length // size))])[:length]
        for size in (small, large)
    )
    np.testing.assert_array_equal(a, b)


@given(NUM, BATCH, SEED, st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_a_run_may_continue_at_any_step(num, batch_size, seed, visits):
    """Step k's rows do not depend on which steps were asked for before."""
    in_order = [epoch_indices(num, batch_size, seed, step) for step in range(31)]
    for step in visits:
        np.testing.assert_array_equal(epoch_indices(num, batch_size, seed, step), in_order[step])


def test_a_caller_cannot_disturb_later_epochs():
    """Writing into a batch that is a whole epoch leaves the sequence as it was."""
    first = epoch_indices(8, 8, 0, 0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(epoch_indices(8, 8, 0, 0), kept)


def test_epochs_and_seeds_are_shuffled_differently():
    """No two of the first epochs of two seeds share their order (by chance: 1 in 40! for each pair)."""
    orders = {tuple(epoch_indices(40, 40, seed, epoch)) for seed in (0, 1) for epoch in range(5)}
    assert len(orders) == 10
    assert tuple(range(40)) not in orders


@pytest.mark.parametrize(
    ("name", "args"), [("num", (0, 1, 0, 0)), ("batch_size", (1, 0, 0, 0)), ("seed", (1, 1, -1, 0))]
)
def test_impossible_arguments_are_named(name, args):
    """A ValueError names the argument and its value."""
    with pytest.raises(ValueError, match=f"{name}.*{min(args)}"):
        epoch_indices(*args)
    with pytest.raises(ValueError, match=r"step.*-3"):
        epoch_indices(5, 2, 0, -3)
