"""Whatever draws from a run or from a checkpoint draws with the average of the weights, never with the last ones.

In these tests the last weights of every run are NaN as soon as it has ended (conftest.py), and those of every small
checkpoint are huge (tiny_runs.py).  So each test of a program that draws is a test of this law too.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from small_run import CONFIG, small_run, small_workers
from tiny_runs import LOST, save_checkpoint

from tinydiff.app import checkpoint, training
from tinydiff.app.alone import one_process
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[2]
# Where else an average is read.  A checkpoint is written, a wrong average is shown on purpose, another is shown beside
# the raw weights, an update is timed, an average is rounded.
ELSEWHERE = {
    "network.py": r"pool\.weights\(state\.ema",
    "latent.py": r"arrays \|= ",
    "pitfalls.py": "cold",
    "measure/ours.py": r"_wait\((state\.)?ema",
    "precision/precision_runs.py": r"zip\(state.parameters, |run.weights\(p",
}


def images(workers):
    recipe = Recipe(Schedule.linear(100), (8, 8, 1), num_steps=2)
    return np.concatenate(list(generate(workers, recipe, [0, 1, 2], 0)), 1)


def test_the_last_weights_of_a_run_are_lost_here_and_its_average_draws():
    """Within `drawing` the network has the average bit for bit; outside it draws what generate refuses."""
    workers = small_workers()
    state = small_run(workers=workers)
    for _ in training.steps(state, one_process()):
        pass
    average = [to_numpy(a).copy() for a in state.ema.average]
    assert state.step == CONFIG.num_steps and all(np.isfinite(a).all() for a in average)
    with training.drawing(workers, state):
        for p, a in zip(state.parameters, average, strict=True):
            np.testing.assert_array_equal(to_numpy(p), a)
        assert np.isfinite(images(workers)).all()
    assert all(math.isnan(value) for p in state.parameters for value in to_numpy(p).reshape(-1))
    with pytest.raises(TinydiffError, match="the network draws NaN"):
        images(workers)


def test_the_last_weights_of_a_checkpoint_are_lost_here_and_its_average_draws(tmp_path):
    """The file holds both; load_trained gives the average, bit for bit."""
    path = tmp_path / "c.npz"
    save_checkpoint(path, load("glyphs", num=10))
    arrays, _ = checkpoint.load(path)
    workers, _, _ = load_trained(path, 1)
    for name, p in workers.model.named_parameters():
        np.testing.assert_array_equal(to_numpy(p), arrays[f"ema/{name}"])
        assert (arrays[f"weights/{name}"] == np.float32(LOST)).all()
        assert abs(arrays[f"ema/{name}"]).max(initial=0) < 10


def test_one_place_hands_out_the_weights_of_a_run():
    """In demos/ no line reads an average or sets weights but those that are listed here with their reason."""
    found = {}
    for path in (ROOT / "demos").rglob("*.py"):
        for line in path.read_text("utf-8").splitlines():
            if re.search(r"\.average\b|\.weights\(", line) and "exercises" not in path.parts:
                found.setdefault(path.relative_to(ROOT / "demos").as_posix(), []).append(line)
    assert found.keys() == ELSEWHERE.keys()
    assert [line for name, lines in found.items() for line in lines if not re.search(ELSEWHERE[name], line)] == []
