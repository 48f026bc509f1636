"""Waveforms: the demo in its smallest form, its sounds, its network on images of height 1, and its spectra."""

import csv
import inspect
import itertools
import runpy
import wave
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from same_bytes import same_bytes
from stand_ins import unreadable

from tinydiff import ops
from tinydiff.app.alone import one_process
from tinydiff.app.row_rng import row_rng
from tinydiff.app.training import attached, by_name
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import Schedule, ddpm_step, eps_from_x_0, q_sample, sample, timestep_pairs
from tinydiff.nn import Conv2d
from tinydiff.nn.unet import time_code
from tinydiff.train import LoopConfig, Training, noise_prediction_losses, train

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "waves_1d.py"
FEW = {"steps": 2, "batch_size": 3, "sample_steps": 2, "num": 3, "workers": 1, "seed": 4}


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("waves_1d")


# What the demo does and writes.


def in_order(demo, steps, batch_size, sample_steps, num, workers, seed):
    """Training and drawing by the package's own calls: waves of each timbre (3, num, LENGTH), two in a slice."""
    schedule = Schedule.linear(1000)
    pool = one_process().workers(partial(demo.WaveNet, seed), workers)
    config = LoopConfig(steps, batch_size, peak_lr=2e-3, seed=seed)
    state = Training(pool.model, config, partial(demo.draw_batch, schedule), noise_prediction_losses, **attached(pool))
    for _ in train(state):
        pass
    pool.model.load_state_dict(by_name(pool.model, state.ema.average))
    drawn = []
    for timbre, rows in ((timbre, rows) for timbre in range(3) for rows in ([0, 1], [2])):
        rng, n = row_rng("sample", seed, timbre, rows=rows), len(rows)
        x_T = standard_normal(rng, (n, 1, 1024, 1))
        with no_grad():
            *_, (_, x_0, _) = sample(
                partial(ddpm_step, schedule),
                lambda x_t, t, labels=[timbre] * n: pool.model(x_t, t, labels).data,
                timestep_pairs(1000, sample_steps),
                x_T,
                rng,
            )
        drawn.append(to_numpy(x_0).reshape(n, 1024))
    return np.concatenate(drawn).reshape(3, num, 1024)


def test_every_row_picture_and_note_is_its_parts_in_order(demo, monkeypatch, tmp_path, capsys):
    """Trained, averaged, drawn in slices, compared: bit for bit as by the package's own calls; then all files."""
    ticks, shown, out = itertools.count(0, 71.4), [], tmp_path / "new" / "folder"
    monkeypatch.setattr(demo, "SLICE", 2)
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(demo, "portrait", lambda *arguments: shown.append(arguments) or Figure(figsize=(1, 1)))
    rows = demo.main(backend=backend_name(), out=out, **FEW)
    drawn = in_order(demo, **FEW)
    real, more = ([demo.waves(default_rng(word, 4, i), [i] * 3) for i in range(3)] for word in ("real", "other"))
    expected = []
    for i, name in enumerate(("flute", "clarinet", "string")):
        away = [round(demo.spectral_distance(drawn[i], x), 2) for x in (*real, more[i])]
        away[3] = round(demo.spectral_distance(more[i], real[i]), 2)
        names = ["drawn", "to real flute", "to real clarinet", "to real string", "real to real"]
        expected.append(dict(zip(names, [name, *away])))
    assert rows == expected and list(rows[0]) == list(expected[0])
    ((shown_real, shown_drawn, shown_rows, title),) = shown
    np.testing.assert_array_equal(shown_drawn, drawn)
    np.testing.assert_array_equal(shown_real, real)
    assert shown_rows == rows and title == "three timbres: 2 training steps, 2 DDPM steps"
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "waves_1d.png", "waves_1d.wav"]
    with open(out / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    demo.save_wav(tmp_path / "same.wav", drawn.reshape(9, 1024))
    assert same_bytes((out / "waves_1d.wav").read_bytes(), (tmp_path / "same.wav").read_bytes())
    with Image.open(out / "waves_1d.png") as picture:
        assert picture.size == (40, 40) and picture.mode == "P"
    printed = capsys.readouterr().out
    assert "trained in 71 s; rms difference of mean spectra in dB, 3 waves each" in printed
    count = demo.WaveNet(0).num_parameters()
    assert f"network: {count:,} parameters; 1 worker(s); results in {out}/" in printed and "points_2d.py" in printed


def test_the_training_has_the_settings_that_it_is_given(demo):
    """Its rate is 2e-3, the rest are LoopConfig's; and the documented sizes are those of the program."""
    pool = one_process().workers(partial(demo.WaveNet, 0), 1)
    state = demo.training_of(pool, Schedule.linear(100), 9, 4, 2)
    assert state.config == LoopConfig(9, 4, peak_lr=2e-3, seed=2) and state.losses_of is noise_prediction_losses
    assert (demo.RATE, demo.LENGTH, demo.LOWEST, demo.HIGHEST, demo.BAND, demo.T) == (8000, 1024, 100, 200, 2000, 1000)
    assert (demo.SLICE, demo.FLOOR) == (16, -50)


def test_a_training_that_was_stopped_goes_on(demo, monkeypatch, tmp_path):
    """Of another seed, length or batch nothing is continued; of the same settings nothing is trained again."""

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw_each", stopped)
        with pytest.raises(KeyboardInterrupt):
            demo.main(backend=backend_name(), out=tmp_path, **FEW)
    monkeypatch.setattr(demo, "draw_batch", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(demo, "draw_each", lambda *_: demo.held_out(3, 1)[0])
    monkeypatch.setattr(demo, "portrait", lambda *_: Figure(figsize=(1, 1)))
    for option, value in (("seed", 5), ("steps", 3), ("batch_size", 4)):
        with pytest.raises(TinydiffError, match=f"{option} is"):
            demo.main(backend=backend_name(), out=tmp_path, resume=True, **FEW | {option: value})
    demo.main(backend=backend_name(), out=tmp_path, resume=True, **FEW)
    assert not (tmp_path / "unfinished.npz").exists()


def test_documented_defaults_and_limits_are_those_of_main(demo, tmp_path, monkeypatch):
    """The options that are not given, and the memory that main asks for before its work."""
    defaults = {name: p.default for name, p in inspect.signature(demo.main).parameters.items()}
    stated = {"steps": 1500, "batch_size": 64, "sample_steps": 200, "num": 64, "out": "runs/waves_1d"}
    common = {"backend": "numpy", "precision": None, "plain": False, "workers": None, "resume": False, "seed": 0}
    assert defaults == common | stated
    asked = []

    class Ranks:
        def default_workers(self):
            return "workers"

        def workers(self, build, num):
            asked.append((build.func, build.args, num))
            raise KeyboardInterrupt

    monkeypatch.setattr(demo.cli, "start", lambda *_, plain: Ranks())
    for name in ("check_memory", "check_batch", "check_steps"):
        monkeypatch.setattr(
            demo, name, lambda *arguments, name=name, **options: asked.append((name, arguments, options))
        )
    with pytest.raises(KeyboardInterrupt):
        demo.main(out=tmp_path, num=7, seed=5)
    assert asked == [
        ("check_steps", (1000,), {"sample_steps": 200}),
        ("check_memory", ("--num 7", 7 * 300_000), {}),
        ("check_batch", (64, (1024, 1)), {}),
        (demo.WaveNet, (5,), "workers"),
    ]


def test_a_batch_has_new_waves_every_time(demo):
    """Every timbre, any t of 1..T, one noise: x_t is q_sample of the waves of its labels, and the target the noise."""
    schedule, config = Schedule([0.9, 0.999]), LoopConfig(1, batch_size=30, seed=6)
    batch = demo.draw_batch(schedule, config, 5)
    rng = default_rng("batch", 6, 5)
    labels = rng.integers(3, size=30)
    x_0 = demo.waves(rng, labels).reshape(30, 1, 1024, 1)
    t, eps = rng.integers(1, 3, 30), rng.standard_normal((30, 1, 1024, 1), dtype="float32")
    assert set(t) == {1, 2} and set(labels) == {0, 1, 2} and list(batch) == ["x_t", "t", "labels", "target"]
    for name, expected in (("x_t", q_sample(schedule, x_0, t, eps)), ("t", t), ("labels", labels), ("target", eps)):
        np.testing.assert_array_equal(batch[name], expected)
    assert (demo.draw_batch(schedule, config, 6)["target"] != eps).all()


class Knows:
    """Workers whose network takes the data for the constant 0.1 (timbre + 1); it notes what it is asked."""

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, []

    def model(self, x_t, t, labels):
        self.calls.append((t, tuple(labels)))
        x_0 = 0 * x_t + asarray((np.array(labels) + 1) / 10, "float32")[:, None, None, None]
        return Tensor(eps_from_x_0(self.schedule, x_t, t, x_0))

    def map(self, f, jobs):
        yield from (f(self.model, job) for job in jobs)


def test_each_timbre_is_drawn_under_its_own_label_with_the_steps_asked_for(demo):
    """19 waves of each are slices of 16 and 3; a network that knows the data of its label ends there."""
    schedule = Schedule.linear(50)
    pool = Knows(schedule)
    drawn = demo.draw_each(pool, schedule, 4, 19, 0)
    assert drawn.shape == (3, 19, 1024)
    np.testing.assert_allclose(drawn, np.broadcast_to([[[0.1]], [[0.2]], [[0.3]]], drawn.shape), atol=1e-3)
    times = [t for t, _ in timestep_pairs(50, 4)]
    assert pool.calls == [(t, (timbre,) * n) for timbre in range(3) for n in (16, 3) for t in times]


def test_wave_i_of_a_timbre_is_one_wave(demo):
    """Of 19 waves in slices of 16 and 3 and of 3 waves, the first three: the same bits, for pixelwise arithmetic."""
    schedule = Schedule.linear(50)
    pool = Knows(schedule)
    pool.model = lambda x_t, t, labels: Tensor(0.5 * x_t)
    many, few = (demo.draw_each(pool, schedule, 4, num, 0) for num in (19, 3))
    np.testing.assert_array_equal(few, many[:, :3])
    assert len({wave.tobytes() for wave in many.reshape(-1, 1024)}) == 3 * 19


def test_drawn_waves_are_compared_with_real_ones_and_real_ones_with_other_real_ones(demo):
    """Of pure tones: 0 dB to themselves; the column of the floor is the two real sets' own distance."""
    tone = np.sin(2 * np.pi * 150 * np.arange(1024) / 8000)[None]
    rich = tone + 0.1 * np.sin(2 * np.pi * 300 * np.arange(1024) / 8000)
    odd = tone + 0.1 * np.sin(2 * np.pi * 450 * np.arange(1024) / 8000)
    first, second, third = demo.distances([tone, rich, odd], [tone, tone, odd], [rich, tone, odd])
    (d, e) = (round(demo.spectral_distance(rich, x), 2) for x in (tone, odd))
    f = round(demo.spectral_distance(tone, odd), 2)
    assert min(d, e, f) > 1
    columns = ["to real flute", "to real clarinet", "to real string", "real to real"]
    assert [[row[column] for column in columns] for row in (first, second, third)] == [
        [0, 0, f, d],
        [d, d, e, 0],
        [f, f, 0, 0],
    ]


def test_the_spectral_distance_is_the_root_of_the_mean_square(demo, monkeypatch):
    """Of the differences of mean spectra: those 3 and 4 dB apart are sqrt(12.5) dB apart."""
    monkeypatch.setattr(demo, "spectrum", lambda x: x)
    x, y = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[4.0, 6.0]])
    assert demo.spectral_distance(x, y) == demo.spectral_distance(y, x) == 12.5**0.5


def test_four_notes_of_each_timbre_are_heard_in_turn(demo):
    """Of more waves the first four, of fewer all."""
    assert demo.notes([[1, 2, 3, 4, 5], [6, 7], [8]]) == [1, 2, 3, 4, 6, 7, 8]


def test_the_portrait_shows_what_it_is_given(demo):
    """A row for each timbre: three real waves, three drawn ones, both mean spectra; units, and labelled ticks."""
    rng = default_rng(3)
    real, drawn = ([demo.waves(rng, [i] * n) for i in range(3)] for n in (4, 2))
    rows = [{f"to real {name}": 1.25 + i, "real to real": 0.5 + i} for i, name in enumerate(demo.TIMBRES)]
    figure = demo.portrait(real, drawn, rows, "the title")
    assert figure.get_suptitle() == "the title" and len(figure.axes) == 9
    figure.canvas.draw()
    ms = np.arange(512) / 8
    for i, name in enumerate(demo.TIMBRES):
        panels = figure.axes[3 * i : 3 * i + 3]
        titles = [f"real {name}", f"drawn {name}", f"mean spectra {1.25 + i} dB apart, real ones {0.5 + i}"]
        assert [axes.get_title() for axes in panels] == titles
        for axes, x, colour in ((panels[0], real[i][:3], "0.35"), (panels[1], drawn[i], "C3")):
            assert len(axes.lines) == len(x)
            for k, line in enumerate(axes.lines):
                np.testing.assert_array_equal(line.get_xdata(), ms)
                np.testing.assert_allclose(line.get_ydata(), x[k][:512] - 6 * k, atol=1e-6)
                assert line.get_color() == colour
            assert axes.get_yticks().tolist() == [level - 6 * k for k in range(len(x)) for level in (0, 2)]
            assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "2"] * len(x)
            assert axes.get_xlim() == (0, 64)
        lines = {line.get_label(): line for line in panels[2].lines}
        assert list(lines) == ["real", "drawn"]
        for label, x, colour in (("real", real[i], "0.35"), ("drawn", drawn[i], "C3")):
            np.testing.assert_array_equal(lines[label].get_xdata(), demo.MULTIPLES)
            np.testing.assert_array_equal(lines[label].get_ydata(), demo.spectrum(x).mean(0))
            assert lines[label].get_color() == colour
        assert panels[2].get_ylabel() == "dB" and panels[2].get_xlim() == (0, 16)
        assert (panels[2].get_legend() is not None) == (i == 0)
        units = ["ms", "ms", "frequency / pitch"] if i == 2 else ["", "", ""]
        assert [axes.get_xlabel() for axes in panels] == units
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["real", "drawn"]
    assert [*unreadable(figure)] == []


def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """More steps than the schedule has: exit code 2, nothing written."""
    monkeypatch.setattr(
        "sys.argv", [str(PATH), f"--out={tmp_path / 'out'}", "--sample-steps=1001", f"--backend={backend_name()}"]
    )
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PATH), run_name="__main__")
    assert end.value.code == 2
    assert "--sample-steps 1001: the schedule has T = 1000 steps" in " ".join(capsys.readouterr().err.split())
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


def test_a_wave_is_its_formula_for_the_pitch_and_phase_that_are_drawn(demo):
    """Pitches first, then phases in 0..2 pi; a string's harmonic k fades with k d; in float64 the same to rounding."""
    x, rng = demo.waves(default_rng(11), [0, 1, 2, 2]), default_rng(11)
    f, phase = 100 * 2 ** rng.random((4, 1)), rng.uniform(0, 2 * np.pi, (4, 1))
    k, s = np.arange(1, 21), np.arange(1024) / 8000
    for i, label in enumerate((0, 1, 2, 2)):
        a = [np.where(k < 4, [1, 0.3, 0.1] + [0] * 17, 0), k % 2 / k, 1 / k][label] * (k * f[i] <= 2000)
        a = a * (2 / (a**2).sum()) ** 0.5
        z = np.exp((2j * np.pi * f[i] - 10 * (label == 2)) * s + 1j * phase[i])
        expected = sum(a_k * (z**n).imag for n, a_k in zip(k, a))
        np.testing.assert_allclose(x[i], expected, atol=2e-3)  # float32, multiplied up to 20 times by z


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


def test_the_network_is_its_parts_in_order(demo):
    """Patches, blocks, a fold of 4, block, attention, block, unfold, skip, blocks, patches; each block has two sums."""
    model, rng = demo.WaveNet(0), default_rng(8)
    for layer in (model.outer, *(b.conv2 for b in (*model.before, model.middle1, model.middle2, *model.after))):
        assert not to_numpy(layer.w).any()  # zero at first
    for p in model.parameters():
        p.data[...] += asarray(0.1 * rng.standard_normal(p.shape), p.dtype)
    assert model.inner.w.shape == (8, 32) and model.codes.shape == (1001, 64) and len(model.before) == 2
    assert [b.conv1.w.shape for b in model.after] == [(1, 5, 64, 32), (1, 5, 32, 32)]
    assert model.down.w.shape == (128, 64) and model.middle1.conv1.w.shape == (1, 5, 64, 64)
    assert (model.attention.num_heads, model.norm.num_groups, model.middle2.norm1.num_groups) == (4, 8, 8)
    x, t, labels = rng.standard_normal((2, 1, 64, 1)).astype("float32"), np.array([1, 1000]), np.array([0, 2])

    def block(b, x, code):
        h = b.conv1(b.norm1(x)) + ops.reshape(b.time(code), shape=(2, 1, 1, -1))
        return b.skip(x) + b.conv2(b.norm2(h))

    code = model.time2(ops.silu(model.time1(time_code(t, 64)))) + model.label(labels)
    code = ops.silu(code)
    h = model.inner(Tensor(asarray(x.reshape(2, 1, 8, 8))))
    for b in model.before:
        h = block(b, h, code)
    m = block(model.middle1, model.down(ops.reshape(h, shape=(2, 1, 2, 128))), code)
    m = model.up(block(model.middle2, model.attention(m), code))
    h = ops.concat(h, ops.reshape(m, shape=(2, 1, 8, 32)))
    for b in model.after:
        h = block(b, h, code)
    expected = ops.reshape(model.outer(model.norm(h)), shape=(2, 1, 64, 1))
    np.testing.assert_array_equal(to_numpy(model(x, t, labels)), to_numpy(expected))


def test_a_convolution_of_width_5_starts_with_the_scale_of_its_five_taps(demo):
    """Its std is that of the middle row of a 5 x 5 filter, times sqrt(5): 1/sqrt(5 C), as uniform weights have it."""
    conv = demo.Conv1d(16, 16, rng=default_rng(5))
    square = Conv2d(16, 16, 5, padding=0, rng=default_rng(5))
    np.testing.assert_allclose(to_numpy(conv.w), to_numpy(square.w)[2:3] * 5**0.5, rtol=1e-6)
    assert not to_numpy(demo.Conv1d(3, 2, rng=default_rng(5), zero=True).w).any()


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


def test_the_pitch_is_looked_for_near_100_to_200_hz_only(demo):
    """Tones of 60, 250 and 3,000 Hz are ten times as loud: the pitch is still 150 Hz, 20 dB below the loudest."""
    s = np.arange(1024) / 8000
    for loud in (60, 250, 3000):
        (found,) = demo.spectrum((np.sin(2 * np.pi * 150 * s) + 10 * np.sin(2 * np.pi * loud * s))[None])
        assert abs(found[abs(demo.MULTIPLES - 1).argmin()] + 20) < 1
    assert demo.MULTIPLES[0] == 0.5 and len(demo.MULTIPLES) == 620 and demo.MULTIPLES[-1] == pytest.approx(15.975)


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
    demo.save_wav(tmp_path / "y.wav", [np.ones(1024)])
    with wave.open(str(tmp_path / "y.wav")) as sound:
        ramp = np.frombuffer(sound.readframes(1024), "<i2")
    wanted = np.rint(30_000 * np.minimum(np.arange(1, 1025), 32) / 32 * np.minimum(np.arange(1024, 0, -1), 32) / 32)
    np.testing.assert_array_equal(ramp, wanted)
    demo.save_wav(tmp_path / "z.wav", [np.zeros(1024)])  # silence stays silence
    with wave.open(str(tmp_path / "z.wav")) as sound:
        assert set(sound.readframes(2000)) == {0} and sound.getnframes() == 1424
