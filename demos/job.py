"""The job that train_mnist.py and train_images.py share: train a diffusion model on pictures, and draw with it.

    settings     those of the user; in a resumed run those of its checkpoint, which the user's must not contradict
    network      default_network, by the size of the pictures
    training     algorithm 1 (tinydiff/train.py) on all workers, saved, drawn from and stopped by app/run.py
    pictures     run_pictures.py, drawn with the average of the weights

The run is saved on the way.  Ctrl-C, SIGTERM and SIGHUP save and end it.  Read next: run_pictures.py.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from run_pictures import final_pictures, grid

from tinydiff.app import checkpoint, cli, kinds, networks, run, training
from tinydiff.app.choices import add_guidance, guidance
from tinydiff.app.early import Remembering, why_none
from tinydiff.app.generate import Recipe, build_unet, check_steps
from tinydiff.app.longer import continued, lengthen, network_from, start_from
from tinydiff.app.outputs import own_folder
from tinydiff.app.trained import load_guided
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.targets import TARGETS
from tinydiff.train import OPTIMIZERS, TrainConfig

FILES = ("checkpoint.npz", "metrics.csv", "samples.png", "denoising.png", "denoising.gif", "loss.png")


class Plan(NamedTuple):
    """What a run is.  network: the arguments of its UNet.

    more: the settings that a checkpoint contains beside: the name of the schedule, and whether pictures are mirrored.
    saved: the arrays and settings of the checkpoint of a resumed run.  start: those of the checkpoint that a new run
    starts from.  longer: whether a resumed run is made longer.
    """

    config: TrainConfig
    dataset: Dataset
    schedule: Schedule
    network: dict[str, Any]
    more: dict[str, Any]
    saved: Any = None
    start: Any = None
    longer: bool = False


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
    lr=None,
    optimizer=None,
    ema_decay=None,
    schedule=None,
    T=None,
    channels=None,
    flip=False,
    resume=False,
    start=None,
    workers=None,
    save_every=100,
    sample_every=250,
    sample_steps=Recipe.num_steps,
    scale=None,
    auto=None,
):
    """Train, and write the checkpoint and the pictures to the folder `out`.

    load(meta, seed) -> Dataset.  meta: the settings of the checkpoint of a resumed run, or None.
    A setting that is None has the default of TrainConfig, or, with resume, the value in the checkpoint.
    start: the path of a checkpoint whose averaged weights a new run starts from.
    scale, auto: the guidance of the last pictures, see choices.guidance.  Grids on the way have no autoguidance: the
    first of them come before the early average.
    cost: whether to print what a step takes before the training begins.
    """
    path = out / "checkpoint.npz"
    others = {"batch_size": batch_size, "seed": seed, "target": target, "min_snr": min_snr}
    wanted = run.wanted(steps, minutes, **others, peak_lr=lr, optimizer=optimizer, ema_decay=ema_decay)
    settings = run.given(base_channels=channels, schedule=schedule, T=T, flip=flip or None)
    saved = ranks.broadcast(partial(run.load_if_there, path, "diffusion")) if resume else None
    if saved is None:
        plan = new_run(ranks, load, wanted, settings, start)
        workers = workers or ranks.default_workers(plan.config.batch_size)
    else:
        plan = resumed_run(ranks, load, wanted, settings, saved)
        workers = run.resumed_workers(saved[1], workers, backend_name())

    config, schedule, shape = plan.config, plan.schedule, plan.dataset.images.shape[1:]
    check_steps(schedule.T, sample_steps=sample_steps)
    run.check_batch(config.batch_size, shape, plan.network["base_channels"], ranks.size)
    recipe = Recipe(schedule, shape, num_steps=sample_steps)
    on_the_way = replace(recipe, target=TARGETS[config.target], scale=Recipe.scale if scale is None else scale)
    with ranks.workers(partial(build_unet, plan.network, config.seed), workers) as pool:
        if plan.start is not None:
            start_from(pool.model, *plan.start, plan.dataset.classes)
        state = training.diffusion_training(
            pool, schedule, config, plan.dataset, flip=plan.more["flip"], make=Remembering
        )
        if saved is not None:
            training.restore(state, path, *saved)
        if plan.longer:
            lengthen(state, ranks)
        guidance(pool.model, scale, None)  # refuses, before the training, what the network cannot do
        if reason := why_none(state):
            if auto not in (None, 1):
                raise TinydiffError(f"--auto {auto:g}: {reason}")
            print(f"note: {reason}; the pictures are drawn with classifier-free guidance")
        if saved is None:
            ranks.broadcast(partial(checkpoint.set_aside_run, out, ("progress", *reversed(FILES))))
        ranks.broadcast(partial(own_folder, out / "progress"))
        print(f"data: {plan.dataset.source}")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        if cost:
            print(networks.cost(state))
        draw = partial(grid, state, pool, plan.dataset, on_the_way, out)
        run.run(state, ranks, partial(_save, state, plan, workers, out), save_every, draw, sample_every)
        with load_guided(path, workers, ranks)[0] as pair:
            guide, guided = guidance(pair.model, scale, auto)
            final_pictures(state, pair, plan.dataset, replace(recipe, **guide), guided, out)
    if ranks.rank == 0:
        print(f"next: {cli.command(Path(__file__).with_name('sample.py'), path)}")


def new_run(ranks, load, wanted, settings, start):
    """The Plan of a new run.

    wanted: the settings of TrainConfig that the user has given.  settings: the others that the user has given.
    With `start` the network, and what it has learned to predict at which noise, are those of the checkpoint.
    """
    config = replace(TrainConfig(num_steps=run.UNLIMITED) if wanted.get("minutes") else TrainConfig(), **wanted)
    dataset = ranks.broadcast(partial(load, None, config.seed))
    kinds.check_data(kinds.data_settings(dataset))
    channels, more = settings.get("base_channels"), {"flip": settings.get("flip", False)}
    if start is None:
        num_classes = None if dataset.labels is None else len(dataset.classes)
        network, before = networks.default_network(dataset.images.shape[1:], num_classes, channels), {}
    else:
        start = arrays, meta = ranks.broadcast(partial(kinds.load, start, "diffusion"))
        network, before = network_from(meta, dataset, channels), schedule_of(arrays, meta)
        target = training.saved_config(meta).target
        checkpoint.check_same({"target": target}, wanted, wanted.keys() & {"target"})
        config = replace(config, target=target)
    others = {"schedule": kinds.default_schedule(config.target), "T": 1000}
    name, T = (settings.get(key, before.get(key, others[key])) for key in others)
    return Plan(config, dataset, run.schedule(name, T), network, more | {"schedule_name": name}, start=start)


def resumed_run(ranks, load, wanted, settings, saved):
    """The Plan of a run that goes on.  Raises CheckpointError if the user, or the data, contradict the checkpoint."""
    arrays, meta = saved
    config, longer = continued(training.saved_config(meta), meta, wanted)
    noise = schedule_of(arrays, meta)
    more = {"flip": meta.get("flip", False), "schedule_name": noise["schedule"]}
    checkpoint.check_same(meta["model"] | more | noise, settings, settings)
    dataset = ranks.broadcast(partial(load, meta, config.seed))
    found = kinds.data_settings(dataset)
    checkpoint.check_same(meta["data"], found, [name for name in meta["data"] if name != "source"])
    return Plan(config, dataset, Schedule(arrays["schedule/beta"]), meta["model"], more, saved=saved, longer=longer)


def schedule_of(arrays, meta):
    """The name of a checkpoint's schedule, and its T.  Old checkpoints contain no name, and have the linear one."""
    return {"schedule": meta.get("schedule_name", "linear"), "T": len(arrays["schedule/beta"]) - 1}


def _save(state, plan, workers, out):
    training.save(state, out / "checkpoint.npz", plan.dataset, plan.schedule, workers, **plan.more)
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
    parser.add_argument("--lr", type=cli.positive_float, help=f"the highest learning rate (default: {new.peak_lr:g})")
    muon = f"Adam, or Muon, which moves matrices along their orthogonalised momentum (default: {new.optimizer})"
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help=muon)
    parser.add_argument(
        "--ema-decay", type=cli.below_1, help=f"of the average of the weights (default: {new.ema_decay:g})"
    )
    by_target = "of the noise (default: linear; with --target flow: straight)"
    parser.add_argument("--schedule", choices=kinds.SCHEDULES, help=by_target)
    parser.add_argument("--T", type=cli.up_to_a_million, help="steps of the schedule (default: 1000)")
    parser.add_argument("--sample-every", type=cli.positive_int, help="steps between sample grids")
    add_guidance(parser)
    run.add_options(parser)
    parser.add_argument(
        "--from",
        dest="start",
        metavar="PATH",
        help="start with the average of the weights of this checkpoint (default: new weights)",
    )
    cli.add_parallel(parser)
