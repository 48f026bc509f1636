"""Half of the pictures of a batch are mirrored, and nothing else changes."""

import numpy as np
import pytest
from small_run import CONFIG, DATASET, SCHEDULE, small_run

from tinydiff.app.flips import draw_flipped_batch
from tinydiff.backend import default_rng, to_numpy
from tinydiff.diffusion import x_0_from_eps
from tinydiff.train import draw_batch

pytestmark = pytest.mark.training


@pytest.mark.parametrize("step", [0, 7])
def test_a_flipped_batch_is_the_batch_with_some_pictures_mirrored(step):
    """The same t, labels and noise; x_0 of each row is the picture or its mirror image, as the stream says."""
    plain, flipped = (draw(DATASET, SCHEDULE, 10, CONFIG, step) for draw in (draw_batch, draw_flipped_batch))
    assert all((plain[name] == flipped[name]).all() for name in ("t", "labels", "target"))
    before, after = (x_0_from_eps(SCHEDULE, b["x_t"], b["t"], b["target"]) for b in (plain, flipped))
    mirrored = default_rng("flip", CONFIG.seed, step).random(CONFIG.batch_size) < 0.5
    expected = np.where(mirrored[:, None, None, None], before[:, :, ::-1], before)
    np.testing.assert_allclose(to_numpy(after), to_numpy(expected), atol=1e-3)  # float32 at T = 100: 1e-7 / sqrt(1e-3)
    assert 0 < mirrored.sum() < CONFIG.batch_size


def test_half_of_the_pictures_are_mirrored_in_turn():
    """Over 200 steps of 8 pictures half within 5 sigma, 6%; and not always the same rows."""
    shares = np.array(
        [
            (draw_flipped_batch(DATASET, SCHEDULE, 10, CONFIG, step)["x_t"]
             != draw_batch(DATASET, SCHEDULE, 10, CONFIG, step)["x_t"]).any((1, 2, 3))
            for step in range(200)
        ]
    )  # fmt: skip
    assert abs(shares.mean() - 0.5) < 0.0625 and shares.mean(0).min() > 0 and shares.mean(0).max() < 1


def test_a_run_draws_flipped_batches_if_it_is_asked_to(tmp_path):
    """diffusion_training(flip=True) draws these batches; the data set itself stays as it is."""
    before = DATASET.images.copy()
    plain, flipped = small_run(), small_run(flip=True)
    for state, draw in ((plain, draw_batch), (flipped, draw_flipped_batch)):
        expected = draw(DATASET, SCHEDULE, 10, CONFIG, 3)
        assert (to_numpy(state.draw(CONFIG, 3)["x_t"]) == expected["x_t"]).all()
    np.testing.assert_array_equal(DATASET.images, before)
