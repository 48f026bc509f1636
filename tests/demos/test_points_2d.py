"""Points in the plane: the demo in its smallest form, its data, its field, and its two-sample test."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from tinydiff.backend import TinydiffError, backend_name, default_rng, to_numpy
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "points_2d.py"
SMALLEST = {"steps": 2, "batch_size": 8, "sample_steps": 4, "num": 20, "workers": 1}
N = 20_000


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("points_2d")


# What the demo writes.


@pytest.fixture
def few_steps(demo, monkeypatch):
    """DDPM's thousand steps are twenty here: the pairs are still those of the package."""
    monkeypatch.setattr(demo, "T", 20)
    monkeypatch.setattr(demo.Schedule, "linear", staticmethod(lambda T: Schedule([0.3] * T)))


def test_main_writes_a_picture_for_each_set_an_animation_and_the_table(demo, few_steps, tmp_path, capsys):
    """All files are there and whole; the table has a row for each set and sampler, as printed and as returned."""
    out = tmp_path / "new" / "folder"
    rows = demo.main(backend=backend_name(), out=out, **SMALLEST)
    pictures = [f"points_2d_{name}.png" for name in demo.SETS]
    assert sorted(path.name for path in out.iterdir()) == sorted([*pictures, "points_2d.gif", "results.csv"])
    for name in pictures:
        assert imread(out / name)[..., :3].std() > 0.05  # something is on it
    with Image.open(out / "points_2d.gif") as film:
        assert film.n_frames == 5 and film.width == 3 * film.height  # t = T and four steps, three sets side by side
    with open(out / "results.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert written == [{key: str(value) for key, value in row.items()} for row in rows]
    assert [(row["data"], row["sampler"]) for row in rows] == [(d, s) for d in demo.SETS for s in ("ddim", "ddpm")]
    assert all(0 < row["p"] <= 1 for row in rows)
    assert "moons" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_the_seed_decides_everything(demo, few_steps, monkeypatch, tmp_path, target):
    """The same seed gives the same table but for the seconds, another seed another one, for every target."""
    monkeypatch.setattr(demo, "portrait", lambda *_: Figure())  # a whole one takes most of the time
    runs = [
        demo.main(backend=backend_name(), out=tmp_path, data="moons", target=target, seed=seed, **SMALLEST)
        for seed in (1, 1, 2)
    ]
    first, again, other = ([{**row, "seconds": 0, "seed": 0} for row in rows] for rows in runs)
    assert first == again != other


def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path):
    """Too few points: exit code 2, no traceback, nothing written."""
    command = [sys.executable, PATH, f"--out={tmp_path / 'out'}", "--num=1"]
    environment = {"PYTHONPATH": str(PATH.parents[1]), "COLUMNS": "500"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 2 and "--num: must be a whole number from 2 to 5,000, got '1'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_many_steps_are_refused_before_the_work(demo, tmp_path):
    """The message names the option and T."""
    with pytest.raises(TinydiffError, match="--sample-steps 1001: the schedule has T = 1000 steps"):
        demo.main(backend=backend_name(), out=tmp_path / "out", sample_steps=1001)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_flow_shows_each_of_its_times_once(demo, steps):
    """Panels without a time stay empty; the legend counts the samples that lie outside of the view."""
    schedule, x = Schedule.linear(1000), np.array([[0, 0], [9, 9], [1, 1]], np.float32)
    flow = [(t, x) for t in (*np.linspace(1000, 0, steps + 1).astype(int)[:-1].tolist(), 0)]
    figure = demo.portrait(schedule, lambda grid, t: 0 * grid, flow, x, x, "", "")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title().startswith("t = ")]
    assert len(titles) == len(set(titles)) <= steps and sum(not axes.axison for axes in figure.axes) == 6 - len(titles)
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["3 held-out points", "3 samples, 1 of them outside"]


def test_equal_sets_are_never_at_a_negative_distance(demo):
    """Rounding would give -1e-16 for many of these."""
    for seed in range(50):
        x = default_rng(seed).standard_normal((7, 2), dtype="float32")
        assert 0 <= demo.energy_distance(x, x) < 1e-12
        assert demo.energy_test(x, x, default_rng(1), permutations=9)[0] >= 0


# The data.


def test_moons_are_two_half_circles_about_the_origin(demo):
    """Each point or its mirror image lies near the half circle of radius sqrt(2); the moments are the integrals."""
    x = demo.moons(default_rng(1), N) / 2**0.5
    assert x.dtype == np.float32
    assert np.allclose(x.mean(0), 0, atol=5 * 0.87 / N**0.5)  # 5 standard errors; the larger std is sqrt(0.755)
    noise = 0.005  # 0.1^2 / 2
    var = [0.5 + 0.25 + noise, 0.5 - 1 / math.pi + 1 / 16 + noise]  # E (cos a - 1/2)^2, E (sin a - 1/4)^2
    assert np.allclose(x.var(0), var, rtol=5 * (2 / N) ** 0.5)  # the squares spread less than a normal's
    both = np.stack([x, -x]) + [0.5, 0.25]
    away = abs(np.linalg.norm(both, axis=2) - 1)
    away[both[..., 1] < -0.3] = np.inf  # the other half of the circle
    assert away.min(0).max() < 6 * 0.1  # of 40,000 normals of std 0.07, none goes so far
    assert away.min(0).mean() < 0.07  # E |z| 0.07 = 0.056
    assert 0.45 < (away.argmin(0) == 0).mean() < 0.55  # either moon half the time


def test_the_spirals_angle_is_its_radius(demo):
    """Turned back by 4.5 pi r every point lies on one axis, to the noise; and r^2 is uniform."""
    x = demo.spiral(default_rng(2), N)
    assert x.dtype == np.float32
    r = np.linalg.norm(x, axis=1) / 2
    away = (x[:, 0] + 1j * x[:, 1]) * np.exp(-4.5j * np.pi * r)
    far = r > 0.3  # nearer in, the noise turns the point by much
    # The noise across the arm, and the noise along the radius, which turns by 4.5 pi r: each 0.05, in a ratio up to 14.
    slope = 4.5 * np.pi * r[far]
    z = away.imag[far] / (0.05 * np.sqrt(1 + slope**2))
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.1  # sin of the angle for the angle: some per cent
    assert np.allclose(np.quantile(r**2, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)  # 5 errors of 0.0035


def test_the_mixture_has_eight_equal_round_parts(demo):
    """Every point lies near one of the eight centres, equally many near each, with std 0.1 about it in either axis."""
    x = demo.mixture(default_rng(3), N)
    assert x.dtype == np.float32
    angle = np.arange(8) * np.pi / 4
    centres = 2**0.5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    offset = x[:, None] - centres
    nearest = np.linalg.norm(offset, axis=2).argmin(1)
    assert abs(np.bincount(nearest, minlength=8) / N - 1 / 8).max() < 5 * (7 / 64 / N) ** 0.5
    offset = offset[np.arange(N), nearest]
    assert np.allclose(offset.std(0), 0.1, rtol=5 / (2 * N) ** 0.5) and abs(offset).max() < 0.6


# The network and the field.


def test_the_network_takes_one_time_or_one_for_each_point(demo):
    """t broadcasts: what is said of a point depends on its own place and time alone."""
    model = demo.PointNet(0)
    for p in model.parameters():
        p.data[...] += 0.1  # the last layers start at zero
    x = default_rng(4).standard_normal((3, 2)).astype("float32")
    together = to_numpy(model(x, np.array([1, 500, 1000])))
    for i, t in enumerate((1, 500, 1000)):
        assert np.allclose(
            together[i], to_numpy(model(x[i : i + 1], t))[0], rtol=1e-4, atol=1e-5
        )  # float32 sums of 128
    assert not np.allclose(to_numpy(model(x, 1)), to_numpy(model(x, 1000)), atol=1e-3)


def test_the_field_is_the_derivative_of_the_flow(demo):
    """Data N(0, 0.5^2) has a known eps: the field is d x_t / d phi along the flow, with phi falling."""
    schedule = Schedule.linear(100)
    std = np.sqrt(schedule.alpha_bar * 0.25 + schedule.one_minus_alpha_bar)
    t = 40

    def eps_fn(x_t, t):
        return x_t * (schedule.one_minus_alpha_bar[t] ** 0.5 / std[t] ** 2).item()

    x = default_rng(5).standard_normal((4, 2))
    phi = np.arccos(schedule.alpha_bar[[t - 1, t, t + 1]] ** 0.5)
    # Along the flow of Gaussian data x_t / std_t is constant.
    slope = np.gradient(std[[t - 1, t, t + 1]] / std[t], phi)[1]
    assert np.allclose(demo.flow_velocity(schedule, eps_fn, x, t), -x * slope, rtol=1e-2)  # second order in a step


# The two-sample test.


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_energy_distance_is_the_sum_over_pairs(load_demo, seed, n, m, d):
    """Three double loops give the same number, for sets of any two sizes."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))

    def mean(a, b):
        return sum(math.dist(p, q) for p in a for q in b) / (len(a) * len(b))

    wanted = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    found = load_demo("points_2d").energy_distance(x, y)
    assert abs(found - wanted) < 1e-12 and found > -1e-12  # a few dozen numbers of size 1


def test_equal_sets_lie_at_distance_zero(demo):
    """A set and the same points in another order: distance 0, and p = 1."""
    x = default_rng(6).standard_normal((50, 2))
    distance, p = demo.energy_test(x, x[::-1], default_rng(7), permutations=99)
    assert abs(distance) < 1e-12 and p == 1


def test_of_two_points_the_distance_is_twice_theirs(demo):
    """2 |x - y| for sets of one point each."""
    assert demo.energy_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == 10


def test_p_is_uniform_for_sets_of_one_distribution(demo):
    """Over 300 pairs of sets from one distribution p has the quantiles of its multiples of 1/20."""
    p = []
    for seed in range(300):
        rng = default_rng(8, seed)
        p.append(demo.energy_test(rng.standard_normal((15, 2)), rng.standard_normal((25, 2)), rng, permutations=19)[1])
    counts = np.bincount(np.rint(np.array(p) * 20).astype(int), minlength=21)
    assert counts[0] == 0 and counts.sum() == 300
    steps = abs(counts[1:].cumsum() / 300 - np.arange(1, 21) / 20)
    assert steps.max() < 0.11  # Kolmogorov: above 1.95/sqrt(300) once in 1,000


@pytest.mark.parametrize("change", ["shift", "scale"])
def test_a_changed_set_is_found_out(demo, change):
    """Shifted by half a standard deviation, or spread by half as much again: the smallest p there is."""
    rng = default_rng(9)
    x, y = rng.standard_normal((2, 300, 2))
    y = y + [0.5, 0] if change == "shift" else 1.5 * y
    assert demo.energy_test(x, y, rng, permutations=199)[1] == 1 / 200


def test_the_seed_decides_p(demo):
    """One stream, one p; another stream another one, near it."""
    rng = default_rng(10)
    x, y = rng.standard_normal((2, 40, 2))
    p = [demo.energy_test(x, y, default_rng(seed), permutations=199)[1] for seed in (0, 0, 1)]
    assert p[0] == p[1] != p[2] and abs(p[0] - p[2]) < 0.2  # 4 times sqrt(2 p (1 - p)/200)
