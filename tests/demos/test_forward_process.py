"""The forward-process demo in its smallest form: four pictures, and the two figures that it prints."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tinydiff.backend import TinydiffError, asarray, backend_name
from tinydiff.data import load
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "forward_process.py"
PICTURES = ["chain_and_closed_form.png", "chain_statistics.png", "noising.png", "schedules.png"]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("forward_process")


def test_the_demo_writes_its_four_pictures(demo, tmp_path, capsys):
    """main writes four whole pictures with something on them, and nothing else, and names them."""
    demo.main(backend=backend_name(), out=tmp_path / "new" / "folder", data="glyphs", chains=20)
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == PICTURES
    printed = capsys.readouterr().out
    for name in written:
        picture = imread(tmp_path / "new" / "folder" / name)[..., :3]
        assert min(picture.shape[:2]) > 300 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
        assert name in printed


def test_the_chain_is_the_closed_form_with_its_own_noise(demo):
    """A thousand small steps and one jump with the noise they drew give one picture, to float32's rounding."""
    x_0 = asarray(np.linspace(-1, 1, 784, dtype=np.float32).reshape(1, 28, 28, 1))
    _, gap = demo.chain_and_closed_form(Schedule.linear(), x_0, seed=3, name="ramp")
    assert 0 < gap < 2e-5  # 1,000 roundings of 6e-8 that partly cancel, on numbers up to 4


def test_many_chains_have_the_closed_form_s_mean(demo):
    """The means of 2,000 chains lie within 5 standard errors at all times, and are not the closed form itself."""
    _, error = demo.chain_statistics(Schedule.linear(40), chains=2000, seed=1)
    assert 0.5 < error < 5  # the largest of 60 correlated normals: about 2


@pytest.mark.parametrize("digit", [-1, 10])
def test_a_class_that_is_not_there_is_refused(demo, tmp_path, digit):
    """digit lies in 0..9, or ValueError."""
    with pytest.raises(ValueError, match=f"digit must lie in 0..9, got {digit}"):
        demo.main(backend=backend_name(), out=tmp_path, data="glyphs", digit=digit)


def test_a_class_that_the_data_lack_is_named(load_demo, tmp_path, monkeypatch):
    """A set whose first thousand images have no such class."""
    demo, data = load_demo("forward_process"), load("glyphs", num=40)
    lacking = replace(data, labels=np.where(data.labels == 8, 3, data.labels))
    monkeypatch.setattr(demo, "load", lambda *_, **__: lacking)
    with pytest.raises(TinydiffError, match="--digit 8: no image of class 8 is among the first 40"):
        demo.main(digit=8, out=tmp_path, backend=backend_name())


def test_help_shows_the_defaults():
    """The script answers --help with each option and main's default for it."""
    shown = subprocess.run([sys.executable, PATH, "--help"], capture_output=True, text=True, check=True).stdout
    shown = " ".join(shown.split())  # argparse breaks lines
    for part in ("--out", "(default: runs/forward_process)", "--digit DIGIT", "(default: 3)", "(default: 4000)"):
        assert part in shown
