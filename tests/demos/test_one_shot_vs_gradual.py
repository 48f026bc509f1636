"""One shot against gradual: each player of the GAN learns from its own loss only, and the smallest run of all three."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import load
from tinydiff.train import LoopConfig

pytestmark = pytest.mark.program


def save_untrained(folder, num_classes):
    """A checkpoint after one step of a tiny network, and a classifier that was not trained at all."""
    data = load("glyphs", num=20)
    save_checkpoint(folder / "checkpoint.npz", data, num_classes=num_classes)
    save_untrained_classifier(folder / "classifier.npz", data, channels=[8, 8])
    return folder


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo, images = load_demo("one_shot_vs_gradual"), load("glyphs", "test", num=120)
    monkeypatch.setattr(demo, "load", lambda *_: images)  # 10,000 glyphs take seconds to draw
    return demo


def players(demo, rng):
    """A tiny GAN of random parameters, none of them 0, two channels in a group; and a batch for it."""
    model = demo.build_gan(8, 16, 3, 0)
    for p in model.parameters():
        p.data[...] += asarray(0.2 * rng.standard_normal(p.shape), "float32")
    x, z = rng.standard_normal((4, 8, 8, 1), dtype="float32"), rng.standard_normal((4, demo.Z), dtype="float32")
    return model, {"x": x, "z": z, "labels": np.array([0, 1, 2, 1])}


def gradients(model, losses, g):
    """{parameter's name: gradient of <g, losses>, 0 where none came}."""
    for p in model.parameters():
        p.grad = None
    losses.backward(g)
    return {name: np.zeros(p.shape) if p.grad is None else to_numpy(p.grad) for name, p in model.named_parameters()}


def test_each_player_learns_from_its_own_loss_only(demo, rng):
    """A player's loss has no gradient at all for the other; added, each player's is what it is alone."""
    model, batch = players(demo, rng)
    g = asarray(rng.standard_normal(4), "float32")
    made = model.generator(batch["z"], batch["labels"])
    of_d = gradients(model, demo.discriminator_losses(model, made.data, batch), g)
    of_g = gradients(model, demo.generator_losses(model, made, batch), g)
    both = gradients(model, demo.gan_losses(model, batch), g)
    for name in both:
        own, other = (of_d, of_g) if name.startswith("discriminator.") else (of_g, of_d)
        assert not other[name].any() and abs(own[name]).max() > 1e-6, name
        np.testing.assert_allclose(both[name], own[name], rtol=1e-5, atol=1e-6, err_msg=name)  # float32 sums
    assert all(p.requires_grad for p in model.parameters())  # thawed again


def test_the_losses_are_minus_log_probabilities(demo, rng):
    """p(real) = sigmoid(the label's logit): -log p for the generator, cross entropies with 0.9 and 0 for the other."""
    model, batch = players(demo, rng)
    made = model.generator(batch["z"], batch["labels"])
    assert made.shape == (4, 8, 8, 1) and float(abs(made.data).max()) <= 1
    p_real, p_made = (
        1 / (1 + np.exp(-to_numpy(model.discriminator(x)).astype("float64")[np.arange(4), batch["labels"]]))
        for x in (batch["x"], made.data)
    )
    of_d = -0.9 * np.log(p_real) - 0.1 * np.log(1 - p_real) - np.log(1 - p_made)
    # 1e-4: float32 logits through several norms
    np.testing.assert_allclose(to_numpy(demo.generator_losses(model, made, batch)), -np.log(p_made), rtol=1e-4)
    np.testing.assert_allclose(to_numpy(demo.discriminator_losses(model, made.data, batch)), of_d, rtol=1e-4)


@pytest.mark.parametrize("name", ["relu", "tanh"])
@given(st.integers(0, 2**31))
def test_relu_and_tanh_have_their_values_and_gradients(load_demo, name, seed):
    """max(x, 0) and tanh x; <gradient, d> is the difference quotient of <g, f(x + h d)> for random g and d."""
    rng = default_rng(seed)
    f, wanted = getattr(load_demo("one_shot_vs_gradual"), name), {"relu": lambda x: x * (x > 0), "tanh": np.tanh}[name]
    x, g, d = rng.standard_normal((3, 4, 5))
    x += 1e-3 * np.sign(x)  # away from the kink of relu
    leaf = Tensor(asarray(x), requires_grad=True)
    y = f(leaf)
    np.testing.assert_allclose(to_numpy(y), wanted(x), rtol=1e-14)
    y.backward(asarray(g))
    h = 1e-5  # the quotient's error is h^2 times a third derivative, and 1e-16/h of rounding
    quotient = (g * (wanted(x + h * d) - wanted(x - h * d))).sum() / (2 * h)
    assert (to_numpy(leaf.grad) * d).sum() == pytest.approx(quotient, abs=1e-8)


def test_relus_slope_at_0_is_0(demo):
    """There, and not 1 or 1/2, a unit that is off stays off."""
    x = Tensor(asarray(np.zeros(3)), requires_grad=True)
    demo.relu(x).backward(asarray([1.0, -2.0, 3.0]))
    assert (to_numpy(x.grad) == 0).all()


def test_softplus_is_log_1_plus_exp_without_overflow(demo, rng):
    """In value and in slope, a sigmoid, also where exp would overflow."""
    values = [-1000.0, -3.0, -1e-3, 1e-3, 2.0, 1000.0]
    x = Tensor(asarray(values), requires_grad=True)
    y = demo.softplus(x)
    y.backward(asarray(np.ones(6)))  # each element has a slope of its own
    for v, found, slope in zip(values, to_numpy(y), to_numpy(x.grad)):
        assert found == pytest.approx(v if v > 100 else math.log1p(math.exp(v)), rel=1e-12)
        assert slope == pytest.approx(math.exp(v) / (1 + math.exp(v)) if v < 100 else 1, rel=1e-12)


def test_the_generator_heeds_label_and_z(demo, rng):
    """Another label or another z is another picture, row by row."""
    model, batch = players(demo, rng)
    z, labels = batch["z"], batch["labels"]
    first = to_numpy(model.generator(z, labels))
    for other in (model.generator(z, np.array([0, 2, 2, 1])), model.generator(z[[0, 0, 2, 3]], labels)):
        changed = abs(to_numpy(other) - first).max((1, 2, 3))
        assert changed[1] > 1e-2 and changed[[0, 2, 3]].max() < 1e-5  # float32 products of a batch


def test_examples_are_a_function_of_seed_and_step(demo):
    """The same seed and step, the same pictures and z; another step, others."""
    data = load("glyphs", num=10)
    config = LoopConfig(1, 4, seed=1)
    first, again, other = (demo.examples(data, (2, 3), config, step) for step in (0, 0, 1))
    assert first["z"].shape == (4, 2, 3) and first["x"].shape == (4, 28, 28, 1)
    assert all((first[name] == again[name]).all() for name in first)
    assert all((first[name] != other[name]).any() for name in ("x", "z"))


def test_the_smallest_run_fills_table_and_pictures(demo, tmp_path, capsys):
    """A row a model, printed and written, with what it took; two pictures that are no blanks."""
    files = save_untrained(tmp_path, 10)
    classifier, options = (
        files / "classifier.npz",
        {"minutes": 1e-6, "batch_size": 2, "channels": 8, "num": 20, "workers": 1},
    )
    rows = demo.main(
        files / "checkpoint.npz",
        classifier=classifier,
        backend=backend_name(),
        out=tmp_path / "new",
        sample_steps=2,
        **options,
    )
    assert [row[""] for row in rows] == ["test digits", "VAE", "GAN", "DDPM"]
    assert [row["evaluations a sample"] for row in rows] == ["", 1, 1, 4]
    assert rows[1]["trained"].startswith("1 step of 2, ") and rows[3]["trained"] == "1 step of 2"
    assert rows[0]["spread, of real digits'"] == "100.0%" and rows[2]["seconds a sample"] > "0.0"
    written, printed = (tmp_path / "new" / "one_shot_vs_gradual.md").read_text(), capsys.readouterr().out
    for row in rows:
        assert "| " + " | ".join(map(str, row.values())) + " |" in written and str(row["coverage"]) in printed
    for name in ("one_shot_vs_gradual.png", "loss.png"):
        assert 0.03 < imread(tmp_path / "new" / name)[..., :3].std() < 0.6


@pytest.mark.parametrize("steps", [1, 2, 29])
def test_every_curve_of_a_short_training_is_seen(demo, steps):
    """Also one of a single point; each axis has labels, and steps are whole numbers."""
    figure = demo.loss_figure({name: np.linspace(2, 1, steps) for name in ("VAE", "GAN", "DDPM")})
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_lines()[1].get_marker() == "."
        labels = [text.get_text() for text in axes.get_xticklabels()]
        assert len(set(labels)) == len(labels) and all("." not in label for label in labels)
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_few_samples_make_a_true_table(demo, tmp_path, capsys):
    """One sample of each class and one step: a dash for the spread, and a line that says why."""
    files = save_untrained(tmp_path, 10)
    options = {"minutes": 1e-6, "batch_size": 2, "channels": 8, "num": 10, "workers": 1, "sample_steps": 1}
    paths = {"classifier": files / "classifier.npz", "out": tmp_path / "few"}
    rows = demo.main(files / "checkpoint.npz", backend=backend_name(), **paths, **options)
    assert [row["spread, of real digits'"] for row in rows] == ["-"] * 4
    table, rest = capsys.readouterr().out.split("-: spread needs two images of a class")
    assert "nan" not in table and "table: " in rest
    assert max(len(line) for line in table.splitlines() if not line.startswith("data: ")) <= 100


def test_too_many_steps_are_refused_before_the_training(demo, tmp_path):
    """The message has the option, its value and T."""
    files = save_untrained(tmp_path, 10)
    with pytest.raises(TinydiffError, match="--sample-steps 2000: the schedule has T ="):
        options = {"classifier": files / "classifier.npz", "out": tmp_path, "workers": 1}
        demo.main(files / "checkpoint.npz", sample_steps=2000, **options)


def test_a_network_without_classes_is_refused(demo, tmp_path):
    """What is asked for is a digit."""
    files = save_untrained(tmp_path, None)
    with pytest.raises(TinydiffError, match="needs a network with classes"):
        demo.main(
            files / "checkpoint.npz",
            classifier=files / "classifier.npz",
            backend=backend_name(),
            out=tmp_path,
            workers=1,
        )
