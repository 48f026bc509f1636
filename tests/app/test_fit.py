"""A part of a program trains on any loss, goes on where it was stopped, and its length may be given in minutes."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from same_bytes import same_bytes
from small_run import CONFIG, DATASET, SCHEDULE, arrays_of, same_bits, small_workers

from tinydiff.app import checkpoint, training
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.fit import SAVE_EVERY, any_training, finish, steps_that_fit
from tinydiff.app.signals import Stopped
from tinydiff.backend import precision, to_numpy
from tinydiff.optim import EMA, Adam, clip_grad_norm, learning_rate
from tinydiff.train import LoopConfig, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.training

SHORT = LoopConfig(5, batch_size=8, peak_lr=0.01, warmup=2, betas=(0.5, 0.9), clip_norm=0.3, seed=3)


def draw(config, step):
    return draw_batch(DATASET, SCHEDULE, 10, replace(CONFIG, batch_size=config.batch_size), step)


def twice(model, batch):
    return noise_prediction_losses(model, batch) * 2.0


def by_the_loop(workers, path):
    """any_training, and the loop of train.py."""
    state = any_training(workers, twice, draw, SHORT)
    for _ in train(state):
        pass
    return state


def by_finish(workers, path):
    """any_training and finish, as a program trains a part."""
    state = any_training(workers, twice, draw, SHORT)
    finish(state, workers, path, {}, False)
    return state


@pytest.mark.parametrize("way", [by_the_loop, by_finish])
def test_a_part_is_the_loop_on_any_loss(way, tmp_path):
    """Losses, gradient norms, rates, weights, moments and average are those of the parts in order, bit for bit.

    With a loss and a draw of the caller's, and without quarters of T.
    """
    state, other = way(small_workers(), tmp_path / "part.npz"), small_workers()
    adam, ema, expected = Adam(other.parameters, betas=(0.5, 0.9)), EMA(other.parameters, SHORT.ema_decay), []
    for step in range(5):
        loss = float(to_numpy(other.gradients(twice, draw(SHORT, step))).mean())
        norm, rate = clip_grad_norm(other.parameters, 0.3), learning_rate(step, 5, peak=0.01, warmup=2)
        expected.append((loss, float(norm), rate))
        adam.step(rate)
        ema.update()
    assert state.metrics() == expected and state.step == 5
    found = [p.data for p in state.parameters], state.adam.m, state.adam.v, state.ema.average
    for arrays, those in zip(found, ([p.data for p in other.parameters], adam.m, adam.v, ema.average)):
        for a, b in zip(arrays, those, strict=True):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


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
    assert same_bytes((tmp_path / "cut.npz").read_bytes(), (tmp_path / "whole.npz").read_bytes())
    again = finished(tmp_path / "cut.npz", resume=True)  # nothing is left to do
    assert same_bits(arrays_of(again), arrays_of(whole))


def test_a_part_is_resumed_with_its_own_settings_only(tmp_path, capsys):
    """Another setting is named with both values; without --resume the old file is set aside, never overwritten."""
    path = tmp_path / "part.npz"
    finished(path, resume=True)  # there is none yet: from the beginning
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="seed is 3 in the checkpoint, 4 is wanted"):
        finished(path, resume=True, settings={"seed": 4})
    with pytest.raises(CheckpointError, match="more is None in the checkpoint, 1 is wanted"):
        finished(path, resume=True, settings={"seed": 3, "more": 1})
    checkpoint.save(tmp_path / "other.npz", {}, {"kind": "diffusion"})
    with pytest.raises(CheckpointError, match="kind is 'diffusion' in the checkpoint, 'unfinished training' is wanted"):
        finished(tmp_path / "other.npz", resume=True)
    finished(path)
    assert same_bytes((tmp_path / "part.1.npz").read_bytes(), before, path.read_bytes())


def test_what_rounds_differently_in_a_resumed_part_is_printed(tmp_path, capsys):
    """The number of workers of the file and of now.  The bar bears the name of the part."""
    path = tmp_path / "part.npz"
    finished(path)
    assert capsys.readouterr().err.lstrip("\r").startswith("net:")
    arrays, meta = checkpoint.load(path)
    assert (meta["num_workers"], meta["precision"]) == (1, precision())
    checkpoint.save(path, arrays, meta | {"num_workers": 3})
    finished(path, resume=True)
    assert "note: 3 worker(s) before, 1 now: the sums round differently" in capsys.readouterr().out


def test_the_file_of_a_part_says_who_computed_it(tmp_path, monkeypatch):
    """How many workers, and the precision of their products: what a resumed run compares with its own."""
    pool = small_workers()
    three = SimpleNamespace(
        model=pool.model, parameters=pool.parameters, gradients=pool.gradients, ranks=pool.ranks, num_workers=3
    )
    monkeypatch.setattr("tinydiff.app.fit.precision", lambda: "tf32")
    state = any_training(three, twice, draw, replace(SHORT, num_steps=0))
    finish(state, three, tmp_path / "part.npz", {"seed": 3}, False)
    assert checkpoint.load(tmp_path / "part.npz")[1] == {
        "kind": "unfinished training",
        "step": 0,
        "num_steps": 0,
        "settings": {"seed": 3},
        "num_workers": 3,
        "precision": "tf32",
    }


def test_a_part_is_saved_every_hundred_steps(tmp_path, monkeypatch):
    """At its start, on the way, here every second step, and at its end: what a crash costs is at most SAVE_EVERY."""
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, arrays, meta: saved.append(meta["step"]))
    monkeypatch.setattr("tinydiff.app.fit.SAVE_EVERY", 2)
    finished(tmp_path / "part.npz")
    assert saved == [0, 2, 4, 5] and SAVE_EVERY == 100


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
