"""The demo of exact denoisers: each number and picture of it by another way, and its smallest run."""

import csv
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from stand_ins import series
from tiny_runs import save_checkpoint

from tinydiff.app.plots import tile
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, ddim_step, ddpm_step, q_sample, sample, timestep_pairs

pytestmark = pytest.mark.program

LINEAR = Schedule.linear()
PICTURES = ["guidance_in_the_plane.png", "ideal.png", "which_noise.png"]


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo = load_demo("ideal")
    monkeypatch.setattr(demo, "POINTS", 40)
    monkeypatch.setattr(demo, "NUM_STEPS", 5)
    return demo


@pytest.fixture
def pictures():
    return default_rng(0).uniform(-1, 1, (30, 4, 4, 1)).astype("float32")


# -------------------------------------------------------------------------------------------------------------- main


@pytest.mark.parametrize("with_network", [False, True])
def test_the_demo_writes_its_pictures_and_tables(demo, tmp_path, capsys, with_network):
    """Without a network and with one: whole pictures, tables as they are returned, and a sentence on the network."""
    data, options = load("glyphs", num=60), {"data": "glyphs"}
    if with_network:
        save_checkpoint(tmp_path / "c.npz", data, move_average=0.05)
        options = {"checkpoint": tmp_path / "c.npz"}
    out = tmp_path / "new" / "folder"
    tables = demo.main(backend=backend_name(), precision="float32", out=out, num=60, **options)
    written = sorted(path.name for path in out.iterdir())
    assert [name for name in written if name.endswith(".png")] == PICTURES
    for name, rows in zip(("ideal.csv", "guidance_in_the_plane.csv"), tables):
        with open(out / name, newline="") as file:
            assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    for name in PICTURES:
        picture = imread(out / name)[..., :3]
        assert min(picture.shape[:2]) > 100 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
    T = 100 if with_network else 1000
    assert [row["t"] for row in tables[0]] == demo.times_of(T)
    assert 59 < float(tables[0][0]["pictures that matter"]) <= 60 and tables[0][-1]["pictures that matter"] == "1.0"
    printed = capsys.readouterr().out
    assert ("eps_hat is off by" in printed) == with_network and max(map(len, printed.splitlines())) <= 100 + len(
        str(out)
    )


def test_what_cannot_be_shown_is_refused(demo, tmp_path):
    """A data set beside a checkpoint, which names its own, and a class of which there is no picture."""
    with pytest.raises(TinydiffError, match="--data fashion: the checkpoint names its data"):
        demo.main(backend=backend_name(), checkpoint="c.npz", data="fashion", out=tmp_path)
    data = load("glyphs", num=2)
    missing = next(k for k in range(10) if k not in data.labels)
    with pytest.raises(TinydiffError, match=f"--digit {missing}: no image of class {missing} is among the first 2"):
        demo.main(backend=backend_name(), data="glyphs", num=2, digit=missing, out=tmp_path)


@pytest.mark.parametrize(
    "T, times", [(1000, [1000, 900, 800, 700, 650, 600, 550, 500, 400, 200]), (3, [3, 2, 1]), (1, [1])]
)
def test_times_are_shares_of_T_without_0(demo, T, times):
    """From T down, each once."""
    assert demo.times_of(T) == times


# ------------------------------------------------------------------------------------------------ the ideal x_0_hat


def test_every_moment_is_x_t_of_one_noise_and_its_mean(demo, pictures):
    """x_t is q_sample of the seed's noise; the mean is written out; 1/sum w^2 is that of the same weights."""
    x_0 = pictures[3:4]
    eps = standard_normal(default_rng("ideal", 5), x_0.shape)
    for moment in demo.denoised(LINEAR, pictures, x_0, [1000, 700, 300], 5):
        t, a = moment["t"], float(LINEAR.alpha_bar[moment["t"]])
        np.testing.assert_array_equal(moment["x_t"], to_numpy(q_sample(LINEAR, asarray(x_0), t, eps)))
        squares = ((moment["x_t"].astype("float64") - a**0.5 * pictures) ** 2).sum((1, 2, 3))
        w = np.exp(-(squares - squares.min()) / (2 * (1 - a)))
        w /= w.sum()
        eps_hat, x_0_hat = moment["ideal"]
        expected = np.einsum("k,k...->...", w, pictures)[None]
        np.testing.assert_allclose(x_0_hat, expected, atol=1e-5)  # float32
        assert moment["matter"] == pytest.approx(1 / (w**2).sum(), rel=1e-4)
        np.testing.assert_allclose(a**0.5 * x_0_hat + (1 - a) ** 0.5 * eps_hat, moment["x_t"], atol=1e-5)
        assert "network" not in moment


@given(st.integers(1, 1000), st.floats(0.01, 1))
def test_the_network_is_as_far_off_as_its_eps_hat_times_noise_over_signal(load_demo, t, off):
    """A network whose eps_hat is the ideal one plus c: its x_0_hat is off by c sqrt(1 - alpha_bar_t)/sqrt(alpha_bar_t).

    So a small error of eps_hat is speckle at t = T, 157 times as large, and nothing at t = 1.
    """
    demo, pictures = load_demo("ideal"), default_rng(0).uniform(-1, 1, (30, 4, 4, 1)).astype("float32")
    (plain,) = demo.denoised(LINEAR, pictures, pictures[:1], [t], 0)
    network = lambda x_t, at: asarray(plain["ideal"][0] + np.float32(off))  # noqa: E731
    (moment,) = demo.denoised(LINEAR, pictures, pictures[:1], [t], 0, network)
    row = demo.figures_of(LINEAR, moment)
    a = float(LINEAR.alpha_bar[t])
    assert float(row["network from ideal, eps_hat"]) == pytest.approx(off, rel=0.01)  # three digits
    assert float(row["network from ideal, x_0_hat"]) == pytest.approx(off * ((1 - a) / a) ** 0.5, rel=0.01, abs=1e-5)
    assert row["t"] == t and float(row["sqrt(alpha_bar_t)"]) == pytest.approx(a**0.5, abs=6e-5)
    sentence = demo.why_they_differ(row)
    for column in ("sqrt(alpha_bar_t)", "network from ideal, eps_hat", "network from ideal, x_0_hat"):
        assert f" {row[column]}" in sentence and f"t = {t} " in sentence


def test_a_difference_is_a_root_mean_square(demo):
    """3 and 4 off are sqrt(12.5) off."""
    assert demo.rms(np.array([[3.0, -4.0]], "float32")) == pytest.approx(12.5**0.5, rel=1e-6)


@pytest.mark.parametrize("number, text", [(1, "1.0"), (99.94, "99.9"), (99.96, "100"), (4949.4, "4,949")])
def test_a_number_of_pictures_has_a_decimal_below_100(demo, number, text):
    assert demo.rounded(number) == text


def cells(axes, n, k, size):
    """The n x k pictures of a panel as 8-bit pixels (n, k, size, size), and the names of its rows and columns."""
    (image,) = axes.images
    assert image.get_clim() == (0, 255)
    pixels = np.pad(np.asarray(image.get_array()), ((0, 1), (0, 1)))
    names = [[text.get_text() for text in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis)]
    assert list(axes.get_xticks()) == [j * (size + 1) + size / 2 for j in range(k)]
    assert list(axes.get_yticks()) == [i * (size + 1) + size / 2 for i in range(n)]
    return pixels.reshape(n, size + 1, k, size + 1).swapaxes(1, 2)[:, :, :size, :size], *names


def bits(image):
    return tile(image, 1)[..., 0]


@pytest.mark.parametrize("with_network", [False, True])
def test_the_network_stands_below_the_ideal(demo, pictures, with_network):
    """Rows x_t, ideal, network; a column for each time, with the number of pictures that matter."""
    network = (lambda x_t, t: x_t / 2) if with_network else None
    moments = demo.denoised(LINEAR, pictures, pictures[:1], [1000, 500], 0, network)
    figure = demo.picture_of(moments, "a title")
    shown, rows, heads = cells(figure.axes[0], 2 + with_network, 2, 4)
    assert rows == ["x_t", "ideal x_0_hat", "network's x_0_hat"][: 2 + with_network]
    assert heads == [f"t = {m['t']}\n{demo.rounded(m['matter'])} matter" for m in moments]
    for j, moment in enumerate(moments):
        assert np.array_equal(shown[0, j], bits(moment["x_t"])) and np.array_equal(
            shown[1, j], bits(moment["ideal"][1])
        )
        if with_network:
            assert np.array_equal(shown[2, j], bits(moment["network"][1]))
    assert figure.get_suptitle() == "a title"


# ------------------------------------------------------------------------------------------------------ which noise


def test_both_noises_lead_to_the_same_x_t(demo, pictures):
    """x_t is one step from x_{t-1} with z, and one jump from x_0 with eps; R^2 is beta_t/(1 - alpha_bar_t).

    Over many pixels z and eps correlate by R: within 5 standard errors of 1/sqrt(n).
    """
    x_0 = np.repeat(pictures[:1], 200, 2)  # (1, 4, 800, 1)
    found = demo.last_noises(LINEAR, x_0, (1, 2, 100, 500), 3)
    assert [t for t, *_ in found] == [2, 100, 500]  # at t = 1 there is no other noise
    for t, share, x_t, z, eps in found:
        a, before = LINEAR.alpha_bar, (x_t - LINEAR.beta[t] ** 0.5 * z) / LINEAR.alpha[t] ** 0.5
        np.testing.assert_allclose(x_t, a[t] ** 0.5 * x_0 + (1 - a[t]) ** 0.5 * eps, atol=1e-5)
        noise = (before - a[t - 1] ** 0.5 * x_0) / (1 - a[t - 1]) ** 0.5
        assert abs(np.corrcoef(noise.ravel(), z.ravel())[0, 1]) < 5 / noise.size**0.5  # drawn apart
        assert abs(noise.std() - 1) < 5 / (2 * noise.size) ** 0.5 and abs(z.std() - 1) < 5 / (2 * z.size) ** 0.5
        assert share == pytest.approx(LINEAR.beta[t] / (1 - a[t]), rel=1e-9)
        assert abs(np.corrcoef(eps.ravel(), z.ravel())[0, 1] - share**0.5) < 5 / z.size**0.5


def test_the_picture_of_both_noises(demo, pictures):
    """For each t: x_t, z, eps and R eps, with white at 3; every pixel's pair, and the line of slope R; R^2 over t."""
    last = demo.last_noises(LINEAR, pictures[:1], (2, 100), 0)
    figure = demo.which_noise(LINEAR, last)
    *panels, curve = figure.axes
    for i, (t, share, x_t, z, eps) in enumerate(last):
        shown, rows, heads = cells(panels[2 * i], 1, 4, 4)
        assert rows == [f"t = {t}"] and heads == (["x_t", "z", "eps", "R eps"] if i == 0 else [""] * 4)
        for found, expected in zip(shown[0], (x_t, z / 3, eps / 3, share**0.5 * eps / 3)):
            assert np.array_equal(found, bits(expected))
        dots, line = panels[2 * i + 1].lines
        assert np.array_equal(dots.get_xdata(), eps.ravel()) and np.array_equal(dots.get_ydata(), z.ravel())
        assert np.diff(line.get_ydata()) / np.diff(line.get_xdata()) == pytest.approx([share**0.5])
        assert panels[2 * i + 1].get_title() == f"z over eps, R^2 = {share:.2g}"
    line, dots = curve.lines
    assert [*zip(dots.get_xdata(), dots.get_ydata())] == [(t, share) for t, share, *_ in last]
    t = np.arange(1, 1001)
    assert np.array_equal(line.get_xdata(), t) and series(curve) == {}
    np.testing.assert_allclose(line.get_ydata(), LINEAR.beta[t] / (1 - LINEAR.alpha_bar[t]), rtol=1e-9)


# ---------------------------------------------------------------------------------------------------- in the plane


def test_the_class_is_two_neighbours_of_eight_on_a_circle(demo):
    """Eight centres at radius 2, 45 degrees apart; the class's denoiser is that of its two."""
    angles = np.arctan2(*demo.CENTRES.T[::-1])
    np.testing.assert_allclose(np.hypot(*demo.CENTRES.T), 2, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.unwrap(angles)), np.pi / 4, rtol=1e-9)
    assert demo.CLASS[1] - demo.CLASS[0] == 1
    model, x = demo.plane_model(LINEAR), asarray(default_rng(0).normal(size=(3, 2)))
    for label, centres in ((0, demo.CENTRES[[1, 2]]), (1, demo.CENTRES)):
        for t in (1, 300, 1000):
            a = float(LINEAR.alpha_bar[t])
            S = a * 0.16 + 1 - a
            density = np.exp(-((to_numpy(x)[:, None] - a**0.5 * centres) ** 2).sum(2) / (2 * S))
            mean = density / density.sum(1, keepdims=True) @ centres
            expected = (1 - a) ** 0.5 / S * (to_numpy(x) - a**0.5 * mean)
            np.testing.assert_allclose(to_numpy(model(x, t, label)), expected, rtol=1e-9)
    assert model.num_classes == 1


@given(st.floats(-1, 8))
def test_the_tilted_density_is_the_class_s_to_the_power_of_the_scale(load_demo, scale):
    """log p^(1 - scale) p_class^scale, with p and p_class written out, up to a constant."""
    demo, x = load_demo("ideal"), default_rng(1).normal(size=(5, 2)) * 2
    logs = [
        np.log(np.exp(-((x[:, None] - c) ** 2).sum(2) / 0.32).mean(1)) for c in (demo.CENTRES, demo.CENTRES[[1, 2]])
    ]
    expected = (1 - scale) * logs[0] + scale * logs[1]
    found = demo.tilted(x, scale)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-8)


def test_radius_and_spread_of_known_points(demo):
    """Two crosses around the centres: each arm is 0.3 or 0.4 long, so the variances per axis are 0.045 and 0.08.

    Weights count as points that are there so often; a lump without points does no harm.
    """
    cross = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    lumps = np.concatenate([c + size * cross for c, size in zip(demo.CENTRES[[1, 2]], (0.3, 0.4))])
    radius, spread = demo.lump_figures(lumps, np.ones(8))
    assert spread == pytest.approx(((0.045 + 0.08) / 2) ** 0.5, rel=1e-12)
    assert radius == pytest.approx(np.hypot(*lumps.T).mean(), rel=1e-12)
    w = np.array([1, 1, 1, 1, 3, 3, 3, 3.0])
    repeated = np.concatenate([lumps, lumps[4:], lumps[4:]])
    assert demo.lump_figures(lumps, w) == pytest.approx(demo.lump_figures(repeated, np.ones(16)), rel=1e-12)
    assert demo.lump_figures(lumps[:4], np.ones(4))[1] == pytest.approx(0.045**0.5, rel=1e-12)


def test_every_row_is_its_chains_and_its_density(demo):
    """The points are drawn again by hand, with eps_u + scale (eps_c - eps_u); figures of both stand in the row.

    The class's own radius and spread at scale 1 are numbers: E|x| of N((2, 0), 0.16 I) is 2.040, and the lumps of two
    Gaussians 1.53 apart are cut in the middle, which takes 0.008 off 0.4.
    """
    guided = demo.in_the_plane(7)
    assert [(row["sampler"], row["scale"]) for row, _ in guided] == [
        (name, f"{scale:g}") for name in ("DDIM", "DDPM") for scale in (1, 2, 4, 8)
    ]
    model, pairs = demo.plane_model(LINEAR), timestep_pairs(1000, 5)
    for row, x in guided:
        scale, step = float(row["scale"]), {"DDIM": ddim_step, "DDPM": ddpm_step}[row["sampler"]]

        def eps_fn(x_t, t, scale=scale):
            eps_u, eps_c = model(x_t, t, 1), model(x_t, t, 0)
            return eps_u + scale * (eps_c - eps_u)

        x_T = standard_normal(default_rng("plane", 7), (40, 2), "float64")
        *_, (_, expected, _) = sample(partial(step, LINEAR), eps_fn, pairs, x_T, default_rng("way", 7))
        np.testing.assert_allclose(x, to_numpy(expected), atol=1e-9)
        radius, spread = demo.lump_figures(x, np.ones(40))
        assert (row["radius"], row["spread"]) == (f"{radius:.2f}", f"{spread:.2f}")
        if scale == 1:
            assert (row["radius of the density"], row["spread of the density"]) == ("2.04", "0.39")
        if scale == 8:
            assert float(row["radius of the density"]) < 2.1 and float(row["spread of the density"]) == 0.36


def test_the_picture_in_the_plane(demo):
    """A panel for each row: its points on its density, the figures of both in the title."""
    guided = demo.in_the_plane(0)
    figure = demo.plane_picture(guided)
    assert len(figure.axes) == len(guided) == 8
    places = np.stack(np.meshgrid(demo.GRID, demo.GRID), -1)
    for axes, (row, x) in zip(figure.axes, guided):
        density = np.exp(demo.tilted(places.reshape(-1, 2), float(row["scale"]))).reshape(places.shape[:2])
        np.testing.assert_allclose(axes.images[0].get_array(), density / density.max(), atol=1e-12)
        assert axes.images[0].origin == "lower" and axes.images[0].get_extent() == [-4.5, 4.5, -4.5, 4.5]
        np.testing.assert_array_equal(axes.collections[1].get_offsets(), x)
        first, second = axes.get_title().splitlines()
        assert first == f"{row['sampler']}, scale {row['scale']}"
        radius = f"radius {row['radius']} ({row['radius of the density']})"
        assert second == f"{radius}, spread {row['spread']} ({row['spread of the density']})"
