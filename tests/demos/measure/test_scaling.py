"""scaling.py in its smallest form: the table has its rows, the picture its panels."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

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


def test_it_prints_its_table_and_draws_its_four_panels(scaling, tmp_path, capsys, monkeypatch):
    """Each rate, each kind of work, each value of each sweep; a picture with something in each quarter of it."""
    monkeypatch.setattr(scaling, "REFERENCE", TINY)
    monkeypatch.setattr(scaling, "available_cores", lambda: 2)
    values = {"batch_size": (1, 2), "channels": (8, 16), "size": (4, 12)}
    tiny = [replace(sweep, values=values[sweep.name]) for sweep in scaling.SWEEPS]
    monkeypatch.setattr(scaling, "SWEEPS", tiny)
    scaling.main(out=tmp_path / "new" / "folder", rounds=1)
    printed = capsys.readouterr().out
    for text in (*scaling.RATES.values(), "a step of 2 images", "direct convolution", "products over channels"):
        assert text in printed
    rows = {line[:width].strip(): line[width:] for line in printed.splitlines() for width in (28, 36)}
    for sweep in tiny:
        assert all(f" {value}: " in rows[sweep.label] for value in sweep.values)
    assert " 1: " in rows["worker processes"] and " 2: " in rows["worker processes"]

    path = tmp_path / "new" / "folder" / "scaling.png"
    assert list(path.parent.iterdir()) == [path] and str(path) in printed
    picture = imread(path)[..., :3]
    height, width, _ = picture.shape
    assert width > 900 and height > 600
    for quarter in (part for half in np.array_split(picture, 2) for part in np.array_split(half, 2, axis=1)):
        assert 0.02 < (quarter.min(-1) < 0.9).mean() < 0.5  # ink, and paper


def test_the_fit_finds_the_power_of_a_power_law(scaling):
    """seconds = 3 value^1.5 has p = 1.5; a speed-up is the first time over each."""
    assert scaling.power_of({value: 3 * value**1.5 for value in (4, 8, 64)}) == pytest.approx(1.5)
    assert scaling.speed_up({1: 6.0, 2: 4.0, 3: 2.0}).tolist() == [1, 1.5, 3]


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "few"], ["--backend", "cupy"]])
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
