"""Drawing images with a trained network: all workers run the samplers of diffusion/ on slices of a few images.

    recipe = Recipe(schedule, (28, 28, 1), num_steps=50, scale=2.0)
    for frames in generate(workers, recipe, labels, seed):
        ...                                                     # frames[-1]: the images of this slice of the labels

A large request is cut into slices.  Each image has a random stream of its own, named by the seed and by its index in
the whole request.  So image i of a seed is one image for every size of the slices, number of images, worker, rank and
backend, up to rounding: the network's products round differently for batches of different sizes.
Read next: row_rng.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.row_rng import row_rng
from tinydiff.autograd import no_grad
from tinydiff.backend import FAST, TinydiffError, backend_name, default_rng, host_integers, standard_normal, to_numpy
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import Schedule, classifier_free, ddpm_step, sample, unconditional
from tinydiff.diffusion.guidance import EpsFn
from tinydiff.diffusion.targets import EPS, Target, as_eps_fn
from tinydiff.diffusion.times import Pairs, timestep_pairs
from tinydiff.nn import UNet

SLICE, GPU_SLICE = 20, 500  # images.  Guidance doubles the network's batch.  A GPU has room for large slices.


def DDPM(schedule: Schedule) -> Callable:
    """ddpm_step in the form that a Recipe takes.  x_0_hat is clipped, because images lie in [-1, 1]."""
    return partial(ddpm_step, schedule, clip=True)


def uniform(schedule: Schedule, num_steps: int) -> Pairs:
    """timestep_pairs in the form that a Recipe takes."""
    return timestep_pairs(schedule.T, num_steps)


def by_label(model: Any, labels: Sequence[int], scale: float) -> EpsFn:
    """Classifier-free guidance; no guidance for a network without classes."""
    return unconditional(model) if model.num_classes is None else classifier_free(model, labels, scale)


@dataclass(frozen=True)
class Recipe:
    """How images are drawn, except for their labels and noise.  Workers receive a Recipe, so it must be picklable.

    step(schedule) -> a step for sample(), such as DDPM; more are in choices.py.  Each slice makes a step of its own.
    num_steps: the number of reverse steps, at most T, else TinydiffError.
    pairs(schedule, num_steps) -> the times that the steps visit, such as uniform; more are in choices.py.
    scale: the guidance scale; 0 = unconditional, 1 = conditional.  guide(model, labels, scale) -> eps_fn.
    keep: the number of frames to return.  They are spread evenly over the steps; the last frame is the final image.
    at_once: the number of images in a slice; None: SLICE on the CPU, GPU_SLICE on a GPU.  Small images are faster in
    large slices.
    target: what the workers' network predicts; the models of load_trained predict the noise, EPS.  For another target
    the prediction is guided first and then converted to eps_hat.  For classifier-free guidance the order makes no
    difference, because the conversion is affine.
    """

    schedule: Schedule
    image_shape: tuple[int, int, int]
    # The noise of DDPM wipes out the errors of earlier steps; DDIM and 2M keep them.
    step: Callable[[Schedule], Callable] = DDPM
    num_steps: int = 50
    scale: float = 2.0
    keep: int = 1
    guide: Callable = by_label
    pairs: Callable[[Schedule, int], Pairs] = uniform
    at_once: int | None = None
    target: Target = EPS

    def __post_init__(self) -> None:
        for name in ("num_steps", "keep", "at_once"):
            host_integers(name, 1 if getattr(self, name) is None else getattr(self, name), 1, 1_000_000)
        if self.num_steps > self.schedule.T:
            raise TinydiffError(f"num_steps={self.num_steps}: the schedule has T = {self.schedule.T} steps, no more")


def generate(workers: Any, recipe: Recipe, labels: Sequence[int], seed: int, first: int = 0) -> Iterator[np.ndarray]:
    """Draw one image for each label, the images first, first + 1, ... of this seed, with the workers' current weights.

    labels: each in 0..num_classes, where num_classes means "no label".  For a network without classes only the number
    of the labels matters.
    Yields the slices in order.  A slice of n labels is an array (keep, n, H, W, C), float32: n images in each of `keep`
    frames.  Values lie near [-1, 1].  Raises TinydiffError for an image with a NaN or an infinity.
    """
    n = recipe.at_once or (SLICE if backend_name() == "numpy" else GPU_SLICE)
    draw: Any = partial(_draw_slice, recipe)
    if FAST and backend_name() != "numpy":
        from tinydiff.fast.graph import recorded

        once = lru_cache(1)(recorded)  # one recording for all slices
        draw = lambda model, job: _draw_slice(recipe, once(model), job)  # noqa: E731
    jobs = [(labels[i : i + n], (seed, first + i)) for i in range(0, len(labels), n)]
    for frames in workers.map(draw, jobs):
        if not np.isfinite(frames[-1]).all():
            raise TinydiffError(f"scale={recipe.scale:g}: the network draws NaN or infinity; try a smaller scale")
        yield frames


def check_steps(T: int, **steps: int) -> None:
    """Raise TinydiffError for an option of main that asks for more reverse steps than T."""
    for name, n in steps.items():
        if n > T:
            option = name.replace("_", "-")
            raise TinydiffError(f"--{option} {n}: the schedule has T = {T} steps, no more")


def check_room(num: int, image_shape: Sequence[int]) -> None:
    """Raise TinydiffError if the memory of this machine cannot hold num images and a picture of them."""
    values, pixels = math.prod(image_shape), math.prod(image_shape[:2])
    check_memory(f"--num {num}", num * (12.0 * values + 54.0 * pixels))  # three float32 copies, 3 x 3 screen pixels


def frame_times(recipe: Recipe) -> list[int]:
    """The time t of each kept frame: from near T down to 0."""
    pairs = recipe.pairs(recipe.schedule, recipe.num_steps)
    return [pairs[i][1] for i in _kept(recipe)]


def build_unet(config: dict[str, Any], seed: int) -> UNet:
    """The U-Net of a configuration (UNet.config), parameters drawn from seed.  The function can be sent to workers.

    Raises CheckpointError as `current` does.
    """
    return new_unet(config, default_rng(seed))


def new_unet(config: dict[str, Any], rng: Any) -> UNet:
    """The U-Net of a saved configuration, parameters drawn from rng.  Raises CheckpointError as `current` does."""
    return UNet(**current(config), rng=rng)


def side_multiple(config: dict[str, Any]) -> int:
    """What the sides of the pictures of a UNet are multiples of: each level but the last halves them."""
    return 2 ** (len(config["channel_mults"]) - 1)


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration of a UNet without the options that this version no longer has.

    Raises CheckpointError if the saved network used one of those options.
    """
    gone = {"dropout": 0.0, "text_features": None}  # the removed options, each with the value that means "unused"
    for name, unused in gone.items():
        if config.get(name, unused) != unused:
            raise CheckpointError(f"{name}={config[name]!r}: this version has no such network")
    return {name: value for name, value in config.items() if name not in gone}


def _kept(recipe: Recipe) -> list[int]:
    """The indices of the steps whose results are kept as frames, always with the last step."""
    keep = min(recipe.keep, recipe.num_steps)
    return [(i + 1) * recipe.num_steps // keep - 1 for i in range(keep)]


def _draw_slice(recipe: Recipe, model: Any, job: tuple[Sequence[int], tuple[int, int]]) -> np.ndarray:
    labels, (seed, first) = job
    rng = row_rng("picture", seed, rows=range(first, first + len(labels)))
    x_T = standard_normal(rng, (len(labels), *recipe.image_shape))
    eps_fn = as_eps_fn(recipe.target, recipe.schedule, recipe.guide(model, labels, recipe.scale))
    pairs = recipe.pairs(recipe.schedule, recipe.num_steps)
    steps = sample(recipe.step(recipe.schedule), eps_fn, pairs, x_T, rng)
    with no_grad():
        frames = [to_numpy(x_t) for i, (_, x_t, _) in enumerate(steps) if i in _kept(recipe)]
    return np.stack(frames)
