"""Train a diffusion model that draws what a sentence says: "a thick seven leaning right", "thin 3", "two".

    python demos/train_prompts.py                    as many steps as fit into 18 minutes
    python demos/train_prompts.py --resume           continue a run that was stopped or killed
    python demos/prompt.py runs/prompts/checkpoint.npz "a thin seven leaning right"

The captions are made of what is measured on each picture, said anew every time it is shown (captions.py); one in ten
is empty, for guidance.  Everything goes to --out: checkpoint.npz, metrics.csv, and at the end samples.png and loss.png.
Ctrl-C and SIGTERM save and end.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import long_run
import numpy as np
from captions import DIGITS, HELD_OUT, MAX_TOKENS, VOCABULARY, Captioned, build, by_prompt, tokenize
from tqdm import tqdm

from tinydiff import checkpoint, cli, plots
from tinydiff.backend import TinydiffError
from tinydiff.data import NAMES, load
from tinydiff.diffusion import Schedule
from tinydiff.generate import Recipe, generate
from tinydiff.parallel import Workers, default_workers
from tinydiff.train import TrainConfig, Training

MINUTES = 18.0
NUM_GROUPS = 8  # of UNet
SHOWN = ("a {}", "a thin {} leaning left", "a thin {} leaning right", "a thick {} leaning left", "a thick upright {}")
PICTURE_SEED = 1


def main(
    *,
    backend="numpy",
    precision=None,
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
    """Options that are None take their default, or with resume the checkpoint's value."""
    cli.start(backend, precision)
    out = Path(out)
    path = out / "checkpoint.npz"
    wanted = {"batch_size": batch_size, "seed": seed, "num_steps": steps, "minutes": minutes}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if steps is not None:
        wanted["minutes"] = None

    saved = long_run.load_if_there(path, "prompts") if resume else None
    if saved is None:
        config = replace(TrainConfig(num_steps=long_run.UNLIMITED, minutes=MINUTES), **wanted)
        dataset = load_data(data, data_dir, config.seed, num_images)
        encoder = {"num_words": len(VOCABULARY), "max_length": MAX_TOKENS}
        model_config = {"encoder": encoder, "unet": {"base_channels": channels or 32}}
        schedule = Schedule.linear()
        workers = workers or default_workers(config.batch_size)
    else:
        arrays, meta = saved
        config = TrainConfig(**meta["train"])
        checkpoint.check_same(asdict(config), wanted, wanted)
        checkpoint.check_same(meta, {"vocabulary": VOCABULARY, "held_out": HELD_OUT}, ["vocabulary", "held_out"])
        asked = {"base_channels": channels, "num_images": num_images, "name": None if data == "auto" else data}
        asked = {key: value for key, value in asked.items() if value is not None}
        checkpoint.check_same(meta["model"]["unet"] | meta["data"] | meta, asked, asked)
        dataset = load_data(meta["data"]["name"], data_dir, config.seed, meta["num_images"])
        model_config, schedule = meta["model"], Schedule(arrays["schedule/beta"])
        workers = workers or (meta["num_workers"] if backend == "numpy" else 1)
        if meta["num_workers"] != workers:
            print(f"note: {meta['num_workers']} worker(s) before, {workers} now: the sums round differently")

    if model_config["unet"]["base_channels"] % NUM_GROUPS:
        raise TinydiffError(f"--channels {channels}: must be a multiple of {NUM_GROUPS}, the groups of each group norm")
    captioned = Captioned(dataset)
    recipe = Recipe(schedule, (*dataset.images.shape[1:3], 1), num_steps=sample_steps)
    out.mkdir(parents=True, exist_ok=True)
    with Workers(partial(build, model_config, config.seed), workers) as pool:
        state = Training(pool, schedule, config, captioned.draw)
        if saved is not None:
            state.restore(path, arrays, meta)
        else:
            checkpoint.set_aside(path)
        print(f"data: {dataset.source}; without {captioned.left_out:,} pictures of the held-out combinations")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        more = {"num_images": len(dataset), "thresholds": captioned.thresholds}
        if long_run.run(state, captioned.dataset, partial(save, state, captioned.dataset, out, more), save_every):
            final_pictures(state, captioned.dataset, recipe, out)


def save(state, dataset, out, more):
    """The checkpoint, of kind "prompts": with what prompt.py must know of the captions.  And metrics.csv."""
    more = more | {"kind": "prompts", "vocabulary": VOCABULARY, "held_out": HELD_OUT}
    state.save(out / "checkpoint.npz", dataset, **more)
    long_run.save_metrics(state, out / "metrics.csv")


def final_pictures(state, dataset, recipe, out):
    """samples.png, a row for each sentence of SHOWN and a column for each digit, and loss.png."""
    prompts = [tokenize(sentence.format(digit)) for sentence in SHOWN for digit in DIGITS]
    recipe = replace(recipe, guide=partial(by_prompt, prompts, tokenize("")))
    parts = []
    with state.workers.weights(state.ema.data), tqdm(total=len(prompts), unit="img", desc="drawing") as bar:
        for frames in generate(state.workers, recipe, range(len(prompts)), PICTURE_SEED):
            parts.append(frames[-1])
            bar.update(len(frames[-1]))
    title = f"{dataset.name}, {state.step:,} steps, guidance {recipe.scale:g}"
    rows = [sentence.format("...") for sentence in SHOWN]
    plots.save_grid(out / "samples.png", np.concatenate(parts), columns=len(DIGITS), title=title, row_labels=rows)
    long_run.save_loss(state, out / "loss.png", f"{dataset.name} with captions, loss per pixel")
    print(f"done: {out}/samples.png, loss.png, metrics.csv, checkpoint.npz")


def load_data(name, data_dir, seed, num):
    """Digits: the captions name nothing else."""
    if name == "fashion":
        raise TinydiffError("--data fashion: the captions are of digits")
    try:
        return load(name, data_dir=data_dir, seed=seed, num=num)
    except ValueError as error:  # more images than there are
        raise TinydiffError(f"--num-images: {error}") from None


if __name__ == "__main__":
    new = TrainConfig()
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=cli.positive_int, help="training steps, however long they take")
    length.add_argument(
        "--minutes", type=cli.positive_float, help=f"as many steps as fit into these minutes (default: {MINUTES:g})"
    )
    parser.add_argument("--batch-size", type=cli.positive_int, help=f"images a step (default: {new.batch_size})")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level (default: 32)")
    parser.add_argument("--data", choices=[n for n in NAMES if n != "fashion"], help="auto: MNIST, else drawn digits")
    parser.add_argument("--data-dir", help="folder with the four .gz files of MNIST")
    parser.add_argument("--num-images", type=cli.positive_int, help="take the first so many images only")
    parser.add_argument("--out", help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, with its settings")
    parser.add_argument("--seed", type=cli.non_negative_int, help=f"of weights, data and noise (default: {new.seed})")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to split a batch over (default: all cores)")
    parser.add_argument("--save-every", type=cli.positive_int, help="steps between checkpoints")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of each picture")
    cli.run(main, parser)
