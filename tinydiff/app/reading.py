"""Reading images with a trained classifier: their classes, their features, and a judgement of generated digits.

    share read as the label asked for = mean over images of [argmax_k p(k | image) = label]

This share measures whether generated digits match their labels.  The share is low for a network that ignores its label,
and for a network that does not draw digits.  All workers read slices of the images.  Read next: fit.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.app.metrics import NEAREST, coverage, frechet_distance, spread
from tinydiff.autograd import Tensor, enable_grad, no_grad
from tinydiff.backend import TinydiffError, default_rng, require, to_numpy, xp
from tinydiff.data import Dataset
from tinydiff.more.classifier import cross_entropy
from tinydiff.nn import Module

SLICE = 250  # images that a worker reads at a time
NO_SPREAD = "-: spread needs two images of a class or more; choose a larger --num"  # below a table with such a cell


def read(workers: Any, images: np.ndarray, t: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield p(k | image), (n, num_classes), for each slice of n <= SLICE images in order.

    images: (N, H, W, C).  t: for a noisy classifier the time of each image, (N,) host integers.
    """
    slices = [slice(i, i + SLICE) for i in range(0, len(images), SLICE)]
    return workers.map(_read_slice, [(images[part], None if t is None else t[part]) for part in slices])


def features(workers: Any, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield Classifier.features, (n, D), for each slice of n <= SLICE images in order; metrics.py compares features."""
    return (slice_features for _, slice_features in _look_at_slices(workers, images))


def look(workers: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class of each image (N,) and its features (N, D), from one pass of the network."""
    answers, slice_features = zip(*_look_at_slices(workers, images))
    return np.concatenate(answers), np.concatenate(slice_features)


def class_probs(model: Module) -> Callable[[Any, int], np.ndarray]:
    """class_probs(x_t, t) = p(k | x_t) of a noisy classifier: (N, num_classes) on the host.  No graph is recorded."""
    return lambda x_t, t: _read_slice(model, (x_t, t))


def class_score(model: Module, labels: Any) -> Callable[[Any, int], Any]:
    """score_fn(x_t, t) = grad_{x_t} log p(labels | x_t), by a backward pass, for diffusion.classifier_guided.

    model: a noisy classifier; its parameters get no gradient.  labels: one integer or (N,).  Works inside no_grad().
    """

    def score_fn(x_t: Any, t: int) -> Any:
        x = Tensor(x_t, requires_grad=True)
        with enable_grad(), model.frozen():
            losses = cross_entropy(_logits(model(x, t), x_t), labels)
        losses.backward(xp.full(losses.shape, -1, losses.dtype))  # only the loss of row n depends on row n of x
        return x.grad

    return score_fn


def check_num(test: Dataset, num: int) -> int:
    """How many test images the rarest class has.  Raises TinydiffError if a Judge cannot judge num samples."""
    counts = np.bincount(test.known_labels(), minlength=len(test.classes))
    least, rarest = int(counts.min()), test.classes[int(counts.argmin())]
    most = least // 2 * len(counts)
    if num % len(counts) or not NEAREST < num <= most:
        needs = f"must be a multiple of {len(counts)}, more than {NEAREST} and at most {most}"
        raise TinydiffError(f"--num {num}: {needs}, because the test set has {least} images of class {rarest}")
    return least


class Judge:
    """Measures samples with a classifier: the share read as their label, distance from real digits, and variety.

    num: the number of samples to be judged.  The judge keeps equally many test digits of each class, in random order.
    `real` is the judgement of the first num of these digits.  `others` are the features of the remaining ones; samples
    and `real` are compared with `others`.
    Raises TinydiffError if num is not a multiple of the number of classes, less than 6, or too large for the test set.
    """

    def __init__(self, workers: Any, test: Dataset, num: int):
        self.workers, self.num = workers, num
        least = check_num(test, num)
        by_label = [np.flatnonzero(test.known_labels() == k) for k in range(len(test.classes))]
        rng = default_rng("judge", 0)
        chosen = np.stack([rng.permutation(rows)[:least] for rows in by_label], 1).reshape(-1)
        images, labels = test.batch(chosen)[0], test.known_labels()[chosen].astype(np.int64)
        self.others = np.concatenate(list(features(workers, images[num:])))
        self.real = self(images[:num], labels[:num])

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """{"right", "frechet", "coverage", "spread"} of num images (N, H, W, C) and their labels (N,).

        right: the number of images that are read as their label.  frechet: the distance of the images' features from
        `others`.  coverage: the share of the first num rows of `others` that have an image nearby.  spread: how varied
        the features within a class are.  See metrics.py.
        """
        answers, image_features = look(self.workers, images)
        return {
            "right": int((answers == labels).sum()),
            "frechet": frechet_distance(image_features, self.others),
            "coverage": coverage(image_features, self.others[: self.num]),
            "spread": spread(image_features, labels),
        }


def misread_rows(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], columns: int = 8
) -> tuple[np.ndarray, list[str]]:
    """A row of pictures for each class that has misread images, and a caption for each row with the wrong answers.

    images (N, H, W, C), labels (N,), probabilities (N, K).  Returns pictures (rows columns, H, W, C) and rows captions.
    In each row the image with the most confident wrong answer comes first.  Empty places are white.
    """
    answer, confidence = probabilities.argmax(1), probabilities.max(1)
    rows, captions = [], []
    for k, name in enumerate(classes):
        wrong = np.flatnonzero((labels == k) & (answer != k))
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:columns]
        if len(wrong):
            row = np.ones((columns, *images.shape[1:]), images.dtype)
            row[: len(wrong)] = images[wrong]
            rows.append(row)
            captions.append(f"{name} read as {' '.join(classes[i] for i in answer[wrong])}")
    return np.concatenate(rows) if rows else images[:0], captions


def _read_slice(model: Module, job: tuple[Any, Any]) -> np.ndarray:
    with no_grad():
        return to_numpy(ops.softmax(_logits(model(*job), job[0])))


def _logits(logits: Any, images: Any) -> Tensor:
    """What a classifier returns for these images; ValueError unless it is a row of logits for each image."""
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    fits = isinstance(logits, Tensor) and len(shape) == 2 and shape[0] == len(images)
    require(fits, f"a classifier must return a Tensor ({len(images)}, num_classes)", f"{type(logits).__name__} {shape}")
    return logits


def _look_at_slices(workers: Any, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return workers.map(_look_at_slice, [images[i : i + SLICE] for i in range(0, len(images), SLICE)])


def _look_at_slice(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with no_grad():
        slice_features = model.features(images)
        return to_numpy(model.out(slice_features)).argmax(1), to_numpy(slice_features)
