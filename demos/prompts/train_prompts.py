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
from tinydiff.data import NAMES
from tinydiff.diffusion import Schedule
from tinydiff.generate import Recipe, generate
from tinydiff.parallel import Workers, default_workers
from tinydiff.train import TrainConfig, Training

MINUTES = 18.0
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
    wanted = long_run.wanted(steps, minutes, batch_size=batch_size, seed=seed)

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
        name = None if data == "auto" else data
        asked = long_run.given(base_channels=channels, num_images=num_images, name=name)
        checkpoint.check_same(meta["model"]["unet"] | meta["data"] | meta, asked, asked)
        dataset = load_data(meta["data"]["name"], data_dir, config.seed, meta["num_images"])
        model_config, schedule = meta["model"], Schedule(arrays["schedule/beta"])
        workers = long_run.resumed_workers(meta, workers, backend)

    long_run.check_channels(model_config["unet"]["base_channels"])
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
    return long_run.load_data(name, data_dir, seed, num)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=cli.positive_int, help="training steps, however long they take")
    length.add_argument(
        "--minutes", type=cli.positive_float, help=f"as many steps as fit into these minutes (default: {MINUTES:g})"
    )
    parser.add_argument("--data", choices=[n for n in NAMES if n != "fashion"], help="auto: MNIST, else drawn digits")
    parser.add_argument("--data-dir", help="folder with the four .gz files of MNIST")
    long_run.add_options(parser)
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
