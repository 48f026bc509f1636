"""A long run saves when it should, stops when it is asked to, and shows how far it is."""

import argparse
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.app import checkpoint, classify, kinds, run, training  # noqa: F401  (classify describes its kinds)
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import build_unet
from tinydiff.app.signals import NAMES, Stopped, ending_in_order
from tinydiff.app.training import diffusion_training, save
from tinydiff.backend import TinydiffError, backend_name, precision
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import METRICS, TrainConfig, TrainingError

pytestmark = pytest.mark.program

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}
DATA = Dataset("blank", np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.uint8), "blank", ("a", "b", "c"))


@pytest.fixture
def usual():
    """Python's own handlers during the test, whatever pytest was born with: a background job ignores SIGINT."""
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in NAMES}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def on_cores(monkeypatch, cores):
    """A machine with so many cores for workers; one core also stands for --plain."""
    ranks = SimpleNamespace(default_workers=lambda most: min(cores, most))
    monkeypatch.setattr(run, "one_process", lambda: ranks)


def test_a_resumed_run_has_as_many_workers_as_before(capsys, monkeypatch):
    """Where the user names no number; a GPU has one, and so has --plain.  What rounds differently is printed."""
    on_cores(monkeypatch, 8)
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
    on_cores(monkeypatch, 1)
    assert run.resumed_workers(meta, None, "numpy") == 1
    assert capsys.readouterr().out == "note: 3 worker(s) before, 1 now: the sums round differently\n"
    assert run.resumed_workers(meta | {"precision": "half"}, 3, "numpy") == 3
    assert capsys.readouterr().out == (
        f"note: matrix products in half before, in {precision()} now: they round differently\n"
    )


@pytest.mark.parametrize("before, cores, now", [(60, 2, 2), (64, 2, 2), (64, 64, 64), (2, 64, 2), (10**9, 4, 4)])
def test_a_checkpoint_starts_no_more_workers_than_there_are_cores(capsys, monkeypatch, before, cores, now):
    """A run of a larger machine, or a forged number, becomes this machine's, with a note; a user may ask for more."""
    on_cores(monkeypatch, cores)
    assert run.resumed_workers({"num_workers": before}, None, "numpy") == now
    note = f"note: {before} worker(s) before, {now} now: the sums round differently\n"
    assert capsys.readouterr().out == (note if now != before else "")
    assert run.resumed_workers({"num_workers": before}, 7, "numpy") == 7


def test_a_run_that_could_not_be_resumed_is_not_started():
    """A setting that no checkpoint may contain is the user's mistake, by the name of its option."""
    for options, said in (
        ({"batch_size": 10**6}, r"--batch-size 1000000: must be a whole number in 1\.\.131072"),
        ({"num_steps": 10**10}, r"--steps 10000000000: must be a whole number in 1\.\."),
        ({"minutes": 1e300}, r"--minutes 1e\+300: must be null or a number from 0 to"),
        ({"seed": 2**200}, r"--seed \d+: must be a whole number in 0\.\."),
    ):
        with pytest.raises(TinydiffError, match=said):
            run.wanted(options.pop("num_steps", None), options.pop("minutes", None), **options)
    with pytest.raises(TinydiffError, match=r"--num-images 1000000: must be a whole number in 1\.\.500000"):
        run.load_data("glyphs", None, 0, 10**6)


def test_a_checkpoint_is_loaded_if_there_is_one(state, tmp_path, capsys):
    """None and a line where there is none; what was saved where there is; one of another kind is refused."""
    path = tmp_path / "checkpoint.npz"
    assert run.load_if_there(path, "diffusion") is None
    assert capsys.readouterr().out == f"no checkpoint at {path} yet: starting from the beginning\n"
    save(state, path, DATA, Schedule.linear(60), 1)
    arrays, meta = run.load_if_there(path, "diffusion")
    expected, settings = checkpoint.load(path)
    assert meta == settings and meta["step"] == 0
    assert arrays.keys() == expected.keys() and all((arrays[name] == expected[name]).all() for name in expected)
    with pytest.raises(CheckpointError, match="holds a network of kind 'diffusion', not 'classifier'"):
        run.load_if_there(path, "classifier")


@pytest.mark.parametrize("save_every, expected", [(2, [0, 2, 4, 5]), (5, [0, 5]), (9, [0, 5])])
def test_a_run_is_saved_at_both_ends_and_on_the_way(state, save_every, expected):
    """Before the first step, every so many steps, and after the last."""
    saved = []
    run.run(state, one_process(), lambda: saved.append(state.step), save_every)
    assert saved == expected


def test_the_end_is_that_of_the_run_where_a_clock_has_lowered_it(state):
    """num_steps of the state, and not of the settings: saved there, and without a grid."""
    done, state.num_steps = [], 3
    run.run(state, one_process(), lambda: done.append(state.step), 9, lambda: done.append("a grid"), 3)
    assert done == [0, 3]


def test_every_save_is_of_all_ranks(state):
    """At the start, before a grid and at the end: `broadcast` calls it, which other ranks wait in and do not save."""
    saved = []

    class Other(TwoRanks):
        rank = 1

        def broadcast(self, make):
            saved.append(make)

        def allreduce_mean(self, a):
            return a

    def save():
        raise AssertionError("only rank 0 writes")

    run.run(state, Other(), save, 2, lambda: None, 3)
    assert saved == [save] * 5  # at 0, 2, 3, 4 and 5


def test_a_run_without_a_number_of_steps_is_not_cut_before_its_clock():
    """A millisecond a step, on any machine of today, would last eleven days; a checkpoint may contain the number."""
    assert run.UNLIMITED * 1e-3 > 10 * 24 * 3600 and kinds.PROGRESS["num_steps"].fits(run.UNLIMITED)


@pytest.mark.parametrize(
    ("backend", "channels", "ranks", "fits"), [("numpy", 32, 1, 50), ("numpy", 32, 4, 200), ("cupy", 32, 4, 8000)]
)
def test_a_batch_that_memory_cannot_hold_is_refused(monkeypatch, backend, channels, ranks, fits):
    """Ten float32 maps of the first level for each image, over all ranks; beside a GPU x_t and target, one channel."""
    monkeypatch.setattr(run, "backend_name", lambda: backend)
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 50 * 4 * 10 * 32 * 20 * 30)
    run.check_batch(fits, (20, 30, 1), channels, ranks)
    with pytest.raises(TinydiffError, match=f"--batch-size {fits + 1}: that needs about"):
        run.check_batch(fits + 1, (20, 30, 1), channels, ranks)


def test_a_run_is_saved_before_each_grid(state):
    """Grids are drawn every so many steps, but not at the end; whatever happens while one is drawn, no step is lost."""
    done = []
    draw = lambda: done.append(("drawn", state.step))  # noqa: E731
    run.run(state, one_process(), lambda: done.append(("saved", state.step)), 9, draw, 2)
    assert done == [("saved", 0), ("saved", 2), ("drawn", 2), ("saved", 4), ("drawn", 4), ("saved", 5)]
    done.clear()
    state.step = state.adam.num_steps = state.ema.num_updates = 3
    del state.rows[3:]
    run.run(state, one_process(), lambda: None, 9, draw, 5)
    assert done == []


def signal_in_step(monkeypatch, state, step, number=signal.SIGTERM):
    """Have the signal come within that step, counted from 1."""
    update = state.ema.update

    def update_and_signal():
        update()
        if state.ema.num_updates == step:
            signal.raise_signal(number)

    monkeypatch.setattr(state.ema, "update", update_and_signal)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [3, 5])
def test_a_signal_ends_the_step_saves_and_stops_the_program(state, usual, capsys, monkeypatch, name, step):
    """Also in the last step: its step is saved, and the exit code is 128 and the signal, so that `&&` stops too."""
    saved, number = [], getattr(signal, name)
    signal_in_step(monkeypatch, state, step, number)
    monkeypatch.setattr("sys.argv", ["demos/train.py", "--out", "a folder"])
    with pytest.raises(Stopped) as end:
        run.run(state, one_process(), lambda: saved.append(state.step), 9)
    assert end.value.code == 128 + number and saved == [0, step] and state.step == step
    *_, saves, command = capsys.readouterr().out.splitlines()  # on a GPU first that the step is recorded
    assert saves == f"{name}: saved at step {step}; continue with"
    assert command.split(maxsplit=1) == ["python", "demos/train.py --out 'a folder' --resume"]


def test_a_run_that_is_stopped_draws_no_grid(state, usual, monkeypatch):
    """In a step after which one is due: a run that is to end saves, and ends."""
    done = []
    signal_in_step(monkeypatch, state, 2)
    with pytest.raises(Stopped):
        run.run(state, one_process(), lambda: done.append(state.step), 9, lambda: done.append("a grid"), 2)
    assert done == [0, 2]


def test_a_signal_during_a_save_is_not_forgotten(state, usual):
    """It comes after the last step, while the file is written: the run is whole, and the program stops all the same."""
    with pytest.raises(Stopped):
        run.run(state, one_process(), lambda: state.step == 5 and signal.raise_signal(signal.SIGTERM), 9)
    assert state.step == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_while_a_grid_is_drawn_acts_at_once(state, usual, capsys, name):
    """Everything is saved already, so that nothing has to be waited for; the run says where it goes on."""
    saved = []

    def draw():
        signal.raise_signal(getattr(signal, name))
        raise AssertionError("the grid went on")

    with ending_in_order(), pytest.raises((KeyboardInterrupt, Stopped)) as end:
        run.run(state, one_process(), lambda: saved.append(state.step), 9, draw, 2)
    assert end.type is (KeyboardInterrupt if name == "SIGINT" else Stopped) and saved == [0, 2]
    assert "saved at step 2; continue with" in capsys.readouterr().out


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
    with pytest.raises(Stopped) as end:
        run.run(state, TwoRanks(), lambda: saved.append(state.step), 9)
    assert saved == [0, 2] and end.value.code == 128 + signal.SIGTERM
    assert "stopped by another rank: saved at step 2" in capsys.readouterr().out


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_signal_lets_the_ranks_save_at_once_if_the_state_is_whole(state, monkeypatch, is_whole):
    """ranks.rescue(save) runs in the handler; not within an update, when the parts stand at different steps."""
    ranks = TwoRanks()
    monkeypatch.setattr(run, "whole", lambda of: of is state and is_whole)

    def save():
        pass

    signal_in_step(monkeypatch, state, 1)
    with pytest.raises(Stopped):
        run.run(state, ranks, save, 9)
    assert ranks.rescued == ([save] if is_whole else [])


def test_the_bar_counts_the_steps_of_the_whole_run(state, capsys):
    """From where the run stands to its end, with the mean loss; it is silent on other ranks."""
    state.step, state.num_steps = 3, 5
    state.adam.num_steps = state.ema.num_updates = 3
    state.rows[:] = [(1.0,) * len(METRICS)] * 3
    run.run(state, one_process(), lambda: None, 9, name="net")
    shown = capsys.readouterr().err
    assert "net" in shown and "3/5" in shown and "5/5" in shown and "step" in shown and "loss " in shown
    state.step = state.num_steps = 5
    second = TwoRanks()
    second.rank = 1
    run.run(state, second, lambda: None, 9)
    assert capsys.readouterr().err == ""


def test_the_time_of_a_grid_is_no_time_of_training(state, capsys, monkeypatch):
    """The bar says what is done, and its clock stands still meanwhile: by a clock of the test's own."""
    now = [0.0]
    bars = []

    class Bar(run.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, mininterval=0, **options)
            self._time = lambda: now[0]
            self.start_t = self.last_print_t = now[0]
            bars.append(self)

        def update(self):
            now[0] += 1  # each step takes a second
            return super().update()

    def draw():
        now[0] += 1000

    monkeypatch.setattr(run, "tqdm", Bar)
    run.run(state, one_process(), lambda: None, 9, draw, 2)
    assert "drawing a grid" in capsys.readouterr().err
    assert bars[0].format_dict["elapsed"] == 5 and now[0] == 2005


def test_the_bar_says_how_long_at_most_until_the_clock_has_set_the_number(state, capsys):
    """The total is open until the end of the warm-up, and then stands; without a clock it stands from the start."""
    assert (run.total(state), run.time_limit(state)) == (5, "")
    state.config = replace(state.config, minutes=8.0, warmup=2)
    assert (run.total(state), run.time_limit(state)) == (None, "at most 8 minutes")
    run.run(state, one_process(), lambda: None, 9)
    assert (run.total(state), run.time_limit(state)) == (5, "")
    shown = capsys.readouterr().err
    assert "at most 8 minutes" in shown and "5/5" in shown
    state.num_steps = run.UNLIMITED
    assert run.total(state) is None


def test_the_recent_loss_is_the_mean_of_the_last_50(state):
    """Of the rows that are known; without one there is nothing to show."""
    assert run.recent_loss(state) == ""
    state.rows[:] = [(100.0,)] * 10 + [(i / 10,) for i in range(50)]
    assert run.recent_loss(state) == "loss 2.45"


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
    if backend_name() == "numpy":  # a GPU's losses come late, and this save does not wait for them
        with np.errstate(all="ignore"), pytest.raises(TrainingError, match=f"last saved at step {state.step}$"):
            run.run(state, one_process(), lambda: None, 1)  # resumed, and diverging in its first step
    arrays, saved_meta = checkpoint.load(path)
    assert saved_meta["step"] == meta[-1]
    assert all(np.isfinite(a).all() for name, a in arrays.items() if name != "metrics")
