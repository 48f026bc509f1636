"""The explorer: what it records is what our code does, and the page is one file that holds all of it."""

import ast
import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydiff.app.generate import build_unet
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, eps_from_x_0, sample, timestep_pairs, x_0_from_eps

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("explorer/explorer")


@pytest.fixture(scope="module")
def runs(demo):
    return demo.runs


@pytest.fixture(scope="module")
def made(demo, trained, smallest, tmp_path_factory):
    """What main returns and writes in its smallest form; the checkpoint's name tries to leave its element."""
    folder = tmp_path_factory.mktemp("page")
    hostile = folder / "<!--<script>alert(1)</script>&amp;"
    hostile.parent.mkdir(parents=True, exist_ok=True)
    hostile.mkdir(parents=True)
    path = hostile / "checkpoint.npz"
    path.write_bytes(trained[0].read_bytes())
    out = folder / "new" / "page.html"
    data = demo.main(path, backend=backend_name(), classifier=trained[1], out=out, **smallest)
    return data, out.read_text("utf-8")


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
    return [path for path in demo.PAGE.iterdir() if path.is_file() and path.suffix != ".py"]


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
    parts = {path.name for path in parts_of(demo)}
    assert len(parts) > 12
    for name in parts - {"page.html", "cards.json"}:
        assert demo.part(name) in text, f"{name} is not in the page"
    assert len(text.encode()) < 8e6


def test_its_parts_are_short(demo):
    """Each can be read in one sitting: lines of at most 120 characters, files of at most 250."""
    for path in parts_of(demo):
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= 250 and max(map(len, lines)) <= 120, path.name


def test_the_page_has_every_choice(made, smallest):
    """A run for each sampler, number of steps and scale; a sheet for each label, one for all where it is ignored."""
    data, _ = made
    expected = {f"{a} {n} {s}": 1 if s == 0 else 2 for a in ("ddpm", "ddim", "2m") for n in (2, 4) for s in (0, 1, 3)}
    assert {name: len(run["sheets"]) for name, run in data["reverse"]["runs"].items()} == expected
    assert list(data["forward"]["schedules"]) == ["linear", "cosine", "quadratic", "sigmoid", "constant"]
    assert all(len(s["sheets"]) == 2 for s in data["forward"]["schedules"].values())
    assert list(data["points"]["sets"]) == ["moons", "spiral", "mixture"]
    assert [item["label"] for item in data["riddles"]["items"]] == list(smallest["labels"])


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


def test_the_chain_and_the_jump_are_one_picture_with_the_right_law(runs):
    """They agree to rounding, and both are sqrt(alpha_bar) x_0 and one noise of std sqrt(1 - alpha_bar)."""
    schedule, shown = Schedule.linear(100), [0, 1, 50, 100]
    x_0 = np.stack([np.full((28, 28, 1), level, np.float32) for level in (-1.0, 0.5)])
    chain, jump = runs.noised(schedule, asarray(x_0), shown, seed=3)
    assert chain.shape == jump.shape == (4, 2, 28, 28, 1) and (chain[0] == x_0).all() and (jump[0] == x_0).all()
    assert 0 < abs(chain - jump).max() < 2e-5  # a hundred roundings of 6e-8 on numbers up to 4
    for moment, t in enumerate(shown):
        noise = chain[moment] - schedule.alpha_bar[t] ** 0.5 * x_0
        np.testing.assert_allclose(noise[0], noise[1], atol=2e-5)  # the pictures share it
        std = schedule.one_minus_alpha_bar[t] ** 0.5
        assert abs(noise[0].std() - std) <= 4 * std / (2 * 784) ** 0.5 + 1e-7  # 4 standard errors


def test_the_curves_are_the_schedules(made):
    """alpha_bar, log SNR and the gap beside each other, at the times shown; null where log SNR is infinite."""
    data, _ = made
    times = data["forward"]["times"]
    assert times == [0, 250, 500, 750, 1000]
    for name, curves in data["forward"]["schedules"].items():
        schedule = getattr(Schedule, name)()
        np.testing.assert_allclose(curves["alpha_bar"], schedule.alpha_bar[times], rtol=1e-3)
        np.testing.assert_allclose(curves["log_snr"][1:], schedule.log_snr[times[1:]], rtol=1e-3)
        assert curves["log_snr"][0] is None
        t, alpha_bar, log_snr = curves["curve"]
        np.testing.assert_allclose(alpha_bar, schedule.alpha_bar[t], rtol=1e-3)
        np.testing.assert_allclose(log_snr[1:], schedule.log_snr[t][1:], rtol=1e-3)
        assert curves["gap"][0] == 0 and 0 < curves["gap"][1] < 2e-5


# ------------------------------------------------------------------------------------------------------------- reverse


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
    """The three belong together, begin at one noise for all labels, and end where sample() ends."""
    schedule = Schedule.linear(100)
    job = (sampler, 10, scale)
    times, (x_t, eps_hat, x_0_hat) = runs.trajectory(schedule, (28, 28, 1), (2, 3), 6, 5, Knows(schedule), job)
    assert list(times) == [100, 80, 60, 40, 20, 0]
    assert x_t.shape == (6, 1 if scale == 0 else 2, 28, 28, 1)
    for k, t in enumerate(times[:-1]):
        x_0 = x_0_from_eps(schedule, x_t[k], t, eps_hat[k] * np.float32(runs.EPS_RANGE))
        np.testing.assert_allclose(x_0.clip(-1, 1), x_0_hat[k], atol=1e-3)  # 1/sqrt(alpha_bar_T) = 158 roundings
    start = to_numpy(standard_normal(default_rng("start", 5), (1, 28, 28, 1)))
    assert (x_t[0] == start).all()
    wanted = np.array([0.0] if scale == 0 else [0.2, 0.3]) * scale
    for k, t in enumerate(times[:-1]):
        np.testing.assert_allclose(x_0_hat[k].mean((1, 2, 3)), wanted * t / 100, atol=1e-3)
    np.testing.assert_allclose(x_t[-1].mean((1, 2, 3)), wanted / 10, atol=1e-3)  # the last step is from t = 10
    assert (eps_hat[-1] == 0).all() and (x_0_hat[-1] == x_t[-1]).all()


def test_the_workers_are_free_after_every_run_is_drawn(runs):
    """The map is read to its end, which frees the workers for the next one: nothing relies on when it is destroyed."""

    class Pool:
        def map(self, f, jobs):
            yield from (f(Knows(schedule), job) for job in jobs)
            self.free = True

    pool, schedule = Pool(), Schedule.linear(100)
    made = runs.reverse(pool, schedule, (28, 28, 1), [2], [2], 3, 5)
    assert len(made["runs"]) == len(runs.SAMPLERS) * len(runs.SCALES) and pool.free


def test_the_last_picture_is_what_sampling_draws(runs, trained):
    """With a network: the same bits as a plain walk with the same noise."""
    pool, schedule, _ = load_trained(trained[0], 1)
    _, (x_t, _, _) = runs.trajectory(schedule, (28, 28, 1), (3, 7), 3, 0, pool.model, ("ddpm", 4, 1))
    x_T = asarray(np.repeat(to_numpy(standard_normal(default_rng("start", 0), (1, 28, 28, 1))), 2, 0))
    step = runs.DDPM(schedule)
    eps_fn = runs.classifier_free(pool.model, (3, 7), 1)
    with runs.no_grad():
        *_, (_, x_0, _) = sample(step, eps_fn, timestep_pairs(schedule.T, 4), x_T, default_rng("way", 0))
    assert (x_t[-1] == to_numpy(x_0)).all() and abs(x_t[-1, 0] - x_t[-1, 1]).max() > 1e-3


def test_a_riddle_clears_up_and_has_its_own_answer(made, trained):
    """From noise to nearly the picture of its label, a test picture other than the one shown in Forward."""
    data, _ = made
    times = data["riddles"]["times"]
    assert times[0] == 100 and times[-1] == 1 and times == sorted(times, reverse=True)
    test_set = load("glyphs", "test", num=500)
    for item, shown in zip(data["riddles"]["items"], data["forward"]["schedules"]["linear"]["sheets"]):
        answer, sheet = pixels(item["answer"]), pixels(item["sheet"])
        assert sheet.shape == (56, 28 * len(times))
        assert abs(sheet[:28, -28:] - answer).mean() < 10 and abs(sheet[:28, :28] - answer).mean() > 50
        first, second = test_set.images[test_set.labels == item["label"]][:2]
        assert abs(answer - second).max() < 10 and abs(pixels(shown)[:28, :28] - first).max() < 10


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


def test_a_trained_network_carries_noise_to_the_data(runs, monkeypatch):
    """After 150 steps most particles end near the circle that the mixture lies on, where noise is not."""
    monkeypatch.setattr(runs.points_2d, "SETS", {"mixture": runs.points_2d.mixture})
    made = runs.points(steps=150, num=200, moments=21, seed=0, workers=1)
    path = np.frombuffer(base64.b64decode(made["sets"]["mixture"]["reverse"]), "<i2") / 4096
    path = path.reshape(-1, 200, 2)
    near = [np.mean(abs(np.hypot(*moment.T) - 2**0.5) < 0.35) for moment in (path[0], path[-1])]
    assert near[0] < 0.4 and near[1] > 0.6


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_each_mistake_stands_beside_the_right_thing(runs, made):
    """All of pitfalls.py, in its order, each with its sentence, the figures of both, and two different pictures."""
    data, _ = made
    rows = data["mistakes"]["rows"]
    _, *wrong = runs.SAMPLING
    numbers = runs.pitfalls.facts(Schedule.linear(100), 4, 1)
    explained = [runs.pitfalls.explained(case, numbers) for case in wrong]
    assert [(row["name"], row["why"]) for row in rows] == [(case.name, case.why) for case in explained]
    for row in rows:
        assert set(row["figures"]) == {"read as asked", "border", "moved"}
        assert set(row["right_figures"]) == {"read as asked", "border"}
        assert row["right"] == rows[0]["right"]
        assert pixels(row["right"]).shape == pixels(row["wrong"]).shape == (28, 28 * 5)
    assert float(rows[0]["figures"]["moved"]) > 1


def test_mistakes_in_training_are_made_where_asked_for(runs, trained, monkeypatch):
    """Each beside the right small network, measured without `moved`, and without a classifier not read either."""
    pool, schedule, meta = load_trained(trained[0], 1)
    monkeypatch.setattr(runs, "CHANNELS", 8)
    rows = runs.mistakes(pool, None, schedule, meta, 2, 10, 1, load("glyphs", num=20), 0)["rows"]
    training = [row for row in rows if row["group"] == "training"]
    assert [row["name"] for row in training] == [run.name for run in runs.pitfalls.TRAINING[1:]]
    assert all(set(row["figures"]) == {"border"} for row in training)
    assert training[0]["right"] != rows[0]["right"]


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
    lines = re.findall(r'<p class="source">(.*?)</p>', (demo.PAGE / "page.html").read_text("utf-8"), re.DOTALL)
    assert len(lines) == 4
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
    """One without labels, one of colours, and a label that it does not know."""
    grey = {"data": {"image_shape": [28, 28, 1]}}
    for config, meta, labels, message in (
        ({}, grey, (0,), "with classes"),
        ({"num_classes": 10}, {"data": {"image_shape": [28, 28, 3]}}, (0,), "grey images"),
        ({"num_classes": 5}, grey, (0, 5), "--labels 5: must be at most 4"),
    ):
        model = build_unet({"base_channels": 8, **config}, 0)
        with pytest.raises(TinydiffError, match=message):
            demo.check("path", model, meta, labels)


def test_a_file_that_is_no_checkpoint_ends_with_2(tmp_path):
    """One line that names it, no traceback; the same for a number of steps that is given twice."""
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a checkpoint")
    script = ROOT / "demos" / "explorer" / "explorer.py"
    twice = ["--sample-steps", "9,3,9"]
    for options, message in (([], "bad.npz is not a tinydiff checkpoint"), (twice, "must occur once, got '9,3,9'")):
        command = [sys.executable, script, bad, "--out", tmp_path / "page.html", *options]
        ended = subprocess.run(command, capture_output=True, text=True)
        output = " ".join(ended.stderr.split())
        assert ended.returncode == 2 and message in output and "Traceback" not in output
    assert not (tmp_path / "page.html").exists()


def test_two_workers_make_the_same_page(demo, trained, tmp_path):
    """As a script, in processes of their own: the runs are the same, so the file is, byte for byte."""
    if backend_name() != "numpy":
        pytest.skip("worker processes need the numpy backend")
    pages = []
    for workers in ("1", "2"):
        out = tmp_path / "page.html"
        options = ["--labels", "3", "--sample-steps", "2", "--moments", "3", "--point-steps", "1", "--num", "10"]
        command = [sys.executable, demo.__file__, trained[0], *options, "--workers", workers, "--out", out]
        subprocess.run(command, check=True, capture_output=True)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]
