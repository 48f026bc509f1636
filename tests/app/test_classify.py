"""Training: what is drawn for a step, what learning does; and a saved classifier reads as before."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import checkpoint, classify
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.classify import (
    MAX_SHIFT,
    ClassifierConfig,
    build_classifier,
    classifier_training,
    draw_moved_batch,
    draw_noisy_batch,
    load_classifier,
    load_noisy_classifier,
    save_classifier,
    shift,
)
from tinydiff.app.kinds import data_settings
from tinydiff.app.reading import SLICE, read
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, to_numpy
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule
from tinydiff.fast.workers import Workers
from tinydiff.train import TrainingError, train

pytestmark = pytest.mark.training

SMALL = {"channels": [4, 8], "num_classes": 3, "num_groups": 2}
NOISY = {**SMALL, "time": True}
CLASSES = ("up", "down", "flat")


def random_pictures(num, rng, side=8):
    """A data set of pure noise in three classes."""
    images = rng.integers(0, 256, (num, side, side, 1), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, num).astype(np.uint8), "noise", CLASSES)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3))
def test_a_shift_moves_each_picture_by_its_own_displacement(seed, n, height, width, channels):
    """Pixel by pixel: down by dy, to the right by dx.  What comes in is black, or, in colour, the nearest pixel."""
    rng = default_rng(seed)
    images = rng.standard_normal((n, height, width, channels), dtype="float32")
    dy, dx = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, n))
    moved = shift(images, dy, dx)
    assert moved.shape == images.shape and moved.dtype == images.dtype
    for k in range(n):
        for i in range(height):
            for j in range(width):
                y, x = i - dy[k], j - dx[k]
                near = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                expected = images[(k, *near)] if near == (y, x) or channels > 1 else -1
                assert np.array_equal(moved[k, i, j], np.broadcast_to(expected, channels))


@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 7))
def test_on_a_black_border_grey_and_colour_move_alike(seed, height, width):
    """Bit for bit: a grey picture, and the same picture with three equal channels."""
    rng = default_rng(seed)
    grey = np.full((5, height + 2, width + 2, 1), -1, np.float32)
    grey[:, 1:-1, 1:-1] = rng.standard_normal((5, height, width, 1))
    dy, dx = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, 5))
    np.testing.assert_array_equal(shift(grey.repeat(3, 3), dy, dx), shift(grey, dy, dx).repeat(3, 3))


def test_a_batch_is_its_steps_own_rows_displaced(rng):
    """Labels stay with their pictures, and each of the 25 displacements occurs about equally often."""
    images = np.zeros((500, 9, 9, 1), np.uint8)
    images[:, 4, 4, 0] = np.arange(500) % 250 + 1  # one pixel, as bright as the label says
    dataset = Dataset("dots", images, (np.arange(500) % 250).astype(np.uint8), "dots", ("dot",) * 250)
    config = ClassifierConfig(batch_size=400, seed=3)
    batches = [draw_moved_batch(dataset, config, step) for step in range(5)]
    for step, batch in enumerate(batches):
        assert batch["x"].dtype == "float32" and batch["x"].min() == -1
        brightness = np.rint((batch["x"].max((1, 2, 3)) + 1) * 127.5)
        assert np.array_equal(brightness, batch["labels"] + 1)
        assert np.array_equal(batch["labels"], dataset.labels[epoch_indices(500, 400, 3, step)])
    lit = np.concatenate([np.argwhere(batch["x"][..., 0] > -1)[:, 1:] for batch in batches])
    places, counts = np.unique(lit, axis=0, return_counts=True)
    assert places.tolist() == [[i, j] for i in range(2, 7) for j in range(2, 7)]
    assert counts.min() > 40 and counts.max() < 130  # 2000 draws: 80 a place, deviation 9
    elsewhere = np.argwhere(draw_moved_batch(dataset, ClassifierConfig(batch_size=400, seed=4), 0)["x"][..., 0] > -1)[
        :, 1:
    ]
    assert not np.array_equal(elsewhere, lit[:400])  # another seed, other displacements
    assert not np.array_equal(lit[:400], lit[400:800])  # another step, other displacements
    again = draw_moved_batch(dataset, config, 4)
    assert all(np.array_equal(again[name], batches[4][name]) for name in again)


def test_a_noisy_batch_is_of_the_runs_seed(rng):
    """Another seed draws other pictures, times and noise."""
    dataset, schedule = random_pictures(60, rng), Schedule.linear(50)
    first, other = (draw_noisy_batch(schedule, dataset, ClassifierConfig(seed=seed), 0) for seed in (3, 4))
    assert all(not np.array_equal(first[name], other[name]) for name in ("x", "t", "labels"))


@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_classifier_trains_on_displaced_pictures_of_its_steps(step, rng):
    """Where no draw is given: bit for bit."""
    dataset, config = random_pictures(60, rng), ClassifierConfig(batch_size=8, seed=2)
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        batch = classifier_training(workers, dataset, config).draw(config, step)
    expected = draw_moved_batch(dataset, config, step)
    assert batch.keys() == expected.keys() and all(np.array_equal(batch[name], expected[name]) for name in batch)


def test_a_classifier_is_drawn_from_its_seed():
    """The same seed gives the same parameters, another one others."""
    same, again, other = (to_numpy(build_classifier(SMALL, seed).out.w) for seed in (3, 3, 4))
    assert np.array_equal(same, again) and (same != other).all()


def train_small(dataset, **options):
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        losses = losses_of(classifier_training(workers, dataset, ClassifierConfig(**options)))
        return losses, to_numpy(workers.flat.data).copy()


def losses_of(state):
    """Train to the end: the loss of each step."""
    for _ in train(state):
        pass
    return [row[0] for row in state.metrics()]


def test_training_is_reproducible_and_learns(rng):
    """The same seed gives the same bits, another seed others, and the loss falls below that of guessing."""
    dataset = random_pictures(60, rng)
    dataset.images[dataset.labels == 0, :4] = 255  # bright above
    dataset.images[dataset.labels == 1, 4:] = 255  # bright below
    options = {"num_steps": 40, "batch_size": 24, "warmup": 5, "peak_lr": 0.02}
    losses, weights = train_small(dataset, **options)
    assert len(losses) == 40
    assert losses[0] > 0.8 and np.mean(losses[-5:]) < 0.3  # log 3 = 1.1 is guessing
    again, same = train_small(dataset, **options)
    assert again == losses and np.array_equal(same, weights)
    assert train_small(dataset, **options, seed=1)[0] != losses


def test_a_steep_gradient_is_shortened(rng):
    """Steps follow a gradient of length clip_norm where it would be longer."""
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        workers.model.out.w.data *= 1000
        config = ClassifierConfig(num_steps=9, batch_size=5, clip_norm=0.7)
        next(train(classifier_training(workers, random_pictures(10, rng), config)))
        assert np.linalg.norm(to_numpy(workers.flat.grad)) == pytest.approx(0.7, rel=1e-4)  # float32


def test_training_stops_before_it_spoils_the_weights(rng):
    """A loss that is not a number raises TrainingError with the step, and leaves the weights as they were."""
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        state = classifier_training(workers, random_pictures(10, rng), ClassifierConfig(num_steps=9, batch_size=5))
        run = train(state)
        next(run)
        workers.model.out.b.data[0] = np.nan
        before = to_numpy(workers.flat.data).copy()
        with pytest.raises(TrainingError, match="step 2: loss is nan"):
            next(run)
            state.metrics()  # a GPU tells late
        assert np.array_equal(to_numpy(workers.flat.data), before, equal_nan=True)


def test_a_saved_classifier_reads_as_before(tmp_path, rng):
    """Save and load: the same probabilities bit for bit, and the settings that tell where it comes from."""
    dataset, path = random_pictures(10, rng), tmp_path / "checkpoint.npz"
    test = replace(random_pictures(6, rng), source="not seen in training")
    images, _ = dataset.batch(np.arange(10))
    with Workers(partial(build_classifier, SMALL, 5)) as workers:
        before = np.concatenate(list(read(workers, images)))
        save_classifier(path, workers, ClassifierConfig(seed=5), dataset, test, errors=4)
    workers, meta = load_classifier(path, 1)
    with workers:
        assert np.array_equal(np.concatenate(list(read(workers, images))), before)
    assert meta["data"] == {"name": "noise", "source": "noise", "image_shape": [8, 8, 1], "classes": list(CLASSES)}
    assert meta["test"] == {"source": "not seen in training", "num": 6, "errors": 4}
    assert meta["train"] == json.loads(json.dumps(asdict(ClassifierConfig(seed=5))))  # as JSON has them: lists


def test_a_noisy_batch_is_its_steps_own_rows_noised(rng):
    """x = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: of blank pictures x + sqrt(alpha_bar_t) is the noise.

    Nothing is displaced, labels stay with their pictures and are never dropped, and t is uniform in 1..T.
    """
    schedule, config = Schedule([0.2, 0.5, 0.9, 0.99]), ClassifierConfig(batch_size=400, seed=3)
    images = np.zeros((500, 6, 6, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(500) % 2 * 255  # a corner that the label names
    dataset = Dataset("dots", images, (np.arange(500) % 2).astype(np.uint8), "dots", ("off", "on"))
    batches = [draw_noisy_batch(schedule, dataset, config, step) for step in range(5)]
    x, t, labels = (np.concatenate([to_numpy(batch[name]) for batch in batches]) for name in ("x", "t", "labels"))
    expected = np.concatenate([dataset.labels[epoch_indices(500, 400, 3, step)] for step in range(5)])
    assert np.array_equal(labels, expected) and x.dtype == "float32"
    assert np.bincount(t, minlength=6)[1:5].min() > 400 and t.min() == 1 and t.max() == 4  # 2,000 draws: 500, dev. 19
    x_0 = dataset.batch(expected)[0]  # picture 0 or 1, as the label says
    signal, noise = (np.asarray(a)[t].reshape(-1, 1, 1, 1) ** 0.5 for a in (schedule.alpha_bar, 1 - schedule.alpha_bar))
    eps = (x - signal * x_0) / noise
    assert abs(eps.mean()) < 0.02 and abs(eps.std() - 1) < 0.02  # 72,000 normal numbers: 0.004 and 0.003
    assert abs(eps[:, 0, 0].mean()) < 0.12  # 2,000 of them: 0.022; a corner in another place would be off by 2
    assert not np.array_equal(x[:400], to_numpy(draw_noisy_batch(schedule, dataset, config, 1)["x"]))


def test_a_noisy_classifier_trains_on_its_draw_and_reads_each_picture_at_its_time(rng):
    """The steps use `draw`; over slice borders each picture is read at its own t."""
    dataset, schedule = random_pictures(60, rng), Schedule.linear(50)
    drawn = []

    def draw(*arguments):
        drawn.append(arguments)
        return draw_noisy_batch(schedule, *arguments)

    config = ClassifierConfig(num_steps=3, batch_size=8)
    images, t = rng.standard_normal((SLICE + 3, 5, 5, 1), dtype="float32"), rng.integers(1, 51, SLICE + 3)
    with Workers(partial(build_classifier, NOISY, 0)) as workers:
        before = workers.model.time.w.data.copy()
        losses = losses_of(classifier_training(workers, dataset, config, draw))
        assert drawn == [(dataset, config, step) for step in range(3)] and len(losses) == 3
        assert (before != workers.model.time.w.data).any()
        probabilities = np.concatenate(list(read(workers, images, t)))
        with no_grad():
            logits = to_numpy(workers.model(images, t)).astype("float64")
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def test_a_noisy_classifier_is_saved_with_its_noise_and_is_no_judge(tmp_path, rng):
    """It comes back with its schedule, bit for bit; as a classifier of clean pictures it is refused, and so back."""
    dataset, path, schedule = random_pictures(10, rng), tmp_path / "checkpoint.npz", Schedule.cosine(60)
    settings = data_settings(dataset)
    x = rng.standard_normal((3, 6, 6, 1), dtype="float32")
    with Workers(partial(build_classifier, NOISY, 5)) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, 4, schedule)
        model = load_noisy_classifier(path, schedule, 3, settings)
        assert np.array_equal(to_numpy(model(x, 7)), to_numpy(workers.model(x, 7)))
    refusal = r"(?s)checkpoint\.npz: it was trained for other classes, or for another.*Make it with: .*--noisy"
    for its_schedule, num_classes in ((Schedule.cosine(61), 3), (Schedule.linear(60), 3), (schedule, 4)):
        with pytest.raises(TinydiffError, match=refusal):
            load_noisy_classifier(path, its_schedule, num_classes, settings)
    with pytest.raises(CheckpointError, match="it reads pictures of 8 x 8 x 1, and these are 8 x 8 x 3: train one"):
        load_noisy_classifier(path, schedule, 3, settings | {"image_shape": [8, 8, 3]})
    with pytest.raises(CheckpointError, match="holds a network of kind 'noisy classifier', not 'classifier'"):
        load_classifier(path, 1)
    with Workers(partial(build_classifier, SMALL, 5)) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, 4)
    with pytest.raises(CheckpointError, match="holds a network of kind 'classifier', not 'noisy classifier'"):
        load_noisy_classifier(path, schedule, 3, settings)


def test_a_classifier_reads_pictures_of_its_shape_and_classes_only(tmp_path, rng):
    """What it says of other ones would mean nothing: a sentence.  A model without classes draws pictures all the same,
    and an old checkpoint contains no classes."""
    dataset, path = random_pictures(10, rng), tmp_path / "checkpoint.npz"
    settings = data_settings(dataset)
    with Workers(partial(build_classifier, SMALL, 5)) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, 4)
    classes = settings.pop("classes")
    for fits in (None, settings, settings | {"classes": []}, settings | {"classes": classes}):
        assert load_classifier(path, 1, fits)[1]["data"]["classes"] == classes
    for change, sentence in (
        ({"image_shape": [8, 9, 1]}, "it reads pictures of 8 x 8 x 1, and these are 8 x 9 x 1: train one on this data"),
        ({"image_shape": [8, 8, 3]}, "8 x 8 x 1, and these are 8 x 8 x 3"),
        ({"classes": ["up", "down", "low"]}, "it reads pictures of up, down, flat, and these are up, down, low: train"),
        ({"classes": ["up", "down"]}, "up, down, flat, and these are up, down:"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            load_classifier(path, 1, settings | {"classes": classes} | change)


def test_another_network_is_not_taken_for_a_classifier(tmp_path, rng):
    """A checkpoint of another kind, or one whose parameters do not fit its settings, is refused by name."""
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, {}, {"kind": "diffusion"})
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz holds a network of kind 'diffusion', not 'classifier'"):
        load_classifier(path, 1)
    checkpoint.save(path, {"weights/out.b": np.zeros(3)}, {"kind": "classifier", "model": SMALL})
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz contains no setting model\.in_channels"):
        load_classifier(path, 1)


def test_a_checkpoint_says_in_what_precision_and_is_read_by_as_many_workers_as_asked(tmp_path, rng, monkeypatch):
    """The precision is that of the run's products.  The number of workers reaches the loader."""
    data, path, asked = random_pictures(6, rng), tmp_path / "a.npz", []
    monkeypatch.setattr(classify, "precision", lambda: "tf32")
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        save_classifier(path, workers, ClassifierConfig(), data, data, 0)
    assert checkpoint.load(path)[1]["precision"] == "tf32"
    load_network = classify.load_network
    monkeypatch.setattr(classify, "load_network", lambda *how: asked.append(how[-1]) or load_network(*how[:-1], 1))
    load_classifier(path, 3)
    with Workers(partial(build_classifier, NOISY, 0)) as workers:
        save_classifier(path, workers, ClassifierConfig(), data, data, 0, Schedule.cosine(60))
    load_noisy_classifier(path, Schedule.cosine(60), 3, data_settings(data))
    assert asked == [3, 1]  # the model of a noisy classifier leads in this process: no other is started


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "channels", []),
        ("model", "channels", [4] * 9),
        ("data", "classes", []),
        ("data", "classes", ["a"] * 1001),
    ],
)
def test_a_classifier_of_a_size_that_no_program_makes_is_refused(tmp_path, rng, part, name, value):
    """By the setting, before a network is built: 1 to 8 levels, 1 to 1,000 classes.  One class is a classifier too."""
    data, path = random_pictures(6, rng), tmp_path / "a.npz"
    one = replace(data, labels=0 * data.labels, classes=("only",))
    with Workers(partial(build_classifier, SMALL | {"num_classes": 1, "channels": [2] * 8}, 0)) as workers:
        save_classifier(path, workers, ClassifierConfig(), one, one, 0)
    assert load_classifier(path, 1)[1]["data"]["classes"] == ["only"]
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, arrays, meta | {part: meta[part] | {name: value}})
    with pytest.raises(CheckpointError, match=rf"{part}\.{name}"):
        load_classifier(path, 1)


@pytest.mark.parametrize("change", [{"classes": ["up", "down"]}, {"image_shape": [8, 8, 3]}])
def test_a_classifier_of_other_classes_or_channels_than_its_data_is_refused(tmp_path, rng, change):
    """The names would stand beside other numbers, and pictures of three channels would not enter."""
    data, path = random_pictures(6, rng), tmp_path / "a.npz"
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        save_classifier(path, workers, ClassifierConfig(), data, data, 0)
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, arrays, meta | {"data": meta["data"] | change})
    with pytest.raises(CheckpointError, match="the classes and the channels of data must be as many as those of model"):
        load_classifier(path, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_classifier_that_is_not_finite_is_not_saved(bad, tmp_path, rng):
    """TrainingError names the parameter, and no file is made."""
    data = random_pictures(6, rng)
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        workers.model.out.b.data[...] = bad
        with pytest.raises(TrainingError, match=r"weights/out\.b is not finite: .*a\.npz is not written"):
            save_classifier(tmp_path / "a.npz", workers, ClassifierConfig(num_steps=1), data, data, 0)
    assert list(tmp_path.iterdir()) == []
