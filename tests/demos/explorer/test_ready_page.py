"""The ready page, demos/explorer/explorer.html: today's scripts, and numbers that are those of the process.

After a change of a part of the page:  python demos/explorer/renew.py
"""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydiff.backend import TinydiffError, backend_name
from tinydiff.diffusion import Schedule

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="one backend is enough: the page holds no arrays"),
]

ROOT = Path(__file__).parents[3]
READY = ROOT / "demos" / "explorer" / "explorer.html"
SCHEDULE = Schedule.linear()


@pytest.fixture(scope="module")
def text():
    return READY.read_text("utf-8")


@pytest.fixture(scope="module")
def data(load_demo, text):
    return load_demo("explorer/explorer").data_of(text)


def pictures(sheet, rows):
    """The pictures of a sheet in -1..1, (rows, moments, 28, 28), each to half a step of 16 greys."""
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("L"), float)
    return levels.reshape(rows, 28, -1, 28).swapaxes(1, 2) / 127.5 - 1


HALF = 1 / 15  # of a step between two greys


def test_it_is_small_and_of_the_default_network(text, data):
    """At most 3 MB; of a run of the main job on MNIST, and with links from its own folder."""
    assert len(text.encode()) <= 3_000_000
    assert re.fullmatch(r"runs/mnist/checkpoint.npz, [\d,]+ training steps on mnist", data["about"])
    assert (READY.parent / data["root"]).resolve() == ROOT and data["size"] == [28, 28]
    assert data["classes"] == list("0123456789") and data["is_digits"] and data["is_grey"]


def test_it_is_what_the_program_writes_today(load_demo, text, data):
    """Texts, styles, scripts and cards; else run  python demos/explorer/renew.py"""
    cards = json.loads((READY.parent / "cards.json").read_text("utf-8"))
    same = load_demo("explorer/explorer").page(data | {"cards": cards}) == text
    assert same, "the ready page is not of today's parts: python demos/explorer/renew.py"


def test_to_write_it_anew_changes_nothing(load_demo, text, tmp_path):
    """renew.py reads a page and writes it; a part that has changed is then in it, and the runs stay as they are."""
    page, demo = tmp_path / "page.html", load_demo("explorer/renew")
    page.write_text(text.replace("Forward: a picture drowns in noise", "An old title"), "utf-8")
    demo.main(page)
    assert page.read_text("utf-8") == text


@pytest.mark.parametrize("content", [None, b"<html></html>", b'id="data">{</script>', b"\xff\xfe"])
def test_another_file_is_not_written_anew(load_demo, tmp_path, content):
    page = tmp_path / "page.html"
    if content is not None:
        page.write_bytes(content)
    with pytest.raises(TinydiffError, match=r"page\.html is not a page of explorer\.py"):
        load_demo("explorer/renew").main(page)
    assert content is None or page.read_bytes() == content


def test_the_command_that_makes_it_is_stated(load_demo, data):
    """In the program's help, with the labels and options that the page has."""
    words = " ".join(load_demo("explorer/explorer").__doc__.replace("\\\n", " ").split())
    (options,) = re.findall(r"--labels ([\d,]+) --moments (\d+) --out demos/explorer/explorer.html", words)
    assert options[0] == ",".join(map(str, data["labels"])) and len(data["points"]["times"]) == int(options[1])
    assert data["reverse"]["steps"] == [1, 2, 3, 5, 10, 50]  # the defaults


def test_its_forward_process_is_that_of_the_schedules(data):
    assert len(data["forward"]["pictures"]) == 10
    for name, betas in data["forward"]["schedules"].items():
        np.testing.assert_allclose(
            np.frombuffer(base64.b64decode(betas), "<f4"), getattr(Schedule, name)().beta[1:], rtol=6e-8
        )


def runs_of(data):
    for name, run in data["reverse"]["runs"].items():
        sampler, steps, scale = name.split()
        yield sampler, int(steps), int(scale), run


def test_its_runs_go_from_one_noise_to_pictures(data):
    """Every sampler, number of steps and scale; each begins in the same x_T and ends where x_t is its own x_0_hat."""
    reverse, starts = data["reverse"], []
    wanted = {f"{a} {n} {s}" for a in reverse["samplers"] for n in reverse["steps"] for s in reverse["scales"]}
    assert set(reverse["runs"]) == wanted and len(wanted) == 3 * 6 * 3
    for _, steps, scale, run in runs_of(data):
        times = run["times"]
        assert times[0] == 1000 and times[-1] == 0 and len(times) == min(steps + 1, 11)
        assert set(times) <= {i * 1000 // steps for i in range(steps + 1)}
        np.testing.assert_allclose(run["alpha_bar"], SCHEDULE.alpha_bar[times], rtol=1e-3)
        assert len(run["sheets"]) == len(run["counts"]) == (len(data["labels"]) if scale else 1)
        for sheet in run["sheets"]:
            x_t, eps_hat, x_0_hat, _ = pictures(sheet, 4)
            starts.append(x_t[0])
            assert (x_t[-1] == x_0_hat[-1]).all() and np.ptp(eps_hat[-1]) == 0
    assert all((start == starts[0]).all() for start in starts)


def test_its_three_pictures_belong_together(data):
    """x_t = sqrt(alpha_bar) x_0_hat + sqrt(1 - alpha_bar) eps_hat, to half a grey of each, where none is cut."""
    checked = 0
    for _, _, _, run in runs_of(data):
        for sheet in run["sheets"]:
            x_t, eps_hat, x_0_hat, _ = pictures(sheet, 4)
            for t, x, eps, x_0 in zip(run["times"][:-1], x_t, 3 * eps_hat, x_0_hat):
                signal, noise = SCHEDULE.alpha_bar[t] ** 0.5, SCHEDULE.one_minus_alpha_bar[t] ** 0.5
                inner = (abs(x) < 0.9) & (abs(eps) < 2.9) & (abs(x_0) < 0.9)
                error = abs(x - signal * x_0 - noise * eps)[inner]
                bound = (HALF + 1 / 255) * (1 + signal + 3 * noise)
                assert (error <= bound).all()
                checked += inner.sum()
    assert checked > 100_000


def test_its_exact_means_have_less_to_choose_from_as_noise_falls(data):
    """As many pictures matter as there are at most, and one in the end; where one matters the mean is a picture."""
    all_known, each = data["reverse"]["known"]
    assert all_known == 5000 and len(each) == len(data["labels"]) and sum(each) < all_known
    for _, _, scale, run in runs_of(data):
        for known, counts in zip(each if scale else [all_known], run["counts"]):
            assert counts[0] > 0.8 * known and counts[-1] == 1 and min(counts) >= 1 and max(counts) <= known
            assert counts[0] == max(counts)


def test_its_digits_are_digits(data):
    """Read as asked, by the classifier, 9 of 10 or more; riddles end near their answers and begin far from them."""
    rows = data["mistakes"]["rows"]
    assert len(rows) == 9 and [row["kind"] for row in rows].count("also right") == 1
    assert float(rows[0]["right_figures"]["read as asked"].rstrip("%")) >= 90
    riddles = data["riddles"]
    assert [item["label"] for item in riddles["items"]] == list(range(10))
    for item in riddles["items"]:
        x_t, _, means = pictures(item["sheet"], 3)
        (answer,) = pictures(item["answer"], 1)[0]
        assert abs(x_t[-1] - answer).mean() < 0.1 < 0.4 < abs(x_t[0] - answer).mean()
        assert means[0].max() < 0.5 and means[-1].max() > 0.9  # a blur, and in the end one picture


def test_its_points_go_to_noise_and_back(data):
    """Forward they end, and in reverse they begin, as standard normal points; the mixture's end on its circle."""
    points = data["points"]
    for name, packed in points["sets"].items():
        forth, back = (
            np.frombuffer(base64.b64decode(packed[way]), "<i2").reshape(-1, points["num"], 2) / 4096
            for way in ("forward", "reverse")
        )
        for noise in (forth[-1], back[0]):
            assert abs(noise.mean(0)).max() < 4 / points["num"] ** 0.5
            assert abs(noise.std(0) - 1).max() < 4 / (2 * points["num"]) ** 0.5
        if name == "mixture":
            for ends, within in ((forth[0], 0.45), (back[-1], 0.6)):  # the data's std is 0.1
                assert (abs(np.hypot(*ends.T) - 2**0.5) < within).mean() > 0.95


def test_its_training_is_that_of_the_network(data):
    """The loss falls from 1, the variance of the noise, to its plateau; the less noise, the larger it is in the end."""
    training = data["training"]
    step = int(re.search(r"([\d,]+) training steps", data["about"])[1].replace(",", ""))
    assert training["steps"][-1] == step and training["steps"] == sorted(training["steps"])
    losses = training["loss"]
    assert all(abs(values[0] - 1) < 0.3 and len(values) == len(training["steps"]) for values in losses.values())
    assert losses["all t"][-1] < 0.04
    quarters = [values[-1] for name, values in losses.items() if name != "all t"]
    assert len(quarters) == 4 and quarters == sorted(quarters, reverse=True)
    assert [at for at, _ in training["samples"]] == list(range(250, step, 250))
