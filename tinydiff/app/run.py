"""A long training run of a program: options, progress bar and files, and how the run is saved, stopped and resumed.

All programs that train a diffusion model share this file.  Each program passes in its own parts: the network, what a
checkpoint contains, and the pictures to draw during the run.

    ranks = cli.start(backend, precision, parallel, plain)
    saved = load_if_there(path, "diffusion") if resume else None
    with ranks.workers(build, num_workers) as workers:
        state = diffusion_training(workers, schedule, config, dataset)
        finished = run(state, ranks, save, save_every, on_the_way)

Read next: plots.py.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydiff.app import checkpoint, cli, plots
from tinydiff.app.signals import stop_signals
from tinydiff.app.training import steps, whole
from tinydiff.backend import FAST, TinydiffError, precision
from tinydiff.data import Dataset, load
from tinydiff.train import METRICS, NUM_BUCKETS, TrainConfig, Training

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
    """The settings of a TrainConfig that the user has given.  If the number of steps is given, the clock is off."""
    settings = given(num_steps=num_steps, minutes=minutes, **options)
    return settings if num_steps is None else settings | {"minutes": None}


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def load_data(name: str, data_dir: str | None, seed: int, num: int | None) -> Dataset:
    """The training set, or its first `num` images.  Raises TinydiffError if the training set has fewer images."""
    try:
        return load(name, data_dir=data_dir, seed=seed, num=num)
    except ValueError as error:
        raise TinydiffError(f"--num-images: {error}") from None


def check_channels(base_channels: int) -> None:
    """Raise TinydiffError if a group norm cannot divide so many channels into its groups."""
    if base_channels % NUM_GROUPS:
        raise TinydiffError(f"--channels {base_channels}: must be a multiple of {NUM_GROUPS}, the groups of a norm")


def load_if_there(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The checkpoint at `path`, or None if there is no file because the run was stopped before its first save.

    Raises CheckpointError if the checkpoint is of another kind.
    """
    if not path.exists():
        print(f"no checkpoint at {path} yet: starting from the beginning")
        return None
    arrays, meta = checkpoint.load(path)
    checkpoint.check_same(meta, {"kind": kind}, ["kind"])
    return arrays, meta


def resumed_workers(meta: dict[str, Any], workers: int | None, backend: str) -> int:
    """The number of workers of a resumed run: `workers` if the user has given it, or else that of the earlier run.

    If the user gives no number, a GPU and --plain have 1 worker.  The function prints a note for each change that makes
    sums or products round differently.
    """
    workers = workers or (meta["num_workers"] if FAST and backend == "numpy" else 1)
    if meta["num_workers"] != workers:
        print(f"note: {meta['num_workers']} worker(s) before, {workers} now: the sums round differently")
    before, now = meta.get("precision"), precision()  # an old checkpoint contains no precision
    if before not in (None, now):
        print(f"note: matrix products in {before} before, in {now} now: they round differently")
    return workers


def run(
    state: Training, ranks: Any, save: Callable[[], Any], save_every: int, on_the_way: Callable[[], Any] = lambda: None
) -> bool:
    """Train to the end, and save during the run.  Returns False if a signal stopped the run before its end.

    ranks: the processes that share the work.  save(): writes the files that --resume needs.  It is called at the start,
    every `save_every` steps and at the end.  on_the_way(): is called after each step except the last.
    """
    ranks.broadcast(save)
    config: Any = state.config  # a TrainConfig
    done = state.step * config.batch_size
    bar = tqdm(total=total(state), initial=done, unit="img", dynamic_ncols=True, disable=ranks.rank > 0)
    with stop_signals(lambda: whole(state) and ranks.rescue(save)) as stop, bar:
        for _ in steps(state, ranks, config.minutes):
            bar.total = total(state)
            bar.set_postfix_str(f"step {state.step}{recent_loss(state)}", refresh=False)
            bar.update(config.batch_size)
            at_end = state.step == state.num_steps
            stopped = ranks.allreduce_mean(np.array([stop.requested], np.float32))[0] > 0  # one rank's signal stops all
            if at_end or stopped or state.step % save_every == 0:
                ranks.broadcast(save)
            if stopped and not at_end:
                bar.close()
                print(f"{stop.signal or 'stopped by another rank'}: saved at step {state.step}; continue with --resume")
                return False
            if not at_end:
                on_the_way()
    return True


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
    """The number of images of the whole run, or None until the clock has set the number of steps."""
    return None if state.num_steps == UNLIMITED else state.num_steps * state.config.batch_size


def recent_loss(state: Training) -> str:
    """A text with the mean of the last 50 losses on the host.  The function does not wait for a GPU's losses."""
    rows = state.rows[-50:]
    return f", loss {sum(row[0] for row in rows) / len(rows):.4f}" if rows else ""
