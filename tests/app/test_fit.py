"""The short run is the one loop on any loss, and its length may be given in minutes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_run import CONFIG, DATASET, SCHEDULE, small_workers

from tinydiff.app import fit as short_run
from tinydiff.app.fit import fit, steps_that_fit
from tinydiff.backend import asarray, to_numpy
from tinydiff.optim import Adam, clip_grad_norm, learning_rate
from tinydiff.train import LoopConfig, TrainingError, draw_batch, noise_prediction_losses

pytestmark = pytest.mark.training

SHORT = LoopConfig(5, batch_size=8, peak_lr=0.01, warmup=2, betas=(0.5, 0.9), clip_norm=0.3, seed=3)


def test_fit_is_the_loop_on_any_loss():
    """Its losses are those of the parts in order, with a loss and a draw of the caller's and without quarters of T."""
    asked = []

    def draw(config, step):
        asked.append((config, step))
        return draw_batch(DATASET, SCHEDULE, 10, replace(CONFIG, batch_size=config.batch_size), step)

    def twice(model, batch):
        return noise_prediction_losses(model, batch) * 2.0

    workers, other = small_workers(), small_workers()
    adam, expected = Adam(other.parameters, betas=(0.5, 0.9)), []
    for step in range(5):
        expected.append(float(to_numpy(other.gradients(twice, draw(SHORT, step))).mean()))
        clip_grad_norm(other.parameters, 0.3)
        adam.step(learning_rate(step, 5, peak=0.01, warmup=2))
    asked.clear()
    assert list(fit(workers, twice, draw, SHORT)) == expected
    assert asked == [(SHORT, step) for step in range(5)]
    for p, q in zip(workers.model.parameters(), other.model.parameters()):
        np.testing.assert_array_equal(to_numpy(p), to_numpy(q))


def test_fit_stops_at_a_loss_that_is_no_number():
    """TrainingError with the step's number, and the weights are those before it."""
    workers = small_workers()

    def losses_of(model, batch):
        return noise_prediction_losses(model, batch) * asarray(batch["factor"])

    def draw(config, step):
        factor = np.full(CONFIG.batch_size, math.nan if step == 2 else 1.0, "float32")
        return {**draw_batch(DATASET, SCHEDULE, 10, CONFIG, step), "factor": factor}

    run = fit(workers, losses_of, draw, SHORT)
    assert [math.isfinite(next(run)) for _ in range(2)] == [True, True]
    before = workers.model.state_dict()
    with pytest.raises(TrainingError, match="step 3: loss is nan"):
        next(run)
    for name, a in workers.model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


def test_the_steps_that_fit_are_counted_by_gradients_and_at_least_one(monkeypatch):
    """Minutes over the seconds of a gradient, the first three of ten not counted: by a clock of the test's own."""
    now, drawn, config = [0.0], [], LoopConfig(1, batch_size=4)

    class Pool:
        def gradients(self, losses_of, batch):
            assert losses_of == "losses" and batch == {"x": len(drawn)}

    def draw(settings, step):
        drawn.append((settings, step))
        now[0] += 100 if step < 3 else 2
        return {"x": len(drawn)}

    monkeypatch.setattr(short_run.time, "monotonic", lambda: now[0])
    assert steps_that_fit(Pool(), "losses", draw, config, 3.0) == 90
    assert drawn == [(config, step) for step in range(10)]
    drawn.clear()
    assert steps_that_fit(Pool(), "losses", draw, config, 0.01) == 1
