"""A long run saves when it should, stops when it is asked to, and shows how far it is."""

import argparse
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.app import checkpoint, run, training
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import build_unet
from tinydiff.app.training import diffusion_training
from tinydiff.backend import TinydiffError, precision
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import METRICS, TrainConfig, TrainingError

pytestmark = pytest.mark.program

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}
DATA = Dataset("blank", np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.uint8), "blank", ("a", "b", "c"))


@pytest.fixture
def state():
    workers = one_process().workers(partial(build_unet, NETWORK, 0), 1)
    config = TrainConfig(num_steps=5, minutes=None, batch_size=2, warmup=1)
    return diffusion_training(workers, Schedule.linear(60), config, DATA)


def test_a_setting_that_the_user_gives_no_value_is_not_wanted():
    """None is dropped, other values stay, 0 and False too; and a number of steps is not cut short by a clock."""
    assert run.given(a=1, b=None, c=0, d=False) == {"a": 1, "c": 0, "d": False}
    assert run.wanted(None, None, seed=3, batch_size=None) == {"seed": 3}
    assert run.wanted(None, 2.0, seed=None) == {"minutes": 2.0}
    assert run.wanted(7, None, seed=1) == {"num_steps": 7, "minutes": None, "seed": 1}


def test_more_images_than_there_are_are_the_users_mistake(monkeypatch):
    """load_data passes its choices on; what load cannot do is a TinydiffError that names the option."""
    choices = []
    monkeypatch.setattr(run, "load", lambda *name, **options: choices.append((*name, options)) or DATA)
    assert run.load_data("mnist", "folder", 3, 7) is DATA
    assert choices == [("mnist", {"data_dir": "folder", "seed": 3, "num": 7})]

    def load(*_, **__):
        raise ValueError("num must be at most 60,000")

    monkeypatch.setattr(run, "load", load)
    with pytest.raises(TinydiffError, match="--num-images: num must be at most 60,000"):
        run.load_data("mnist", None, 0, 60_001)


def test_a_width_must_divide_into_groups():
    """Multiples of 8 pass; any other width is refused by its option's name."""
    run.check_channels(16)
    for channels in (12, 4, 33):
        with pytest.raises(TinydiffError, match=f"--channels {channels}: must be a multiple of 8"):
            run.check_channels(channels)


def test_the_options_take_the_defaults_of_the_config():
    """Each option is there, checked, and off until it is given; --help names the defaults of TrainConfig."""
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    text = " ".join(parser.format_help().split())
    assert "images a step (default: 64)" in text and "of weights, data and noise (default: 0)" in text
    assert set(vars(parser.parse_args([])).values()) == {None, False}
    numbers = {"batch_size": 3, "channels": 8, "num_images": 9, "seed": 0, "save_every": 2, "sample_steps": 4}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    assert vars(parser.parse_args([*options, "--out=x", "--resume"])) == {**numbers, "out": "x", "resume": True}
    with pytest.raises(SystemExit):
        parser.parse_args(["--batch-size", "0"])


def test_a_resumed_run_has_as_many_workers_as_before(capsys, monkeypatch):
    """Where the user names no number; a GPU has one, and so has --plain.  What rounds differently is printed."""
    monkeypatch.setattr(run, "FAST", {"installed": None})
    meta = {"num_workers": 3, "precision": precision()}
    assert run.resumed_workers(meta, None, "numpy") == 3
    assert run.resumed_workers({"num_workers": 3}, 3, "cupy") == 3  # an older checkpoint has no precision
    assert capsys.readouterr().out == ""
    assert run.resumed_workers(meta, 2, "numpy") == 2
    assert run.resumed_workers(meta, None, "cupy") == 1
    assert capsys.readouterr().out.splitlines() == [
        "note: 3 worker(s) before, 2 now: the sums round differently",
        "note: 3 worker(s) before, 1 now: the sums round differently",
    ]
    monkeypatch.setattr(run, "FAST", {})
    assert run.resumed_workers(meta, None, "numpy") == 1
    assert capsys.readouterr().out == "note: 3 worker(s) before, 1 now: the sums round differently\n"
    assert run.resumed_workers(meta | {"precision": "half"}, 3, "numpy") == 3
    assert capsys.readouterr().out == (
        f"note: matrix products in half before, in {precision()} now: they round differently\n"
    )


def test_a_checkpoint_is_loaded_if_there_is_one(tmp_path, capsys):
    """None and a line where there is none; what was saved where there is; one of another kind is refused."""
    path = tmp_path / "checkpoint.npz"
    assert run.load_if_there(path, "diffusion") is None
    assert capsys.readouterr().out == f"no checkpoint at {path} yet: starting from the beginning\n"
    checkpoint.save(path, {"a": np.arange(3)}, {"kind": "diffusion", "step": 4})
    arrays, meta = run.load_if_there(path, "diffusion")
    assert arrays["a"].tolist() == [0, 1, 2] and meta == {"kind": "diffusion", "step": 4}
    with pytest.raises(CheckpointError, match="kind is 'diffusion' in the checkpoint, 'prompts' is wanted"):
        run.load_if_there(path, "prompts")


@pytest.mark.parametrize("save_every, expected", [(2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_a_run_is_saved_at_both_ends_and_on_the_way(state, save_every, expected):
    """Before the first step, every so many steps, after the last; what is done on the way follows every other step."""
    saved, seen = [], []
    ranks = one_process()
    finished = run.run(state, ranks, lambda: saved.append(state.step), save_every, lambda: seen.append(state.step))
    assert finished is True and saved == expected and seen == [1, 2, 3, 4]


def test_a_signal_ends_the_step_saves_and_stops(state, capsys):
    """Its step is saved, nothing more is done, and the answer is False; in the last step it comes too late."""
    saved, seen = [], []

    def on_the_way():
        seen.append(state.step)
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)

    assert run.run(state, one_process(), lambda: saved.append(state.step), 9, on_the_way) is False
    assert saved == [0, 3] and seen == [1, 2] and state.step == 3
    assert "SIGTERM: saved at step 3; continue with --resume" in capsys.readouterr().out
    saved.clear()
    on_the_way = lambda: signal.raise_signal(signal.SIGTERM) if state.step == 4 else None  # noqa: E731
    assert run.run(state, one_process(), lambda: saved.append(state.step), 9, on_the_way) is True
    assert saved == [3, 5]


class TwoRanks:
    """Another rank runs beside this one; from its step 2 on it has a signal."""

    rank, size = 0, 2

    def __init__(self):
        self.calls, self.rescued = 0, []

    def broadcast(self, make):
        return make()

    def allreduce_mean(self, a):
        self.calls += 1
        assert a.dtype == np.float32 and a.shape == (1,)
        return (a + (self.calls >= 2)) / 2

    def rescue(self, save):
        self.rescued.append(save)


def test_the_signal_of_another_rank_stops_this_one(state, capsys):
    """Every rank stops after the same step, and says who was asked."""
    saved = []
    assert run.run(state, TwoRanks(), lambda: saved.append(state.step), 9) is False
    assert saved == [0, 2]
    assert "stopped by another rank: saved at step 2" in capsys.readouterr().out


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_signal_lets_the_ranks_save_at_once_if_the_state_is_whole(state, monkeypatch, is_whole):
    """ranks.rescue(save) runs in the handler; not within an update, when the parts stand at different steps."""
    ranks = TwoRanks()
    monkeypatch.setattr(run, "whole", lambda of: of is state and is_whole)

    def save():
        pass

    def on_the_way():
        signal.raise_signal(signal.SIGTERM)
        assert ranks.rescued == ([save] if is_whole else [])

    assert run.run(state, ranks, save, 9, on_the_way) is False
    assert ranks.rescued == ([save] if is_whole else [])


def test_the_bar_counts_the_images_of_the_whole_run(state, capsys):
    """From where the run stands to its end, with the step and the mean loss; it is silent on other ranks."""
    state.step, state.num_steps = 3, 5
    state.adam.num_steps = state.ema.num_updates = 3
    state.rows[:] = [(1.0,) * len(METRICS)] * 3
    run.run(state, one_process(), lambda: None, 9)
    shown = capsys.readouterr().err
    assert "6/10" in shown and "10/10" in shown and "step 5, loss " in shown
    state.step = state.num_steps = 5
    second = TwoRanks()
    second.rank = 1
    run.run(state, second, lambda: None, 9)
    assert capsys.readouterr().err == ""


def test_the_total_is_known_once_the_clock_has_decided(state):
    """Images of all steps; None for a run whose number of steps is still open."""
    assert run.total(state) == 10
    state.num_steps = run.UNLIMITED
    assert run.total(state) is None


def test_the_recent_loss_is_the_mean_of_the_last_50(state):
    """Of the rows that are known; without one there is nothing to show."""
    assert run.recent_loss(state) == ""
    state.rows[:] = [(100.0,)] * 10 + [(i / 10,) for i in range(50)]
    assert run.recent_loss(state) == ", loss 2.4500"


def test_the_metrics_are_a_line_a_step(tmp_path):
    """A header and six digits of every number, numbered from 1; nan where a batch had no such t."""
    rows = [(0.123456789, 2.0, 1e-5, 1.0, float("nan"), 3.0, 4.0), (1.0, 1e7, 0.5, 0.0, 1.0, 2.0, 3.0)]
    run.save_metrics(SimpleNamespace(metrics=lambda: rows), tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == (
        b"step,loss,grad_norm,learning_rate,loss_t_bucket_1,loss_t_bucket_2,loss_t_bucket_3,loss_t_bucket_4\r\n"
        b"1,0.123457,2,1e-05,1,nan,3,4\r\n"
        b"2,1,1e+07,0.5,0,1,2,3\r\n"
    )


def test_the_loss_is_drawn_by_quarters_of_t(tmp_path, monkeypatch):
    """Steps from 1, the loss, and one curve for each quarter, whose name is its range of t."""
    drawn = []
    monkeypatch.setattr(run.plots, "save_loss", lambda *arguments: drawn.extend(arguments))
    rows = [(0.5, 2.0, 1e-5, 1.0, 2.0, 3.0, 4.0), (0.25, 1.0, 0.5, 5.0, 6.0, 7.0, 8.0)]
    run.save_loss(SimpleNamespace(metrics=lambda: rows, T=1000), tmp_path / "loss.png", "a title")
    path, steps, loss, buckets, names, title = drawn
    assert path == tmp_path / "loss.png" and title == "a title"
    assert steps.tolist() == [1, 2] and loss.tolist() == [0.5, 0.25]
    assert buckets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert names == ["t = 1..250", "t = 251..500", "t = 501..750", "t = 751..1000"]


@pytest.mark.parametrize("peak_lr", [1e30, 1e39])
def test_a_run_that_diverges_names_its_last_save_which_is_finite(state, tmp_path, peak_lr):
    """A rate so large that numbers overflow, with a save at each step: the file that is named holds finite numbers."""
    state.config = replace(state.config, peak_lr=peak_lr, warmup=0)
    path, meta = tmp_path / "a.npz", []

    def save():
        training.save(state, path, DATA, Schedule.linear(60), 1)
        meta.append(state.step)

    with np.errstate(all="ignore"), pytest.raises(TrainingError) as error:
        run.run(state, one_process(), save, 1)
    assert f"the last checkpoint is finite; last saved at step {meta[-1]}" in str(error.value)
    arrays, saved_meta = checkpoint.load(path)
    assert saved_meta["step"] == meta[-1]
    assert all(np.isfinite(a).all() for name, a in arrays.items() if name != "metrics")
