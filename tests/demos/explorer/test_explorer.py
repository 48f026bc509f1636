"""The explorer: what it records is what our code does, and the page is one file that holds all of it."""

import ast
import base64
import colorsys
import inspect
import io
import json
import re
import runpy
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tinydiff.app import choices, generate
from tinydiff.app.alone import one_process
from tinydiff.app.generate import build_unet
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import load_trained
from tinydiff.app.training import attached, by_name
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import (
    Schedule,
    ddim_step,
    eps_from_x_0,
    q_sample,
    q_x_t_given_x_s,
    sample,
    timestep_pairs,
    x_0_from_eps,
)
from tinydiff.diffusion.targets import TARGETS, as_eps_fn
from tinydiff.train import LoopConfig, Training, train

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("explorer/explorer")


@pytest.fixture(scope="module")
def runs(demo):
    return demo.runs


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """The path of the page."""
    return tmp_path_factory.mktemp("page") / "new" / "page.html"


@pytest.fixture(scope="module")
def made(demo, trained, smallest, where):
    """What main returns and writes in its smallest form; the checkpoint's name tries to leave its element."""
    folder = where.parents[1]
    hostile = folder / "<!--<script>alert(1)</script>&amp;"
    hostile.parent.mkdir(parents=True, exist_ok=True)
    hostile.mkdir(parents=True)
    path = hostile / "checkpoint.npz"
    path.write_bytes(trained[0].read_bytes())
    assert demo.runs.SAMPLING is demo.runs.pitfalls.SAMPLING
    demo.runs.SAMPLING = demo.runs.SAMPLING[:3]  # the right way and two mistakes
    data = demo.main(path, backend=backend_name(), classifier=trained[1], out=where, **smallest)
    return data, where.read_text("utf-8")


# ------------------------------------------------------------------------------------------------------- the one file


class Elements(HTMLParser):
    """The elements of a page as (tag, attributes), and the text in each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += text


def parts_of(demo):
    """The files of the page: all that stand in its folder, but for the program."""
    made = {"explorer.html"}  # the ready page
    return [path for path in demo.PAGE.iterdir() if path.is_file() and path.suffix != ".py" and path.name not in made]


def test_the_page_holds_its_data_exactly(made):
    """What main returns is what the page's script will parse, whatever characters are in it."""
    data, text = made
    page = Elements(text)
    (place,) = [i for i, (_, a) in enumerate(e for e in page.elements if e[0] == "script") if a.get("id") == "data"]
    assert json.loads(page.scripts[place]) == json.loads(json.dumps(data))
    assert "<!--<script>" in data["about"] and "<!--<script>" not in text


def test_the_page_is_one_file_and_loads_nothing(demo, made):
    """No element names another file or address, the page forbids loading, and each part of the folder is in it."""
    _, text = made
    page = Elements(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    outside = text.replace("http://www.w3.org/2000/svg", "")  # a name, never loaded
    assert not re.search(r"https?:|@import|url\(|\bfetch\(|XMLHttpRequest", outside)
    assert "default-src 'none'" in text
    parts = {path.name: path.read_text("utf-8") for path in parts_of(demo)}
    assert len(parts) > 12
    for name in parts.keys() - {"page.html", "cards.json"}:
        assert parts[name] in text, f"{name} is not in the page"
    assert len(text.encode()) < 8e6


def test_its_parts_are_short(demo):
    """Each can be read in one sitting, but for the cards: lines of at most 120 characters, files of at most 250."""
    for path in parts_of(demo):
        lines = path.read_text("utf-8").splitlines()
        assert path.name == "cards.json" or (len(lines) <= 250 and max(map(len, lines)) <= 120), path.name


def test_the_page_has_every_choice(made, smallest):
    """A run for each sampler, number of steps and scale; a sheet for each label, one for all where it is ignored."""
    data, _ = made
    expected = {f"{a} {n} {s}": 1 if s == 0 else 2 for a in ("ddpm", "ddim", "2m") for n in (2, 4) for s in (0, 1, 3)}
    assert {name: len(run["sheets"]) for name, run in data["reverse"]["runs"].items()} == expected
    assert list(data["forward"]["schedules"]) == ["linear", "cosine", "quadratic", "sigmoid", "constant"]
    assert len(data["forward"]["pictures"]) == 10
    assert list(data["points"]["sets"]) == ["moons", "spiral", "mixture"]
    assert [item["label"] for item in data["riddles"]["items"]] == list(range(10))


def test_links_of_the_page_lead_to_the_repository(made, where):
    """`root` is the way from the folder of the page to the repository, wherever the page is."""
    data, _ = made
    assert (where.parent / data["root"]).resolve() == ROOT and not Path(data["root"]).is_absolute()


# ------------------------------------------------------------------------------------------------------------- colours


def luminance(red, green, blue):
    """Of channels in 0..1, as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    low, high = sorted((luminance(*one), luminance(*other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def colours(demo):
    """{name: (light, dark)} of base.css, each as channels in 0..1."""
    style = (demo.PAGE / "base.css").read_text("utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\);", style)
    return {name: [[n / 255 for n in bytes.fromhex(c)] for c in both] for name, *both in pairs}


def test_the_contrast_of_black_and_white_is_21():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    grey = 0x76 / 255  # the darkest grey text on white that WCAG's level AA does not allow is #777777
    assert 4.5 < contrast((grey,) * 3, (1, 1, 1)) < 4.6


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_what_is_drawn_stands_out(demo, colours, scheme):
    """Curves, arrows, marks and edges have a contrast of 3 or more, text one of 4.5, and nothing pales them."""
    style = (demo.PAGE / "parts.css").read_text("utf-8")
    strokes = dict(re.findall(r"([^{}]*?) \{[^{}]*stroke: var\(--(\w+)\)", style))
    halo, scale = {".curve .name", ".curve circle"}, {".curve .axis"}  # behind a text or a dot; a scale's lines
    drawn = {name for rule, name in strokes.items() if rule.strip() not in halo | scale}
    arrows = re.search(r"\.plane canvas \{.*?background: var\(--(\w+)\).*?; color: var\(--(\w+)\);", style)
    assert drawn == {"line", "accent", "ink"} and arrows.groups() == ("ground", "line")
    for ground in ("ground", "surface"):
        for name in drawn | {"edge"}:
            assert contrast(colours[name][scheme], colours[ground][scheme]) >= 3, f"{name} on {ground}"
        for name in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[name][scheme], colours[ground][scheme]) >= 4.5, f"{name} on {ground}"
    assert contrast(colours["on-accent"][scheme], colours["accent"][scheme]) >= 4.5
    faded = {rule.strip() for rule in re.findall(r"([^{}]*?) \{[^{}]*opacity: 0?\.\d", style)}
    assert faded == {"button:disabled"}
    assert not [path.name for path in demo.PAGE.glob("*.js") if "globalAlpha" in path.read_text("utf-8")]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_points_of_every_hue_stand_out(demo, colours, scheme):
    """The colour of points.js has a contrast of 3 or more with the plane at each of 360 hues."""
    script = (demo.PAGE / "points.js").read_text("utf-8")
    saturation, *lightness = map(
        int, re.search(r"\[SATURATION, LIGHT, DARK\] = \[(\d+), (\d+), (\d+)\]", script).groups()
    )
    assert "isDark() ? DARK : LIGHT" in script and "hsl(${hue} ${SATURATION}% ${lightness}%)" in script
    ground = colours["ground"][scheme]
    points = [colorsys.hls_to_rgb(hue / 360, lightness[scheme] / 100, saturation / 100) for hue in range(360)]
    assert min(contrast(point, ground) for point in points) >= 3


# ----------------------------------------------------------------------------------------------------- sheets, numbers


def pixels(sheet):
    """The grey levels of a sheet."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("L"), float)


def test_a_sheet_holds_each_picture_in_its_place(runs, rng):
    """Row i, column j is images[i, j] to half of one of 16 greys; noise of 28 x 28 takes at most 420 bytes."""
    images = rng.uniform(-1, 1, (3, 4, 28, 28, 1)).astype(np.float32)
    sheet = runs.sheet(images)
    greys = pixels(sheet)
    assert greys.shape == (3 * 28, 4 * 28)
    for i in range(3):
        for j in range(4):
            picture = greys[i * 28 : i * 28 + 28, j * 28 : j * 28 + 28]
            assert abs(picture - (images[i, j, ..., 0] * 127.5 + 127.5)).max() < 17 / 2 + 0.51  # and tile's rounding
    assert len(base64.b64decode(sheet)) < 12 * 420
    assert set(np.unique(pixels(runs.sheet(10 * images)))) == set(range(0, 256, 17))  # what is outside is cut


def test_a_sheet_in_colour_has_16_levels_of_each_colour(runs, rng):
    """Row i, column j is images[i, j] to half of a level, each channel by itself; noise takes 2 bytes a pixel."""
    images = rng.uniform(-1, 1, (3, 4, 16, 16, 3)).astype(np.float32)
    sheet = base64.b64decode(runs.sheet(images))
    with Image.open(io.BytesIO(sheet)) as picture:
        levels = np.asarray(picture.convert("RGB"), float).reshape(3, 16, 4, 16, 3).swapaxes(1, 2)
    assert abs(levels - (images * 127.5 + 127.5)).max() < 17 / 2 + 0.51  # and tile's rounding
    assert set(np.unique(levels)) == set(range(0, 256, 17)) and len(sheet) < 12 * 550


def test_numbers_are_unpacked_as_they_were(runs):
    """Little-endian int16, 4096 a unit, cut where they do not fit."""
    unpacked = np.frombuffer(base64.b64decode(runs.packed([[0.5, -7.99], [1e-3, 99.0]])), "<i2") / 4096
    np.testing.assert_allclose(unpacked, [0.5, -7.99, 1e-3, 8.0], atol=1 / 4096)


def test_infinity_is_null_and_the_rest_keeps_4_digits(runs):
    assert runs.rounded([np.inf, 0.123456, -9876.54]) == [None, 0.1235, -9877.0]


def test_times_are_spread_evenly(runs):
    """From end to end; in t, in the angle, and in the signal, where no two are one."""
    schedule = Schedule.linear(1000)
    assert runs.evenly(1000, 5) == [0, 250, 500, 750, 1000] and runs.evenly(2, 5) == [0, 1, 2]
    for times, quantity in (
        (runs.evenly_in_angle(schedule, 9), np.arccos(schedule.alpha_bar**0.5)),
        (runs.evenly_in_signal(schedule, 9), schedule.alpha_bar**0.5),
    ):
        assert times[0] in (0, 1) and times[-1] == 1000 and len(times) == 9
        gaps = abs(np.diff(quantity[times]))
        assert gaps.max() < 1.05 * gaps.min() + 0.005  # t is a whole number


# ------------------------------------------------------------------------------------------------------------- forward


def test_the_page_can_noise_pictures_itself(runs, rng):
    """It has their bytes, row by row, and beta of every step; what it makes of them is a law in the browser."""
    levels = rng.integers(0, 256, (3, 5, 4, 1), dtype=np.uint8)
    made = runs.forward(levels / np.float32(127.5) - 1)
    assert [base64.b64decode(picture) for picture in made["pictures"]] == [picture.tobytes() for picture in levels]
    for name, text in made["schedules"].items():
        beta = np.frombuffer(base64.b64decode(text), "<f4")
        np.testing.assert_allclose(beta, getattr(Schedule, name)().beta[1:], rtol=6e-8)


# ------------------------------------------------------------------------------------------------------------- reverse


def some_digits(side):
    """Twenty pictures of noise and their labels, two of each digit: what the exact mean is taken of."""
    pictures = default_rng("known").uniform(-1, 1, (20, side, side, 1)).astype("float32")
    return pictures, np.arange(20) % 10


class Knows:
    """A network that takes the data for one point, label / 10 or 0 for no label, and at t for t/T of it."""

    num_classes = 10

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, labels):
        level = np.where(np.asarray(labels) == 10, 0, labels) / 10 * (t / self.schedule.T)
        x_0 = 0 * x_t + asarray(np.broadcast_to(level, len(x_t)).astype(np.float32))[:, None, None, None]
        return eps_from_x_0(self.schedule, x_t, t, x_0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "2m"])
@pytest.mark.parametrize("scale", [0, 1, 3])
def test_each_moment_is_x_t_its_noise_and_its_picture(runs, sampler, scale):
    """The three belong together, begin at one noise for all labels, end where sample() ends; white is an eps of 3."""
    schedule = Schedule.linear(100)
    job = (sampler, 10, scale)
    times, (x_t, eps_hat, x_0_hat), ends = runs.trajectory(schedule, (28, 28, 1), (2, 3), 6, 5, Knows(schedule), job)
    assert list(times) == [100, 80, 60, 40, 20, 0]
    assert x_t.shape == (6, 1 if scale == 0 else 2, 28, 28, 1)
    for k, t in enumerate(times[:-1]):
        x_0 = x_0_from_eps(schedule, x_t[k], t, 3 * eps_hat[k])
        np.testing.assert_allclose(x_0.clip(-1, 1), x_0_hat[k], atol=1e-3)  # 1/sqrt(alpha_bar_T) = 158 roundings
    start = to_numpy(standard_normal(default_rng("start", 5), (1, 28, 28, 1)))
    assert (x_t[0] == start).all()
    wanted = np.array([0.0] if scale == 0 else [0.2, 0.3]) * scale
    for k, t in enumerate(times[:-1]):
        np.testing.assert_allclose(x_0_hat[k].mean((1, 2, 3)), wanted * t / 100, atol=1e-3)
    np.testing.assert_allclose(x_t[-1].mean((1, 2, 3)), wanted / 10, atol=1e-3)  # the last step is from t = 10
    assert (eps_hat[-1] == 0).all() and (x_0_hat[-1] == x_t[-1]).all()
    assert ends.shape == (3, *x_t[-1].shape) and (ends[0] == x_t[-1]).all()


class Slope:
    """A network whose eps_hat is x_t/2: where a run ends then depends on the noise in its steps."""

    num_classes = 10

    def __call__(self, x_t, t, labels):
        return x_t / 2


@pytest.mark.parametrize("scale", [0, 1])
def test_one_start_has_three_ends_if_the_steps_have_noise(runs, scale):
    """Each way is the run of a row with noise of its own from the one x_T; without noise in the steps all end alike."""
    schedule = Schedule.linear(100)
    for sampler in runs.SAMPLERS:
        *_, ends = runs.trajectory(schedule, (4, 4, 1), (2, 3), 3, 5, Slope(), (sampler, 10, scale))
        n = 2 if scale else 1
        x_T = standard_normal(default_rng("start", 5), (1, 4, 4, 1))
        for way in range(3):
            for i in range(n):
                rng = row_rng("way", 5, rows=[way * n + i])
                step, eps_fn = runs.SAMPLERS[sampler](schedule), lambda x_t, t: x_t / 2
                *_, (_, x_0, _) = sample(step, eps_fn, timestep_pairs(100, 10), x_T, rng)
                np.testing.assert_allclose(ends[way, i], to_numpy(x_0)[0], atol=1e-6)
        made = runs.reverse(Pool(Slope()), schedule, (4, 4, 1), (2, 3), (10,), 3, 5, some_digits(4))
        assert made["runs"][f"{sampler} 10 {scale}"]["ends"] == runs.sheet(ends)
        moved = abs(ends[1:] - ends[:1]).max((1, 2, 3, 4)) > 0.1
        assert moved.tolist() == [sampler == "ddpm"] * 2


def test_the_exact_mean_is_that_of_pictures_under_one_x_t(runs):
    """Known on paper for two pictures: the odds follow from the distance, and so do the mean and 1/sum w^2."""
    schedule, pictures = Schedule.linear(1000), np.stack([np.full((4, 4, 1), 0.9), np.full((4, 4, 1), -0.3)])
    possible = runs.Possible(schedule, pictures)
    for t in (1, 100, 400, 1000):
        x_t = schedule.alpha_bar[t] ** 0.5 * np.stack([pictures[0], pictures.mean(0)])
        mean, count = possible.mean(x_t, t)
        # The two are 1.2 apart in each of 16 pixels; the odds of the other one are exp(-distance^2/(2 variance)).
        odds = np.exp(-schedule.alpha_bar[t] * 16 * 1.2**2 / 2 / schedule.one_minus_alpha_bar[t])
        np.testing.assert_allclose(count, [(1 + odds) ** 2 / (1 + odds**2), 2.0], rtol=1e-9)
        np.testing.assert_allclose(mean[:, 0, 0, 0], [(0.9 - 0.3 * odds) / (1 + odds), 0.3], rtol=1e-9)


def test_at_t_0_the_exact_mean_is_the_nearest_picture(runs, rng):
    """And it is the limit of the means at small t."""
    schedule, (pictures, _) = Schedule.linear(1000), some_digits(4)
    possible = runs.Possible(schedule, pictures)
    x = rng.uniform(-1, 1, (9, 4, 4, 1)).astype("float32")
    mean, count = possible.mean(x, 0)
    nearest = ((x[:, None] - pictures) ** 2).sum((2, 3, 4)).argmin(1)
    assert len(set(nearest)) > 3
    np.testing.assert_array_equal(mean, pictures[nearest])
    np.testing.assert_array_equal(count, np.ones(9))
    np.testing.assert_allclose(possible.mean(x, 1)[0], mean, atol=1e-4)  # variance 1e-4: exp(-thousands)


def test_the_workers_are_free_after_every_run_is_drawn(runs):
    """The map is read to its end, which frees the workers for the next one: nothing relies on when it is destroyed."""

    class Pool:
        def map(self, f, jobs):
            yield from (f(Knows(schedule), job) for job in jobs)
            self.free = True

    pool, schedule = Pool(), Schedule.linear(100)
    made = runs.reverse(pool, schedule, (28, 28, 1), [2], [2], 3, 5, some_digits(28))
    assert len(made["runs"]) == len(runs.SAMPLERS) * len(runs.SCALES) and pool.free


def test_the_last_picture_is_what_sampling_draws(runs, trained):
    """With a network: the same bits as a plain walk with the same noise."""
    pool, schedule, _ = load_trained(trained[0], 1)
    _, (x_t, _, _), _ = runs.trajectory(schedule, (28, 28, 1), (3, 7), 3, 0, pool.model, ("ddpm", 4, 1))
    x_T = asarray(np.repeat(to_numpy(standard_normal(default_rng("start", 0), (1, 28, 28, 1))), 6, 0))
    step = runs.DDPM(schedule)
    eps_fn = runs.classifier_free(pool.model, (3, 7) * 3, 1)
    with runs.no_grad():
        *_, (_, x_0, _) = sample(step, eps_fn, timestep_pairs(schedule.T, 4), x_T, row_rng("way", 0, rows=range(6)))
    assert (x_t[-1] == to_numpy(x_0)[:2]).all() and abs(x_t[-1, 0] - x_t[-1, 1]).max() > 1e-3


def test_a_riddle_clears_up_and_has_its_own_answer(made, trained):
    """From noise to nearly the picture of its label, a test picture other than the one shown in Forward."""
    data, _ = made
    times = data["riddles"]["times"]
    assert times[0] == 100 and times[-1] == 1 and times == sorted(times, reverse=True)
    test_set = load("glyphs", "test", num=500)
    for item, shown in zip(data["riddles"]["items"], data["forward"]["pictures"], strict=True):
        answer, sheet = pixels(item["answer"]), pixels(item["sheet"])
        assert sheet.shape == (84, 28 * len(times))
        assert abs(sheet[:28, -28:] - answer).mean() < 10 and abs(sheet[:28, :28] - answer).mean() > 50
        first, second = test_set.images[test_set.labels == item["label"]][:2, ..., 0]
        assert abs(answer - second).max() < 10 and base64.b64decode(shown) == first.tobytes()


# -------------------------------------------------------------------------------------------------------------- points


def test_points_go_forth_and_back_along_the_field(runs, monkeypatch):
    """Forward from data to noise; in reverse the other way, here to a point; each moment has the field of its time."""
    field_times, point = [], np.array([1.0, -0.5], np.float32)

    def knows_the_point(model, schedule, target):
        return lambda x_t, t: eps_from_x_0(schedule, x_t, t, 0 * x_t + asarray(point))

    def field(schedule, eps_fn, grid, t):
        field_times.append(t)
        return grid + t / 1000

    monkeypatch.setattr(runs.points_2d, "flow_velocity", field)
    monkeypatch.setattr(runs.points_2d, "eps_fn_of", knows_the_point)
    monkeypatch.setattr(runs.points_2d, "SETS", {"mixture": runs.points_2d.mixture})
    made = runs.points(steps=2, num=400, moments=6, seed=0, workers=1)
    times, paths = made["times"], {}
    for name, packed in made["sets"]["mixture"].items():
        paths[name] = (np.frombuffer(base64.b64decode(packed), "<i2") / 4096).reshape(len(times), -1, 2)
    assert times[0] == 0 and times[-1] == 1000 and field_times == [*times[:0:-1], times[1]]
    radius = np.hypot(*paths["forward"][0].T)
    assert abs(radius - 2**0.5).max() < 0.5  # eight Gaussians of std 0.1 on that circle
    for noise in (paths["forward"][-1], paths["reverse"][0]):
        assert abs(noise.mean(0)).max() < 0.2 and abs(noise.std(0) - 1).max() < 0.15  # 4 standard errors of 400
    schedule, start = Schedule.linear(1000), paths["reverse"][0]
    for x_t, t in zip(paths["reverse"], times[::-1]):  # DDIM with the exact eps walks the closed form
        expected = schedule.alpha_bar[t] ** 0.5 * point + schedule.one_minus_alpha_bar[t] ** 0.5 * start
        np.testing.assert_allclose(x_t, expected, atol=0.02)  # x_T is eps to sqrt(alpha_bar_T) = 0.006
    x, y = np.meshgrid(np.linspace(-3, 3, made["grid"] + 2)[1:-1], np.linspace(-3, 3, made["grid"] + 2)[1:-1])
    for k, t in enumerate(field_times):
        np.testing.assert_allclose(paths["field"][k], np.stack([x.ravel(), y.ravel()], 1) + t / 1000, atol=1e-3)


def unpacked(text, *shape):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(shape) / 4096


def test_points_are_their_parts_in_order(runs, monkeypatch):
    """The network of points_2d.py, trained to predict v, with its average; DDIM back; the chain of jumps forth."""
    points_2d, schedule = runs.points_2d, Schedule.linear(1000)
    monkeypatch.setattr(points_2d, "SETS", {"spiral": points_2d.spiral})
    made = runs.points(steps=2, num=5, moments=4, seed=6, workers=1)
    times = made["times"]
    assert made == made | {"num": 5, "view": 3.0, "grid": 17, "training_steps": 2} and list(made["sets"]) == ["spiral"]
    assert len(times) == 4 and times == sorted(times)
    pool = one_process().workers(partial(points_2d.PointNet, 6), 1)
    config = LoopConfig(2, 256, peak_lr=2e-3, clip_norm=np.inf, ema_decay=0.999, seed=6)
    draw = partial(points_2d.draw_batch, points_2d.spiral, schedule, TARGETS["v"])
    state = Training(pool.model, config, draw, points_2d.squared_errors, **attached(pool))
    for _ in train(state):
        pass
    pool.model.load_state_dict(by_name(pool.model, state.ema.average))
    rng = default_rng("sample", 6)
    x_T = standard_normal(rng, (5, 2))
    eps_fn = as_eps_fn(TARGETS["v"], schedule, lambda x_t, t: pool.model(x_t, t).data)
    with runs.no_grad():
        pairs = list(zip(times[:0:-1], times[-2::-1]))
        walk = [x_t for _, x_t, _ in sample(partial(ddim_step, schedule), eps_fn, pairs, x_T, rng)]
    back = np.stack([to_numpy(x) for x in (x_T, *walk)])
    assert made["sets"]["spiral"]["reverse"] == runs.packed(back)
    axis = np.linspace(-3, 3, 19)[1:-1]
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    field = [points_2d.flow_velocity(schedule, eps_fn, grid, t) for t in (*times[:0:-1], times[1])]
    assert made["sets"]["spiral"]["field"] == runs.packed(field)
    rng = default_rng("forward points", 6)
    x_t = asarray(points_2d.spiral(rng, 5))
    forth = [to_numpy(x_t)]
    for s, t in pairwise(times):
        mean, var = q_x_t_given_x_s(schedule, x_t, s, t)
        x_t = mean + var**0.5 * standard_normal(rng, (5, 2))
        forth.append(to_numpy(x_t))
    assert made["sets"]["spiral"]["forward"] == runs.packed(forth)


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_each_mistake_stands_beside_the_right_thing(runs, made):
    """All of pitfalls.py, in its order, each with its sentence, the figures of both, and two different pictures."""
    data, _ = made
    rows = data["mistakes"]["rows"]
    _, *wrong = runs.SAMPLING
    numbers = runs.pitfalls.facts(Schedule.linear(100), 4, 1)
    explained = [runs.pitfalls.explained(case, numbers) for case in wrong]
    assert [(row["name"], row["why"]) for row in rows] == [(case.name, case.why) for case in explained]
    kinds = {case.name: row["kind"] for case, row in zip(explained, rows)}
    assert kinds == {case.name: "wrong" for case in explained}
    for row in rows:
        assert set(row["figures"]) == {"read as asked", "border", "moved"}
        assert set(row["right_figures"]) == {"read as asked", "border"}
        assert row["right"] == rows[0]["right"]
        assert pixels(row["right"]).shape == pixels(row["other"]).shape == (28, 28 * 5)
    assert float(rows[0]["figures"]["moved"]) > 1


def test_another_right_choice_is_not_called_wrong(runs):
    """Of the rows of pitfalls.py just the one whose sentence says that it is no mistake."""
    schedule, images = Schedule.linear(100), np.zeros((5, 28, 28, 1), np.float32)
    drawn = [(case, images) for case in runs.pitfalls.SAMPLING]
    rows = runs.compared("sampling", drawn, None, np.arange(5), runs.pitfalls.facts(schedule, 4, 1))
    assert [row["kind"] for row in rows] == ["also right" if "Not a mistake" in row["why"] else "wrong" for row in rows]
    assert [row["name"] for row in rows if row["kind"] == "also right"] == ["variance beta, not beta_tilde"]


@pytest.fixture
def mistaken(runs, monkeypatch):
    """pitfalls.py without its work: image i of a case is its number plus i/20, and what is asked is noted."""
    noted, each = [], np.float32(np.arange(12) / 20)[:, None, None, None]

    def draw(pool, case, schedule, steps, jobs, shape):
        noted.append(("draw", pool, case, schedule, steps, shape, [labels for labels, _ in jobs]))
        return np.full((12, *shape), cases.index(case) / 10, np.float32) + each

    def train_and_draw(dataset, channels, train_steps, seed, ranks, workers, steps, jobs, shape):
        noted.append(("train", dataset, channels, train_steps, seed, workers, steps, shape, [row[0] for row in jobs]))
        for i, run in enumerate(runs.pitfalls.TRAINING[:3]):
            yield run, np.full((12, *shape), (5 + i) / 10, np.float32) + each

    def measure(reader, images, labels, right=None):
        noted.append(("measure", reader, float(images.flat[0]), labels.tolist()))
        return {"level": float(images.flat[0])} | ({} if right is None else {"moved": float((images - right).flat[0])})

    cases = [case.draw for case in runs.pitfalls.SAMPLING[:3]]
    monkeypatch.setattr(runs, "SAMPLING", runs.pitfalls.SAMPLING[:3])
    for f in (draw, train_and_draw, measure):
        monkeypatch.setattr(runs.pitfalls, f.__name__, f)
    return noted


def test_mistakes_have_the_figures_of_their_own_pictures_beside_the_right_ones(runs, mistaken):
    """Mistakes in sampling are compared with the right pictures of the same noise; each group has its own right way."""
    schedule, meta = Schedule.linear(100), {"data": {"image_shape": [2, 2, 1]}}
    pool = SimpleNamespace(model=SimpleNamespace(num_classes=5), num_workers=3)
    made = runs.mistakes(pool, "reader", schedule, meta, 1000, 12, 7, "training set", 4)
    steps = runs.pitfalls.FEW
    assert {key: made[key] for key in ("num", "shown", "steps", "train_steps")} == {
        "num": 12, "shown": 5, "steps": steps, "train_steps": 7
    }  # fmt: skip
    labels = [i % 5 for i in range(12)]
    jobs = [row[0] for row in runs.pitfalls.jobs_of(np.array(labels), 4)]
    draws = [note for note in mistaken if note[0] == "draw"]
    assert [note[2] for note in draws] == [case.draw for case in runs.SAMPLING]
    for _, its_pool, _, its_schedule, its_steps, shape, its_jobs in draws:
        assert (its_pool, its_schedule, its_steps, shape) == (pool, schedule, steps, (2, 2, 1))
        assert np.concatenate(its_jobs).tolist() == np.concatenate(jobs).tolist() == labels
    ((_, dataset, channels, train_steps, seed, workers, its_steps, shape, its_jobs),) = (
        note for note in mistaken if note[0] == "train"
    )
    assert (dataset, channels, train_steps, seed, workers, its_steps, shape) == (
        "training set", 16, 7, 4, 3, steps, (2, 2, 1)
    )  # fmt: skip
    assert np.concatenate(its_jobs).tolist() == labels
    assert all(note[1] == "reader" and note[3] == labels for note in mistaken if note[0] == "measure")
    rows, numbers = made["rows"], runs.pitfalls.facts(schedule, steps, 7)
    cases = [*runs.SAMPLING[1:], *runs.pitfalls.TRAINING[1:3]]
    assert [row["group"] for row in rows] == ["sampling"] * 2 + ["training"] * 2
    for row, case, level, right in zip(rows, cases, (0.1, 0.2, 0.6, 0.7), (0.0, 0.0, 0.5, 0.5)):
        case = runs.pitfalls.explained(case, numbers)
        assert (row["name"], row["why"]) == (case.name, case.why)
        moved = {"moved": np.float32(level)} if row["group"] == "sampling" else {}
        assert row["figures"] == {"level": np.float32(level)} | moved and row["right_figures"] == {"level": right}
        for name, value in (("right", right), ("other", level)):
            images = np.float32(value + np.arange(5) / 20)[None, :, None, None, None]
            assert row[name] == runs.sheet(images + np.zeros((1, 5, 2, 2, 1), np.float32))  # the first five


def test_without_training_its_mistakes_are_left_out(runs, mistaken):
    """And the steps are no more than asked for."""
    pool = SimpleNamespace(model=SimpleNamespace(num_classes=5), num_workers=1)
    meta = {"data": {"image_shape": [2, 2, 1]}}
    made = runs.mistakes(pool, None, Schedule.linear(100), meta, 4, 12, 0, None, 4)
    assert {row["group"] for row in made["rows"]} == {"sampling"} and made["steps"] == 4 and made["train_steps"] == 0
    assert not [note for note in mistaken if note[0] == "train"]


# ---------------------------------------------------------------------------------------------------- the parts of main


class Pool:
    """Workers of a network that is known; each job is done in turn."""

    def __init__(self, model):
        self.model, self.num_workers = model, 1

    def map(self, f, jobs):
        yield from (f(self.model, job) for job in jobs)


def test_each_run_of_reverse_is_its_own_trajectory(runs):
    """Under its sampler, steps and scale: times, alpha_bar, and a sheet for each label; names bind to the functions."""
    assert runs.SAMPLERS == {"ddpm": generate.DDPM, "ddim": choices.DDIM, "2m": choices.DPM_SOLVER_2M}
    schedule = Schedule.linear(100)
    pool = Pool(Knows(schedule))
    known = some_digits(4)
    made = runs.reverse(pool, schedule, (4, 4, 1), (2, 3), (2, 5), 3, 5, known)
    assert (made["steps"], made["scales"], made["samplers"]) == ([2, 5], [0, 1, 3], ["ddpm", "ddim", "2m"])
    assert len(made["runs"]) == 18
    for job in ((sampler, n, scale) for sampler in runs.SAMPLERS for n in (2, 5) for scale in (0, 1, 3)):
        times, seen, ends = runs.trajectory(schedule, (4, 4, 1), (2, 3), 3, 5, pool.model, job)
        run = made["runs"]["{} {} {}".format(*job)]
        assert (
            run["ends"] == runs.sheet(ends)
            and run["times"] == times
            and run["alpha_bar"] == runs.rounded(schedule.alpha_bar[list(times)])
        )
        for i in range(seen.shape[2]):
            possible = runs.Possible(schedule, known[0][known[1] == (2, 3)[i]] if job[2] else known[0])
            means, counts = zip(*(possible.mean(x_t[i][None], t) for x_t, t in zip(seen[0], times)))
            assert run["sheets"][i] == runs.sheet([*seen[:, :, i], np.concatenate(means)])
            assert run["counts"][i] == runs.rounded(np.concatenate(counts))
    assert made["known"] == [len(known[0]), [(known[1] == 2).sum(), (known[1] == 3).sum()]]


def test_a_riddle_is_guessed_without_its_label(runs):
    """x_t of one noise at falling times above x_0_hat of no label, which is the level 0 here; the answer is x_0."""
    schedule = Schedule.linear(100)
    x_0 = default_rng(3).uniform(-1, 1, (2, 4, 4, 1)).astype("float32")
    known = some_digits(4)
    made = runs.riddles(Pool(Knows(schedule)), schedule, x_0, np.array([7, 1]), 4, 9, known)
    times = runs.evenly_in_signal(schedule, 4)[::-1]
    assert made["times"] == times and made["log_snr"] == runs.rounded(schedule.log_snr[times])
    eps = standard_normal(default_rng("riddles", 9), x_0.shape)
    for i, (item, label) in enumerate(zip(made["items"], (7, 1), strict=True)):
        x_t = np.stack([to_numpy(q_sample(schedule, asarray(x_0), t, eps))[i] for t in times])
        guesses = pixels(item["sheet"])[4:8]
        means = [runs.Possible(schedule, known[0]).mean(x[None], t)[0] for x, t in zip(x_t, times)]
        assert (pixels(item["sheet"])[8:] == pixels(runs.sheet(np.stack(means, 1)))).all()
        assert (pixels(item["sheet"])[:4] == pixels(runs.sheet(x_t[None]))).all()
        assert set(np.unique(guesses)) <= {119, 136}  # grey: no label is level 0, up to rounding
        assert item["label"] == label and item["answer"] == runs.sheet(x_0[None, i : i + 1])


def test_main_records_each_part_with_its_own_options(demo, trained, tmp_path, monkeypatch, capsys):
    """What the page is made of: who gets which pictures, steps, moments and seed; a stated default is the default."""
    seen = {}
    for name in ("forward", "reverse", "riddles", "points", "mistakes"):
        monkeypatch.setattr(demo.runs, name, lambda *given, name=name: seen.update({name: given}) or name)
    asked = []  # for workers
    monkeypatch.setattr(demo, "load_trained", lambda path, n: asked.append((path, n)) or load_trained(path, 1))
    options = {"labels": (7, 3), "sample_steps": (9, 2), "moments": 6, "point_steps": 5, "num": 11, "seed": 4}
    options["known"] = 120
    data = demo.main(trained[0], backend=backend_name(), workers=3, out=tmp_path / "p.html", **options)
    assert asked == [(trained[0], 3)]
    test_set, schedule = load("glyphs", "test", None, 4, 500), Schedule.linear(100)
    images, digits = test_set.batch(np.arange(500))
    nth = [[np.flatnonzero(digits == label)[n] for label in range(10)] for n in (0, 1)]
    (shown,) = seen["forward"]
    np.testing.assert_array_equal(shown, images[nth[0]])
    pool, its_schedule, *rest = seen["reverse"]
    np.testing.assert_array_equal(its_schedule.beta, schedule.beta)
    *rest, known = rest
    assert rest == [(28, 28, 1), (7, 3), (2, 9), 3, 4]
    for given, expected in zip(known, load("glyphs", "train", None, 4, 120).batch(np.arange(120)), strict=True):
        np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(seen["riddles"][2], images[nth[1]])
    assert seen["riddles"][0] is pool and seen["riddles"][3].tolist() == list(range(10))
    assert seen["riddles"][4:6] == (6, 4) and seen["riddles"][6] is known
    assert seen["points"] == (5, 400, 6, 4, 2)
    its_pool, reader, _, meta, *rest = seen["mistakes"]
    assert its_pool is pool and reader is None and meta["step"] == 1
    assert rest[:3] == [9, 11, 0] and rest[4] == 4
    parts = {name: name for name in seen}
    assert {name: data[name] for name in seen} == parts and list(data)[-1] == "cards"
    assert data["about"] == f"{trained[0]}, 1 training step on glyphs" and data["size"] == (28, 28)
    assert data["classes"] == tuple("0123456789") and data["is_digits"] is True and data["labels"] == (7, 3)
    megabytes = (tmp_path / "p.html").stat().st_size / 1e6
    assert f"page: {tmp_path}/p.html ({megabytes:.1f} MB)" in capsys.readouterr().out
    long, small = {"moments": 31, "train_steps": 2, "classifier": trained[1]}, load("glyphs", "test", num=120)
    small = replace(small, classes=("a shirt", *small.classes[1:]))
    monkeypatch.setattr(demo, "load", lambda *given: loaded.append(given) or small)
    loaded = []
    data = demo.main(trained[0], backend=backend_name(), workers=1, out=tmp_path / "p.html", **long)
    assert data["is_digits"] is False and data["classes"][0] == "a shirt"
    assert seen["riddles"][4:6] == (16, 0) and seen["points"] == (2000, 400, 31, 0, 1) and seen["reverse"][5] == 16
    assert seen["reverse"][3:5] == (tuple(range(10)), (1, 2, 3, 5, 10, 50)) and seen["mistakes"][1] is not None
    assert seen["mistakes"][4:7] == (50, 30, 2) and seen["mistakes"][7] is small
    assert loaded == [("glyphs", "test", None, 0, 500), ("glyphs", "train", None, 0, None)]
    assert inspect.signature(demo.main).parameters["moments"].default == 41


# --------------------------------------------------------------------------------------------------------------- cards


def names_of(path):
    """Functions, classes and methods (Class.method) of a source file."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_every_answer_has_its_place_in_the_source(made):
    """File and function of each card exist, and the five ideas that the page promises are among them."""
    cards = made[0]["cards"]
    places = {tuple(place) for card in cards for place in card["places"]}
    assert len(cards) >= 10 and all(card["question"].endswith("?") and card["answer"] for card in cards)
    for file, name in places:
        assert name in names_of(ROOT / file), f"{file} has no {name}"
    ideas = {"q_sample", "noise_prediction_losses", "ddpm_step", "timestep_pairs", "classifier_free", "TextEncoder"}
    assert ideas <= {name for _, name in places}


def test_the_functions_that_the_page_names_exist(demo):
    """Each "In the source" line names functions of the file that follows them."""
    lines = re.findall(r'<p class="source">(.*?)</p>', demo.page({}), re.DOTALL)
    assert len(lines) == 6
    for line in lines:
        waiting = []
        for word in re.findall(r"<code>(.*?)</code>", line):
            if not word.endswith(".py"):
                waiting.append(word)
                continue
            source = (ROOT / word).read_text("utf-8")
            assert all(re.search(rf"^(def {name}\b|{name} = )", source, re.MULTILINE) for name in waiting), line
            waiting = []


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"moments": 2}, "--moments 2"),
        ({"num": 9}, "--num 9"),
        ({"known": 99}, "--known 99"),
        ({"sample_steps": (101, 4)}, "--sample-steps 101: the schedule has T = 100"),
    ],
)
def test_bad_options_are_named(demo, trained, smallest, tmp_path, option, message):
    """Before any work is done, and nothing is written."""
    out = tmp_path / "page.html"
    with pytest.raises(TinydiffError, match=message):
        demo.main(trained[0], backend=backend_name(), out=out, **smallest | option)
    assert not out.exists()


def test_a_network_that_the_page_cannot_show_is_refused(demo):
    """One without labels, and a label that it does not know."""
    for config, labels, message in (
        ({}, (0,), "with classes"),
        ({"num_classes": 5}, (0, 5), "--labels 5: must be at most 4"),
    ):
        model = build_unet({"base_channels": 8, **config}, 0)
        with pytest.raises(TinydiffError, match=message):
            demo.check("path", model, labels)


def test_a_file_that_is_no_checkpoint_ends_with_2(tmp_path, monkeypatch, capsys):
    """One line that names it; the same for a number of steps that is given twice."""
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a checkpoint")
    script = ROOT / "demos" / "explorer" / "explorer.py"
    monkeypatch.syspath_prepend(script.parent)
    twice = ["--sample-steps", "9,3,9"]
    for options, message in (([], "bad.npz is not a tinydiff checkpoint"), (twice, "must occur once, got '9,3,9'")):
        words = [script, bad, "--out", tmp_path / "page.html", "--backend", backend_name(), *options]
        monkeypatch.setattr("sys.argv", list(map(str, words)))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        assert end.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "page.html").exists()


def test_two_workers_make_the_same_runs(demo, runs, trained, monkeypatch):
    """In processes of their own: the sheets are the same, byte for byte."""
    if backend_name() != "numpy":
        pytest.skip("worker processes need the numpy backend")
    monkeypatch.syspath_prepend(demo.PAGE)  # as for the program, so that worker processes find the functions
    made, (images, _), known = [], load("glyphs", "test", num=20).batch(np.arange(2)), some_digits(28)
    for workers in (1, 2):
        pool, schedule, _ = load_trained(trained[0], workers)
        with pool:
            reverse = runs.reverse(pool, schedule, (28, 28, 1), (3,), (2,), 3, 0, known)
            made.append((reverse, runs.riddles(pool, schedule, images, np.array([3, 5]), 3, 0, known)))
    assert made[0] == made[1]
