"""Waveforms: the demo in its smallest form, its sounds, its network on images of height 1, and its spectra."""

import csv
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "waves_1d.py"
SMALLEST = {"steps": 2, "batch_size": 3, "sample_steps": 2, "num": 3, "workers": 1}


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("waves_1d")


# What the demo writes.


def test_main_writes_a_picture_a_sound_and_the_table(demo, tmp_path, capsys):
    """All three are there and whole; the sound is three notes of each timbre, as long as they are."""
    out = tmp_path / "new" / "folder"
    rows = demo.main(backend=backend_name(), out=out, **SMALLEST)
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "waves_1d.png", "waves_1d.wav"]
    assert imread(out / "waves_1d.png")[..., :3].std() > 0.05  # something is on it
    with wave.open(str(out / "waves_1d.wav")) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 8000)
        assert sound.getnframes() == 3 * 3 * (1024 + 400)  # 0.05 s of pause
    with open(out / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    assert [row["drawn"] for row in rows] == ["flute", "clarinet", "string"]
    assert "real to real" in capsys.readouterr().out


def test_the_seed_decides_everything(demo, monkeypatch, tmp_path):
    """The same seed gives the same table, another seed another one."""
    monkeypatch.setattr(demo, "portrait", lambda *_: Figure())  # a whole one takes most of the time
    first, again, other = (demo.main(backend=backend_name(), out=tmp_path, seed=seed, **SMALLEST) for seed in (1, 1, 2))
    assert first == again != other


def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path):
    """More steps than the schedule has: exit code 2, no traceback, nothing written."""
    command = [sys.executable, PATH, f"--out={tmp_path / 'out'}", "--sample-steps=1001"]
    environment = {"PYTHONPATH": str(PATH.parents[1]), "COLUMNS": "500"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    message = "--sample-steps 1001: the schedule has T = 1000 steps"
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


# The data.


@pytest.mark.parametrize("label", [0, 1])
def test_a_steady_wave_is_its_harmonics_and_nothing_else(demo, label):
    """Least squares on the sines and cosines of its harmonics leaves nothing, and gives back the stated amplitudes."""
    x = demo.waves(default_rng(1), [label] * 5).astype(np.float64)
    assert x.shape == (5, 1024) and np.isfinite(x).all()
    rng = default_rng(1)
    f = 100 * 2 ** rng.random(5)  # the first thing that is drawn
    s = np.arange(1024) / 8000
    for wave_, pitch in zip(x, f):
        k = np.arange(1, int(2000 // pitch) + 1)
        angle = 2 * np.pi * pitch * k * s[:, None]
        basis = np.concatenate([np.sin(angle), np.cos(angle)], 1)
        found, *_ = np.linalg.lstsq(basis, wave_, rcond=None)
        assert abs(basis @ found - wave_).max() < 1e-3  # float32, multiplied up to 20 times by z
        amplitude = np.hypot(*found.reshape(2, -1))
        stated = np.array([{1: 1, 2: 0.3, 3: 0.1}.get(i, 0) if label == 0 else i % 2 / i for i in k])
        assert np.allclose(amplitude, stated * np.sqrt(2 / (stated**2).sum()), atol=1e-3)


def test_no_harmonic_lies_above_the_band(demo):
    """Above 2,000 Hz and a window's width no wave of any timbre holds a hundred-thousandth of its power.

    The window keeps the ends of the wave, where it is cut, out of the spectrum; a string's harmonics fade, which
    widens them: up to 10 k / (2 pi) Hz.
    """
    x = demo.waves(default_rng(2), [0] * 50 + [1] * 50 + [2] * 50)
    power = abs(np.fft.rfft(x * np.blackman(1024))) ** 2
    hertz = np.fft.rfftfreq(1024, 1 / 8000)
    share = power[:, hertz > 2100].sum(1) / power.sum(1)
    assert share.max() < 1e-5
    assert power[100:, (hertz > 1500) & (hertz < 2000)].sum() > 100 * power[:, hertz > 2100].sum()  # up to there, some


def test_every_wave_starts_with_power_1_and_only_strings_fade(demo):
    """Over whole periods a steady wave has power 1; a string has, between its ends, lost most of it."""
    x = demo.waves(default_rng(3), [0] * 100 + [1] * 100 + [2] * 100).reshape(3, 100, 1024)
    power = (x**2).mean(1)  # over waves of random phase: the power at each time
    assert abs(power[:2].mean(1) - 1).max() < 0.02  # whole periods, but for a half of ten or more
    assert power[2, :100].mean() > 4 * power[2, -100:].mean()
    assert (
        abs((demo.waves(default_rng(4), [2] * 1000)[:, 0] ** 2).mean() - 1) < 0.25
    )  # at s = 0; 5 standard errors of 0.05


# The network.


def test_a_1d_convolution_is_numpys(demo):
    """Each output channel is the sum over inputs of np.correlate, zeros outside, plus the bias; height stays 1."""
    conv = demo.Conv1d(3, 2, 5, rng=default_rng(5))
    assert conv.w.shape == (1, 5, 3, 2)
    conv.b.data[...] = asarray([0.5, -1.5], "float32")
    x = default_rng(6).standard_normal((2, 1, 9, 3)).astype("float32")
    y, w = to_numpy(conv(Tensor(asarray(x)))), to_numpy(conv.w)
    assert y.shape == (2, 1, 9, 2)
    for n in range(2):
        for o, b in enumerate((0.5, -1.5)):
            wanted = b + sum(np.correlate(x[n, 0, :, c], w[0, :, c, o], "same") for c in range(3))
            assert np.allclose(y[n, 0, :, o], wanted, atol=1e-5)  # float32 sums of 15


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6), st.integers(0, 3))
def test_the_gradient_of_pad_is_its_adjoint(load_demo, seed, n, w, side):
    """<g, pad(x)> = <pad^T g, x>, for random shapes; the zeros stand on the left and right only."""
    rng = default_rng(seed)
    x = Tensor(asarray(rng.standard_normal((n, 2, w, 3))), requires_grad=True)
    y = load_demo("waves_1d").pad(x, side=side)
    assert y.shape == (n, 2, w + 2 * side, 3)
    assert (to_numpy(y)[:, :, side : side + w] == to_numpy(x)).all()
    assert abs(to_numpy(y)).sum() == pytest.approx(abs(to_numpy(x)).sum(), rel=1e-12)  # all the rest is 0
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    assert (g * to_numpy(y)).sum() == pytest.approx((to_numpy(x.grad) * to_numpy(x)).sum(), abs=1e-12)


def test_fold_lays_neighbours_side_by_side_and_back(demo):
    """Place 0 of the folded map holds places 0..3; unfolding undoes it."""
    x = asarray(np.arange(24, dtype=np.float32).reshape(1, 1, 12, 2))
    folded = demo.fold(Tensor(x), 4)
    assert folded.shape == (1, 1, 3, 8)
    assert to_numpy(folded)[0, 0, 0].tolist() == list(range(8))
    assert (to_numpy(demo.fold(folded, 1 / 4)) == to_numpy(x)).all()


def test_every_parameter_learns_and_wave_time_and_label_matter(demo):
    """The network keeps the wave's shape; after an update of its last layer every parameter has a gradient."""
    model = demo.WaveNet(0)
    rng = default_rng(7)
    for p in model.parameters():
        p.data[...] += asarray(0.1 * rng.standard_normal(p.shape), p.dtype)  # some layers start at zero
    x = rng.standard_normal((2, 1, 64, 1)).astype("float32")
    y = model(x, np.array([10, 900]), np.array([0, 2]))
    assert y.shape == x.shape
    y.backward(asarray(rng.standard_normal(y.shape), "float32"))
    missing = [name for name, p in model.named_parameters() if p.grad is None or not to_numpy(p.grad).any()]
    assert missing == []
    y = to_numpy(y)
    for t, labels in ((np.array([10, 90]), np.array([0, 2])), (np.array([10, 900]), np.array([0, 1]))):
        other = to_numpy(model(x, t, labels))
        assert np.allclose(other[0], y[0], atol=1e-4) and not np.allclose(other[1], y[1], atol=1e-3)


# What is measured and heard.


@pytest.mark.parametrize("pitch", [100, 133.3, 199])
def test_the_spectrum_of_a_wave_peaks_at_multiples_of_its_pitch(demo, pitch):
    """Harmonics 1 and 3 of 1 and 0.1: 0 dB at 1, -20 dB at 3, the floor elsewhere, however loud the wave is."""
    s = np.arange(1024) / 8000
    x = np.sin(2 * np.pi * pitch * s + 0.3) + 0.1 * np.sin(6 * np.pi * pitch * s)
    (found,) = demo.spectrum(x[None])
    at = {u: found[abs(demo.MULTIPLES - u).argmin()] for u in (1, 2, 3, 4, 10)}
    assert abs(at[1]) < 0.1 and abs(at[3] + 20) < 0.5  # the pitch is read to 0.5 Hz, the window's peak is 16 Hz wide
    assert at[2] == at[4] == at[10] == demo.FLOOR
    assert np.allclose(demo.spectrum(100 * x[None])[0], found, atol=1e-9)


def test_the_distance_is_0_for_equal_sets_and_tells_timbres_apart(demo):
    """0 between a set and itself, small between two sets of a timbre, several times as large between two timbres."""
    sets = [demo.waves(default_rng(8, i), [i // 2] * 60) for i in range(6)]
    assert demo.spectral_distance(sets[0], sets[0]) == 0
    distance = np.array([[demo.spectral_distance(x, y) for y in sets[1::2]] for x in sets[::2]])
    apart = distance[~np.eye(3, dtype=bool)]
    assert 3 * distance.diagonal().max() < apart.min()


def test_notes_come_back_from_the_wav(demo, tmp_path):
    """16-bit samples in proportion to the notes away from their ends, which fade to near 0; silence between."""
    notes = list(demo.waves(default_rng(9), [0, 1, 2]))
    demo.save_wav(tmp_path / "x.wav", notes, pause=0.01)
    with wave.open(str(tmp_path / "x.wav")) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(float)
    assert abs(samples).max() == 30_000
    rows = samples.reshape(3, 1024 + 80)
    assert (rows[:, 1024:] == 0).all()
    middle = np.stack(notes)[:, 32:-32]
    scale = rows[0, 32 + abs(middle[0]).argmax()] / middle[0][abs(middle[0]).argmax()]
    assert abs(rows[:, 32 : 1024 - 32] - scale * middle).max() < 2.5  # rounding to whole numbers, of the scale too
    assert abs(rows[:, 0]).max() < 30_000 / 30
