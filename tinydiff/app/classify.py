"""Training a classifier of digits, and its checkpoint.

In training each image is displaced at random, by up to MAX_SHIFT pixels in each direction, because a digit in another
place is still the same digit.  A noisy classifier is trained on x_t at all times t, without displacement.  The gradient
of a noisy classifier leads the sampler (classifier guidance), so p(y | x_t) must be that of the data themselves.

As in train.py, the seed and k determine all random numbers of step k.  This is the last file of app/.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.app import checkpoint
from tinydiff.app.archive import CheckpointError
from tinydiff.app.fit import any_training
from tinydiff.app.kinds import BETA, COMMANDS, KINDS, SIZE, Kind
from tinydiff.app.rules import LINE, Rule, items, old, one_of, whole
from tinydiff.app.trained import load_network
from tinydiff.app.training import check_finite
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, default_rng, precision
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule
from tinydiff.more.classifier import Classifier, cross_entropy
from tinydiff.nn import Module
from tinydiff.train import Batch, LoopConfig, TrainConfig, Training, draw_batch

Draw = Callable[[Dataset, Any, int], Batch]
MAX_SHIFT = 2  # pixels


@dataclass(frozen=True)
class ClassifierConfig(LoopConfig):
    """The settings of a training run, without its network and its data."""

    num_steps: int = 1800


def shift(images: np.ndarray, dy: Any, dx: Any) -> np.ndarray:
    """Move image n by dy[n] pixels down and dx[n] pixels to the right: (N, H, W, C), as a new array.

    dy, dx: (N,) integers in -MAX_SHIFT..MAX_SHIFT.  Pixels that enter at a border are black in grey images, because
    digits lie on black.  In colour each repeats the nearest pixel of the border, because a black bar would be strange
    to the image.  In an image with a black border both are the same.
    """
    n, h, w, c = images.shape
    border = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    padded = np.pad(images, border, constant_values=-1.0) if c == 1 else np.pad(images, border, "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (1, h, w, 1))[..., 0, :, :, 0]
    # (N, places, places, C, H, W) -> (N, C, H, W) -> (N, H, W, C)
    return np.moveaxis(windows[np.arange(n), MAX_SHIFT - dy, MAX_SHIFT - dx], 1, -1)


def draw_moved_batch(dataset: Dataset, config: ClassifierConfig, step: int) -> Batch:
    """The examples of 0-based `step`, a pure function of its arguments: x (B, H, W, C) float32, labels (B,)."""
    images, labels = dataset.batch(epoch_indices(len(dataset), config.batch_size, config.seed, step))
    dy, dx = default_rng("shift", config.seed, step).integers(-MAX_SHIFT, MAX_SHIFT + 1, (2, len(images)))
    return {"x": shift(images, dy, dx), "labels": labels}


def draw_noisy_batch(schedule: Schedule, dataset: Dataset, config: ClassifierConfig, step: int) -> Batch:
    """The examples of a noisy classifier: x is x_t ~ q(x_t | x_0), t (B,) is uniform in 1..T, labels (B,)."""
    diffusion_config = TrainConfig(batch_size=config.batch_size, seed=config.seed, label_drop=0.0)
    batch = draw_batch(dataset, schedule, len(dataset.classes), diffusion_config, step)
    return {"x": batch["x_t"], "t": batch["t"], "labels": batch["labels"]}


def cross_entropy_losses(model: Any, batch: Batch) -> Tensor:
    """-log p(label | x) for each example (N,); -log p(label | x_t) if the batch has a t."""
    return cross_entropy(model(batch["x"], batch.get("t")), batch["labels"])


def classifier_training(
    workers: Any, dataset: Dataset, config: ClassifierConfig, draw: Draw = draw_moved_batch
) -> Training:
    """The state of a run that trains the workers' network.  draw: draw_moved_batch, or partial(draw_noisy_batch,
    schedule)."""
    return any_training(workers, cross_entropy_losses, partial(draw, dataset), config)


def build_classifier(config: dict[str, Any], seed: int) -> Classifier:
    """The classifier of a configuration (Classifier.config), with parameters drawn from seed.  The function
    can be sent to workers."""
    return Classifier(**config, rng=default_rng(seed))


def classifiers(name: str, time: Rule, tables: dict[str, Rule]) -> Kind:
    """The kind of checkpoint that save_classifier writes.  time: whether the network takes t."""
    model = {"in_channels": SIZE, "channels": items(SIZE, 1, 8), "num_classes": SIZE, "num_groups": SIZE, "time": time}
    data = {"classes": items(LINE, 1, 1000), "image_shape": items(whole(1, 256), 3, 3)}

    def make(meta: dict[str, Any], rng: Any) -> Classifier:
        return Classifier(**meta["model"], rng=rng)

    def fits(meta: dict[str, Any]) -> bool:
        sizes = len(meta["data"]["classes"]), meta["data"]["image_shape"][2]
        return sizes == (meta["model"]["num_classes"], meta["model"]["in_channels"])

    together = Rule("the classes and the channels of data must be as many as those of model", fits)
    return Kind(name, {"model": model, "data": data}, {("weights/",): make}, tables, (together,))


KINDS["classifier"] = classifiers("classifier", old(one_of(False)), {})  # old checkpoints contain no time
KINDS["noisy classifier"] = classifiers("noisy classifier", one_of(True), {"schedule/beta": BETA})


def save_classifier(
    path: Path,
    workers: Any,
    config: ClassifierConfig,
    dataset: Dataset,
    test: Dataset,
    errors: int,
    schedule: Schedule | None = None,
) -> None:
    """Write a checkpoint of the weights and of how they were trained, complete or not at all.

    errors: the number of images of `test` that the classifier misreads.  schedule: given for a noisy classifier only;
    the checkpoint then has another kind, so that no program reads clean images with this classifier.  Raises
    TrainingError if a weight is not finite.
    """
    arrays = {f"weights/{name}": a for name, a in workers.model.state_dict().items()}
    check_finite(path, arrays)
    if schedule is not None:
        arrays["schedule/beta"] = schedule.beta
    data = {"name": dataset.name, "source": dataset.source, "classes": list(dataset.classes)}
    meta = {
        "kind": "classifier" if schedule is None else "noisy classifier",
        "model": workers.model.config,
        "train": asdict(config),
        "precision": precision(),
        "noise": "host",  # random numbers come from NumPy, on every backend
        "data": data | {"image_shape": list(dataset.images.shape[1:])},
        "test": {"source": test.source, "num": len(test), "errors": errors},
    }
    checkpoint.save(path, arrays, meta)


def load_classifier(path: Path, num_workers: int, data: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Workers that hold a saved classifier, and the settings of its checkpoint.

    data: the settings of the data set whose pictures the classifier is to read; None: any.
    Raises CheckpointError if the file is not a complete checkpoint of a classifier, or if it reads other pictures.
    """
    workers, _, meta = load_network(path, "classifier", "weights/", _builder, num_workers)
    check_reads(path, meta, data or meta["data"])
    return workers, meta


def check_reads(path: Path, meta: dict[str, Any], data: dict[str, Any]) -> None:
    """Raise CheckpointError if the classifier of a checkpoint was trained on pictures of another shape than `data`, or
    of other classes.  Old checkpoints of a diffusion model contain no classes."""
    read, drawn = (" x ".join(map(str, settings["image_shape"])) for settings in (meta["data"], data))
    if read == drawn and data.get("classes"):
        read, drawn = (", ".join(settings["classes"]) for settings in (meta["data"], data))
    if read != drawn:
        raise CheckpointError(f"{path}: it reads pictures of {read}, and these are {drawn}: train one on this data set")


def load_noisy_classifier(path: Path, schedule: Schedule, num_classes: int, data: dict[str, Any]) -> Module:
    """A saved noisy classifier that can lead a model of this schedule and this number of classes.

    data: the settings of the model's data set.  Raises CheckpointError as load_classifier does.  Raises TinydiffError
    if the classifier was trained with another schedule or for other classes.
    """
    workers, arrays, meta = load_network(path, "noisy classifier", "weights/", _builder, 1)
    check_reads(path, meta, data)
    if workers.model.num_classes != num_classes or not np.array_equal(arrays["schedule/beta"], schedule.beta):
        problem = f"{path}: it was trained for other classes, or for another schedule, than the checkpoint"
        raise TinydiffError(f"{problem}\nMake it with: {COMMANDS['noisy classifier']}")
    return workers.model


def _builder(_: dict, meta: dict[str, Any]) -> Callable[[], Module]:
    return partial(build_classifier, meta["model"], 0)
