"""Load a trained network from its checkpoint onto workers.  Every program that draws or reads images does this first.

Read next: tables.py.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.app import kinds
from tinydiff.app.alone import one_process
from tinydiff.app.early import START, is_early
from tinydiff.app.generate import build_unet
from tinydiff.autograd import Tensor
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.targets import EPS, TARGETS, Target
from tinydiff.nn import Module, UNet

Arrays = dict[str, np.ndarray]
Meta = dict[str, Any]


def load_trained(path: str | Path, num_workers: int = 1, ranks: Any = None) -> tuple[Any, Schedule, Meta]:
    """(workers, schedule, settings) of a checkpoint.  The workers have the network with the averaged weights (EMA).

    The workers' model returns eps_hat for every target that the network was trained to predict.
    Raises CheckpointError if the file is not a complete checkpoint of a diffusion model.
    """
    workers, arrays, meta = load_network(path, "diffusion", "ema/", _eps_builder, num_workers, ranks)
    return workers, Schedule(arrays["schedule/beta"]), meta


def load_guided(path: str | Path, num_workers: int = 1, ranks: Any = None) -> tuple[Any, Schedule, Meta]:
    """As load_trained.  If the checkpoint contains an early average, the workers' model is a Pair of both networks."""
    workers, arrays, meta = load_network(path, "diffusion", "ema/", _pair_builder, num_workers, ranks)
    return workers, Schedule(arrays["schedule/beta"]), meta


def load_network(
    path: str | Path,
    kind: str,
    prefix: str,
    make: Callable[[Arrays, Meta], Callable[[], Module]],
    num_workers: int,
    ranks: Any = None,
) -> tuple[Any, Arrays, Meta]:
    """(workers, arrays, settings) of a checkpoint.  The workers have its network; all arrays and settings are returned.

    kind: that the checkpoint must have.  prefix: the start of the names of the weights, such as "ema/".
    make(arrays, settings) -> build.  build() makes the network.  It can be pickled, so that each worker can call it.
    Raises CheckpointError as kinds.load does.
    """
    ranks = ranks or one_process()
    arrays, meta = ranks.broadcast(partial(kinds.load, path, kind))
    workers = ranks.workers(make(arrays, meta), num_workers)
    starts = {"network.": prefix, "weak.": START} if isinstance(workers.model, Pair) else {"": prefix}
    workers.model.load_state_dict(
        {to + a.removeprefix(start): arrays[a] for to, start in starts.items() for a in arrays if a.startswith(start)}
    )
    return workers, arrays, meta


class Pair(Module):
    """A trained network, and a weak one that guides it: the same network early in its training.

    Called, a Pair is the trained network.  guide_early of choices.py calls both.
    """

    def __init__(self, network: Any, weak: Any):
        self.network, self.weak = network, weak
        self.config, self.num_classes = network.config, network.num_classes

    def forward(self, x_t: Any, t: Any, labels: Any = None) -> Tensor:
        return self.network(x_t, t, labels)


class AsEps(Module):
    """eps_hat = model(x_t, t, labels): the prediction of a network, converted by diffusion/targets.py.

    The parameters and their names are those of the network.  No gradient passes through the conversion.
    """

    def __init__(self, network: UNet, target: Target, schedule: Schedule):
        self.network, self.target, self.schedule = network, target, schedule
        self.config, self.num_classes = network.config, network.num_classes

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        return self.network.named_parameters(prefix)

    def forward(self, x_t: Any, t: Any, labels: Any = None) -> Tensor:
        return Tensor(self.target.to_eps(self.schedule, x_t, t, self.network(x_t, t, labels).data))


def as_eps(network: Any, target: Target, schedule: Schedule) -> Any:
    """A model that returns eps_hat, from a network that predicts `target`; for EPS the network itself."""
    return network if target == EPS else AsEps(network, target, schedule)


def _eps_builder(arrays: Arrays, meta: Meta) -> Callable[[], Module]:
    target = TARGETS[meta["train"].get("target", "eps")]  # old checkpoints contain no target
    return partial(_build_eps_model, meta["model"], target, Schedule(arrays["schedule/beta"]))


def _pair_builder(arrays: Arrays, meta: Meta) -> Callable[[], Module]:
    build = _eps_builder(arrays, meta)
    return partial(_build_pair, build) if any(map(is_early, arrays)) else build


def _build_pair(build: Callable[[], Module]) -> Module:
    return Pair(build(), build())


def _build_eps_model(config: dict[str, Any], target: Target, schedule: Schedule) -> Module:
    return as_eps(build_unet(config, 0), target, schedule)
