"""scaling.py by a clock of known steps: what its rows and panels show, and its smallest real run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

PROGRAM = Path(__file__).parents[3] / "demos" / "measure" / "scaling.py"
TINY = {"batch_size": 2, "channels": 16, "size": 8, "cores": 1}


@pytest.fixture
def scaling(module):
    return module("scaling")


class Known:
    """Stands in for a contestant: each answer takes the next of its times, in two stages."""

    def __init__(self, name, times, log):
        self.name, self.times, self.log = name, iter(times), log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.log.append((self.name, "end"))

    def answer(self):
        self.log.append((self.name, "ready"))

    def ask(self, what, job, repeats):
        self.log.append((self.name, what, job, repeats))
        whole = next(self.times)
        return [0.75 * whole, 0.25 * whole]


def test_the_smallest_real_run(scaling, tmp_path, capsys, monkeypatch):
    """A step that is really measured has a row of positive numbers in each part of the table, and a picture."""
    monkeypatch.setattr(scaling, "REFERENCE", TINY)
    monkeypatch.setattr(scaling, "available_cores", lambda: 1)
    tiny = replace(scaling.SWEEPS[0], values=(1, 2))
    monkeypatch.setattr(scaling, "SWEEPS", (tiny,))
    scaling.main(out=tmp_path / "new" / "folder", rounds=1)
    printed = capsys.readouterr().out
    rows = {line[:28].strip(): line[28:] for line in printed.splitlines()}
    assert " 1: " in rows[tiny.label] and " 2: " in rows[tiny.label] and "speed-up 1.00" in rows["worker processes"]
    assert "a step of 2 images" in printed and "nan" not in printed
    path = tmp_path / "new" / "folder" / "scaling.png"
    assert path.read_bytes().startswith(b"\x89PNG") and str(path) in printed


def test_main_prints_and_draws_what_was_measured(scaling, tmp_path, capsys, monkeypatch):
    """Rates and step come from a process with one BLAS thread; each sweep is run once, and its rounds fill the bar.

    Three cores: 1, 2 and 3 workers are the last sweep.
    """
    asked, drawn, bars = [], [], []

    class Executor:
        def __init__(self, workers, context):
            asked.append((workers, context.get_start_method()))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, f, *arguments):
            import os

            asked.append((f, *arguments, os.environ.get("OPENBLAS_NUM_THREADS")))
            answer = "rates" if f is scaling.measure_rates else "step"
            return type("Future", (), {"result": lambda self: answer})()

    def grow(sweep, rounds, bar):
        bar.update(len(sweep.values) * (rounds + 2))
        bars.append(bar)
        return {value: 0.5 * value for value in sweep.values}

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", Executor)
    monkeypatch.setattr(scaling, "available_cores", lambda: 3)
    monkeypatch.setattr(scaling, "grow", grow)
    monkeypatch.setattr(scaling, "rate_lines", lambda rates: [f"lines of {rates}"])
    monkeypatch.setattr(scaling, "step_lines", lambda step, rates: [f"lines of {step} at {rates}"])
    monkeypatch.setattr(scaling, "draw", lambda growth, draw=scaling.draw: drawn.append(growth) or draw(growth))
    scaling.main(out=tmp_path / "a", rounds=5)
    assert asked == [
        (1, "spawn"),
        (scaling.measure_rates, 5, "1"),
        (scaling.measure_step, scaling.REFERENCE, 5, "1"),
    ]
    workers = scaling.Sweep("cores", (1, 2, 3), "worker processes", None)
    growth = [(s, {value: 0.5 * value for value in s.values}) for s in (*scaling.SWEEPS, workers)]
    assert drawn == [growth]
    expected = ["lines of rates", "", "lines of step at rates", "", *scaling.growth_lines(growth)]
    path = tmp_path / "a" / "scaling.png"
    assert capsys.readouterr().out.splitlines() == [*expected, f"picture: {path}"]
    assert [*path.parent.iterdir()] == [path] and len(set(bars)) == 1 and bars[0].n == bars[0].total
    assert not bars[0].leave


@pytest.mark.parametrize("cores, counts", [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))])
def test_workers_double_up_to_the_number_of_cores(scaling, cores, counts):
    """Powers of two, and the number itself if it is none."""
    assert scaling.worker_counts(cores) == counts


def test_a_sweep_goes_round_by_round_and_gives_medians(scaling, monkeypatch):
    """Two warm-up rounds do not count; a step is the sum of its stages; the median of two rounds is their mean."""
    log = []
    times = {4: [90.0, 80.0, 1.0, 7.0, 2.0], 8: [90.0, 80.0, 5.0, 5.0, 60.0]}
    sweep = replace(scaling.SWEEPS[0], values=(4, 8))
    monkeypatch.setattr(scaling.Sweep, "contestant", lambda self, value: Known(value, times[value], log))
    with tqdm(total=10) as bar:
        assert scaling.grow(sweep, 3, bar) == {4: 2.0, 8: 5.0}
    question = ("seconds", ("train",), 1)
    assert log == [(4, "ready"), (8, "ready"), *[(4, *question), (8, *question)] * 5, (8, "end"), (4, "end")]
    with tqdm(total=8) as bar:
        assert scaling.grow(sweep, 2, bar) == {4: 4.0, 8: 5.0}
    assert bar.desc == "batch_size: "


def test_each_sweep_varies_its_own_setting(scaling, monkeypatch):
    """The reference has batch 64, 32 channels, 28 x 28, 1 core.  One setting varies; the size has batch 16."""
    reference = {"batch_size": 64, "channels": 32, "size": 28, "cores": 1}
    workers = scaling.Sweep("cores", (1, 2), "worker processes", None)
    assert [sweep.name for sweep in scaling.SWEEPS] == ["batch_size", "channels", "size"]
    for sweep in (*scaling.SWEEPS, workers):
        others = {"batch_size": 16} if sweep.name == "size" else {}
        for value in sweep.values:
            assert sweep.config(value) == reference | others | {sweep.name: value}
            made = monkeypatch.setattr(scaling, "Contestant", lambda *arguments: arguments) or sweep.contestant(value)
            name, cores, make = made
            assert name == f"{sweep.name}={value}" and cores == (value if sweep is workers else 1)
            assert make.func is scaling.Ours and make.keywords == {"backend": "numpy"} | sweep.config(value)
    labels = ["images in a batch", "channels of the first level", "side of an image, pixels"]
    assert [sweep.label for sweep in scaling.SWEEPS] == labels


def test_the_fit_finds_the_power_of_a_power_law(scaling):
    """seconds = 3 value^1.5 has p = 1.5; a speed-up is the first time over each."""
    assert scaling.power_of({value: 3 * value**1.5 for value in (4, 8, 64)}) == pytest.approx(1.5)
    assert scaling.speed_up({1: 6.0, 2: 4.0, 3: 2.0}).tolist() == [1, 1.5, 3]


def growth_of(scaling):
    """Times that grow with a known power: batch with 1, channels with 2, size with 3; workers are 1.6 times as fast."""
    powers = {"batch_size": 1, "channels": 2, "size": 3}
    workers = scaling.Sweep("cores", (1, 2), "worker processes", None)
    growth = [(s, {v: 1e-3 * v ** powers[s.name] for v in s.values}) for s in scaling.SWEEPS]
    return [*growth, (workers, {1: 0.4, 2: 0.25})]


def test_a_row_of_growth_has_milliseconds_and_a_power_or_a_speed_up(scaling):
    """Each value with its time, in ms; p, or for workers the last speed-up; lines of at most 100 characters."""
    heads, *lines = scaling.growth_lines(growth_of(scaling))
    assert heads == "ms a step" and all(len(line) <= 100 for line in lines for line in line.splitlines())
    batch, channels, size, workers = (" ".join(line.split()) for line in lines)
    assert batch == "images in a batch 4: 4.00, 8: 8.00, 16: 16.0, 32: 32.0, 64: 64.0, 128: 128; p = 1.00"
    assert channels == "channels of the first level 16: 256, 32: 1024, 48: 2304, 64: 4096; p = 2.00"
    assert size.endswith("; p = 3.00") and size.startswith("side of an image, pixels 8: 512,")
    assert workers == "worker processes 1: 400, 2: 250; speed-up 1.60"


def test_a_panel_shows_its_sweep_and_its_guide(scaling):
    """Dots are the medians in ms, the line of slope p ends in the last dot; for workers, speed-up beside the ideal."""
    growth = growth_of(scaling)
    figure = scaling.draw(growth)
    assert figure.get_suptitle() == "A training step: how its time grows (dots: medians of measured steps)"
    titles = ["32 channels, 28x28, 1 core", "batch 64, 28x28, 1 core", "batch 16, 32 channels, 1 core"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [*titles, "batch 64, 32 channels, 28x28"]
    figure.draw_without_rendering()
    for axes, (sweep, by) in zip(figure.axes, growth):
        guide, measured = axes.lines
        x, ms = list(by), [1e3 * seconds for seconds in by.values()]
        assert guide.get_xdata().tolist() == measured.get_xdata().tolist() == x
        assert (guide.get_linestyle(), measured.get_marker()) == ("--", "o")
        assert axes.get_xlabel() == sweep.label and measured.get_label() == "measured"
        if sweep.name == "cores":
            assert guide.get_label() == "ideal" and axes.get_ylabel() == "speed-up"
            assert measured.get_ydata().tolist() == [1, 1.6] and guide.get_ydata().tolist() == [1, 2]
            assert axes.get_ylim()[0] == 0 and axes.get_xscale() == axes.get_yscale() == "linear"
        else:
            power = {"batch_size": 1, "channels": 2, "size": 2}[sweep.name]
            assert guide.get_label() == f"slope {power}" and axes.get_ylabel() == "ms a step"
            np.testing.assert_array_equal(measured.get_ydata(), ms)
            np.testing.assert_allclose(guide.get_ydata(), [ms[-1] * (v / x[-1]) ** power for v in x], rtol=1e-12)
            assert axes.get_xscale() == axes.get_yscale() == "log"
        assert axes.get_xticks().tolist() == x and [t.get_text() for t in axes.get_xticklabels()] == list(map(str, x))
        low, high = axes.get_ylim()
        ticks = [t.get_text() for t, y in zip(axes.get_yticklabels(), axes.get_yticks()) if low <= y <= high]
        assert len([text for text in ticks if text]) >= 2
        names = [guide.get_label(), "measured"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names


def test_on_one_core_the_axis_of_the_workers_still_has_two_ticks(scaling):
    """A single point needs a second tick for a scale: 0."""
    growth = [*growth_of(scaling)[:3], (scaling.Sweep("cores", (1,), "worker processes", None), {1: 0.4})]
    axes = scaling.draw(growth).axes[3]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1"] and axes.get_xlim()[0] <= 0


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--backend", "cupy"]])
def test_wrong_arguments_exit_with_2(arguments, tmp_path):
    """One line names the option and the value."""
    command = [sys.executable, PROGRAM, "--out", tmp_path, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and " ".join(arguments[:1]) in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_exits_with_2(tmp_path):
    """Said before anything is measured."""
    path = tmp_path / "file"
    path.write_text("kept")
    ended = subprocess.run([sys.executable, PROGRAM, "--out", path], capture_output=True, text=True)
    assert ended.returncode == 2 and str(path) in ended.stderr and path.read_text() == "kept"
