"""Reading: answers and features stay with their images, a score is a gradient, and a judge is fair."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.classify import build_classifier
from tinydiff.app.metrics import coverage, frechet_distance, spread
from tinydiff.app.reading import (
    SLICE,
    Judge,
    check_num,
    class_probs,
    class_score,
    features,
    look,
    misread_rows,
    read,
)
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import Dataset
from tinydiff.fast.workers import Workers

pytestmark = pytest.mark.training

SMALL = {"channels": [4, 8], "num_classes": 3, "num_groups": 2}
NOISY = {**SMALL, "time": True}
CLASSES = ("up", "down", "flat")


def random_pictures(num, rng, side=8):
    """A data set of pure noise in three classes."""
    images = rng.integers(0, 256, (num, side, side, 1), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, num).astype(np.uint8), "noise", CLASSES)


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


def classifier(seed):
    """A small noisy classifier in float64, for differences."""
    model = build_classifier(NOISY, seed)
    for p in model.parameters():
        p.data = asarray(to_numpy(p.data) + 0.3 * default_rng(seed, p.size).standard_normal(p.shape), "float64")
    return model


def test_class_probs_are_the_softmax_at_a_time_and_record_nothing(rng):
    """One row an image, on the host, all images at time t; no gradient is kept for any of them."""
    model = build_classifier(NOISY, 0)
    x = asarray(rng.standard_normal((3, 6, 6, 1), dtype="float32"))
    found = class_probs(model)(x, 7)
    with no_grad():
        logits = to_numpy(model(x, np.full(3, 7))).astype("float64")
    assert isinstance(found, np.ndarray) and found.shape == (3, 3)
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)
    assert abs(found - class_probs(model)(x, 900)).max() > 1e-3  # the time matters


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
        for num in (10, 3, 3 * (least // 2 + 1)):
            bounds = f"must be a multiple of 3, more than 5 and at most {least // 2 * 3}"
            with pytest.raises(TinydiffError, match=f"--num {num}: {bounds}, because the test set has {least} images"):
                Judge(workers, test, num)


SPOILED = {
    "nothing": lambda logits: None,
    "an array": lambda logits: logits.data,
    "one row": lambda logits: logits[:1],
    "one vector": lambda logits: logits[0],
    "one more axis": lambda logits: logits[None],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_is_no_row_of_logits_for_each_image_is_refused(spoil, rng):
    """A classifier returns a Tensor (N, num_classes), for probabilities and for the score: else ValueError."""
    model = build_classifier(NOISY, 0)
    inner, x_t = model.forward, asarray(rng.standard_normal((2, 8, 8, 1), dtype="float32"))
    model.forward = lambda *arguments: spoil(inner(*arguments))
    for use in (class_probs(model), class_score(model, 1)):
        with pytest.raises(ValueError, match=r"a classifier must return a Tensor \(2, num_classes\), got"):
            use(x_t, 5)


def test_a_class_that_the_test_set_lacks_is_named():
    """With no image of a class no number can be judged; the message says of which."""
    test = random_pictures(90, default_rng(3))
    lacking = Dataset(test.name, test.images, np.where(test.labels == 1, 2, test.labels), "", ("a", "b", "c"))
    with pytest.raises(TinydiffError, match=r"--num 12: .* because the test set has 0 images of class b"):
        check_num(lacking, 12)
