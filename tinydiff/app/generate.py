"""Drawing images from a trained network: the samplers of diffusion/ on a network, in slices, on all workers.

A large request is cut into slices of a few images.  Each slice has its own random stream, named by seed and slice, so
the images do not depend on the number of workers, and memory does not grow with their number.  Read next: plots.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import Schedule, classifier_free, ddim_step, ddpm_step, dpm_solver_2m, sample, unconditional
from tinydiff.diffusion.guidance import EpsFn
from tinydiff.diffusion.targets import EPS, TARGETS, Target
from tinydiff.diffusion.times import quadratic_pairs, timestep_pairs
from tinydiff.nn import Module, UNet

Make = Callable[[dict[str, Any], dict[str, Any]], Callable[[], Module]]
SLICE, GPU_SLICE = 20, 500  # images; with guidance the network sees twice as many at once.  A GPU has room for many.


def DDPM(schedule: Schedule) -> Callable:
    """ddpm_step as a Recipe takes it; clip, for images lie in [-1, 1]."""
    return partial(ddpm_step, schedule, clip=True)


def DDIM(schedule: Schedule, eta: float = 0.0) -> Callable:
    """ddim_step as a Recipe takes it."""
    return partial(ddim_step, schedule, eta=eta, clip=True)


def DPM_SOLVER_2M(schedule: Schedule) -> Callable:
    """A fresh dpm_solver_2m as a Recipe takes it."""
    return dpm_solver_2m(schedule, clip=True)


def by_label(model: Any, labels: Sequence[int], scale: float) -> EpsFn:
    """Classifier-free guidance, or none for a network without classes."""
    return unconditional(model) if model.num_classes is None else classifier_free(model, labels, scale)


def uniform(schedule: Schedule, num_steps: int) -> list[tuple[int, int]]:
    """timestep_pairs as a Recipe takes it."""
    return timestep_pairs(schedule.T, num_steps)


def quadratic(schedule: Schedule, num_steps: int) -> list[tuple[int, int]]:
    """quadratic_pairs as a Recipe takes it."""
    return quadratic_pairs(schedule.T, num_steps)


@dataclass(frozen=True)
class Recipe:
    """How images are drawn, whatever their labels and noise.

    step(schedule): a step as sample() takes it, a fresh one for each slice: DDPM, DDIM or DPM_SOLVER_2M.
    num_steps: of 1..T.  pairs(schedule, num_steps): the times to visit: uniform, quadratic or log_snr_pairs.
    scale: of guidance, 0 = unconditional, 1 = conditional.  guide(model, labels, scale) -> eps_fn.
    keep: how many moments of the trajectory to return, evenly spread over its steps, the last one the final image.
    at_once: images in a slice, else SLICE, on a GPU GPU_SLICE; small ones are faster many at a time.
    target: what the workers' network predicts; the models of load_trained give eps_hat already.
    """

    schedule: Schedule
    image_shape: tuple[int, int, int]
    # DDPM's noise wipes out what the steps before got wrong; DDIM and 2M keep it.
    step: Callable[[Schedule], Callable] = DDPM
    num_steps: int = 50
    scale: float = 2.0
    keep: int = 1
    guide: Callable = by_label
    pairs: Callable[[Schedule, int], list[tuple[int, int]]] = uniform
    at_once: int | None = None
    target: Target = EPS

    def __post_init__(self) -> None:
        if self.num_steps > self.schedule.T:
            raise TinydiffError(f"num_steps={self.num_steps}: the schedule has T = {self.schedule.T} steps, no more")


def generate(workers: Any, recipe: Recipe, labels: Sequence[int], seed: int) -> Iterator[np.ndarray]:
    """Draw one image for each label, slice by slice in order, with the workers' weights as they stand.

    labels: each in 0..num_classes, where num_classes means "no label"; for a network without classes they only count.
    Yields (keep, n, H, W, C) float32 frames for n labels, a slice: frames[-1] is final, values near [-1, 1].
    """
    n = recipe.at_once or (SLICE if backend_name() == "numpy" else GPU_SLICE)
    jobs = [(labels[i : i + n], (seed, i // n)) for i in range(0, len(labels), n)]
    return workers.map(partial(_draw_slice, recipe), jobs)


def frame_times(recipe: Recipe) -> list[int]:
    """The time t of each kept frame: from near T down to 0."""
    arrivals = [s for _, s in recipe.pairs(recipe.schedule, recipe.num_steps)]
    return [arrivals[i] for i in _kept(recipe)]


def build_unet(config: dict[str, Any], seed: int) -> UNet:
    """The U-Net of a configuration (UNet.config), its parameters drawn from seed: picklable, for Workers."""
    return UNet(**current(config), rng=default_rng(seed))


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration of a UNet without the options of earlier versions; CheckpointError if one was used."""
    gone = {"dropout": 0.0, "text_features": None}
    for name, unused in gone.items():
        if config.get(name, unused) != unused:
            raise CheckpointError(f"{name}={config[name]!r}: this version has no such network")
    return {name: value for name, value in config.items() if name not in gone}


class AsEps(Module):
    """eps_hat = model(x_t, t, labels), read off what a network predicts (diffusion/targets.py).

    Its parameters are the network's, under their own names.  No gradient goes through it.
    """

    def __init__(self, network: UNet, target: Target, schedule: Schedule):
        self.network, self.target, self.schedule = network, target, schedule
        self.config, self.num_classes = network.config, network.num_classes

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        return self.network.named_parameters(prefix)

    def forward(self, x_t: Any, t: Any, labels: Any = None) -> Tensor:
        return Tensor(self.target.to_eps(self.schedule, x_t, t, self.network(x_t, t, labels).data))


def as_eps(network: Any, target: Target, schedule: Schedule) -> Any:
    """A model that gives eps_hat: the network itself if that is what it predicts."""
    return network if target == EPS else AsEps(network, target, schedule)


def build_eps_model(config: dict[str, Any], seed: int, target: Target, schedule: Schedule) -> Module:
    """as_eps of build_unet: picklable, for Workers."""
    return as_eps(build_unet(config, seed), target, schedule)


def load_trained(path: Path, num_workers: int, ranks: Any = None) -> tuple[Any, Schedule, dict[str, Any]]:
    """Workers that hold the averaged weights (EMA) of a checkpoint, its schedule, and its settings.

    Their model gives eps_hat, whatever the network was trained to predict.  Raises CheckpointError if the file is not a
    whole checkpoint of a diffusion model.
    """

    def make(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Callable[[], Module]:
        target = TARGETS[meta["train"].get("target", "eps")]  # files from before there was a choice
        return partial(build_eps_model, meta["model"], 0, target, Schedule(arrays["schedule/beta"]))

    workers, arrays, meta = load_network(path, "diffusion", "ema/", make, num_workers, ranks)
    return workers, Schedule(arrays["schedule/beta"]), meta


def load_network(
    path: Path, kind: str, prefix: str, make: Make, num_workers: int, ranks: Any = None
) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Workers that hold the network of a checkpoint of this kind, with the weights whose names start with prefix.

    make(arrays, settings) -> what builds the network, for Workers.  Returns the workers with all arrays and settings of
    the file.  Raises CheckpointError if it is not such a checkpoint.
    """
    ranks = ranks or one_process()
    arrays, meta = ranks.broadcast(partial(checkpoint.load, path))
    if meta.get("kind") != kind:
        raise CheckpointError(f"{path} holds a network of kind {meta.get('kind')!r}, not {kind!r}")
    workers = ranks.workers(make(arrays, meta), num_workers)
    try:
        workers.model.load_state_dict({n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)})
    except ValueError as error:
        workers.close()
        raise CheckpointError(f"{path}: {error}") from None
    return workers, arrays, meta


def _kept(recipe: Recipe) -> list[int]:
    """Indices of the steps whose result is kept: `keep` of them, the last always among them."""
    keep = min(recipe.keep, recipe.num_steps)
    return [(i + 1) * recipe.num_steps // keep - 1 for i in range(keep)]


def _draw_slice(recipe: Recipe, model: Any, job: tuple[Sequence[int], tuple[int, int]]) -> np.ndarray:
    labels, name = job
    rng = default_rng("slice", *name)
    x_T = standard_normal(rng, (len(labels), *recipe.image_shape))
    eps_fn = recipe.guide(as_eps(model, recipe.target, recipe.schedule), labels, recipe.scale)
    pairs = recipe.pairs(recipe.schedule, recipe.num_steps)
    steps = sample(recipe.step(recipe.schedule), eps_fn, pairs, x_T, rng)
    kept = set(_kept(recipe))
    with no_grad():
        return np.stack([to_numpy(x_t) for i, (_, x_t, _) in enumerate(steps) if i in kept])
