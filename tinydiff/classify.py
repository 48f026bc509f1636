"""Training the classifier, and reading pictures with it.

Training shows each picture a little displaced, by up to MAX_SHIFT pixels each way: where a digit stands does not change
what it is.  As in train.py everything random in step k comes from a stream of (seed, k), and `train_classifier` is
a generator; it is a run of minutes, so there is nothing to resume.

    share read as the label asked for = mean over images of [argmax_k p(k | image) = label]

is the figure that says whether generated digits are the digits they should be: it sees at once a network that ignores
its label or draws no digit at all.  Read next: ../demos/train_classifier.py and ../demos/classify.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import checkpoint, ops
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import default_rng, to_numpy
from tinydiff.data import Dataset, epoch_indices
from tinydiff.generate import load_network
from tinydiff.nn import Module
from tinydiff.nn.classifier import Classifier, cross_entropy
from tinydiff.optim import Adam, clip_grad_norm, learning_rate
from tinydiff.parallel import Batch, Workers
from tinydiff.train import TrainingError

MAX_SHIFT = 2  # pixels
SLICE = 250  # images that a worker reads at a time
CLIP_NORM = 1.0


@dataclass(frozen=True)
class ClassifierConfig:
    """What a training run is, besides its network and its data."""

    num_steps: int = 1800
    batch_size: int = 128
    peak_lr: float = 3e-3
    warmup: int = 100  # steps
    seed: int = 0


def shift(images: np.ndarray, dy: Any, dx: Any, background: float = -1.0) -> np.ndarray:
    """Move image n by dy[n] pixels down and dx[n] to the right: (N, H, W, C), as a new array.

    dy, dx: (N,) integers in -MAX_SHIFT..MAX_SHIFT.  What moves in at a border is background.
    """
    n, h, w, _ = images.shape
    border = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    padded = np.pad(images, border, constant_values=background)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), (1, 2))  # (N, places, places, C, H, W)
    return np.moveaxis(windows[np.arange(n), MAX_SHIFT - dy, MAX_SHIFT - dx], 1, -1)


def draw_batch(dataset: Dataset, config: ClassifierConfig, step: int) -> Batch:
    """The examples of 0-based `step`, a pure function of its arguments: x (B, H, W, C) float32, labels (B,)."""
    images, labels = dataset.batch(epoch_indices(len(dataset), config.batch_size, config.seed, step))
    dy, dx = default_rng("shift", config.seed, step).integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(images)))
    return {"x": shift(images, dy, dx), "labels": labels}


def cross_entropy_losses(model: Module, batch: Batch, rng: np.random.Generator) -> Tensor:
    """-log p(label | x) for each example of a batch (N,)."""
    return cross_entropy(model(batch["x"]), batch["labels"])


def train_classifier(workers: Workers, dataset: Dataset, config: ClassifierConfig) -> Iterator[float]:
    """Train the workers' network, yielding the mean loss of each step's batch.

    Raises TrainingError, before that step's update, if the loss or its gradient is nan or infinite.
    """
    adam = Adam(workers.flat)
    for step in range(config.num_steps):
        batch = draw_batch(dataset, config, step)
        loss = float(workers.gradients(cross_entropy_losses, batch, (config.seed, step)).mean())
        norm = clip_grad_norm(workers.flat, CLIP_NORM)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"step {step + 1}: loss is {loss}, gradient norm {norm}; stopped before the update")
        adam.step(learning_rate(step, config.num_steps, peak=config.peak_lr, warmup=config.warmup))
        yield loss


def read(workers: Workers, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield p(k | image), (n, num_classes) for each slice of n <= SLICE images in order; images (N, H, W, C)."""
    return workers.map(_read_slice, [images[i : i + SLICE] for i in range(0, len(images), SLICE)])


def features(workers: Workers, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield Classifier.features, (n, D) for each slice of n <= SLICE images in order; what metrics.py compares."""
    return workers.map(_slice_features, [images[i : i + SLICE] for i in range(0, len(images), SLICE)])


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
    path: Path, workers: Workers, config: ClassifierConfig, dataset: Dataset, test: Dataset, errors: int
) -> None:
    """Write the weights and where they come from, atomically; errors: how many of `test` they misread."""
    arrays = {f"weights/{name}": a for name, a in workers.model.state_dict().items()}
    meta = {
        "kind": "classifier",
        "model": workers.model.config,
        "train": asdict(config),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "image_shape": [*dataset.images.shape[1:3], 1],
            "classes": list(dataset.classes),
        },
        "test": {"source": test.source, "num": len(test), "errors": errors},
    }
    checkpoint.save(path, arrays, meta)


def load_classifier(path: Path, num_workers: int) -> tuple[Workers, dict[str, Any]]:
    """Workers that hold a saved classifier, and its settings.

    Raises CheckpointError if the file is not a whole checkpoint of a classifier.
    """
    workers, _, meta = load_network(path, "classifier", "weights/", build_classifier, num_workers)
    return workers, meta


def _read_slice(model: Module, images: np.ndarray) -> np.ndarray:
    with no_grad():
        return to_numpy(ops.softmax(model(images)))


def _slice_features(model: Any, images: np.ndarray) -> np.ndarray:
    with no_grad():
        return to_numpy(model.features(images))
