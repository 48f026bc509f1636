"""Training the classifier, and reading pictures with it.

Training shows each picture a little displaced, by up to MAX_SHIFT pixels each way: where a digit stands does not change
what it is.  A noisy classifier is shown x_t at all t instead, and nothing is displaced: its gradient, which leads the
sampler (classifier guidance), is to be that of p(y | x_t) for the data as they are.

As in train.py everything random in step k comes from a stream of (seed, k), and `train_classifier` is
a generator; it is a run of minutes, so there is nothing to resume.

    share read as the label asked for = mean over images of [argmax_k p(k | image) = label]

is the figure that says whether generated digits are the digits they should be: it sees at once a network that ignores
its label or draws no digit at all.  Read next: ../demos/train_classifier.py and ../demos/classify.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.app import checkpoint
from tinydiff.app.metrics import coverage, frechet_distance, spread
from tinydiff.app.trained import load_network
from tinydiff.app.training import fit
from tinydiff.autograd import Tensor, enable_grad, no_grad
from tinydiff.backend import TinydiffError, default_rng, precision, to_numpy, xp
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule
from tinydiff.more.classifier import Classifier, cross_entropy
from tinydiff.nn import Module
from tinydiff.train import Batch, LoopConfig, TrainConfig, draw_batch

MAX_SHIFT = 2  # pixels
SLICE = 250  # images that a worker reads at a time


@dataclass(frozen=True)
class ClassifierConfig(LoopConfig):
    """What a training run is, besides its network and its data."""

    num_steps: int = 1800


def shift(images: np.ndarray, dy: Any, dx: Any, background: float = -1.0) -> np.ndarray:
    """Move image n by dy[n] pixels down and dx[n] to the right: (N, H, W, C), as a new array.

    dy, dx: (N,) integers in -MAX_SHIFT..MAX_SHIFT.  What moves in at a border is background.
    """
    n, h, w, _ = images.shape
    border = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    padded = np.pad(images, border, constant_values=background)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), (1, 2))  # (N, places, places, C, H, W)
    return np.moveaxis(windows[np.arange(n), MAX_SHIFT - dy, MAX_SHIFT - dx], 1, -1)


def draw_moved_batch(dataset: Dataset, config: ClassifierConfig, step: int) -> Batch:
    """The examples of 0-based `step`, a pure function of its arguments: x (B, H, W, C) float32, labels (B,)."""
    images, labels = dataset.batch(epoch_indices(len(dataset), config.batch_size, config.seed, step))
    dy, dx = default_rng("shift", config.seed, step).integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(images)))
    return {"x": shift(images, dy, dx), "labels": labels}


def draw_noisy_batch(schedule: Schedule, dataset: Dataset, config: ClassifierConfig, step: int) -> Batch:
    """The same for a noisy classifier: x is x_t ~ q(x_t | x_0), t (B,) uniform in 1..T; labels (B,)."""
    as_in_diffusion = TrainConfig(batch_size=config.batch_size, seed=config.seed, label_drop=0.0)
    batch = draw_batch(dataset, schedule, len(dataset.classes), as_in_diffusion, step)
    return {"x": batch["x_t"], "t": batch["t"], "labels": batch["labels"]}


def cross_entropy_losses(model: Any, batch: Batch) -> Tensor:
    """-log p(label | x), or -log p(label | x_t) where the batch has a t, for each example (N,)."""
    return cross_entropy(model(batch["x"], batch.get("t")), batch["labels"])


def train_classifier(
    workers: Any,
    dataset: Dataset,
    config: ClassifierConfig,
    draw: Callable[[Dataset, Any, int], Batch] = draw_moved_batch,
) -> Iterator[float]:
    """Train the workers' network, yielding the mean loss of each step's batch.

    draw: draw_moved_batch, or draw_noisy_batch with its schedule filled in.  Raises TrainingError as `fit`.
    """
    return fit(workers, cross_entropy_losses, partial(draw, dataset), config)


def read(workers: Any, images: np.ndarray, t: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield p(k | image), (n, num_classes) for each slice of n <= SLICE images in order.

    images: (N, H, W, C).  t: for a noisy classifier the time of each image, (N,) host integers.
    """
    slices = [slice(i, i + SLICE) for i in range(0, len(images), SLICE)]
    return workers.map(_read_slice, [(images[part], None if t is None else t[part]) for part in slices])


def class_score(model: Module, labels: Any) -> Callable[[Any, int], Any]:
    """score_fn(x_t, t) = grad_{x_t} log p(labels | x_t), by a backward pass: what diffusion.classifier_guided asks for.

    model: a noisy classifier; its parameters get no gradient.  labels: one integer or (N,).  Works inside no_grad().
    """

    def score_fn(x_t: Any, t: int) -> Any:
        x = Tensor(x_t, requires_grad=True)
        with enable_grad(), model.frozen():
            losses = cross_entropy(model(x, t), labels)
        losses.backward(xp.full(losses.shape, -1, losses.dtype))  # row by row: no image enters another's loss
        return x.grad

    return score_fn


def class_probs(model: Module) -> Callable[[Any, int], np.ndarray]:
    """class_probs(x_t, t) = p(k | x_t), (N, num_classes) on the host, of a noisy classifier; records no graph."""
    return lambda x_t, t: _read_slice(model, (x_t, t))


def features(workers: Any, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield Classifier.features, (n, D) for each slice of n <= SLICE images in order; what metrics.py compares."""
    return workers.map(_slice_features, [images[i : i + SLICE] for i in range(0, len(images), SLICE)])


def look(workers: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each image is read as (N,), and its features (N, D), from one pass of the network."""
    parts = workers.map(_look_at_slice, [images[i : i + SLICE] for i in range(0, len(images), SLICE)])
    answers, found = zip(*parts)
    return np.concatenate(answers), np.concatenate(found)


class Judge:
    """What a classifier says of samples, beside real digits: a share read as asked, and how near and varied they are.

    num: of the samples to be judged, and of test digits, as many of each class, that are judged like them: `real`.
    others: the features of the rest.  TinydiffError if num is no multiple of the classes, or the test set too small.
    """

    def __init__(self, workers: Any, test: Dataset, num: int):
        self.workers, self.num = workers, num
        by_label = [np.flatnonzero(test.labels == k) for k in range(len(test.classes))]
        least = min(map(len, by_label))
        if num % len(by_label) or least * len(by_label) < 2 * num:
            raise TinydiffError(
                f"--num {num}: must be a multiple of {len(by_label)}, and the test set have twice as many of each class"
            )
        rng = default_rng("judge", 0)
        images, labels = test.batch(np.stack([rng.permutation(rows)[:least] for rows in by_label], 1).reshape(-1))
        self.others = np.concatenate(list(features(workers, images[num:])))
        self.real = self(images[:num], labels[:num])

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """{"right", "frechet", "coverage", "spread"} of num images (N, H, W, C) and the labels (N,) asked for.

        right: how many are read as their label.  frechet: the distance of their features from `others`.  coverage: of
        num of the others.  spread: of their features within a class.  See metrics.py.
        """
        answers, found = look(self.workers, images)
        return {
            "right": int((answers == labels).sum()),
            "frechet": frechet_distance(found, self.others),
            "coverage": coverage(found, self.others[: self.num]),
            "spread": spread(found, labels),
        }


def misread_rows(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], columns: int = 8
) -> tuple[np.ndarray, list[str]]:
    """One row of pictures for each class that has misread ones, the most confidently misread first, and its caption.

    images (N, H, W, C), labels (N,), probabilities (N, K).  Returns (rows columns, H, W, C), white where a row has
    fewer pictures than columns, and a caption for each row that lists what they were read as.
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


def build_classifier(config: dict[str, Any], seed: int) -> Classifier:
    """The classifier of a configuration (Classifier.config), its parameters drawn from seed: picklable, for Workers."""
    return Classifier(**config, rng=default_rng(seed))


def save_classifier(
    path: Path,
    workers: Any,
    config: ClassifierConfig,
    dataset: Dataset,
    test: Dataset,
    errors: int,
    schedule: Schedule | None = None,
) -> None:
    """Write the weights and where they come from, atomically; errors: how many of `test` they misread.

    schedule: of a noisy classifier, which is a checkpoint of another kind, so that no one reads clean pictures with it.
    """
    arrays = {f"weights/{name}": a for name, a in workers.model.state_dict().items()}
    if schedule is not None:
        arrays["schedule/beta"] = schedule.beta
    meta = {
        "kind": "classifier" if schedule is None else "noisy classifier",
        "model": workers.model.config,
        "train": asdict(config),
        "precision": precision(),
        "noise": "host",
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "image_shape": [*dataset.images.shape[1:3], 1],
            "classes": list(dataset.classes),
        },
        "test": {"source": test.source, "num": len(test), "errors": errors},
    }
    checkpoint.save(path, arrays, meta)


def load_classifier(path: Path, num_workers: int) -> tuple[Any, dict[str, Any]]:
    """Workers that hold a saved classifier, and its settings.

    Raises CheckpointError if the file is not a whole checkpoint of a classifier.
    """
    workers, _, meta = load_network(path, "classifier", "weights/", _builder, num_workers)
    return workers, meta


def load_noisy_classifier(path: Path, schedule: Schedule, num_classes: int) -> Module:
    """A saved noisy classifier, to lead a model of this schedule and so many classes.

    Raises CheckpointError as load_classifier, and TinydiffError if it knows other noise or other classes.
    """
    workers, arrays, _ = load_network(path, "noisy classifier", "weights/", _builder, 1)
    its = Schedule(arrays["schedule/beta"])
    if workers.model.config["num_classes"] != num_classes or not np.array_equal(its.beta, schedule.beta):
        raise TinydiffError(f"{path}: it was trained for other classes, or for another schedule, than the checkpoint")
    return workers.model


def _builder(_: dict, meta: dict[str, Any]) -> Callable[[], Module]:
    return partial(build_classifier, meta["model"], 0)


def _read_slice(model: Module, job: tuple[Any, Any]) -> np.ndarray:
    with no_grad():
        return to_numpy(ops.softmax(model(*job)))


def _slice_features(model: Any, images: np.ndarray) -> np.ndarray:
    with no_grad():
        return to_numpy(model.features(images))


def _look_at_slice(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with no_grad():
        found = model.features(images)
        return to_numpy(model.out(found)).argmax(1), to_numpy(found)
