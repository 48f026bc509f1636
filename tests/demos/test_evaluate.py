"""The evaluation demo: its figures are the bound's of the averaged weights, and its references those of the data."""

import math
import re
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from stand_ins import ticks_in_view
from tiny_runs import save_checkpoint

from tinydiff.app import checkpoint
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import Dataset, load
from tinydiff.diffusion import Schedule, bound_term, discretized_log_prob, prior_kl, sampled_bound, unconditional

pytestmark = pytest.mark.likelihood

PATH = Path(__file__).parents[2] / "demos" / "evaluate.py"
LINE = re.compile(r"^  (L_T|sum of L_\{t-1\}|L_0|total) +(\S+) \+- (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint after two steps of a tiny network: its averaged weights are not its last ones."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint.npz"
    data = load("glyphs", num=10)
    save_checkpoint(path, data, num_steps=2, warmup=1)
    return path


@pytest.fixture(scope="module")
def test_set():
    return load("glyphs", "test", num=60)


@pytest.fixture
def demo(load_demo, monkeypatch, test_set):
    demo = load_demo("evaluate")
    monkeypatch.setattr(demo, "load", lambda *_: test_set)  # 10,000 glyphs take seconds to draw
    return demo


@pytest.mark.parametrize("T", [1, 2])
def test_a_chain_of_two_steps_is_the_shortest(demo, tmp_path, capsys, T):
    """One step has no L_{t-1}: the message says so; with two the table and both axes have their numbers."""
    path, short = tmp_path / "short.npz", Schedule([0.9999] * T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "linear", staticmethod(lambda T=1000: short))
        save_checkpoint(path, load("glyphs", num=10), T=T)
    if T == 1:
        with pytest.raises(TinydiffError, match="its schedule has one step, but the bound needs two or more"):
            run(demo, path)
        return
    run(demo, path, num=2, draws=1, out=tmp_path / "bits.png")
    printed = capsys.readouterr().out
    table, _ = printed.split("where the bits go")
    assert "nan" not in table and max(len(line) for line in table.splitlines() if not line.startswith("data: ")) <= 100


def run(demo, trained, **options):
    options = {"workers": 1, "num": 7, "draws": 3, **options}
    return demo.main(trained, backend=backend_name(), **options)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_the_figures_are_the_bound_of_p_of_x(demo, trained, test_set, monkeypatch, capsys, variance):
    """Mean over the images, each from its own stream, of the sampled terms without a label, in bits."""
    monkeypatch.setattr(demo, "SLICE", 4)
    mean, error = run(demo, trained, variance=variance, seed=9)
    x_0, _ = test_set.batch(np.array([0, 8, 17, 25, 34, 42, 51]))  # 7 of 60, evenly spread
    pool, schedule, _ = load_trained(trained, 1)
    variances = {"beta_tilde": Schedule.beta_tilde, "beta": Schedule.beta_t_given_s}
    term = partial(bound_term, variance=variances[variance], clip=True)
    parts = []
    for i, slice_ in enumerate((x_0[:4], x_0[4:])):
        rng = row_rng("likelihood", 9, rows=range(4 * i, 4 * i + len(slice_)))
        with no_grad():
            nats, _ = sampled_bound(schedule, unconditional(pool.model), asarray(slice_), 100, 3, rng, term)
        parts.append(to_numpy(nats) / math.log(2))
    bits = np.concatenate(parts, 1)
    monkeypatch.setattr(demo, "SLICE", 5)  # each image has a stream of its own; only the network rounds otherwise
    assert run(demo, trained, variance=variance, seed=9) == pytest.approx((mean, error), rel=1e-5)
    expected = {"L_T": bits[0], "sum of L_{t-1}": bits[1:-1].sum(0), "L_0": bits[-1], "total": bits.sum(0)}
    assert (mean, error) == pytest.approx((bits.sum(0).mean(), bits.sum(0).std(ddof=1) / 7**0.5), rel=1e-9)
    printed = capsys.readouterr().out
    found = {name: (float(a), float(b)) for name, a, b in LINE.findall(printed)}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name][0] == pytest.approx(values.mean(), rel=1e-3)  # four digits are printed, and two
        assert found[name][1] == pytest.approx(values.std(ddof=1) / 7**0.5, rel=0.06)
    assert "7 of 60 images" in printed and f"reverse variance {variance}" in printed


def test_the_seed_decides_everything(demo, trained):
    """The same seed gives the same bits, another seed other times and noise; the images stay the same."""
    small = partial(run, demo, trained, num=2, draws=1)
    assert small() == small() != small(seed=1)


def test_the_references_are_the_datas_own(demo):
    """gzip of noise is 8 bits/dim and of one grey next to 0; L_T and L_0 are those of every pixel of every image."""
    noise = default_rng(0).integers(0, 256, (50, 28, 28, 1), dtype=np.uint8)
    for images, low, high in ((noise, 8.0, 8.01), (np.full_like(noise, 37), 0.0, 0.02)):
        data = Dataset("x", images, np.zeros(50, np.uint8), "x", ("x",))
        x_0, _ = data.batch(np.arange(50))
        gzip, L_T, L_0 = [bits for _, bits, _ in demo.references(data, x_0, 3e-4)]
        x_0 = asarray(x_0, "float64")
        assert low < gzip < high
        assert math.isclose(L_T, to_numpy(prior_kl(Schedule.linear(), x_0)).mean() / math.log(2), rel_tol=1e-6)
        perfect = -discretized_log_prob(x_0, x_0, asarray(3e-4))
        assert math.isclose(L_0, to_numpy(perfect).mean() / math.log(2), rel_tol=1e-4)  # x_0 is rounded to float32


def test_the_picture_holds_all_bits(demo, trained, tmp_path):
    """--out draws the terms by t: what the curve has spent at its lowest t is L_T and every L_{t-1}."""
    out = tmp_path / "new" / "bits.png"
    run(demo, trained, out=out, num=2, draws=1)
    picture = imread(out)[..., :3]
    assert min(picture.shape[:2]) > 150 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
    rng = default_rng(0)
    terms, times = rng.random((5, 6)), rng.integers(2, 101, (3, 6))
    left, right = demo.spent(Schedule.linear(100), terms, times, "title").axes
    (line,) = right.lines
    assert line.get_ydata()[0] == pytest.approx(terms[:-1].sum(0).mean())
    (bar,) = right.patches
    assert bar.get_y() + bar.get_height() == pytest.approx(terms.sum(0).mean())
    (stairs,) = left.patches
    values, edges, _ = stairs.get_data()
    assert edges[0] == 2 and edges[-1] == 101
    assert (values * np.diff(edges)).sum() == pytest.approx(terms[1:-1].sum(0).mean())


def test_the_picture_is_the_bits_of_each_time(demo):
    """Left: bits of one L_{t-1} an image, whose area is their sum; right: what is spent from T down to each edge.

    Two images; terms at times 2 and 5 of T = 6: at both edges, and between, the curve is the sum by hand.
    """
    terms, times = np.array([[4.0, 6], [1, 2], [3, 5], [0.5, 1.5]]), np.array([[2, 2], [5, 5]])
    left, right = (figure := demo.spent(Schedule([0.9] * 6), terms, times, "what")).axes
    values, edges, _ = left.patches[0].get_data()
    assert edges.tolist() == [2, 3, 4, 5, 6, 7] and values.tolist() == [1.5, 0, 0, 4, 0]
    (line,) = right.lines
    assert line.get_xdata().tolist() == edges.tolist()
    assert line.get_ydata().tolist() == [10.5, 9, 9, 9, 5, 5]
    (bar,) = right.patches
    assert (bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) == pytest.approx((1, 10.5, 1))
    assert bar.get_label() == "_nolegend_" or right.get_legend().get_texts()[0].get_text() == "L_0, the decoder"
    assert (left.get_title(), right.get_title()) == (
        "bits/dim of each L_{t-1}",
        "bits/dim spent from t = T down to here",
    )
    assert figure.get_suptitle() == "where the bits go: what" and right.get_ylim()[0] == 0
    assert left.get_yscale() == "log" and left.get_xscale() == right.get_xscale() == "log"
    for axes in (left, right):
        assert axes.get_xlabel() == "t" and min(map(len, ticks_in_view(axes))) >= 2


def test_the_parts_of_the_bound_have_their_means_and_standard_errors(demo):
    """First row L_T, last row L_0, between them the sum of the draws.  Of 1, 2, 6 the mean is 3, the standard deviation
    sqrt(7) of n - 1, and by sqrt(3) that of the mean; the error of the total is that of the totals, not a sum."""
    terms = np.array([[1.0, 2, 6], [5, 1, 0], [2, 0, 7], [0, 0, 0.5], [6.0, 2, 1]])
    parts, error = demo.parts_of(terms), (7 / 3) ** 0.5
    assert parts["L_T"] == pytest.approx((3, error)) and parts["L_0"] == pytest.approx((3, error))
    assert parts["sum of L_{t-1}"] == pytest.approx((15.5 / 3, np.std([7, 1, 7.5], ddof=1) / 3**0.5))
    assert parts["total"] == pytest.approx((33.5 / 3, np.std([14, 5, 14.5], ddof=1) / 3**0.5))
    assert list(parts) == ["L_T", "sum of L_{t-1}", "L_0", "total"]


def test_the_printed_references_are_of_this_checkpoint_and_data(demo, trained, test_set, capsys):
    """gzip, L_T and L_0 as references() gives them for the images that were measured and the schedule's beta_1."""
    run(demo, trained, num=5, draws=1)
    printed = capsys.readouterr().out
    x_0, _ = test_set.batch(np.arange(5) * 60 // 5)
    for name, bits, what in demo.references(test_set, x_0, Schedule.linear(100).beta[1]):
        assert f"  {name:15}{bits:#9.4g}    {what}\n" in printed
    assert "level 9, the 60 raw test images as one file" in printed
    assert f"std {Schedule.linear(100).beta[1] ** 0.5:.2g} of the decoder, grey levels {2 / 255:.2g} apart" in printed
    head = f"data: {test_set.source}, 5 of 60 images\nglyphs, 2 steps, reverse variance beta_tilde\n"
    assert printed[printed.index("data: ") :].startswith(head)  # on a GPU a line on the device comes first


@pytest.mark.parametrize("num", [1, 61])
def test_more_images_than_there_are_are_refused(demo, trained, num):
    """A standard error takes two images; the message names the option and the set's size."""
    with pytest.raises(TinydiffError, match=rf"--num {num}: must lie in 2\.\.60"):
        run(demo, trained, num=num)


def from_command_line(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", [str(PATH), *map(str, options), "--backend", backend_name()])
    runpy.run_path(str(PATH), run_name="__main__")


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")
def test_two_workers_find_the_same_figures(demo, trained, test_set, monkeypatch, capsys):
    """From the command line, every option taken, on two processes: what one finds."""
    monkeypatch.setattr("tinydiff.data.load", lambda *_: test_set)
    options = {"num": 53, "draws": 1, "variance": "beta", "seed": 3}  # two slices
    from_command_line(
        monkeypatch, trained, "--workers", 2, *(word for k, v in options.items() for word in (f"--{k}", v))
    )
    two = LINE.findall(capsys.readouterr().out)
    run(demo, trained, **options)
    one = LINE.findall(capsys.readouterr().out)
    assert len(one) == 4
    for (name, a, _), (other, b, _) in zip(one, two):  # BLAS may round a product of another thread count apart
        assert name == other and float(a) == pytest.approx(float(b), rel=1e-3)


def test_a_bad_checkpoint_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """Missing, or of another kind: told on one line, without a traceback."""
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "classifier"})
    for name, message in (("missing.npz", "does not exist"), ("kind.npz", "'classifier', not 'diffusion'")):
        with pytest.raises(SystemExit) as end:
            from_command_line(monkeypatch, tmp_path / name, "--workers", 1)
        assert end.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
