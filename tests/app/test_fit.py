"""A part of a program trains on any loss, goes on where it was stopped, and its length may be given in minutes."""

import signal
from dataclasses import replace

import numpy as np
import pytest
from small_run import CONFIG, DATASET, SCHEDULE, arrays_of, same_bits, small_workers

from tinydiff.app import checkpoint, training
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.fit import any_training, finish, steps_that_fit
from tinydiff.app.signals import Stopped
from tinydiff.backend import to_numpy
from tinydiff.optim import Adam, clip_grad_norm, learning_rate
from tinydiff.train import LoopConfig, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.training

SHORT = LoopConfig(5, batch_size=8, peak_lr=0.01, warmup=2, betas=(0.5, 0.9), clip_norm=0.3, seed=3)


def draw(config, step):
    return draw_batch(DATASET, SCHEDULE, 10, replace(CONFIG, batch_size=config.batch_size), step)


def twice(model, batch):
    return noise_prediction_losses(model, batch) * 2.0


def test_any_training_is_the_loop_on_any_loss():
    """Its losses are those of the parts in order, with a loss and a draw of the caller's and without quarters of T."""
    state, other = any_training(small_workers(), twice, draw, SHORT), small_workers()
    adam, expected = Adam(other.parameters, betas=(0.5, 0.9)), []
    for step in range(5):
        expected.append(float(to_numpy(other.gradients(twice, draw(SHORT, step))).mean()))
        clip_grad_norm(other.parameters, 0.3)
        adam.step(learning_rate(step, 5, peak=0.01, warmup=2))
    for _ in train(state):
        pass
    assert [row[0] for row in state.metrics()] == expected and len(state.rows[0]) == 3
    for p, q in zip(state.model.parameters(), other.model.parameters()):
        np.testing.assert_array_equal(to_numpy(p), to_numpy(q))


def finished(path, resume=False, settings=None, stop_at=None, num_steps=5):
    """Train with a file at `path`, up to the step before which a signal comes."""
    workers = small_workers()
    state = any_training(workers, twice, draw, replace(SHORT, num_steps=num_steps))
    if stop_at is not None:
        state.draw = lambda config, step: (step == stop_at and signal.raise_signal(signal.SIGTERM), draw(config, step))[
            1
        ]
    finish(state, workers, path, settings or {"seed": 3}, resume, "net")
    return state


def test_a_part_that_is_stopped_goes_on_to_the_same_bits(tmp_path, capsys):
    """Stopped in its third step, with the exit code of the signal; the file holds everything, its length too."""
    whole = finished(tmp_path / "whole.npz")
    with pytest.raises(Stopped) as end:
        finished(tmp_path / "cut.npz", stop_at=2)
    assert end.value.code == 128 + signal.SIGTERM
    assert checkpoint.load(tmp_path / "cut.npz")[1]["step"] == 3
    resumed = finished(tmp_path / "cut.npz", resume=True, num_steps=99)  # a clock may count otherwise this time
    assert "continued at step 3 of 5" in capsys.readouterr().out
    assert same_bits(arrays_of(resumed), arrays_of(whole)) and resumed.metrics() == whole.metrics()
    assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    again = finished(tmp_path / "cut.npz", resume=True)  # nothing is left to do
    assert same_bits(arrays_of(again), arrays_of(whole))


def test_a_part_is_resumed_with_its_own_settings_only(tmp_path, capsys):
    """Another setting is named with both values; without --resume the old file is set aside, never overwritten."""
    path = tmp_path / "part.npz"
    finished(path, resume=True)  # there is none yet: from the beginning
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="seed is 3 in the checkpoint, 4 is wanted"):
        finished(path, resume=True, settings={"seed": 4})
    checkpoint.save(tmp_path / "other.npz", {}, {"kind": "diffusion"})
    with pytest.raises(CheckpointError, match="kind is 'diffusion' in the checkpoint, 'unfinished training' is wanted"):
        finished(tmp_path / "other.npz", resume=True)
    finished(path)
    assert (tmp_path / "part.1.npz").read_bytes() == before == path.read_bytes()


def test_the_steps_that_fit_are_counted_by_gradients_and_at_least_one(monkeypatch):
    """Minutes over the median seconds of a gradient; three slow ones at the start and a stall do not count."""
    now, drawn, config = [0.0], [], LoopConfig(1, batch_size=4)

    class Pool:
        def gradients(self, losses_of, batch):
            assert losses_of == "losses" and batch == {"x": len(drawn)}

    def draw(settings, step):
        drawn.append((settings, step))
        now[0] += 100 if step in (0, 1, 2, 5) else 2
        return {"x": len(drawn)}

    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    assert steps_that_fit(Pool(), "losses", draw, config, 3.0) == 90
    assert drawn == [(config, step) for step in range(10)]
    drawn.clear()
    assert steps_that_fit(Pool(), "losses", draw, config, 0.01) == 1
