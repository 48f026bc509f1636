"""Stand-ins for trained networks: what they draw and what they read is known on paper, so a program's figures follow.

A picture of class k is black but for one white pixel, place k of its last row: the stamp.  `Leaning` draws such
pictures and `StampReader` reads them.  A picture has 12 x 12 pixels, so a program's main takes a fraction of a second.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.app.alone import OneProcess
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.nn import Module

SIZE = 12
SCHEDULE = Schedule.linear(100)
META = {
    "step": 7,
    "data": {"name": "glyphs", "image_shape": [SIZE, SIZE, 1]},
    "train": {"seed": 5, "batch_size": 64, "minutes": 3.0},
}


def stamps(labels: Any) -> np.ndarray:
    """A picture of each class, (N, SIZE, SIZE, 1) float32; the label 10, which asks for no class, has a black one."""
    pictures = np.full((len(labels), SIZE, SIZE, 1), -1, np.float32)
    for picture, k in zip(pictures, labels):
        picture[-1, k, 0] = 1 if k < 10 else -1
    return pictures


def data(labels: Any, rng: Any, deviation: float = 0.1) -> Dataset:
    """Real pictures of these labels: stamps, with noise of a deviation on every pixel."""
    labels = np.asarray(labels)
    pixels = stamps(labels) + deviation * rng.standard_normal((len(labels), SIZE, SIZE, 1))
    images = np.rint(np.clip(pixels, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return Dataset("glyphs", images, labels, "stamps", tuple("0123456789"))


class Leaning(Module):
    """The exact denoiser of pictures that are N(stamp of the label, var I).  It notes the labels of every call.

    eps_hat = sqrt(1 - alpha_bar_t)/(alpha_bar_t var + 1 - alpha_bar_t) (x_t - sqrt(alpha_bar_t) stamp)
    draws: the class that it draws for each label asked for.
    """

    num_classes = 10

    def __init__(self, draws: Any = range(11), var: float = 0.01, schedule: Schedule = SCHEDULE):
        self.draws, self.var, self.schedule = np.array(draws), var, schedule
        self.w = Tensor(asarray(np.zeros(1, "float32")), requires_grad=True)  # a network has parameters
        self.asked: list[np.ndarray] = []

    def forward(self, x_t: Any, t: Any, labels: Any = 10) -> Tensor:
        labels = np.broadcast_to(labels, len(x_t))
        self.asked.append(labels)
        a = float(self.schedule.alpha_bar[t])
        means = asarray(stamps(self.draws[labels]))
        return Tensor((1 - a) ** 0.5 / (a * self.var + 1 - a) * (x_t - a**0.5 * means))


class StampReader(Module):
    """A classifier that reads the stamp: its features are the pixels, its logits the first ten of the last row.

    It notes every image that it is shown.
    """

    num_classes = 10

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def features(self, images: Any) -> Tensor:
        images = images if isinstance(images, Tensor) else Tensor(asarray(images))
        self.shown.append(to_numpy(images.data).copy())
        return ops.reshape(images, shape=(images.shape[0], SIZE * SIZE))

    def out(self, features: Tensor) -> Tensor:
        return features[:, -SIZE : 10 - SIZE]

    def forward(self, images: Any, t: Any = None) -> Tensor:
        return self.out(self.features(images))


def pool_of(model: Module) -> Any:
    """Workers, one process in all, that hold the model."""
    return OneProcess(lambda: model)


def stand_in(
    patch: Any, program: Any, network: Module, test: Dataset, reader: Module | None = None, train: Any = None
) -> SimpleNamespace:
    """The program's main gets this network, this classifier and this test set in place of files.

    Returns calls, where the arguments of each loading function are noted by its name.
    """
    reader, calls = reader or StampReader(), SimpleNamespace(load=[], load_trained=[], load_classifier=[])

    def load(*args: Any, **_: Any) -> Dataset:
        calls.load.append(args)
        return train if train is not None and args[1] == "train" else test

    def load_trained(*args: Any) -> tuple:
        calls.load_trained.append(args)
        return pool_of(network), network.schedule, META

    def load_classifier(*args: Any) -> tuple:
        calls.load_classifier.append(args)
        return pool_of(reader), {}

    for f in (load, load_trained, load_classifier):
        patch.setattr(program, f.__name__, f, raising=False)
    return calls


def series(axes: Any) -> dict[str, list]:
    """{label: [(x, y), ...]} of the lines that are drawn in a panel and have a label."""
    return {line.get_label(): [*zip(*map(list, line.get_data()))] for line in axes.lines if line.get_label()[0] != "_"}


def ticks_in_view(axes: Any) -> tuple[list[str], list[str]]:
    """The labels of the ticks that can be seen on the axes x and y."""
    axes.figure.figure.draw_without_rendering()
    return ticks_drawn(axes)


def ticks_drawn(axes: Any) -> tuple[list[str], list[str]]:
    """The labels of the ticks that can be seen on the axes x and y of a figure that has been drawn."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        places = zip(axis.get_ticklocs(), axis.get_ticklabels())
        found.append([text.get_text() for place, text in places if low <= place <= high and text.get_text()])
    return found[0], found[1]


def unreadable(figure: Any) -> Iterator[str]:
    """What is missing in a figure that has been drawn: a panel's title, or two ticks with labels on an axis.

    A panel whose axes are off shows pictures only.  So does one with an image, whose axes need no scale.  Panels that
    share an axis need its labels only once.  Curves that stand at one place, of one step or one scale, name it.
    """
    titles = [part.get_suptitle() for part in (figure, *figure.subfigs)]
    for k, axes in enumerate(figure.axes):
        if not axes.axison:
            continue
        if not any([*titles, *(axes.get_title(place) for place in ("left", "center", "right"))]):
            yield f"panel {k} has no title"
        if axes.images:
            continue
        shared = axes.get_shared_x_axes(), axes.get_shared_y_axes()
        for i, name in enumerate("xy"):
            labels = max((ticks_drawn(other)[i] for other in shared[i].get_siblings(axes)), key=len)
            low, high = axes.dataLim.intervalx if name == "x" else (0, 1)
            if len(set(labels)) < (1 if high - low <= 0.15 * high else 2):  # 0.15: points side by side are one place
                yield f"panel {k}, {axes.get_title('left') or axes.get_title()!r}, has the ticks {labels} on {name}"
