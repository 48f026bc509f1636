"""One shot against gradual: each player of the GAN learns from its own loss only, and the smallest run of all three."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from stand_ins import SCHEDULE, Leaning, StampReader, data, pool_of, stamps, stand_in
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app.generate import Recipe, generate
from tinydiff.app.metrics import percent, wilson_interval
from tinydiff.app.reading import Judge
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import epoch_indices, load
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
    """The same seed and step, the same pictures and z; any other step or seed, others."""
    data = load("glyphs", num=10)
    config = LoopConfig(1, 4, seed=1)
    first, again, other = (demo.examples(data, (2, 3), config, step) for step in (0, 0, 1))
    assert first["z"].shape == (4, 2, 3) and first["x"].shape == (4, 28, 28, 1)
    assert all((first[name] == again[name]).all() for name in first)
    for seed in (1, 2):  # the pictures are those of the epoch of this seed
        x, labels = data.batch(epoch_indices(10, 4, seed, 1))
        batch = demo.examples(data, (2, 3), LoopConfig(1, 4, seed=seed), 1)
        assert np.array_equal(batch["x"], x) and np.array_equal(batch["labels"], labels)
    assert all((first[name] != other[name]).any() for name in ("x", "z"))
    configs = [LoopConfig(1, 4, seed=seed) for seed in range(2)]
    drawn = {demo.examples(data, (2, 3), config, step)["z"].tobytes() for config in configs for step in range(4)}
    assert len(drawn) == 8


def a_stand_in_model(draws, made):
    """A model that makes the stamp of draws[label], plus a quarter of z's first number; it notes its jobs."""

    def make(model, job):
        z, labels = job
        made.append(job)
        return stamps(np.array(draws)[labels]) + z[:, :1, None, None] / 4

    return SimpleNamespace(build=Leaning, losses_of=None, make=make, z_shape=(3,), peak_lr=0.5, betas=(0.1, 0.2))


def test_every_row_is_of_its_model_s_pictures(demo, tmp_path, monkeypatch, capsys):
    """A VAE that makes the next digit, a GAN that makes what is asked, and a DDPM that draws it: each column on paper.

    Pictures, z and film are made again; a clock that counts its readings gives the seconds; the evaluations of the
    network are counted; all rows are compared with the same test digits.
    """
    test, train = data(np.arange(90) % 10, default_rng(3), 0.2), data(np.arange(30) % 10, default_rng(4))
    network, reader, made, grids, trainings = Leaning(var=0.3), StampReader(), {"VAE": [], "GAN": []}, [], []
    calls = stand_in(monkeypatch, demo, network, test, reader, train)
    draws = {"VAE": [*range(1, 10), 0], "GAN": [*range(10)]}
    models = {name: a_stand_in_model(draws[name], made[name]) for name in draws}
    monkeypatch.setattr(demo, "one_shot_models", lambda *args: trainings.append(args) or models)
    ddpm_losses = np.array([[4.0, 9], [2, 9], [1, 9]])
    monkeypatch.setattr(demo, "load_kind", lambda *_: ({"metrics": ddpm_losses}, {}))
    ranks = SimpleNamespace(workers=lambda build, n: pool_of(build()), default_workers=lambda: 1)
    monkeypatch.setattr(demo.cli, "start", lambda *_, **__: ranks)

    def train_one_shot(*args):
        trainings.append(args)
        args[-1][0].touch()
        return np.linspace(2, 1, 5)

    figures, loss_figure, ticks = [], demo.loss_figure, iter(range(0, 10**6, 30))
    monkeypatch.setattr(demo, "train_one_shot", train_one_shot)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(demo, "loss_figure", lambda curves: figures.append(curves) or loss_figure(curves))
    monkeypatch.setattr(demo.plots, "save_grid", lambda path, images, **rest: grids.append((path.name, images, rest)))
    options = {"num": 40, "sample_steps": 12, "scale": 3.0, "seed": 6, "batch_size": 8, "channels": 16}
    rows = demo.main("c.npz", classifier="j.npz", out=tmp_path, minutes=2.5, workers=1, resume=True, **options)

    labels = np.arange(40) % 10
    z = default_rng("draw", 6).standard_normal((40, 3), dtype="float32")
    for name in made:
        assert [len(job[1]) for job in made[name]] == [40] and np.array_equal(made[name][0][0], z)
    recipe = Recipe(SCHEDULE, (12, 12, 1), num_steps=12, scale=3.0, keep=12)
    drawn = network.asked[:]  # before the film is drawn again
    film = np.concatenate(list(generate(pool_of(network), recipe, labels.tolist(), 6)), 1)
    pictures = {name: np.clip(stamps(np.array(draws[name])[labels]) + z[:, :1, None, None] / 4, -1, 1) for name in made}
    pictures["DDPM"] = np.clip(film[-1], -1, 1)
    assert sum(map(len, drawn)) == 24 * 40
    judge = Judge(pool_of(StampReader()), test, 40)
    minutes = "about 2.5 minutes"
    costs = {"VAE": (f"5 steps of 8, {minutes}", 1), "GAN": (f"5 steps of 8, {minutes}", 1)}
    costs["DDPM"] = ("7 steps of 64, at most 3 minutes", 24)
    assert [row[""] for row in rows] == ["test digits", *pictures]
    for row in rows:
        name = row[""]
        found = judge(pictures[name], labels) if name in pictures else judge.real
        right = int(found["right"])
        assert right == {"VAE": 0, "GAN": 40, "DDPM": 40, "test digits": 40}[name]
        low, high = wilson_interval(right, 40)
        trained, evaluations = costs.get(name, ("", ""))
        assert row == {
            "": name,
            "trained": trained,
            "parameters": "" if name == "test digits" else "1",
            "evaluations a sample": evaluations,
            "seconds a sample": f"{30 / 40:.5f}" if name in pictures else "",
            "read as asked, of 40": f"{right / 40:.1%} ({low:.1%} to {high:.1%})",
            "Frechet distance": f"{found['frechet']:.3f}",
            "coverage": percent(found["coverage"]),
            "spread, of real digits'": percent(found["spread"] / judge.real["spread"]),
        }
    ((path, images, how),) = grids
    real, vae, gan, ddpm, way = images[:10], images[10:30], images[30:50], images[50:70], images[70:]
    assert np.array_equal(real, test.batch(np.arange(10))[0])
    for part, name in ((vae, "VAE"), (gan, "GAN"), (ddpm, "DDPM")):
        assert np.array_equal(part, pictures[name][:20])
    assert np.array_equal(way, demo.on_the_way(film, 10))
    names = ["real digits", "VAE, one shot", "", "GAN, one shot", "", "DDPM, 12 steps", "", "its last digit on the way"]
    title = "glyphs: digits in one shot, and step by step"
    assert (path, how) == ("one_shot_vs_gradual.png", {"columns": 10, "title": title, "row_labels": names})
    ((curves),) = figures
    assert list(curves) == ["VAE", "GAN", "DDPM"] and curves["DDPM"].tolist() == [4, 2, 1]
    arguments, *both = trainings
    assert arguments == (12, 16, 10, 6)
    for name, (first, model, _, dataset, at_most, batch_size, seed, keep) in zip(made, both):
        settings = {"model": name, "channels": 16, "minutes": 2.5}
        assert (first, model, dataset) == (name, models[name], train) and (at_most, batch_size, seed) == (2.5, 8, 6)
        assert keep == (tmp_path / f"unfinished_{name}.npz", settings, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "one_shot_vs_gradual.md"]
    assert calls.load == [("glyphs", "train", None, 6), ("glyphs", "test", None, 6)]
    printed = capsys.readouterr().out
    assert printed.startswith(f"data: stamps; 1 worker(s), 2.5 minutes a model; results in {tmp_path}/\n")
    assert printed.endswith("latent.py --pixel c.npz\n")


@pytest.mark.parametrize("steps, kept", [(1, [0]), (2, [0, 1]), (50, [0, 8, 15, 22, 29, 34, 40, 44, 47, 49])])
def test_a_digit_on_the_way_runs_from_noise_to_the_end(demo, steps, kept):
    """Step k of linspace's ten shares s is round((steps - 1)(1 - (1 - s)^1.5)): the last class, and white places."""
    film = np.broadcast_to(np.arange(steps, dtype="float32")[:, None, None, None, None], (steps, 12, 1, 1, 1)).copy()
    film[:, :9] = film[:, 10:] = -1
    way = demo.on_the_way(film, 10)
    assert way.reshape(-1).tolist() == [*kept, *[1.0] * (10 - len(kept))]


def test_a_guided_step_costs_two_evaluations(demo):
    """Not at scale 0 or 1; a training without a limit in minutes has none in the table."""
    assert [demo.evaluations(7, scale) for scale in (0, 0.5, 1, 2.0)] == [7, 14, 7, 14]
    meta = {"step": 1, "train": {"batch_size": 3, "minutes": None}}
    assert demo.training_of(meta) == "1 step of 3"


def test_a_training_has_the_model_s_own_settings(demo, monkeypatch):
    """Its rate, its betas, the seed, the steps that fit into the minutes; the file says all that decides it."""
    seen = {}
    state = SimpleNamespace(metrics=lambda: [(3.0, 0.1), (2.0, 0.2)])

    def steps_that_fit(pool, losses_of, draw, config, minutes):
        seen["fit"] = (pool, losses_of, config, minutes)
        return 9

    def any_training(pool, losses_of, draw, config):
        seen["train"], seen["batch"] = (pool, losses_of, config), draw(config, 0)
        return state

    monkeypatch.setattr(demo, "steps_that_fit", steps_that_fit)
    monkeypatch.setattr(demo, "any_training", any_training)
    monkeypatch.setattr(demo, "finish", lambda *args: seen.update(finish=args))
    model, dataset = a_stand_in_model([], []), data(np.arange(20) % 10, default_rng(0))
    keep = ("path", {"model": "VAE"}, True)
    losses = demo.train_one_shot("VAE", model, "pool", dataset, 1.5, 4, 3, keep)
    config = LoopConfig(9, 4, 0.5, betas=(0.1, 0.2), seed=3)
    assert losses.tolist() == [3, 2] and seen["train"] == ("pool", None, config)
    assert seen["fit"] == ("pool", None, replace(config, num_steps=1), 1.5)
    assert seen["batch"]["z"].shape == (4, 3)
    settings = {"model": "VAE", **asdict(replace(config, num_steps=1)), "data": "glyphs", "num": 20}
    assert seen["finish"] == (state, "pool", "path", settings, True, "VAE")


def test_two_models_and_their_rates(demo):
    """The VAE with the rate and betas of every training, the GAN with its own; both of this size and these classes."""
    models = demo.one_shot_models(28, 16, 7, 3)
    assert list(models) == ["VAE", "GAN"]
    vae, gan = models.values()
    assert (vae.peak_lr, vae.betas, vae.z_shape) == (LoopConfig.peak_lr, LoopConfig.betas, (1, 1, 32))
    assert (gan.peak_lr, gan.betas, gan.z_shape) == (1e-3, (0.5, 0.999), (64,))
    assert (vae.losses_of, gan.losses_of) == (demo.vae_losses, demo.gan_losses)
    z = default_rng(0).standard_normal((3, 64), dtype="float32")
    for model, code in ((vae, z[:, None, None, :32]), (gan, z)):
        network = model.build()
        made = model.make(network, (code, np.array([0, 6, 3])))
        assert made.shape == (3, 28, 28, 1)


def test_a_frame_is_cut_off_where_it_was_added(demo):
    """28 pixels stand in the middle of 32, and 33 in the middle of 64, the odd one after."""
    assert [demo.frame(n) for n in (28, 32, 33, 12)] == [(2, 2), (0, 0), (15, 16), (10, 10)]
    whole = default_rng(0).random((2, 32, 32, 1))
    model = SimpleNamespace(decode=lambda z, labels: Tensor(asarray(whole)))
    assert np.array_equal(demo.decode(28, model, (None, None)), whole[:, 2:30, 2:30])


def test_the_loss_figure_is_the_curves(demo):
    """Each model in its panel, as measured over steps from 1 on, and its mean over a fiftieth of the run, centred."""
    rng = default_rng(0)
    curves = {name: np.exp(rng.standard_normal(200)) for name in ("VAE", "GAN", "DDPM")}
    figure = demo.loss_figure(curves)
    titles = ["VAE: bound, nats, sigma = 0.75", "GAN: both players' losses; dotted: pure guessing"]
    assert [axes.get_title("left") for axes in figure.axes] == [*titles, "DDPM: squared error of the noise"]
    for axes, (name, curve) in zip(figure.axes, curves.items(), strict=True):
        raw, smooth = axes.lines[:2]
        assert raw.get_xdata().tolist() == list(range(1, 201)) and np.array_equal(raw.get_ydata(), curve)
        assert smooth.get_xdata().tolist() == [i + 2.5 for i in range(197)]  # the middle of steps i + 1 .. i + 4
        np.testing.assert_allclose(smooth.get_ydata(), [curve[i : i + 4].mean() for i in range(197)], rtol=1e-12)
        guessing = [line.get_ydata()[0] for line in axes.lines[2:]]
        assert guessing == ([3 * math.log(2)] if name == "GAN" else [])
        assert (axes.get_yscale() == "log") == (name != "GAN") and axes.get_xlabel() == "step"


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
