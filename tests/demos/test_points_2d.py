"""Points in the plane: the demo in its smallest form, its data, its field, and its two-sample test."""

import csv
import inspect
import itertools
import math
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from tinydiff.app.alone import one_process
from tinydiff.app.training import attached, by_name
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import Schedule, ddim_step, ddpm_step, eps_from_x_0, q_sample, sample, timestep_pairs
from tinydiff.diffusion.targets import TARGETS, as_eps_fn
from tinydiff.nn.unet import time_code
from tinydiff.train import LoopConfig, Training, train

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "points_2d.py"
FEW = {"steps": 2, "batch_size": 7, "sample_steps": 4, "num": 5, "workers": 1, "seed": 3}
N = 20_000


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("points_2d")


# What the demo does and writes.


SHORT = {"linear": lambda T: Schedule([0.3] * T), "straight": lambda T: Schedule([0.4] * T)}


def short_schedule(target):
    return SHORT["straight" if target == "flow" else "linear"](20)


@pytest.fixture
def few_steps(demo, monkeypatch):
    """DDPM's thousand steps are twenty here, two points make a slice, and a clock that is asked twice counts 7.04 s."""
    monkeypatch.setattr(demo, "T", 20)
    monkeypatch.setattr(demo, "SCHEDULES", SHORT)
    monkeypatch.setattr(demo, "SLICE", 2)
    ticks = itertools.count(0, 7.04)
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.fixture
def drawn(demo, monkeypatch):
    """The arguments of each portrait and of the film; the pictures themselves are empty."""
    seen = []
    monkeypatch.setattr(demo, "portrait", lambda *arguments: seen.append(arguments) or Figure(figsize=(1, 1)))
    monkeypatch.setattr(demo, "save_film", lambda path, *frames: seen.append(frames))
    return seen


def run(demo, tmp_path, **options):
    return demo.main(backend=backend_name(), out=tmp_path, **FEW | options)


def in_order(demo, points, target, steps, batch_size, sample_steps, num, workers, seed):
    """Training and drawing by the package's own calls: the network with its average, and the flow of each sampler."""
    schedule, flows = short_schedule(target), {}
    pool = one_process().workers(partial(demo.PointNet, seed), workers)
    config = LoopConfig(steps, batch_size, peak_lr=2e-3, clip_norm=math.inf, ema_decay=0.999, seed=seed)
    draw = partial(demo.draw_batch, points, schedule, TARGETS[target])
    state = Training(pool.model, config, draw, demo.squared_errors, **attached(pool))
    for _ in train(state):
        pass
    model = pool.model
    last = model.state_dict()
    model.load_state_dict(by_name(model, state.ema.average))
    assert any((last[name] != a).any() for name, a in model.state_dict().items())  # the average is not the last
    for sampler, step, k in (("ddim", ddim_step, sample_steps), ("ddpm", ddpm_step, 20)):
        pairs, paths = timestep_pairs(20, k), []
        for i, n in enumerate((2, 2, 1)):
            rng = default_rng("sample", seed, i)
            x_T = standard_normal(rng, (n, 2))
            eps_fn = as_eps_fn(TARGETS[target], schedule, lambda x_t, t: model(x_t, t).data)
            with no_grad():
                walk = list(sample(partial(step, schedule), eps_fn, pairs, x_T, rng))
            paths.append(np.stack([to_numpy(x_T), *(to_numpy(x_t) for _, x_t, _ in walk)]))
        flows[sampler] = [20, *(s for _, s in pairs)], np.concatenate(paths, 1)
    return model, flows


def assert_flow(flow, expected):
    times, path = expected
    assert [t for t, _ in flow] == times
    np.testing.assert_array_equal(np.stack([x_t for _, x_t in flow]), path)


@pytest.mark.parametrize("target", ["eps", "x_0", "v", "flow"])
def test_every_row_and_picture_is_its_parts_in_order(demo, few_steps, drawn, tmp_path, capsys, target):
    """Trained, averaged, drawn in slices, compared: bit for bit as by the package's own calls, for every target."""
    rows = run(demo, tmp_path, data="spiral", target=target)
    model, flows = in_order(demo, demo.spiral, target, **FEW)
    real, more_real = (demo.spiral(default_rng(word, 3), 5) for word in ("held out", "held out too"))
    expected = []
    for sampler, (_, path) in flows.items():
        distance, p = demo.energy_test(path[-1], real, default_rng("permutations", 3))
        figures = {"energy distance": f"{distance:.5f}", "of real": f"{demo.energy_distance(more_real, real):.5f}"}
        row = {"data": "spiral", "target": target, "seed": 3, "steps": 2, "seconds": 7.0, "points": 5}
        expected.append(row | {"sampler": sampler} | figures | {"p": round(p, 3)})
    assert rows == expected and list(rows[0]) == list(expected[0])
    (flow, moments, samples, shown_real, title, verdict), (_, captions, _) = drawn
    assert_flow(flow, flows["ddim"])
    np.testing.assert_array_equal(samples, flows["ddpm"][1][-1])
    np.testing.assert_array_equal(shown_real, real)
    schedule = short_schedule(target)
    eps_fn = as_eps_fn(TARGETS[target], schedule, lambda x_t, t: model(x_t, t).data)
    for t, noise_std, x_t, velocity in moments:
        assert noise_std == schedule.one_minus_alpha_bar[t] ** 0.5
        np.testing.assert_array_equal(x_t, dict(flow)[t])
        np.testing.assert_array_equal(velocity, demo.flow_velocity(schedule, eps_fn, demo.GRID, t))
    assert title == f"spiral: target {target}, 2 training steps"
    assert verdict == (*demo.energy_test(samples, real, default_rng("permutations", 3)), verdict[2])
    assert f"{verdict[2]:.5f}" == rows[1]["of real"]
    assert [texts for (texts,) in captions] == [f"spiral, t = {t}" for t, _ in flow]
    printed = capsys.readouterr().out
    assert f"done: open {tmp_path}/points_2d.gif and points_2d_spiral.png" in printed and "waves_1d.py" in printed
    with open(tmp_path / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]


def test_all_means_each_set_in_turn_and_leaves_only_results(demo, few_steps, drawn, tmp_path, capsys):
    """Two rows of each set, its own data behind both; unfinished trainings are gone; seconds count each set anew."""
    rows = run(demo, tmp_path / "new" / "folder", target="v")
    assert [(row["data"], row["sampler"]) for row in rows] == [(d, s) for d in demo.SETS for s in ("ddim", "ddpm")]
    assert {row["seconds"] for row in rows} == {7.0} and list(demo.SETS) == ["moons", "spiral", "mixture"]
    left = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert left == ["points_2d_mixture.png", "points_2d_moons.png", "points_2d_spiral.png", "results.csv"]
    for name, (flow, *_, title, _) in zip(demo.SETS, drawn):
        _, flows = in_order(demo, demo.SETS[name], "v", **FEW)
        assert_flow(flow, flows["ddim"])
        assert title.startswith(f"{name}: target v")
    assert "points_2d.gif and points_2d_moons.png" in capsys.readouterr().out
    _, captions, _ = drawn[-1]
    assert captions[0] == ["moons, t = 20", "spiral, t = 20", "mixture, t = 20"]


def test_a_training_that_was_stopped_goes_on_to_the_same_rows(demo, few_steps, drawn, tmp_path, monkeypatch):
    """Stopped after it is trained, and resumed: nothing is trained again.  Of another seed nothing is continued."""
    held_out = demo.held_out
    monkeypatch.setattr(demo, "held_out", None)
    with pytest.raises(TypeError):
        run(demo, tmp_path, data="moons")
    monkeypatch.setattr(demo, "held_out", held_out)
    monkeypatch.setattr(demo, "draw_batch", lambda *_: pytest.fail("trained again"))
    for option in ({"seed": 4}, {"steps": 3}, {"batch_size": 8}, {"target": "v"}):
        with pytest.raises(TinydiffError, match=f"{next(iter(option))} is"):
            run(demo, tmp_path, data="moons", resume=True, **option)
    rows = run(demo, tmp_path, data="moons", resume=True)
    assert rows[0]["steps"] == 2 and not (tmp_path / "unfinished_moons.npz").exists()


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_a_batch_has_new_points_every_time_and_its_own_target(demo, target):
    """From given points: x_t is q_sample of them at its t, the target is TARGETS' own; t takes 1 and T and no other."""
    schedule, config = Schedule([0.9, 0.999]), LoopConfig(1, batch_size=40, seed=6)
    batch = demo.draw_batch(demo.mixture, schedule, TARGETS[target], config, 5)
    rng = default_rng("batch", 6, 5)
    x_0 = demo.mixture(rng, 40)
    t, eps = rng.integers(1, 3, 40), rng.standard_normal((40, 2), dtype="float32")
    assert list(batch) == ["x_t", "t", "target"] and set(batch["t"]) == {1, 2}
    np.testing.assert_array_equal(batch["t"], t)
    np.testing.assert_array_equal(batch["x_t"], q_sample(schedule, x_0, t, eps))
    np.testing.assert_array_equal(batch["target"], TARGETS[target].of(schedule, x_0, t, eps))
    assert (demo.draw_batch(demo.mixture, schedule, TARGETS[target], config, 6)["x_t"] != batch["x_t"]).all()


def test_the_loss_is_the_mean_square_over_the_coordinates(demo):
    """3 and 4 off are 12.5, 0 and 2 off are 2."""
    batch = {"x_t": np.zeros((2, 2)), "t": np.array([1, 2]), "target": np.array([[3.0, 4.0], [0.0, -2.0]])}
    losses = demo.squared_errors(lambda x_t, t: Tensor(asarray(x_t)), batch)
    assert to_numpy(losses).tolist() == [12.5, 2.0]


def test_the_training_has_the_settings_that_it_is_given(demo):
    """Its rate is 2e-3, its gradients are not clipped, its average is long; the rest are LoopConfig's."""
    pool = one_process().workers(partial(demo.PointNet, 0), 1)
    state = demo.training_of(pool, demo.moons, Schedule.linear(100), TARGETS["eps"], 9, 4, 2)
    assert state.config == LoopConfig(9, 4, peak_lr=2e-3, clip_norm=math.inf, ema_decay=0.999, seed=2)
    assert state.losses_of is demo.squared_errors


def test_documented_defaults_and_limits_are_those_of_main(demo, tmp_path, monkeypatch):
    """The options that are not given, the memory that main asks for before its work, and at most two workers."""
    defaults = {name: p.default for name, p in inspect.signature(demo.main).parameters.items()}
    stated = {"data": "all", "target": "eps", "steps": 6000, "batch_size": 256, "sample_steps": 200, "num": 1000}
    common = {"backend": "numpy", "precision": None, "plain": False, "workers": None, "resume": False, "seed": 0}
    assert defaults == common | stated | {"out": "runs/points_2d"}
    asked = []

    class Ranks:
        def default_workers(self, most):
            asked.append(most)
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
        ("check_memory", ("--num 7", 96 * 49 + 20 * 7 * 1000), {}),  # 12 float64 for each pair; 5 float32 a path
        ("check_batch", (256, (128, 1)), {}),
        2,
        (demo.PointNet, (5,), "workers"),
    ]
    with pytest.raises(TinydiffError, match="--num 1: a two-sample test needs 2 points or more"):
        demo.main(out=tmp_path, num=1)
    with pytest.raises(KeyboardInterrupt):
        demo.main(out=tmp_path, num=2)


class Knows:
    """Workers whose network knows that all data is one point; it counts its calls."""

    def __init__(self, schedule, point):
        self.schedule, self.point, self.times = schedule, asarray(point, "float32"), []

    def model(self, x_t, t):
        self.times.append(t)
        return Tensor(eps_from_x_0(self.schedule, x_t, t, 0 * x_t + self.point))

    def map(self, f, jobs):
        yield from (f(self.model, job) for job in jobs)


def test_ddim_takes_the_steps_asked_for_and_ddpm_takes_all(demo):
    """A network that knows the one point of the data is asked at each time of each sampler, and both end there."""
    schedule = Schedule.linear(50)
    pool = Knows(schedule, [0.5, -1.0])
    flows = demo.flows_of(pool, schedule, TARGETS["eps"], 3, 260, 0)
    strided, every = ([t for t, _ in timestep_pairs(50, k)] for k in (3, 50))
    assert pool.times == 2 * strided + 2 * every  # 260 points are two slices
    assert [t for t, _ in flows["ddim"]] == [*strided, 0] and [t for t, _ in flows["ddpm"]] == [*every, 0]
    for flow in flows.values():
        start = [to_numpy(standard_normal(default_rng("sample", 0, i), (n, 2))) for i, n in enumerate((250, 10))]
        np.testing.assert_array_equal(flow[0][1], np.concatenate(start))
        np.testing.assert_allclose(flow[-1][1], np.tile([0.5, -1.0], (260, 1)), atol=1e-4)  # eps / sqrt(alpha_bar_50)
    assert demo.SLICE == 250 and demo.T == 1000 and demo.PERMUTATIONS == 999


def test_a_verdict_compares_samples_with_real_points_and_the_floor_compares_two_real_sets(demo):
    """One point each: distances 2 |x - y| of the last moment, not of the noise; the floor is the real sets' own."""
    x, y = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    flows = {"a": [(9, y), (0, x)], "b": [(9, x), (0, y)]}
    found = demo.verdicts(flows, y, y + [0.0, 1.5], 0)
    assert found == {"a": (10.0, 1.0, 3.0), "b": (0.0, 1.0, 3.0)}
    assert demo.cells((0.1234567, 0.98765, 0.5)) == {"energy distance": "0.12346", "of real": "0.50000", "p": 0.988}
    assert list(demo.cells((0, 0, 0))) == ["energy distance", "of real", "p"]


def test_held_out_points_come_from_two_streams_of_their_own(demo):
    """Neither those of a batch nor each other's."""
    first, second = demo.held_out(demo.spiral, 6, 9)
    np.testing.assert_array_equal(first, demo.spiral(default_rng("held out", 9), 6))
    np.testing.assert_array_equal(second, demo.spiral(default_rng("held out too", 9), 6))


def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """Too few points: exit code 2, nothing written."""
    monkeypatch.setattr("sys.argv", [str(PATH), f"--out={tmp_path / 'out'}", "--num=1", f"--backend={backend_name()}"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PATH), run_name="__main__")
    assert end.value.code == 2
    assert "--num: must be a whole number from 2 to 5,000, got '1'" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_too_many_steps_are_refused_before_the_work(demo, tmp_path):
    """The message names the option and T."""
    with pytest.raises(TinydiffError, match="--sample-steps 1001: the schedule has T = 1000 steps"):
        demo.main(backend=backend_name(), out=tmp_path / "out", sample_steps=1001)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_moments_are_spread_evenly_in_the_angle(demo, steps):
    """At most six, each once, from noise to data without the last; each with the noise and the field of its time."""
    schedule, x = Schedule.linear(1000), np.zeros((3, 2), np.float32)
    flow = [(t, x + t) for t in (*np.linspace(1000, 0, steps + 1).astype(int)[:-1].tolist(), 0)]
    moments = demo.moments_of(schedule, lambda x_t, t: 0 * x_t, flow)
    times = [t for t, *_ in moments]
    assert times == sorted(set(times), reverse=True) and 0 not in times and len(times) <= min(6, steps)
    for t, noise_std, x_t, velocity in moments:
        assert noise_std == schedule.one_minus_alpha_bar[t] ** 0.5 and (x_t == t).all()
        # -v_hat with eps_hat = 0: sqrt(1 - alpha_bar) x_0_hat, and x_0_hat = x_t / sqrt(alpha_bar)
        expected = demo.GRID * (schedule.one_minus_alpha_bar[t] / schedule.alpha_bar[t]) ** 0.5
        np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-6)
    if steps == 40:
        wanted = np.linspace(1.45, 0.1, 6)
        nearest = [min((t for t, _ in flow[:-1]), key=lambda t: abs(angle(schedule, t) - phi)) for phi in wanted]
        assert times == nearest and len(times) == 6


def angle(schedule, t):
    return np.arccos(schedule.alpha_bar[t] ** 0.5)


def test_the_grid_of_the_field_lies_within_the_view(demo):
    """21 x 21 places, evenly from -VIEW to VIEW without the edges."""
    x, y = np.meshgrid(np.linspace(-3, 3, 23)[1:-1], np.linspace(-3, 3, 23)[1:-1])
    np.testing.assert_allclose(demo.GRID, np.stack([x.ravel(), y.ravel()], 1), atol=1e-6)
    assert demo.GRID.dtype == np.float32 and demo.VIEW == 3


def test_the_portrait_shows_what_it_is_given(demo):
    """Which points in which panel, in which colour; the names of panels; labelled ticks on each shown axis."""
    rng = default_rng(3)
    path = rng.uniform(-2, 2, (3, 130, 2)).astype("float32")
    flow = list(zip((1000, 500, 0), path))
    real, samples = rng.uniform(-2, 2, (2, 7, 2))
    samples[2], samples[5] = (3.5, 0), (0, -3.1)
    more = rng.uniform(-2, 2, (600, 2))
    moments = [(1000, 0.999, more, np.tile([3.0, 4.0], (441, 1))), (500, 0.25, path[1], np.zeros((441, 2)))]
    figure = demo.portrait(flow, moments, samples, real, "the title", (0.12345, 0.678, 0.0456))
    way, end, *small = figure.axes
    assert figure.get_suptitle() == "the title" and "dark = fast" in figure.get_supxlabel()
    assert way.get_title() == "from noise (grey) to data (black)" and len(way.lines) == 120
    for i, line in enumerate(way.lines):
        np.testing.assert_array_equal(np.stack(line.get_data(), 1), path[:, i])
        turns = math.atan2(path[0, i, 1], path[0, i, 0]) / (2 * math.pi) % 1
        np.testing.assert_allclose(line.get_color(), colormaps["hsv"](turns), atol=0.05)
    noise, data = way.collections
    for dots, points, colour in ((noise, path[0, :120], 0.6), (data, path[2, :120], 0.0)):
        np.testing.assert_array_equal(dots.get_offsets(), points)
        np.testing.assert_allclose(dots.get_facecolor()[0][:3], colour)
    assert end.get_title() == "energy distance 0.1235, real 0.0456, p = 0.68"
    texts = ["7 held-out points", "7 samples, 2 of them outside"]
    assert [text.get_text() for text in end.get_legend().get_texts()] == texts
    for dots, points in zip(end.collections, (real, samples), strict=True):
        np.testing.assert_array_equal(dots.get_offsets(), points)
    assert [axes.get_title() for axes in small] == ["t = 1000, noise 1.00", "t = 500, noise 0.25", "", "", "", ""]
    assert [axes.axison for axes in small] == [True, True, False, False, False, False]
    for axes, (_, _, x_t, velocity), unit in zip(small, moments, ([0.6, 0.8], [0, 0])):
        dots, arrows = axes.collections
        np.testing.assert_array_equal(dots.get_offsets(), x_t[:500])
        np.testing.assert_allclose(arrows.XY, demo.GRID)
        np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), np.tile(unit, (441, 1)))
        np.testing.assert_allclose(arrows.get_array(), np.linalg.norm(velocity, axis=1))
        assert arrows.get_clim() == (0, 3) and arrows.get_cmap().name == "viridis_r"
    for axes in (way, end, *small[:2]):
        assert axes.get_xlim() == axes.get_ylim() == (-3, 3) and axes.get_aspect() == 1
        for axis in (axes.xaxis, axes.yaxis):
            assert axis.get_ticklocs().tolist() == [-2, 0, 2]
            assert [text.get_text() for text in axis.get_ticklabels()] == ["−2", "0", "2"]
    figure = demo.portrait(flow, [], samples[:2], real, "", (0, 1, 0))
    _, legend = figure.axes[1].get_legend().get_texts()
    assert legend.get_text() == "2 samples"


def test_a_film_goes_from_noise_to_data_with_each_particle_in_its_place(demo):
    """A square of 2 x 2 pixels for a particle, in the colour of its start; what is outside is left out."""
    start = np.array([[1.5, 0.01], [-0.01, 1.5], [-1.5, 0.01], [2.0, -0.1]], np.float32)  # four directions
    far = np.array([[-3, 3], [2.999, 0], [9, 9], [0, -1.5]], np.float32)
    flows = {"a": [(7, start), (3, start), (0, far)], "b": [(7, far), (3, start), (0, start)]}
    pictures, captions, times = demo.film(flows, side=61, num=4)
    assert captions == [[f"a, t = {t}", f"b, t = {t}"] for t in (7, 3, 0)] and times == [800, 70, 2500]
    colours = [2, 8, 13, 25]  # 24 colours in a turn, from 2 on; the third direction is just short of half a turn
    expected = np.zeros((61, 61), np.uint8)
    for (x, y), colour in zip(start, colours):
        column, row = round((x / 3 + 1) / 2 * 60), round((-y / 3 + 1) / 2 * 60)
        expected[row : row + 2, column : column + 2] = colour
    np.testing.assert_array_equal(pictures[0][:, :61], expected)
    expected = np.zeros((61, 61), np.uint8)
    expected[:2, :2], expected[45:47, 30:32] = colours[0], colours[3]  # (3, 0) has no room for 2 pixels
    np.testing.assert_array_equal(pictures[2][:, :61], expected)
    assert pictures[0].shape == (61, 122) and set(np.unique(pictures[2][:, 61:])) > {0}
    assert [len(times) for *_, times in (demo.film({"a": [(9, start)]}), demo.film({"a": [(9, start), (0, far)]}))] == [
        1,
        2,
    ]
    edges = np.array([[0, -3], [0, -9], [9, 0], [3, 0], [-9, 0], [0, 9], [-3, 0.5]], np.float32)
    (picture,), _, _ = demo.film({"a": [(1, edges)]}, side=61)
    assert np.argwhere(picture).tolist() == [[25, 0], [25, 1], [26, 0], [26, 1]]  # the last; the others have no room
    long = demo.film({"a": [(t, start) for t in range(100, -1, -1)]}, side=9)
    assert len(long[0]) == 48 and long[1][0] == ["a, t = 100"] and long[1][-1] == ["a, t = 0"]
    assert long[2] == [800] + 46 * [70] + [2500]
    only = demo.film({"a": [(5, start), (0, start)]}, side=61, num=1)[0]
    assert (only[0] > 0).sum() == 4 and demo.film({"a": [(5, start)]})[0][0].shape == (240, 240)


def test_the_film_on_disk_is_the_frames_with_their_captions(demo, tmp_path):
    """White ground, ink of captions above each set, hues for particles; it loops, and shows each frame for its time."""
    canvas = np.zeros((60, 240), np.uint8)
    canvas[50, 5], canvas[51, 6] = 2, 14  # the first hue is red, half a turn on it is matplotlib's cyan
    demo.save_film(tmp_path / "f.gif", [canvas, canvas * 0], [["moons, t = 9", "b"], ["", ""]], [800, 2500])
    with Image.open(tmp_path / "f.gif") as film:
        assert film.n_frames == 2 and film.info["loop"] == 0 and film.info["duration"] == 800
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(1)
        assert film.info["duration"] == 2500 and (np.asarray(film.convert("RGB")) == 255).all()
    assert first[50, 5].tolist() == [255, 0, 0] and first[51, 6].tolist() == [0, 255, 246]
    ink = np.argwhere((first == 60).all(2))
    left, right = ink[ink[:, 1] < 120], ink[ink[:, 1] >= 120]
    assert (
        ink[:, 0].min() >= 4 and ink[:, 0].max() < 20 and 6 <= left[:, 1].min() < 10 and 126 <= right[:, 1].min() < 130
    )
    assert len(left) > 3 * len(right) > 0


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


def test_the_network_is_its_formula(demo):
    """Features of the point, three blocks that each add the time, a last layer: computed anew in float64."""
    model = demo.PointNet(0)
    shapes = [(14, 128), (128,), (64, 128), (128,), *[(128, 128), (128,)] * 6, (128, 2), (2,)]
    assert [p.shape for p in model.parameters()] == shapes
    for layer in (*model.b, model.outer):  # zero: at first each block adds nothing, and the prediction is 0
        assert not to_numpy(layer.w).any()
    rng = default_rng(1)
    for p in model.parameters():
        p.data[...] = asarray(rng.standard_normal(p.shape) / 10, "float32")
    wb = {name: to_numpy(p).astype("float64") for name, p in model.named_parameters()}

    def linear(name, x):
        return x @ wb[f"{name}.w"] + wb[f"{name}.b"]

    def silu(x):
        return x / (1 + np.exp(-x))

    x, t = rng.standard_normal((2, 2)).astype("float32"), np.array([3, 1000])
    assert model.codes.shape == (1001, 64)
    waves = [f(x * scale) for scale in (1.5, 3.0, 6.0) for f in (np.sin, np.cos)]
    h, code = linear("inner", np.concatenate([x, *waves], 1)), linear("time", to_numpy(time_code(t, 64)))
    for i in range(3):
        h = h + linear(f"b.{i}", silu(linear(f"a.{i}", silu(h + code))))
    np.testing.assert_allclose(to_numpy(model(x, t)), linear("outer", silu(h)), rtol=1e-3, atol=1e-4)  # float32


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
