"""A run that is given minutes is, once the clock has decided, the run with that many steps, bit for bit."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_run

from tinydiff.app import checkpoint, training
from tinydiff.app.alone import one_process
from tinydiff.app.run import UNLIMITED
from tinydiff.app.training import restore, save, saved_config, steps
from tinydiff.optim import EMA

pytestmark = pytest.mark.training

SMALLER = {**NETWORK, "channel_mults": [1], "attention_levels": [], "num_res_blocks": 1}
WARMUP, FITS = 10, 14  # steps
UNDER_A_CLOCK = replace(CONFIG, num_steps=UNLIMITED, minutes=FITS / 120, warmup=WARMUP, batch_size=2)


def started(config):
    return small_run(config, SMALLER)


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): from now on a step of any run takes so long.  Of half a second FITS fit."""
    now, update, taken = [0.0], EMA.update, [0.5]

    def update_and_pass(ema):
        now[0] += taken[0]
        update(ema)

    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(EMA, "update", update_and_pass)
    return lambda seconds: taken.__setitem__(0, seconds)


def trained(state, until=math.inf):
    """Train, as run.py does, to the end or until a step."""
    for _ in steps(state, one_process(), state.config.minutes):
        if state.step == until:
            break
    return state


@cache
def by_number(num_steps):
    """The run with that many steps, without a clock."""
    return trained(started(replace(UNDER_A_CLOCK, num_steps=num_steps, minutes=None)))


def resumed(state, path):
    """The run that goes on from a checkpoint of this one, in a new process."""
    save(state, path, DATASET, SCHEDULE, 1)
    arrays, meta = checkpoint.load(path)
    new = started(saved_config(meta))
    restore(new, path, arrays, meta)
    return new


def same_run(a, b):
    np.testing.assert_array_equal(a.metrics(), b.metrics())
    return (a.step, a.num_steps) == (b.step, b.num_steps) and same_bits(arrays_of(a), arrays_of(b))


def test_it_is_the_run_with_that_many_steps(clock):
    """Weights, moments, average and metrics, the rates among them: the last step is the last but one of the fall."""
    a, b = trained(started(UNDER_A_CLOCK)), by_number(FITS)
    assert a.step == FITS and same_run(a, b)
    last = CONFIG.peak_lr * (1 + math.cos(math.pi * 3 / 4)) / 2
    assert a.metrics()[-1][2] == pytest.approx(last, rel=1e-12) and a.metrics()[WARMUP - 1][2] == CONFIG.peak_lr


def test_another_number_of_steps_is_another_run(clock):
    """The law above can fail: with one step more the rate falls otherwise."""
    a, b = trained(started(UNDER_A_CLOCK)), by_number(FITS + 1)
    assert [row[2] for row in a.metrics()][: WARMUP + 1] == [row[2] for row in b.metrics()][: WARMUP + 1]
    assert a.metrics()[-1][2] < b.metrics()[FITS - 1][2]


def test_its_checkpoint_is_that_of_the_run_with_that_many_steps(clock, tmp_path):
    """Every array, and the number of steps; only the settings say that it was given minutes."""
    files = []
    for name, state in (("a", trained(started(UNDER_A_CLOCK))), ("b", by_number(FITS))):
        save(state, tmp_path / name, DATASET, SCHEDULE, 1)
        files.append(checkpoint.load(tmp_path / name))
    (arrays, meta), (others, settings) = files
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in arrays)
    assert {name for name in meta if meta[name] != settings[name]} == {"train"} and meta["num_steps"] == FITS
    train = meta["train"]
    assert {name for name in train if train[name] != settings["train"][name]} == {"num_steps", "minutes"}


@pytest.mark.parametrize("cut, seconds", [(WARMUP, 1e-6), (WARMUP, 100.0), (WARMUP + 1, 1e-6), (FITS, 1e-6)])
def test_it_goes_on_with_the_number_that_was_decided(clock, tmp_path, cut, seconds):
    """Resumed after the decision on a machine that is faster or slower, it ends in the same bits."""
    first = trained(started(UNDER_A_CLOCK), until=cut)
    clock(seconds)
    assert same_run(trained(resumed(first, tmp_path / "c.npz")), by_number(FITS))


def test_one_that_is_resumed_in_its_warm_up_counts_anew(clock, tmp_path, monkeypatch):
    """Before the decision the checkpoint has no number: the clock of the machine that goes on decides."""
    first = trained(started(UNDER_A_CLOCK), until=1)
    assert first.num_steps == UNLIMITED
    monkeypatch.setattr(training, "gradient_seconds", lambda *_: [7 / 13])  # nine steps are too few to measure
    a = trained(resumed(first, tmp_path / "c.npz"))
    assert a.step == FITS - 1 and same_run(a, by_number(FITS - 1))
