"""The job that train_mnist.py and train_images.py share: train a diffusion model on pictures, and draw with it.

    settings     those of the user; in a resumed run those of its checkpoint, which the user's must not contradict
    network      default_network, by the size of the pictures
    training     algorithm 1 (tinydiff/train.py) on all workers, saved, drawn from and stopped by app/run.py
    pictures     run_pictures.py, drawn with the average of the weights

The run is saved on the way.  Ctrl-C, SIGTERM and SIGHUP save and end it.  Read next: run_pictures.py.
"""

from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

from run_pictures import final_pictures, grid

from tinydiff.app import checkpoint, cli, kinds, networks, run, training
from tinydiff.app.generate import Recipe, build_unet, check_steps
from tinydiff.app.outputs import own_folder
from tinydiff.backend import backend_name
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.targets import TARGETS
from tinydiff.train import TrainConfig

FILES = ("checkpoint.npz", "metrics.csv", "samples.png", "denoising.png", "denoising.gif", "loss.png")


class Plan(NamedTuple):
    """What a run is.  network: the arguments of its UNet.  flip: whether half of the pictures are mirrored.

    saved: the arrays and settings of the checkpoint of a resumed run; None for a new run.
    """

    config: TrainConfig
    dataset: Dataset
    schedule: Schedule
    network: dict[str, Any]
    flip: bool
    saved: Any


def train(
    ranks,
    load,
    out,
    cost,
    *,
    steps=None,
    minutes=None,
    batch_size=None,
    seed=None,
    target=None,
    min_snr=None,
    channels=None,
    flip=False,
    resume=False,
    workers=None,
    save_every=100,
    sample_every=250,
    sample_steps=Recipe.num_steps,
    scale=Recipe.scale,
):
    """Train, and write the checkpoint and the pictures to the folder `out`.

    load(meta, seed) -> Dataset.  meta: the settings of the checkpoint of a resumed run, or None.
    A setting that is None has the default of TrainConfig, or, with resume, the value in the checkpoint.
    cost: whether to print what a step takes before the training begins.
    """
    path = out / "checkpoint.npz"
    ranks.broadcast(partial(own_folder, out / "progress"))
    wanted = run.wanted(steps, minutes, batch_size=batch_size, seed=seed, target=target, min_snr=min_snr)
    saved = ranks.broadcast(partial(run.load_if_there, path, "diffusion")) if resume else None
    if saved is None:
        plan = new_run(ranks, load, wanted, channels, flip)
        workers = workers or ranks.default_workers(plan.config.batch_size)
    else:
        plan = resumed_run(ranks, load, saved, wanted, channels, flip)
        workers = run.resumed_workers(saved[1], workers, backend_name())

    config, schedule, shape = plan.config, plan.schedule, plan.dataset.images.shape[1:]
    check_steps(schedule.T, sample_steps=sample_steps)
    run.check_batch(config.batch_size, shape, plan.network["base_channels"], ranks.size)
    recipe = Recipe(schedule, shape, num_steps=sample_steps, scale=scale, target=TARGETS[config.target])
    with ranks.workers(partial(build_unet, plan.network, config.seed), workers) as pool:
        state = training.diffusion_training(pool, schedule, config, plan.dataset, flip=plan.flip)
        if saved is None:
            ranks.broadcast(partial(checkpoint.set_aside, path))
        else:
            training.restore(state, path, *saved)
        print(f"data: {plan.dataset.source}")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        if cost:
            print(networks.cost(state))
        draw = partial(grid, state, pool, plan.dataset, recipe, out)
        run.run(state, ranks, partial(_save, state, plan, workers, out), save_every, draw, sample_every)
        final_pictures(state, pool, plan.dataset, recipe, out)


def new_run(ranks, load, wanted, channels, flip):
    """The Plan of a new run.  `wanted`: the settings of TrainConfig that the user has given."""
    config = replace(TrainConfig(num_steps=run.UNLIMITED) if wanted.get("minutes") else TrainConfig(), **wanted)
    dataset = ranks.broadcast(partial(load, None, config.seed))
    kinds.check_data(kinds.data_settings(dataset))
    num_classes = None if dataset.labels is None else len(dataset.classes)
    network = networks.default_network(dataset.images.shape[1:], num_classes, channels)
    return Plan(config, dataset, Schedule.linear(), network, flip, None)


def resumed_run(ranks, load, saved, wanted, channels, flip):
    """The Plan of a run that goes on.  Raises CheckpointError if the user, or the data, contradict the checkpoint."""
    arrays, meta = saved
    config = training.saved_config(meta)
    checkpoint.check_same(asdict(config), wanted, wanted)
    settings = run.given(base_channels=channels, flip=flip or None)
    checkpoint.check_same({"flip": False} | meta["model"] | meta, settings, settings)
    dataset = ranks.broadcast(partial(load, meta, config.seed))
    found = kinds.data_settings(dataset)
    checkpoint.check_same(meta["data"], found, [name for name in meta["data"] if name != "source"])
    return Plan(config, dataset, Schedule(arrays["schedule/beta"]), meta["model"], meta.get("flip", False), saved)


def _save(state, plan, workers, out):
    training.save(state, out / "checkpoint.npz", plan.dataset, plan.schedule, workers, flip=plan.flip)
    run.save_metrics(state, out / "metrics.csv")


def add_options(parser):
    """Add the options of `train`, and those that choose the backend and the workers."""
    new = TrainConfig()
    parser.set_defaults(**cli.defaults(train))
    cli.add_backend(parser)
    length = parser.add_mutually_exclusive_group()
    most = f"(default: {new.num_steps} steps, but at most {new.minutes:g} minutes)"
    length.add_argument("--steps", type=cli.positive_int, help=f"training steps, without a time limit {most}")
    length.add_argument("--minutes", type=cli.positive_float, help=f"train as long, without a limit of steps {most}")
    parser.add_argument("--target", choices=TARGETS, help=f"what the network learns to predict (default: {new.target})")
    parser.add_argument(
        "--min-snr", type=cli.positive_float, help="gamma of min-SNR weights, such as 5 (default: no weights)"
    )
    parser.add_argument("--sample-every", type=cli.positive_int, help="steps between sample grids")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance of the pictures: 1 follows the label")
    run.add_options(parser)
    cli.add_parallel(parser)
