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
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import Dataset, load
from tinydiff.diffusion import (
    Schedule,
    VarianceTable,
    bound_term,
    clipped_beta_tilde,
    discretized_log_prob,
    prior_kl,
    q_sample,
    remembered,
    sampled_bound,
    unconditional,
    x_0_from_eps,
)

pytestmark = pytest.mark.likelihood

PATH = Path(__file__).parents[2] / "demos" / "evaluate.py"
LINE = re.compile(r"^ *(beta.*?|learned)  +(\S+) +(\S+) +(\S+) +(\S+) \+- (\S+)$", re.MULTILINE)  # name and numbers
FIXED = {
    "beta, L_0: beta_1": (Schedule.beta_t_given_s, Schedule.beta_t_given_s),
    "beta_tilde, L_0: beta_1": (Schedule.beta_tilde, Schedule.beta_t_given_s),
    "beta_tilde, L_0: beta_tilde_2": (Schedule.beta_tilde, clipped_beta_tilde),
}


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
    seen = load("glyphs", num=10)
    monkeypatch.setattr(
        demo, "load", lambda name, split, *_: test_set if split == "test" else seen
    )  # 10,000 take seconds
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


def printed_numbers(text):
    """{variance: (L_T, sum of L_{t-1}, L_0, total, its standard error)} of the printed table."""
    return {name: tuple(map(float, numbers)) for name, *numbers in LINE.findall(text)}


def test_the_figures_are_the_bound_of_p_of_x(demo, trained, test_set, monkeypatch, capsys):
    """Mean over the images, each from its own stream, of the sampled terms without a label, in bits, for each variance.

    All variances see the same draws; each is what sampled_bound gives with its term alone.
    """
    monkeypatch.setattr(demo, "SLICE", 4)
    found = run(demo, trained, seed=9)
    text = capsys.readouterr().out
    x_0, _ = test_set.batch(np.array([0, 8, 17, 25, 34, 42, 51]))  # 7 of 60, evenly spread
    pool, schedule, _ = load_trained(trained, 1)
    table = demo.fitted(pool, schedule, load("glyphs", num=10), 9)
    assert isinstance(table, VarianceTable)
    eps_fn, printed = unconditional(pool.model), printed_numbers(text)
    assert list(found) == list(printed) == [*FIXED, "learned"]

    def predict(x_t, t):
        eps_hat = eps_fn(x_t, t)
        return eps_hat, x_0_from_eps(schedule, x_t, t, eps_hat)

    totals = {}
    for name in found:
        ask, own = remembered(predict, table.variance) if name == "learned" else (eps_fn, None)
        variance, decoder_variance = FIXED.get(name, (own, own))
        term = partial(bound_term, variance=variance, decoder_variance=decoder_variance, clip=True)
        parts = []
        for i, slice_ in enumerate((x_0[:4], x_0[4:])):
            rng = row_rng("likelihood", 9, rows=range(4 * i, 4 * i + len(slice_)))
            with no_grad():
                nats, _ = sampled_bound(schedule, ask, asarray(slice_), 100, 3, rng, term)
            parts.append(to_numpy(nats) / math.log(2))
        bits = np.concatenate(parts, 1)
        totals[name] = bits.sum(0)
        expected = bits.sum(0).mean(), bits.sum(0).std(ddof=1) / 7**0.5
        assert found[name] == pytest.approx(expected, rel=1e-6)
        numbers = [bits[0].mean(), bits[1:-1].sum(0).mean(), bits[-1].mean(), *expected]
        assert printed[name] == pytest.approx(numbers, rel=0.06)  # two digits of the error are printed
        assert printed[name][:4] == pytest.approx(numbers[:4], rel=1e-3)
    saved = totals["beta_tilde, L_0: beta_tilde_2"] - totals["learned"]
    says = f"it saves {saved.mean():.4g} +- {saved.std(ddof=1) / 7**0.5:.2g}\n"
    assert f"learned from 10 training images, the mean as it is: {says}" in text and "7 of 60 images" in text
    monkeypatch.setattr(demo, "SLICE", 5)  # each image has a stream of its own; only the network rounds otherwise
    again = run(demo, trained, seed=9)
    for name in FIXED:
        assert again[name] == pytest.approx(found[name], rel=1e-5)


@pytest.mark.parametrize("T", [2, 3, 100, 1000])
def test_the_table_is_fitted_at_every_noise_level_and_at_t_1(demo, T):
    """Every fifth time is 1; the others are in 1..T, lie evenly in log SNR and reach both ends, or nearly so."""
    schedule = Schedule.linear(T) if T > 20 else Schedule([0.9] * T)
    t = demo.fit_times(schedule, 1000, default_rng(0))
    assert (t[::5] == 1).all() and t.min() == 1 and 0.99 * T < t.max() <= T
    if T == 1000:  # log SNR at the times is at the place of a draw, within its thousandth and half a step of the table
        snr = schedule.log_snr[1:]
        even = snr[-1] + (snr[0] - snr[-1]) * (np.arange(1000) + 0.5) / 1000
        half_a_step = np.maximum(np.append(-np.diff(snr), 0), np.append(0, -np.diff(snr)))[t - 1] / 2
        off = abs(snr[t - 1] - even) <= half_a_step + (snr[0] - snr[-1]) / 2000 + 1e-9
        assert off[np.arange(1000) % 5 > 0].all()


def test_the_fit_sees_each_picture_at_its_time(demo, trained, monkeypatch):
    """Sums over slices: each picture noised by its own stream to its time, without a label; t = 1 for the decoder."""
    pool, schedule, _ = load_trained(trained, 1)
    dataset, asked = load("glyphs", num=10), []

    def noting(name, function):
        return lambda *args: asked.append((name, args)) or function(*args)

    for name in ("squared_errors", "decoder_log_probs"):
        monkeypatch.setattr(demo, name, noting(name, getattr(demo, name)))
    monkeypatch.setattr(demo, "SLICE", 4)
    demo.fitted(pool, schedule, dataset, 3)
    t = demo.fit_times(schedule, 10, default_rng("fit", 3))
    x_0 = asarray(dataset.batch(np.arange(10))[0])
    noise = standard_normal(row_rng("fit", 3, rows=range(10)), x_0.shape)
    x_t = q_sample(schedule, x_0, t, noise)
    with no_grad():
        x_0_hat = to_numpy(x_0_from_eps(schedule, x_t, t, unconditional(pool.model)(x_t, t)))
    errors = [args for name, args in asked if name == "squared_errors"]
    np.testing.assert_array_equal(np.concatenate([to_numpy(a[1]) for a in errors]), to_numpy(x_0))
    np.testing.assert_array_equal(np.concatenate([a[3] for a in errors]), t)
    np.testing.assert_allclose(np.concatenate([to_numpy(a[2]) for a in errors]), x_0_hat, rtol=1e-4, atol=1e-4)
    last = [args for name, args in asked if name == "decoder_log_probs"]
    np.testing.assert_array_equal(np.concatenate([to_numpy(a[0]) for a in last]), to_numpy(x_0)[t == 1])
    np.testing.assert_allclose(np.concatenate([to_numpy(a[1]) for a in last]), x_0_hat[t == 1], rtol=1e-4, atol=1e-4)


def test_the_seed_decides_everything(demo, trained):
    """The same seed gives the same bits, another seed other times and noise; the images stay the same."""
    small = partial(run, demo, trained, num=2, draws=1)
    assert small() == small() != small(seed=1)


def test_the_references_are_the_datas_own(demo):
    """gzip of noise is 8 bits/dim, of one grey next to 0; L_T and both L_0 are those of every pixel of every image."""
    noise = default_rng(0).integers(0, 256, (50, 28, 28, 1), dtype=np.uint8)
    for images, low, high in ((noise, 8.0, 8.01), (np.full_like(noise, 37), 0.0, 0.02)):
        data = Dataset("x", images, np.zeros(50, np.uint8), "x", ("x",))
        x_0, _ = data.batch(np.arange(50))
        schedule = Schedule.linear(100)
        gzip, L_T, *decoders = [bits for _, bits, _ in demo.references(data, x_0, schedule)]
        x_0 = asarray(x_0, "float64")
        assert low < gzip < high
        assert math.isclose(L_T, to_numpy(prior_kl(Schedule.linear(), x_0)).mean() / math.log(2), rel_tol=1e-6)
        for L_0, var in zip(decoders, (schedule.beta[1], schedule.beta_tilde(2, 1)), strict=True):
            perfect = -discretized_log_prob(x_0, x_0, asarray(float(var)))
            # x_0 is rounded to float32
            assert math.isclose(L_0, to_numpy(perfect).mean() / math.log(2), rel_tol=1e-4)


def test_the_picture_holds_all_bits(demo, trained, tmp_path):
    """--out draws the terms by t: what the curve has spent at its lowest t is L_T and every L_{t-1}."""
    out = tmp_path / "new" / "bits.png"
    run(demo, trained, out=out, num=2, draws=1)
    picture = imread(out)[..., :3]
    assert min(picture.shape[:2]) > 150 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
    rng = default_rng(0)
    bits, times = {name: rng.random((5, 6)) for name in ("one", "two")}, rng.integers(2, 101, (3, 6))
    left, right = demo.spent(Schedule.linear(100), bits, times, "title").axes
    for terms, line, stairs in zip(bits.values(), right.lines, left.patches, strict=True):
        assert line.get_ydata()[:2] == pytest.approx([terms.sum(0).mean(), terms[:-1].sum(0).mean()])
        values, edges, _ = stairs.get_data()
        assert edges[0] == 2 and edges[-1] == 101
        assert (values * np.diff(edges)).sum() == pytest.approx(terms[1:-1].sum(0).mean())


def test_the_picture_is_the_bits_of_each_time(demo):
    """Left: bits of one L_{t-1} an image, whose area is their sum; right: what is spent from T down to each edge.

    At t = 1 that is the whole bound.  There is a curve for each variance; its total is in the legend.

    Two images; terms at times 2 and 5 of T = 6: at both edges, and between, the curve is the sum by hand.
    """
    terms, times = np.array([[4.0, 6], [1, 2], [3, 5], [0.5, 1.5]]), np.array([[2, 2], [5, 5]])
    bits = {"some": terms, "beta_tilde, L_0: beta_tilde_2": 2 * terms}
    left, right = (figure := demo.spent(Schedule([0.9] * 6), bits, times, "what")).axes
    for factor, stairs, line in zip((1, 2), left.patches, right.lines, strict=True):
        values, edges, _ = stairs.get_data()
        assert edges.tolist() == [2, 3, 4, 5, 6, 7] and values.tolist() == [factor * v for v in (1.5, 0, 0, 4, 0)]
        assert line.get_xdata().tolist() == [1, *edges]
        assert line.get_ydata().tolist() == [factor * v for v in (11.5, 10.5, 9, 9, 9, 5, 5)]
        assert line.get_color() == stairs.get_edgecolor() or line.get_color() == f"C{factor - 1}"
    assert [line.get_linestyle() for line in right.lines] == ["-", "--"]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["some: 11.5", "beta_tilde, L_0: beta_tilde_2: 23"]
    assert (left.get_title(), right.get_title()) == (
        "bits/dim of each L_{t-1}",
        "bits/dim spent from t = T down to here; at t = 1 with L_0",
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
    for name, bits, what in demo.references(test_set, x_0, Schedule.linear(100)):
        assert f"  {name:17} {bits:#9.4g}    {what}\n" in printed
    assert "level 9, the 60 raw test images as one file" in printed
    assert f"std {Schedule.linear(100).beta[1] ** 0.5:.2g} of the decoder, grey levels {2 / 255:.2g} apart" in printed
    head = f"data: {test_set.source}, 5 of 60 images\nglyphs, 2 steps\nbits/dim of p(x), no label given: "
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
    monkeypatch.setattr(
        "tinydiff.data.load", lambda name, split, *_: test_set if split == "test" else load(name, num=9)
    )
    options = {"num": 53, "draws": 1, "fit": 9, "seed": 3}  # two slices
    from_command_line(
        monkeypatch, trained, "--workers", 2, *(word for k, v in options.items() for word in (f"--{k}", v))
    )
    two = printed_numbers(capsys.readouterr().out)
    monkeypatch.setattr(demo, "load", lambda name, split, *_: test_set if split == "test" else load(name, num=9))
    run(demo, trained, **options)
    one = printed_numbers(capsys.readouterr().out)
    assert len(one) == 4 and one.keys() == two.keys()
    for name, numbers in one.items():  # BLAS may round a product of another thread count apart
        assert numbers == pytest.approx(
            two[name], rel=0.05 if name == "learned" else 2e-3
        )  # a pixel may change its cell


def test_a_bad_checkpoint_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """Missing, or of another kind: told on one line, without a traceback."""
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "classifier"})
    for name, message in (("missing.npz", "does not exist"), ("kind.npz", "'classifier', not 'diffusion'")):
        with pytest.raises(SystemExit) as end:
            from_command_line(monkeypatch, tmp_path / name, "--workers", 1)
        assert end.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
