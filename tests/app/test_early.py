"""The early average of a run: whose it is, when it is taken, and that it outlives a stop, bit for bit."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_workers

from tinydiff.app import checkpoint, kinds
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.early import SHARE, Remembering, early_step, remember, why_none
from tinydiff.app.longer import lengthen
from tinydiff.app.run import UNLIMITED, run
from tinydiff.app.trained import Pair, load_guided, load_trained
from tinydiff.app.training import by_name, diffusion_training, restore, save, steps
from tinydiff.backend import to_numpy
from tinydiff.train import Training

pytestmark = pytest.mark.training

SMALLER = {**NETWORK, "channel_mults": [1]}
TINY = replace(CONFIG, num_steps=8, batch_size=2, warmup=1)  # the early average is that of step 2


def new(config=TINY, make=Remembering):
    return diffusion_training(small_workers(SMALLER), SCHEDULE, config, DATASET, make=make)


def trained(state, path=None):
    """Let run() train the state to its end, and save at `path`."""
    run(state, one_process(), lambda: path and save(state, path, DATASET, SCHEDULE, 1), 1000)
    return state


def of(arrays, kind):
    return {name.partition("/")[2]: a for name, a in arrays.items() if name.startswith(f"{kind}/")}


@cache
def averages(config=TINY):
    """The averages of the weights after each step of a run, by name."""
    state, found = new(config, Training), {}
    for _ in steps(state, one_process()):
        found[state.step] = _average(state)
    return found


def stopped(path, at, config=TINY):
    """A checkpoint of the run of this config, made when `at` steps were done."""
    state = new(config)
    for _, _ in zip(range(at), steps(state, one_process())):
        remember(state)
    save(state, path, DATASET, SCHEDULE, 1)
    return path


def resumed(path, config=TINY, make=Remembering):
    state = new(config, make)
    restore(state, path, *checkpoint.load(path))
    return state


def early_of(state):
    return None if state.early is None else by_name(state.model, state.early)


def test_it_is_the_average_after_a_share_of_all_steps(tmp_path):
    """Bit for bit that of the step, in the checkpoint as weak/NAME; and the run itself has the bits that it had."""
    state = trained(new(), tmp_path / "c.npz")
    arrays, _ = kinds.load(tmp_path / "c.npz", "diffusion")
    expected = averages()
    assert early_step(state) == 2 == SHARE * TINY.num_steps
    assert same_bits(of(arrays, "weak"), expected[2]) and same_bits(of(arrays, "ema"), expected[8])
    assert same_bits(early_of(state), expected[2]) and not same_bits(expected[2], expected[8])
    plain = new(make=Training)
    for _ in steps(plain, one_process()):
        pass
    assert same_bits(arrays_of(state), arrays_of(plain))


@pytest.mark.parametrize("warmup, num_steps, step", [(0, 1, 1), (0, 40, 10), (100, 2000, 500), (100, 300, 100)])
def test_its_step_is_no_part_of_the_warm_up(warmup, num_steps, step):
    """There a clock may still lower the number of steps: the step is the larger of the share and of the warm-up."""
    assert early_step(new(replace(TINY, warmup=warmup, num_steps=num_steps))) == step


def test_a_clock_sets_its_step(monkeypatch):
    """Until the end of the warm-up the number of steps is open; from then on the share is that of the true number."""
    monkeypatch.setattr("tinydiff.app.training.gradient_seconds", lambda *_: [1.0])
    state = new(replace(TINY, num_steps=UNLIMITED, minutes=12 / 60, warmup=3))
    run(state, one_process(), lambda: None, 1000)
    assert state.num_steps == state.step == 12 and early_step(state) == 3
    fixed = averages(replace(TINY, num_steps=12, warmup=3))
    assert same_bits(early_of(state), fixed[3])


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_run_that_was_stopped_has_that_of_a_run_that_was_not(tmp_path, at):
    """Stopped before its step, just at it, and after it: bit for bit, in the state and in the last checkpoint."""
    expected = averages()[2]
    state = resumed(stopped(tmp_path / "c.npz", at))
    assert (state.early is None) == (at < 2)
    trained(state, tmp_path / "end.npz")
    assert same_bits(early_of(state), expected)
    assert same_bits(of(checkpoint.load(tmp_path / "end.npz")[0], "weak"), expected)


@pytest.mark.parametrize("at, step", [(2, 4), (4, 4), (5, 2)])
def test_a_run_that_is_made_longer_takes_that_of_its_new_length_if_it_can(tmp_path, capsys, at, step):
    """Of 8 steps it is the average of step 2, of 16 that of step 4: taken anew if step 4 is not past, and else kept.

    The rates of both lengths are those of the longer run only from `at` on: the averages are compared with its own.
    """
    longer = replace(TINY, num_steps=16)
    state = resumed(stopped(tmp_path / "c.npz", at), longer)
    lengthen(state, one_process())
    before, expected = early_of(state), {}
    if at == 4:  # the step is done already: its average is the present one
        expected[4] = _average(state)
    run(state, one_process(), lambda: expected.update({state.step: _average(state)}), 1)
    assert state.step == 16 and same_bits(early_of(state), before if step == 2 else expected[4])


def _average(state):
    return {name: a.copy() for name, a in by_name(state.model, state.ema.average).items()}


@pytest.mark.parametrize("num_steps, warmup", [(1, 0), (5, 5), (5, 9)])
def test_a_run_that_is_too_short_has_none_and_says_so(tmp_path, num_steps, warmup):
    """An early average of the last step would be the network itself."""
    state = new(replace(TINY, num_steps=num_steps, warmup=warmup))
    assert f"a run of {num_steps} steps has no early average of its weights" in why_none(state)
    trained(state, tmp_path / "c.npz")
    assert state.early is None and not of(checkpoint.load(tmp_path / "c.npz")[0], "weak")
    assert type(load_guided(tmp_path / "c.npz")[0].model) is type(load_trained(tmp_path / "c.npz")[0].model)


def test_a_checkpoint_of_an_earlier_version_has_none_and_a_run_that_goes_on_from_it_says_so(tmp_path):
    """It loads and is resumed; if the step is still to come, the average is taken."""
    for at, none in ((1, False), (2, False), (3, True)):
        path = stopped(tmp_path / "c.npz", at)
        arrays, meta = checkpoint.load(path)
        checkpoint.save(path, {name: a for name, a in arrays.items() if not name.startswith("weak/")}, meta)
        assert kinds.load(path, "diffusion")[1] == meta
        state = resumed(path)
        assert bool(why_none(state)) == none and state.early is None
        assert why_none(state).startswith("this run, at step 3, has no early average" if none else "")
        assert (trained(state).early is None) == none


def test_a_state_takes_over_no_average_of_another_run(tmp_path):
    """Restored from a checkpoint without one it has none, whatever it had before."""
    path = stopped(tmp_path / "c.npz", 1)
    state = trained(new())
    restore(state, path, *checkpoint.load(path))
    assert state.early is None


def test_a_run_that_does_not_remember_reads_a_checkpoint_that_does(tmp_path):
    """A Training goes on from such a checkpoint, and saves none."""
    state = resumed(stopped(tmp_path / "c.npz", 5), make=Training)
    trained(state, tmp_path / "end.npz")
    assert not of(checkpoint.load(tmp_path / "end.npz")[0], "weak")


def test_a_guided_network_has_both_averages_and_alone_it_is_the_last_one(tmp_path):
    """load_guided gives a Pair; load_trained the network alone; what is called is the average of all steps."""
    trained(new(), tmp_path / "c.npz")
    arrays, _ = checkpoint.load(tmp_path / "c.npz")
    pair, alone = (load(tmp_path / "c.npz")[0].model for load in (load_guided, load_trained))
    assert isinstance(pair, Pair) and (pair.num_classes, pair.config) == (alone.num_classes, alone.config)
    for model, kind in ((pair.network, "ema"), (pair.weak, "weak"), (alone, "ema")):
        assert same_bits(model.state_dict(), of(arrays, kind))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1), "float32")
    np.testing.assert_array_equal(to_numpy(pair(x, 5, [1, 2])), to_numpy(alone(x, 5, [1, 2])))


@pytest.mark.parametrize("forge", ["one missing", "one more", "another shape", "not finite", "another type"])
def test_a_forged_early_average_is_refused(tmp_path, forge):
    """All its arrays or none, each like the network's own, by a sentence that names the array."""
    path = stopped(tmp_path / "c.npz", 3)
    arrays, meta = checkpoint.load(path)
    name = next(name for name in arrays if name.startswith("weak/"))
    if forge == "one missing":
        del arrays[name]
    elif forge == "one more":
        arrays[name := "weak/other"] = np.zeros(3, "float32")
    elif forge == "another shape":
        arrays[name] = arrays[name][:1]
    elif forge == "not finite":
        arrays[name] = np.full_like(arrays[name], np.nan)
    else:
        arrays[name] = arrays[name].astype("float64")
    checkpoint.save(path, arrays, meta)
    with pytest.raises(CheckpointError, match=f"contains .*{name}"):
        load_guided(path)
