"""The demo of overfitting: what its figures mean, with an exact denoiser that copies, and its smallest run."""

import csv
from functools import partial

import numpy as np
import pytest
from exact import ideal_x_0_fn
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import pool_of, series, ticks_in_view

from tinydiff.app.alone import one_process
from tinydiff.app.fit import any_training
from tinydiff.app.generate import Recipe, build_unet, generate
from tinydiff.app.metrics import interval
from tinydiff.app.networks import default_network
from tinydiff.app.plots import tile
from tinydiff.app.training import drawing
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import Dataset, load
from tinydiff.diffusion import Schedule, eps_from_x_0, q_sample
from tinydiff.nn import Module
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.program

LINEAR = Schedule.linear()
FEW = {"few": 2, "many": 4, "steps": 2, "batch_size": 3, "channels": 8, "sample_steps": 2, "num": 12, "seed": 3}


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo = load_demo("overfit")
    monkeypatch.setattr(demo, "EXAMPLES", 20)
    monkeypatch.setattr(demo, "SLICE", 8)
    return demo


def pictures(seed, n, size=4):
    images = default_rng(seed).integers(0, 256, (n, size, size, 1), np.uint8)
    return Dataset("random", images, None, "random pictures", ())


class Ideal(Module):
    """The exact denoiser of some pictures, called as a network without classes; it notes the times of every call."""

    num_classes = None

    def __init__(self, dataset):
        self.x_0_fn = ideal_x_0_fn(LINEAR, dataset.batch(np.arange(len(dataset)))[0])
        self.w = Tensor(asarray(np.zeros(1, "float32")), requires_grad=True)  # a network has parameters
        self.times = []

    def forward(self, x_t, t, labels=None):
        self.times += np.broadcast_to(t, len(x_t)).tolist()
        x_t = asarray(x_t)
        return Tensor(eps_from_x_0(LINEAR, x_t, t, self.x_0_fn(x_t, t)[0]))


# ------------------------------------------------------------------------------------------- what the figures mean


def test_the_ideal_denoiser_of_few_pictures_copies_and_has_the_lower_loss(demo, monkeypatch):
    """The demo's statement without a training: the exact denoisers of 3 and of 60 pictures, drawn from and measured.

    Each draws its own pictures, to 8 bits.  The loss of 3 is the lower one on its own pictures, and by far the higher
    one on others.
    """
    monkeypatch.setattr(demo, "EXAMPLES", 400)
    found = {}
    for n in (3, 60):
        mine, others = pictures(0, n), pictures(1, n)
        pool = pool_of(Ideal(mine))
        recipe = Recipe(LINEAR, (4, 4, 1), num_steps=40, scale=1.0)
        samples = np.concatenate([f[-1] for f in generate(pool, recipe, [0] * 20, 0)])
        (_, near), (_, far) = demo.nearest(samples, mine), demo.nearest(samples, others)
        assert near.max() < 0.5 < 20 < far.min()
        found[n] = [demo.mean_loss(pool, LINEAR, dataset, 0) for dataset in (mine, others)]
        assert demo.row_of("", found[n], near, far)["nearer to the training"].startswith("20 of 20 (")
    assert found[3][0] < 0.8 * found[60][0] and found[3][0] < 0.1 * found[3][1] and found[60][1] < found[3][1]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_the_nearest_picture_is_found_by_looking_at_all(load_demo, n, k, seed):
    """The index of the least, and the root mean square difference of the pixels in grey levels, by loops."""
    demo, dataset = load_demo("overfit"), pictures(seed, k)
    samples = default_rng(seed).uniform(-1, 1, (n, 4, 4, 1)).astype("float32")
    index, distance = demo.nearest(samples, dataset)
    for sample, i, d in zip(samples, index, distance, strict=True):
        grey = (sample.astype("float64") + 1) * 127.5
        each = [((grey - image) ** 2).mean() ** 0.5 for image in dataset.images]
        assert i == np.argmin(each) and d == pytest.approx(min(each), rel=1e-5)  # pictures are float32


def test_a_copy_is_at_distance_0_and_black_is_255_from_white(demo):
    """Each picture is nearest to itself; two pictures that differ by 51 grey levels everywhere are 51 apart."""
    dataset = pictures(0, 5)
    index, distance = demo.nearest(demo.x_0_of(dataset, np.arange(5)), dataset)
    assert index.tolist() == [0, 1, 2, 3, 4] and (distance == 0).all()
    grey = Dataset(
        "grey", np.array([51, 255], np.uint8)[:, None, None, None] * np.ones((2, 4, 4, 1), np.uint8), None, "", ()
    )
    index, distance = demo.nearest(-np.ones((1, 4, 4, 1), "float32"), grey)
    assert index.tolist() == [0] and distance[0] == pytest.approx(51, rel=1e-6)


def test_a_row_counts_the_samples_that_are_nearer_to_the_training(demo):
    """Two of four; a tie counts for neither; distances are means."""
    row = demo.row_of("20 pictures", (0.02104, 0.5), np.array([1.0, 2, 3, 4]), np.array([2.0, 3, 3, 1]))
    assert row == {
        "trained on": "20 pictures",
        "loss": "0.0210",
        "loss, held out": "0.5000",
        "distance": "2.5",
        "distance, held out": "2.2",
        "nearer to the training": f"2 of 4 ({interval(2, 4)})",
    }


def test_the_loss_is_measured_at_even_times_with_one_noise(demo):
    """All of 1..T evenly, the pictures in turn, the same noise for any pictures: written out, also in slices."""
    network, dataset = Ideal(pictures(0, 3)), pictures(1, 3)
    loss = demo.mean_loss(pool_of(network), LINEAR, dataset, 5)
    assert sorted(network.times) == np.linspace(1, 1000, 20).astype(int).tolist() and network.times[0] != 1
    rng = default_rng("overfit", 5)
    t = rng.permutation(np.linspace(1, 1000, 20).astype(int))
    assert network.times == t.tolist()
    eps = rng.standard_normal((20, 4, 4, 1), dtype="float32")
    x_t = q_sample(LINEAR, dataset.batch(np.arange(20) % 3)[0], t, eps)
    eps_hat = to_numpy(network(x_t, t).data)
    assert loss == pytest.approx(float(((eps_hat - eps) ** 2).mean()), rel=1e-5)  # float32


# ------------------------------------------------------------------------------------------------------------- main


def test_every_row_is_its_parts_in_order(demo, tmp_path, monkeypatch, capsys):
    """Trained on the first pictures, measured on these and on as many after them, drawn with the average: once more."""
    data, seen = load("glyphs", num=8), []
    monkeypatch.setattr(demo, "load", lambda *args: seen.append(args) or data)
    drawn, picture = [], demo.picture
    monkeypatch.setattr(demo, "picture", lambda *args: drawn.append(args) or picture(*args))
    rows = demo.main(backend=backend_name(), precision="float32", data="glyphs", out=tmp_path, workers=1, **FEW)
    assert seen == [("glyphs", "train", None, 3, 8)]
    ((curves, shown, of_rows, name),) = drawn
    assert of_rows == rows and name == "glyphs" and list(curves) == list(shown) == ["2 pictures", "4 pictures"]
    config = TrainConfig(num_steps=2, minutes=None, batch_size=3, warmup=0, seed=3)
    for row, size, curve, images in zip(rows, (2, 4), curves.values(), shown.values(), strict=True):
        sets = [Dataset("glyphs", data.images[i : i + size], None, "", ()) for i in (0, size)]
        build = partial(build_unet, default_network((28, 28, 1), None, 8), 3)
        with one_process().workers(build, 1) as pool:
            draw = partial(draw_batch, sets[0], LINEAR, None)
            state = any_training(pool, noise_prediction_losses, draw, config)
            for _ in train(state):
                pass
            with drawing(pool, state):
                losses = [demo.mean_loss(pool, LINEAR, dataset, 3) for dataset in sets]
                recipe = Recipe(LINEAR, (28, 28, 1), num_steps=2, scale=1.0)
                samples = np.concatenate([f[-1] for f in generate(pool, recipe, [0] * 12, 3)])
                assert abs(samples).max() <= 1  # the last step ends in a clipped x_0_hat
        near = [demo.nearest(samples, dataset) for dataset in sets]
        assert row == demo.row_of(f"{size} pictures", losses, near[0][1], near[1][1])
        np.testing.assert_array_equal(curve, np.array(state.metrics())[:, 0])
        expected = samples[:10], *(dataset.batch(index[:10])[0] for dataset, (index, _) in zip(sets, near))
        for found, wanted in zip(images, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    with open(tmp_path / "overfit.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overfit.csv", "overfit.png"]
    printed = capsys.readouterr().out
    assert "2 steps each, 12 samples in 2 steps:" in printed and max(map(len, printed.splitlines())) < 200


def test_the_picture_shows_what_the_table_says(demo):
    """The curves and their running means; of each network its samples with the nearest pictures below."""
    rng = default_rng(0)
    curves = {"2 pictures": np.linspace(3, 1, 90), "4 pictures": np.linspace(2, 1, 90)}
    shown = {name: [rng.uniform(-1, 1, (5, 4, 4, 1)).astype("float32") for _ in range(3)] for name in curves}
    rows = [demo.row_of(name, (0.25, 0.5), np.array([1.0, 2]), np.array([2.0, 1])) for name in curves]
    figure = demo.picture(curves, shown, rows, "glyphs")
    assert figure.get_suptitle().startswith("glyphs: ")
    axes, *panels = figure.axes
    for (name, points), curve in zip(series(axes).items(), curves.values(), strict=True):
        assert name in curves and len(points) == 88
        for step, value in points:
            i = int(step)
            assert step == i and value == pytest.approx(curve[i - 2 : i + 1].mean())  # centred, of three
    thin = [line for line in axes.lines if line.get_label()[0] == "_"]
    for line, curve in zip(thin, curves.values(), strict=True):
        assert np.array_equal(line.get_ydata(), curve) and line.get_xdata()[0] == 1
    assert axes.get_yscale() == "log" and min(map(len, ticks_in_view(axes))) >= 2
    for panel, (name, images), row in zip(panels, shown.items(), rows, strict=True):
        assert np.array_equal(panel.images[0].get_array(), tile(np.concatenate(images), 5)[..., 0])
        names = [text.get_text().replace("\n", " ") for text in panel.get_yticklabels()]
        assert names == ["samples", "nearest of the training", "nearest held out"]
        assert list(panel.get_yticks()) == [2.5, 7.5, 12.5]
        losses = f"loss {row['loss']}, held out {row['loss, held out']}"
        assert panel.get_title() == f"trained on {name}: {losses};\n1 of 2 samples are nearer to the training"


def test_the_many_are_more_than_the_few(demo, tmp_path):
    """Else there is nothing to compare."""
    with pytest.raises(TinydiffError, match="--few 5 --many 5: the first must be less"):
        demo.main(backend=backend_name(), few=5, many=5, out=tmp_path)
