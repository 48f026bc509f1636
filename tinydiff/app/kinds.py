"""What a checkpoint of each kind contains.  A file is checked against its kind before anything is built from it.

    arrays, meta = load(path, "diffusion")

A checkpoint may come from a stranger, or from other software.  So every setting that a program reads must be there,
must have its type and must lie in its range.  The file must contain the arrays of the network of these settings and no
others.  Only then are the arrays read.  All their numbers must be finite.

classify.py and the demos describe the kinds of their networks in the same way.  Read next: trained.py.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinydiff.app import archive, rules
from tinydiff.app.archive import CheckpointError, Header, Meta, printable
from tinydiff.app.early import START, there
from tinydiff.app.generate import new_unet, side_multiple
from tinydiff.app.rules import LINE, Rule, items, maybe, number, old, one_of, whole
from tinydiff.backend import TinydiffError
from tinydiff.data import COLOUR, NAMES, Dataset
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.flow import straight
from tinydiff.diffusion.targets import TARGETS
from tinydiff.nn import Module
from tinydiff.train import METRICS, NUM_BUCKETS, OPTIMIZERS

COMMANDS = {  # kind -> the command that makes a checkpoint of this kind
    "diffusion": "python demos/train_mnist.py",
    "classifier": "python demos/train_classifier.py",
    "noisy classifier": "python demos/train_classifier.py --noisy --out runs/noisy_classifier",
    "prompts": "python demos/prompts/train_prompts.py",
    "latent": "python demos/latent.py",
}


class Kind(NamedTuple):
    """A kind of checkpoint.

    settings: a rule for each setting that programs read, and a dictionary of rules for each group of settings.
    networks: {starts of the arrays' names: make}.  make(meta, rng) -> the network that has these parameters.  Of the
    start early.START a file has the arrays of a whole network, or none.
    tables: the rules of all other arrays, with fits(array, meta).  together: rules with fits(meta).
    """

    name: str
    settings: dict[str, Any]
    networks: dict[tuple[str, ...], Callable[[Meta, Any], Module]]
    tables: dict[str, Rule]
    together: tuple[Rule, ...]


KINDS: dict[str, Kind] = {}  # by name; the file that describes a kind adds it


def load(path: str | os.PathLike, name: str) -> tuple[dict[str, np.ndarray], Meta]:
    """Read a checkpoint of this kind: (arrays, meta).

    Raises CheckpointError with the reason, and with the command that makes a checkpoint of this kind.
    """
    kind = KINDS[name]
    try:
        arrays, meta = archive.load(path, partial(_check, kind))
        with about(path):
            rules.check_numbers(arrays, kind.tables, meta)
        return arrays, meta
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nMake it with: {COMMANDS[name]}") from None


@contextlib.contextmanager
def about(path: str | os.PathLike) -> Iterator[None]:
    """A CheckpointError in the block gets the path before its message."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None


def _check(kind: Kind, headers: dict[str, Header], meta: Meta) -> None:
    """Raise CheckpointError unless settings, names, shapes and dtypes are those of a checkpoint of this kind."""
    if meta.get("kind") != kind.name:
        raise CheckpointError(f"holds a network of kind {printable(repr(meta.get('kind')))}, not {kind.name!r}")
    rules.check_settings(meta, kind.settings)
    for rule in kind.together:
        if not rule.fits(meta):
            raise CheckpointError(f"contains settings that contradict each other: {rule.what}")
    shapes: dict[str, tuple[int, ...]] = {}
    for starts, make in kind.networks.items():
        parameters = rules.shapes_of(partial(make, meta), len(headers))
        shapes |= {start + name: shape for start in there(starts, headers) for name, shape in parameters.items()}
    rules.check_weights(headers, shapes)
    for name in headers.keys() - shapes.keys() - kind.tables.keys():
        raise CheckpointError(f"contains an array {printable(name)}, which is not one of this network")


EVERY = (*NAMES[1:], *COLOUR)  # the data sets that `load` knows by name
SIZE, CLASSES, TARGET = whole(1, 1 << 16), maybe(whole(1, 1000)), old(one_of(*TARGETS))
UNET = dict.fromkeys(("in_channels", "base_channels", "num_res_blocks", "num_heads", "num_groups"), SIZE) | {
    "channel_mults": items(SIZE, 1, 8),
    "attention_levels": items(whole(0, 7), 0, 8),
    "num_classes": CLASSES,
}
PAPERS = ("linear", "cosine", "quadratic", "sigmoid", "constant")
SCHEDULES = {name: getattr(Schedule, name) for name in PAPERS} | {"straight": straight}  # by the names of --schedule
TRAIN = {  # the settings of TrainConfig
    "num_steps": whole(1),
    "batch_size": whole(1, 1 << 17),
    "peak_lr": number(1e-30, 10),
    "warmup": whole(0),
    "optimizer": old(one_of(*OPTIMIZERS)),
    "betas": old(items(number(0, 1 - 1e-9), 2, 2)),
    "clip_norm": old(number(1e-30, math.inf)),
    "ema_decay": old(number(0, 1 - 1e-9)),
    "seed": whole(0, 1 << 62),  # as in TrainConfig
    "minutes": maybe(number(0, 1e9)),
    "label_drop": number(0, 1),
    "target": TARGET,
    "min_snr": old(maybe(number(1e-30, math.inf))),
}
PRECISION, PROGRESS = old(one_of("float32", "tf32", "bf16")), {"step": whole(0), "num_steps": whole(1)}
DATA = {
    "name": LINE,
    "num": whole(1, 500_000),
    "image_shape": items(whole(1, 256), 3, 3),
    "classes": old(items(LINE, 0, 1000)),  # the names, in the order of the labels
}
BETA = Rule(
    "beta_0 = 0 and beta_1..beta_T between 0 and 1, float64",
    lambda a, _: a.dtype.str[1:] == "f8" and a.ndim == 1 and len(a) > 1 and a[0] == 0 and ((a > 0) & (a < 1))[1:].all(),
)


def default_schedule(target: str) -> str:
    """The name of the schedule of a run that names none: rectified flow is the target flow with the straight schedule.

    Each target can be trained with each schedule, so a user who names one gets it.
    """
    return "straight" if target == "flow" else "linear"


def rows(columns: int) -> Rule:
    """The rule of metrics.  A bucket of t is nan if the batch had no such t."""
    return Rule(
        f"a row of {columns} numbers for each step, float64",
        lambda a, meta: (
            a.dtype.str[1:] == "f8"
            and a.shape == (meta["step"], columns)
            and np.isfinite(a[:, : len(METRICS) - NUM_BUCKETS]).all()
            and not np.isinf(a).any()
        ),
    )


def fits_pictures(config: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a U-Net can draw the pictures of this data set."""
    multiple, (height, width, channels) = side_multiple(config), data["image_shape"]
    sizes = dict.fromkeys(NAMES, (28, 28)) | dict.fromkeys(COLOUR, (height, height))
    size = sizes.get(data["name"])
    known = size is None or (size == (height, width) and config["num_classes"] in (None, 10))
    return known and not height % multiple and not width % multiple and channels == config["in_channels"]


def fits_classes(config: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether each class of a U-Net has a name.  A network without classes may be trained on labelled pictures."""
    num, names = config["num_classes"], data.get("classes")
    return num is None or names is None or len(names) == num


def data_settings(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint contains about the data set that its network was trained on."""
    settings = {"name": dataset.name, "source": dataset.source, "num": len(dataset), "classes": [*dataset.classes]}
    return settings | {"image_shape": [*dataset.images.shape[1:]]}


def check_data(settings: dict[str, Any]) -> None:
    """Raise TinydiffError for a data set that no checkpoint may describe, because its run could not be resumed."""
    for name, rule in DATA.items():
        if not rule.fits(settings[name]):
            raise TinydiffError(f"the data set has {name} = {printable(repr(settings[name]))}; it must be {rule.what}")


def run_of(
    name: str, make: Callable[[Meta, Any], Module], settings: dict[str, Any], unet: Callable, *more: Rule
) -> Kind:
    """The kind of checkpoint that training.save writes.  settings: those of the network, and further ones.

    unet(meta) -> the settings of its U-Net.
    """
    settings = PROGRESS | {"num_workers": whole(1), "precision": PRECISION, "train": TRAIN, "data": DATA} | settings
    settings |= {"flip": old(one_of(False, True)), "schedule_name": old(one_of(*SCHEDULES))}  # of demos/job.py
    known = f"28 x 28 with 10 classes for {', '.join(NAMES[1:])}, square with 10 classes for {', '.join(COLOUR)}"
    pictures = f"data.image_shape must be a size that the network can draw, and {known}"
    together = (
        Rule("step must be at most num_steps", lambda meta: meta["step"] <= meta["num_steps"]),
        Rule(pictures, lambda meta: fits_pictures(unet(meta), meta["data"])),
        Rule("data.classes must name each class", lambda meta: fits_classes(unet(meta), meta["data"])),
    )
    tables = {"schedule/beta": BETA, "metrics": rows(len(METRICS))}
    return Kind(name, settings, {("ema/", START, "weights/", "adam_m/", "adam_v/"): make}, tables, together + more)


def data_name(meta: Meta, known: Sequence[str] = NAMES[1:]) -> str:
    """The name of a checkpoint's data set, for data.load.  Raises CheckpointError if the program does not know it.

    known: the data sets that the program can use.  A folder or a file of one's own is never one of them, because a
    checkpoint contains its name, but neither its place nor test images.
    """
    name = meta["data"]["name"]
    if name not in known:
        needs = f"this program needs one of {', '.join(known)}: choose another"
        raise CheckpointError(f"the checkpoint's data set is {name!r}; {needs}")
    return name


def data_size(meta: Meta) -> dict[str, int]:
    """The option `size` of data.load for a checkpoint's data set, if the data set has images of several sizes."""
    return {"size": meta["data"]["image_shape"][0]} if meta["data"]["name"] in COLOUR else {}


KINDS["diffusion"] = run_of(
    "diffusion", lambda meta, rng: new_unet(meta["model"], rng), {"model": UNET}, lambda meta: meta["model"]
)
