"""A long training run of a program: options, progress bar and files, and how the run is saved, stopped and resumed.

All programs that train a diffusion model share this file.  Each program passes in its own parts: the network, what a
checkpoint contains, and the pictures to draw during the run.

    ranks = cli.start(backend, precision, parallel, plain)
    saved = load_if_there(path, "diffusion") if resume else None
    with ranks.workers(build, num_workers) as workers:
        state = diffusion_training(workers, schedule, config, dataset)
        run(state, ranks, save, save_every, draw, draw_every)  # a signal that stops it leaves the block

Read next: networks.py.
"""

import math
import signal
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydiff.app import checkpoint, cli, kinds, plots
from tinydiff.app.alone import one_process
from tinydiff.app.early import remember
from tinydiff.app.signals import Stop, Stopped, stop_signals
from tinydiff.app.training import steps, whole
from tinydiff.backend import TinydiffError, backend_name, precision
from tinydiff.data import Dataset, load
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import Schedule
from tinydiff.train import METRICS, NUM_BUCKETS, TrainConfig, Training, TrainingError

UNLIMITED = 10**9  # the number of steps of a run until the clock has set it
NUM_GROUPS = 8  # groups of each group norm of a UNet


def add_options(parser: ArgumentParser) -> None:
    """Add the options that all programs with a long training run have."""
    new = TrainConfig()
    parser.add_argument("--batch-size", type=cli.positive_int, help=f"images a step (default: {new.batch_size})")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level (default: 32)")
    parser.add_argument("--num-images", type=cli.positive_int, help="train on the first images only (default: all)")
    parser.add_argument("--out", help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, with its settings")
    parser.add_argument("--seed", type=cli.non_negative_int, help=f"of weights, data and noise (default: {new.seed})")
    parser.add_argument("--save-every", type=cli.positive_int, help="steps between checkpoints")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of each picture")


def wanted(num_steps: int | None, minutes: float | None, **options: Any) -> dict[str, Any]:
    """The settings of a TrainConfig that the user has given.  If the number of steps is given, the clock is off.

    Raises TinydiffError for a value that no checkpoint may contain, because such a run could not be resumed.
    """
    settings = given(num_steps=num_steps, minutes=minutes, **options)
    for name, value in settings.items():
        if not kinds.TRAIN[name].fits(value):
            option = {"num_steps": "--steps", "peak_lr": "--lr"}.get(name, f"--{name.replace('_', '-')}")
            raise TinydiffError(f"{option} {value}: must be {kinds.TRAIN[name].what}")
    return settings if num_steps is None else settings | {"minutes": None}


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def load_data(name: str, data_dir: str | None, seed: int, num: int | None, **options: Any) -> Dataset:
    """The training set, or its first `num` images.  options: of data.load; one that is None is left out.

    Raises TinydiffError if the training set has fewer images, or if no checkpoint may contain so many.
    """
    if num is not None and not kinds.DATA["num"].fits(num):
        raise TinydiffError(f"--num-images {num}: must be {kinds.DATA['num'].what}")
    try:
        return load(name, data_dir=data_dir, seed=seed, num=num, **given(**options))
    except ValueError as error:
        raise TinydiffError(f"--num-images: {error}") from None


def schedule(name: str, T: int) -> Schedule:
    """The schedule of this name.  Raises TinydiffError if it needs more steps."""
    try:
        return kinds.SCHEDULES[name](T)
    except ValueError as error:
        raise TinydiffError(f"--schedule {name} --T {T}: {error}") from None


def check_channels(base_channels: int) -> None:
    """Raise TinydiffError if a group norm cannot divide so many channels into its groups."""
    if base_channels % NUM_GROUPS:
        raise TinydiffError(f"--channels {base_channels}: must be a multiple of {NUM_GROUPS}, the groups of a norm")


def check_batch(batch_size: int, image_shape: Sequence[int], channels: int = 1, ranks: int = 1) -> None:
    """Raise TinydiffError if the memory of this machine cannot hold ten maps of the first level for each image.

    With a GPU the host holds x_t and the target only; the GPU itself tells which batch size fits.
    """
    maps = 10 * channels / ranks if backend_name() == "numpy" else 2
    check_memory(f"--batch-size {batch_size}", 4.0 * batch_size * math.prod(image_shape[:2]) * maps)


def load_if_there(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The checkpoint at `path`, or None if there is no file because the run was stopped before its first save.

    Raises CheckpointError as kinds.load does.
    """
    if not path.exists():
        print(f"no checkpoint at {path} yet: starting from the beginning")
        return None
    return kinds.load(path, kind)


def resumed_workers(meta: dict[str, Any], workers: int | None, backend: str) -> int:
    """The number of workers of a resumed run: `workers` if the user has given it, or else that of the earlier run.

    If the user gives no number, there are at most as many workers as cores, and a GPU and --plain have 1 worker.  The
    function prints a note for each change that makes sums or products round differently.
    """
    workers = workers or (one_process().default_workers(meta["num_workers"]) if backend == "numpy" else 1)
    if meta["num_workers"] != workers:
        print(f"note: {meta['num_workers']} worker(s) before, {workers} now: the sums round differently")
    before, now = meta.get("precision"), precision()  # an old checkpoint contains no precision
    if before not in (None, now):
        print(f"note: matrix products in {before} before, in {now} now: they round differently")
    return workers


def run(
    state: Training,
    ranks: Any,
    save: Callable[[], Any],
    save_every: int,
    draw: Callable[[], Any] | None = None,
    draw_every: int = 1,
    name: str = "",
) -> None:
    """Train to the end, and save during the run.  Raises Stopped, or KeyboardInterrupt, if a signal stops the run.

    ranks: the processes that share the work.  save(): writes the files that --resume needs.  It is called at the start,
    every `save_every` steps, before each draw() and at the end.  draw(): is called every `draw_every` steps, but not at
    the end.  A signal during a step ends the step and saves; a signal during draw() ends it at once.  name: of the bar.
    Raises TrainingError as `steps` and `save` do, with the step of the last save.
    """
    remember(state)
    ranks.broadcast(save)
    saved = [state.step]
    stopped, minutes = False, getattr(state.config, "minutes", None)
    bar = tqdm(
        None, name or None, total(state), initial=state.step, unit="step", dynamic_ncols=True, disable=ranks.rank > 0
    )
    bar.set_postfix_str(time_limit(state))
    with stop_signals(lambda: whole(state) and ranks.rescue(save)) as stop, bar, _naming_the_last(saved):
        for _ in steps(state, ranks, minutes, bar.write):
            remember(state)
            bar.total = total(state)
            bar.set_postfix_str(", ".join(filter(None, (time_limit(state), recent_loss(state)))), refresh=False)
            bar.update()
            stopped = ranks.allreduce_mean(np.array([stop.number > 0], np.float32))[0] > 0  # one rank's stops all
            at_end = state.step == state.num_steps
            drawing = draw is not None and state.step % draw_every == 0 and not (at_end or stopped)
            if at_end or stopped or drawing or state.step % save_every == 0:
                ranks.broadcast(save)
                saved.append(state.step)
            if stopped:
                break
            if drawing:
                _draw(draw, state, stop, bar)
    if stopped or (stop.number and ranks.size == 1):  # the second: it came during the last save
        number = stop.number or signal.SIGTERM
        print(_saved(state, signal.Signals(number).name if stop.number else "stopped by another rank"))
        raise Stopped(number, "")


def _draw(draw: Any, state: Training, stop: Stop, bar: Any) -> None:
    """Draw, in a pause of the bar that it does not count.  A signal ends the program: everything is saved already."""
    bar.set_postfix_str("drawing a grid")
    try:
        with stop.usual():
            draw()
    except (KeyboardInterrupt, Stopped):
        bar.close()
        print(_saved(state, "stopped while a grid was drawn"))
        raise
    bar.unpause()


def _saved(state: Training, why: str) -> str:
    return f"{why}: saved at step {state.step}; continue with\n    {cli.again('--resume')}"


@contextmanager
def _naming_the_last(saved: list[int]) -> Iterator[None]:
    """Add the step of the last save to a TrainingError."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{error}; last saved at step {saved[-1]}") from None


def save_metrics(state: Training, path: Path) -> None:
    """Write the metrics as .csv, one line a step."""
    lines = [",".join(("step", *METRICS))]
    lines += [",".join((f"{i + 1}", *(f"{value:.6g}" for value in row))) for i, row in enumerate(state.metrics())]
    with checkpoint.atomic_write(path) as file:
        file.write("".join(f"{line}\r\n" for line in lines).encode())


def save_loss(state: Training, path: Path, title: str) -> None:
    """Draw the loss, and the loss in each quarter of 1..T."""
    metrics, T = np.array(state.metrics()), state.T or 0
    names = [f"t = {i * T // NUM_BUCKETS + 1}..{(i + 1) * T // NUM_BUCKETS}" for i in range(NUM_BUCKETS)]
    plots.save_loss(path, np.arange(1, len(metrics) + 1), metrics[:, 0], metrics[:, -NUM_BUCKETS:], names, title)


def total(state: Training) -> int | None:
    """The number of steps of the whole run, or None until the clock has set it."""
    return None if time_limit(state) or state.num_steps == UNLIMITED else state.num_steps


def time_limit(state: Training) -> str:
    """A text with the time that training may take, until the clock has set the number of steps; then ""."""
    minutes = getattr(state.config, "minutes", None)
    return f"at most {minutes:g} minutes" if minutes and state.step < max(1, state.config.warmup) else ""


def recent_loss(state: Training) -> str:
    """A text with the mean of the last 50 losses on the host.  The function does not wait for a GPU's losses."""
    rows = state.rows[-50:]
    return f"loss {sum(row[0] for row in rows) / len(rows):.4g}" if rows else ""
