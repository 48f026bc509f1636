"""Train a diffusion model that draws what a sentence describes: "a thick seven leaning right", "thin 3", "two".

    python demos/prompts/train_prompts.py              as many steps as fit into 18 minutes
    python demos/prompts/train_prompts.py --resume     continue a run that was stopped or killed
    python demos/prompts/prompt.py runs/prompts/checkpoint.npz "a thin seven leaning right"

A caption names attributes that were measured on the picture.  A picture gets a new caption each time that it is in a
batch (captions.py).  One caption in ten is empty, for guidance.  The run writes to --out: checkpoint.npz, metrics.csv,
and at the end samples.png and loss.png.  Ctrl-C, SIGTERM and SIGHUP save and end the run,
with exit code 130, 143 or 129.  Read next: prompt.py.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from captions import DIGITS, HELD_OUT, MAX_TOKENS, VOCABULARY, Captioned, build, by_prompt, draw_images, tokenize

from tinydiff.app import checkpoint, cli, plots, run, training
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import Recipe, check_steps
from tinydiff.app.kinds import data_name
from tinydiff.app.outputs import own_folder
from tinydiff.backend import TinydiffError
from tinydiff.data import NAMES
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig

MINUTES = 18.0
SHOWN = ("a {}", "a thin {} leaning left", "a thin {} leaning right", "a thick {} leaning left", "a thick upright {}")
PICTURE_SEED = 1
FILES = ("checkpoint.npz", "metrics.csv", "samples.png", "loss.png")


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    steps=None,
    minutes=None,
    batch_size=None,
    channels=None,
    data="auto",
    data_dir=None,
    num_images=None,
    out="runs/prompts",
    resume=False,
    seed=None,
    workers=None,
    save_every=100,
    sample_steps=Recipe.num_steps,
):
    """An option that is None has its default, or, with resume, the value in the checkpoint."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, *FILES)
    path = out / "checkpoint.npz"
    wanted = run.wanted(steps, minutes, batch_size=batch_size, seed=seed)

    saved = run.load_if_there(path, "prompts") if resume else None
    if saved is None:
        config = replace(TrainConfig(num_steps=run.UNLIMITED, minutes=MINUTES), **wanted)
        dataset = load_data(data, data_dir, config.seed, num_images)
        encoder = {"num_words": len(VOCABULARY), "max_length": MAX_TOKENS}
        model_config = {"encoder": encoder, "unet": {"base_channels": channels or 32}}
        schedule = Schedule.linear()
        workers = workers or ranks.default_workers(config.batch_size)
    else:
        arrays, meta = saved
        name = None if data == "auto" else data
        check_resumed(path, meta, wanted, run.given(base_channels=channels, num_images=num_images, name=name))
        config = training.saved_config(meta)
        dataset = load_data(data_name(meta), data_dir, config.seed, meta["num_images"])
        model_config, schedule = meta["model"], Schedule(arrays["schedule/beta"])
        workers = run.resumed_workers(meta, workers, backend)

    run.check_channels(model_config["unet"]["base_channels"])
    check_steps(schedule.T, sample_steps=sample_steps)
    run.check_batch(config.batch_size, dataset.images.shape[1:], model_config["unet"]["base_channels"])
    captioned = Captioned(dataset, schedule)
    recipe = Recipe(schedule, dataset.images.shape[1:], num_steps=sample_steps)
    with ranks.workers(partial(build, model_config, config.seed), workers) as pool:
        state = training.diffusion_training(pool, schedule, config, captioned.dataset, captioned.draw)
        if saved is not None:
            training.restore(state, path, arrays, meta)
        else:
            checkpoint.set_aside_run(out, (*reversed(FILES),))
        print(f"data: {dataset.source}; without {captioned.left_out:,} pictures of the held-out combinations")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        more = {"num_images": len(dataset), "thresholds": captioned.thresholds}
        run.run(state, ranks, partial(save, state, captioned, workers, out, more), save_every)
        final_pictures(state, pool, captioned.dataset, recipe, out)


def check_resumed(path, meta, wanted, given):
    """Raise CheckpointError if a checkpoint's settings are not these: of the training, and of network and data."""
    if "num_images" not in meta:
        raise CheckpointError(f"{path} contains no setting num_images, which --resume needs: start a new run")
    checkpoint.check_same(asdict(training.saved_config(meta)), wanted, wanted)
    checkpoint.check_same(meta, {"vocabulary": VOCABULARY, "held_out": HELD_OUT}, ["vocabulary", "held_out"])
    checkpoint.check_same(meta["model"]["unet"] | meta["data"] | meta, given, given)


def save(state, captioned, num_workers, out, more):
    """Write metrics.csv, and a checkpoint of kind "prompts" with the settings that prompt.py needs."""
    more = more | {"kind": "prompts", "vocabulary": VOCABULARY, "held_out": HELD_OUT}
    dataset = replace(captioned.dataset, labels=None, classes=())  # there a picture's label is its number, not a class
    training.save(state, out / "checkpoint.npz", dataset, captioned.schedule, num_workers, **more)
    run.save_metrics(state, out / "metrics.csv")


def final_pictures(state, pool, dataset, recipe, out):
    """Write loss.png, and samples.png with a row for each sentence of SHOWN and a column for each digit."""
    prompts = [tokenize(sentence.format(digit)) for sentence in SHOWN for digit in DIGITS]
    recipe = replace(recipe, guide=partial(by_prompt, prompts, tokenize("")))
    with training.drawing(pool, state):
        images = draw_images(pool, recipe, range(len(prompts)), PICTURE_SEED, "drawing")
    title = f"{dataset.name}, {cli.counted(state.step, 'step')}, guidance {recipe.scale:g}"
    rows = [sentence.format("...") for sentence in SHOWN]
    plots.save_grid(out / "samples.png", images, columns=len(DIGITS), title=title, row_labels=rows)
    run.save_loss(state, out / "loss.png", f"{dataset.name} with captions, loss per pixel")
    print(f"done: open {out}/samples.png; beside it: loss.png, metrics.csv")
    prompt = cli.command(Path(__file__).with_name("prompt.py"), out / "checkpoint.npz", "a thin seven leaning right")
    print(f"next: {prompt}")


def load_data(name, data_dir, seed, num):
    """A training set of digits.  Raises TinydiffError for other images, because captions name digits only."""
    if name == "fashion":
        raise TinydiffError("--data fashion: the captions are of digits")
    return run.load_data(name, data_dir, seed, num)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    length = parser.add_mutually_exclusive_group()
    most = f"(default: {MINUTES:g} minutes)"
    length.add_argument("--steps", type=cli.positive_int, help=f"training steps, without a time limit {most}")
    length.add_argument("--minutes", type=cli.positive_float, help=f"train as long, without a limit of steps {most}")
    parser.add_argument("--data", choices=[n for n in NAMES if n != "fashion"], help="auto: MNIST, else drawn digits")
    cli.add_data_dir(parser)
    run.add_options(parser)
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
