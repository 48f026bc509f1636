"""Training and reading: what is drawn for a step, what learning does, and that answers stay with their pictures."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import checkpoint
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.classify import (
    MAX_SHIFT,
    SLICE,
    ClassifierConfig,
    Judge,
    build_classifier,
    class_score,
    draw_moved_batch,
    draw_noisy_batch,
    features,
    load_classifier,
    load_noisy_classifier,
    look,
    misread_rows,
    read,
    save_classifier,
    shift,
    train_classifier,
)
from tinydiff.app.metrics import coverage, frechet_distance, spread
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule
from tinydiff.fast.workers import Workers
from tinydiff.train import TrainingError

pytestmark = pytest.mark.training

SMALL = {"channels": [4, 8], "num_classes": 3, "num_groups": 2}
CLASSES = ("up", "down", "flat")


def random_pictures(num, rng, side=8):
    """A data set of pure noise in three classes."""
    images = rng.integers(0, 256, (num, side, side), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, num).astype(np.uint8), "noise", CLASSES)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3))
def test_a_shift_moves_each_picture_by_its_own_displacement(seed, n, height, width, channels):
    """Pixel by pixel: down by dy, to the right by dx, and what comes in is background."""
    rng = default_rng(seed)
    images = rng.standard_normal((n, height, width, channels), dtype="float32")
    dy, dx = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, n))
    moved = shift(images, dy, dx)
    assert moved.shape == images.shape and moved.dtype == images.dtype
    for k in range(n):
        for i in range(height):
            for j in range(width):
                inside = 0 <= i - dy[k] < height and 0 <= j - dx[k] < width
                expected = images[k, i - dy[k], j - dx[k]] if inside else -1
                assert np.array_equal(moved[k, i, j], np.broadcast_to(expected, channels))


def test_a_batch_is_its_steps_own_rows_displaced(rng):
    """Labels stay with their pictures, and each of the 25 displacements occurs about equally often."""
    images = np.zeros((500, 9, 9), np.uint8)
    images[:, 4, 4] = np.arange(500) % 250 + 1  # one pixel, as bright as the label says
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
    again = draw_moved_batch(dataset, config, 4)
    assert all(np.array_equal(again[name], batches[4][name]) for name in again)


def train_small(dataset, **options):
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        losses = list(train_classifier(workers, dataset, ClassifierConfig(**options)))
        return losses, to_numpy(workers.flat.data).copy()


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
        next(train_classifier(workers, random_pictures(10, rng), config))
        assert np.linalg.norm(to_numpy(workers.flat.grad)) == pytest.approx(0.7, rel=1e-4)  # float32


def test_training_stops_before_it_spoils_the_weights(rng):
    """A loss that is not a number raises TrainingError with the step, and leaves the weights as they were."""
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        run = train_classifier(workers, random_pictures(10, rng), ClassifierConfig(num_steps=9, batch_size=5))
        next(run)
        workers.model.out.b.data[0] = np.nan
        before = to_numpy(workers.flat.data).copy()
        with pytest.raises(TrainingError, match="step 2: loss is nan"):
            next(run)
        assert np.array_equal(to_numpy(workers.flat.data), before, equal_nan=True)


def test_reading_gives_each_picture_its_own_probabilities_in_order(rng):
    """Over slice borders: softmax of the network's logits, row by row, summing to 1."""
    images = rng.standard_normal((SLICE + 7, 5, 5, 1), dtype="float32")
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        slices = list(read(workers, images))
        with no_grad():
            logits = to_numpy(workers.model(images)).astype("float64")
    assert [len(part) for part in slices] == [SLICE, 7]
    probabilities = np.concatenate(slices)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)
    assert len(np.unique(probabilities[:, 0])) > SLICE // 2  # the network tells these pictures apart


def test_features_are_what_the_last_layer_reads_in_order(rng):
    """Through the last layer and a softmax they are the answers, slice by slice."""
    images, _ = random_pictures(SLICE + 3, rng).batch(np.arange(SLICE + 3))
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        slices = list(features(workers, images))
        answers = np.concatenate(list(read(workers, images)))
        w, b = (to_numpy(p.data) for p in (workers.model.out.w, workers.model.out.b))
    assert [len(slice_) for slice_ in slices] == [SLICE, 3] and slices[0].shape[1] == 8
    odds = np.exp(np.concatenate(slices) @ w + b)
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), answers, rtol=1e-4)  # float32


def test_a_look_is_the_reading_and_the_features_in_one_pass(rng):
    """Bit for bit those of `features`, and the likeliest class of `read`, in order over several slices."""
    images, _ = random_pictures(SLICE + 3, rng).batch(np.arange(SLICE + 3))
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        answers, found = look(workers, images)
        probabilities, expected = (np.concatenate(list(f(workers, images))) for f in (read, features))
    np.testing.assert_array_equal(answers, probabilities.argmax(1))
    np.testing.assert_array_equal(found, expected)


def test_the_most_confidently_misread_come_first_each_in_its_classes_row():
    """A class that is never misread has no row; a row that is not full ends in white; a row that overflows is cut."""
    labels = np.array([0, 0, 2, 2, 2, 1])
    probabilities = np.array(
        [[0.3, 0.6, 0.1], [0.05, 0.05, 0.9], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    )
    images = np.broadcast_to(np.arange(6, dtype="float32")[:, None, None, None] / 10, (6, 2, 2, 1))
    pictures, captions = misread_rows(images, labels, probabilities, CLASSES, columns=3)
    assert captions == ["up read as flat down", "flat read as down up up"]
    assert pictures.shape == (6, 2, 2, 1)
    np.testing.assert_allclose(pictures[:, 0, 0, 0], [0.1, 0, 1, 0.3, 0.4, 0.2], atol=1e-7)
    pictures, captions = misread_rows(images, labels, probabilities, CLASSES, columns=1)
    np.testing.assert_allclose(pictures[:, 0, 0, 0], [0.1, 0.3], atol=1e-7)
    pictures, captions = misread_rows(images, probabilities.argmax(1), probabilities, CLASSES)
    assert len(pictures) == 0 and captions == []


def test_a_saved_classifier_reads_as_before(tmp_path, rng):
    """Save and load: the same probabilities bit for bit, and the settings that tell where it comes from."""
    dataset, path = random_pictures(10, rng), tmp_path / "checkpoint.npz"
    images, _ = dataset.batch(np.arange(10))
    with Workers(partial(build_classifier, SMALL, 5)) as workers:
        before = np.concatenate(list(read(workers, images)))
        save_classifier(path, workers, ClassifierConfig(seed=5), dataset, dataset, errors=4)
    workers, meta = load_classifier(path, 1)
    with workers:
        assert np.array_equal(np.concatenate(list(read(workers, images))), before)
    assert meta["data"] == {"name": "noise", "source": "noise", "image_shape": [8, 8, 1], "classes": list(CLASSES)}
    assert meta["test"]["errors"] == 4 and meta["test"]["num"] == 10
    assert meta["train"] == json.loads(json.dumps(asdict(ClassifierConfig(seed=5))))  # as JSON has them: lists


# --------------------------------------------------------------------------------------------------- on noised pictures

NOISY = {**SMALL, "time": True}


def test_a_noisy_batch_is_its_steps_own_rows_noised(rng):
    """x = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: of blank pictures x + sqrt(alpha_bar_t) is the noise.

    Nothing is displaced, labels stay with their pictures and are never dropped, and t is uniform in 1..T.
    """
    schedule, config = Schedule([0.2, 0.5, 0.9, 0.99]), ClassifierConfig(batch_size=400, seed=3)
    images = np.zeros((500, 6, 6), np.uint8)
    images[:, 0, 0] = np.arange(500) % 2 * 255  # a corner that the label names
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
        losses = list(train_classifier(workers, dataset, config, draw))
        assert drawn == [(dataset, config, step) for step in range(3)] and len(losses) == 3
        assert (before != workers.model.time.w.data).any()
        probabilities = np.concatenate(list(read(workers, images, t)))
        with no_grad():
            logits = to_numpy(workers.model(images, t)).astype("float64")
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def classifier(seed):
    """A small noisy classifier in float64, for differences."""
    model = build_classifier(NOISY, seed)
    for p in model.parameters():
        p.data = asarray(to_numpy(p.data) + 0.3 * default_rng(seed, p.size).standard_normal(p.shape), "float64")
    return model


@given(st.integers(0, 99), st.integers(1, 1000), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_the_score_is_the_gradient_of_each_rows_log_probability(seed, t, labels):
    """<score, d> = d/dh log p(label | x + h d), row by row, along a random direction; each row alone gives its own."""
    model, n = classifier(seed), len(labels)
    x, d = (standard_normal(default_rng(seed, k), (n, 6, 6, 1), "float64") for k in (1, 2))
    score = class_score(model, labels)(x, t)
    assert score.shape == x.shape and score.dtype == x.dtype

    def log_p(x):
        logits = to_numpy(model(x, t))
        return (logits - np.logaddexp.reduce(logits, 1, keepdims=True))[np.arange(n), labels]

    h = 1e-5  # differences are off by h^2 times a third derivative, and by 1e-15 / h: both near 1e-10
    slope = (log_p(x + h * d) - log_p(x - h * d)) / (2 * h)
    np.testing.assert_allclose(to_numpy((score * d).sum((1, 2, 3))), slope, rtol=1e-5, atol=1e-6)
    alone = class_score(model, labels[0])(x[:1], t)
    np.testing.assert_allclose(to_numpy(alone), to_numpy(score[:1]), rtol=1e-9, atol=1e-12)


def test_the_score_leaves_no_trace_and_needs_no_recording(rng):
    """Inside no_grad as outside; no parameter gets a gradient, and each still wants one, after an error too."""
    model = build_classifier(NOISY, 0)
    x = asarray(rng.standard_normal((2, 6, 6, 1), dtype="float32"))
    score_fn = class_score(model, [0, 1])
    outside = score_fn(x, 5)
    with no_grad():
        assert np.array_equal(to_numpy(score_fn(x, 5)), to_numpy(outside))
        assert not model(x, 5).requires_grad
    assert outside.dtype == "float32" and float(abs(outside).max()) > 0
    with pytest.raises(ValueError, match="labels must"):
        class_score(model, [0, 3])(x, 5)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(model.parameters()) == len(build_classifier(NOISY, 1).parameters())


def test_no_gradient_of_a_parameter_is_even_computed(rng, monkeypatch):
    """While the score is computed no parameter requires a gradient, so no vjp of one is called."""
    model, wanted = build_classifier(NOISY, 0), []
    forward = type(model).forward
    record = lambda self, *a: wanted.extend(p.requires_grad for p in everything) or forward(self, *a)  # noqa: E731
    everything = model.parameters()
    monkeypatch.setattr(type(model), "forward", record)
    class_score(model, 1)(asarray(rng.standard_normal((2, 6, 6, 1), dtype="float32")), 5)
    assert wanted == [False] * len(everything)


def test_a_noisy_classifier_is_saved_with_its_noise_and_is_no_judge(tmp_path, rng):
    """It comes back with its schedule, bit for bit; as a classifier of clean pictures it is refused, and so back."""
    dataset, path, schedule = random_pictures(10, rng), tmp_path / "checkpoint.npz", Schedule.linear(60)
    x = rng.standard_normal((3, 6, 6, 1), dtype="float32")
    with Workers(partial(build_classifier, NOISY, 5)) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, 4, schedule)
        model = load_noisy_classifier(path, schedule, 3)
        assert np.array_equal(to_numpy(model(x, 7)), to_numpy(workers.model(x, 7)))
    for its_schedule, num_classes in ((Schedule.linear(61), 3), (schedule, 4)):
        with pytest.raises(TinydiffError, match=r"checkpoint\.npz: it was trained for other classes, or for another"):
            load_noisy_classifier(path, its_schedule, num_classes)
    with pytest.raises(CheckpointError, match="holds a network of kind 'noisy classifier', not 'classifier'"):
        load_classifier(path, 1)
    with Workers(partial(build_classifier, SMALL, 5)) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, 4)
    with pytest.raises(CheckpointError, match="holds a network of kind 'classifier', not 'noisy classifier'"):
        load_noisy_classifier(path, schedule, 3)


def test_another_network_is_not_taken_for_a_classifier(tmp_path, rng):
    """A checkpoint of another kind, or one whose parameters do not fit its settings, is refused by name."""
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, {}, {"kind": "diffusion"})
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz holds a network of kind 'diffusion', not 'classifier'"):
        load_classifier(path, 1)
    checkpoint.save(path, {"weights/out.b": np.zeros(3)}, {"kind": "classifier", "model": SMALL})
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz: parameter .* is missing"):
        load_classifier(path, 1)


def test_a_judge_says_of_samples_what_reading_and_features_say():
    """Right answers are counted; distance and coverage are from test digits that are not judged beside the samples."""
    rng = default_rng(3)
    test = random_pictures(90, rng)
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        judge = Judge(workers, test, 12)
        images, labels = test.batch(np.arange(12))
        found = judge(images, labels)
        answers, seen = (np.concatenate(list(f(workers, images))) for f in (read, features))
        assert found["right"] == (answers.argmax(1) == labels).sum()
        assert found["spread"] == spread(seen, labels)
        # Every picture is among the samples, the real ones or those compared with: by its features it is found again.
        everything = np.concatenate(list(features(workers, test.batch(np.arange(90))[0])))
        assert (abs(everything[:, None] - judge.others[None]).sum(2).min(0) < 1e-5).all()
        assert found["frechet"] == frechet_distance(seen, judge.others)
        assert found["coverage"] == coverage(seen, judge.others[:12])
        assert judge.real["frechet"] > 0  # those judged as real are not among those compared with


def test_a_judge_takes_as_many_of_each_class():
    """Both halves of the test set are balanced; a number that cannot be is refused."""
    rng = default_rng(3)
    test = random_pictures(90, rng)
    least = min(np.bincount(test.labels))
    with Workers(partial(build_classifier, SMALL, 0)) as workers:
        seen = []
        judge = Judge(workers, test, 12)
        assert len(judge.others) == 3 * least - 12

        class Listening(Judge):
            def __call__(self, images, labels):
                seen.append(np.bincount(labels))
                return {}

        Listening(workers, test, 12)
        assert seen[0].tolist() == [4, 4, 4]
        for num in (10, 3 * (least // 2 + 1)):
            with pytest.raises(TinydiffError, match=f"--num {num}: must be a multiple of 3"):
                Judge(workers, test, num)
