"""Measure whether a model of train_prompts.py draws what the prompts describe, with 95% intervals.

    python demos/prompts/evaluate_prompts.py runs/prompts/checkpoint.npz

Each of --num prompts names a digit, thin or thick, and left or right, in any words of the grammar.  These prompts name
every combination equally often, except the held-out ones.  --num-held-out more prompts name only held-out combinations.
A classifier (train_classifier.py) reads the digit of each image.  Thickness and slant are measured as on the training
set (captions.py):

    thick, thin         the image is thicker, thinner than the median of the training set
    left, right         the slant is below 0, above 0
    all three           digit, thickness and slant are all right

The demo writes to --out: the table prompts.md, and held_out.png with a row of images for each held-out combination.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from captions import DIGITS, NAMES, by_prompt, caption, draw_images, load_trained, measure, parse, tokenize

from tinydiff.app import cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import Recipe, check_room, check_steps
from tinydiff.app.metrics import share
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import read
from tinydiff.backend import default_rng

SHOWN = 10  # images of each held-out combination


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    classifier="runs/classifier/checkpoint.npz",
    num=1000,
    num_held_out=500,
    scale=3.0,
    steps=Recipe.num_steps,
    seed=0,
    out="runs/evaluate_prompts",
    workers=None,
):
    """Write the table and the picture.  Returns the table as a dictionary: {attribute: 'k of n, ...'}."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, "prompts.md", "held_out.png")
    workers = workers or ranks.default_workers()
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    judge, _ = load_classifier(Path(classifier), workers, meta["data"])
    table = {}
    with pool, judge:
        check_steps(schedule.T, steps=steps)
        check_room(max(num, num_held_out), meta["data"]["image_shape"])
        recipe = Recipe(schedule, tuple(meta["data"]["image_shape"]), num_steps=steps, scale=scale)
        for which, rows in asked_for(meta["held_out"], num, num_held_out).items():
            prompts = sentences(rows, seed)
            images = draw(pool, recipe, [tokenize(text, meta["vocabulary"]) for text in prompts], seed)
            answer = np.concatenate(list(read(judge, images))).argmax(1)
            for what, right in judged(prompts, answer, measure(images), meta["thresholds"]).items():
                table[which + what] = share(right)
                print(f"  {which + what:28}{table[which + what]}", flush=True)
    drawn = f"guidance {scale:g}, DDPM in {cli.counted(steps, 'step')}, seed {seed}"
    with atomic_write(out / "prompts.md") as file:
        file.write(markdown(f"{cli.counted(meta['step'], 'step')}, {drawn}", table).encode())
    pictures, columns, names = rows_of(images, meta["held_out"])  # the last that were drawn are the held-out ones
    plots.save_grid(out / "held_out.png", pictures, columns=columns, title="never trained on", row_labels=names)
    print(f"table: {out / 'prompts.md'}, picture: {out / 'held_out.png'}")
    return table


def asked_for(held_out, num, num_held_out):
    """{prefix of its lines: combinations}: what num prompts name, and what num_held_out more name, each in turn."""
    held_out = [tuple(row) for row in held_out]
    every = [(d, t, s) for d in DIGITS for t in NAMES["thickness"] for s in NAMES["slant"]]
    trained = [row for row in every if row not in held_out]
    return {
        "": [trained[i % len(trained)] for i in range(num)],
        "held out: ": [held_out[i % len(held_out)] for i in range(num_held_out)],
    }


def sentences(rows, seed):
    """A sentence for each (digit, thickness, slant)."""
    rng = default_rng("said", seed)
    return [caption(dict(zip(("digit", "thickness", "slant"), row)), rng) for row in rows]


def draw(pool, recipe, prompts, seed):
    """One image for each token row: (N, H, W, 1) in [-1, 1]."""
    return draw_images(
        pool, replace(recipe, guide=partial(by_prompt, prompts, tokenize(""))), range(len(prompts)), seed
    )


def judged(prompts, answer, measured, thresholds):
    """{attribute: which images have it, of those whose prompt names it}, without attributes that no prompt names.

    prompts: one for each image; each names digit, thickness and slant.  answer: the digits that were read, (N,).
    measured, thresholds: from `measure` and `thresholds` of captions.py.
    """
    wanted = [parse(prompt) for prompt in prompts]
    thick, right = np.array([(a["thickness"] == "thick", a["slant"] == "right") for a in wanted]).T
    digit_right = answer == np.array([DIGITS.index(a["digit"]) for a in wanted])
    thickness_right = (measured["thickness"] > thresholds["thickness"][1]) == thick
    slant_right = (measured["slant"] > 0) == right
    hits = {
        "digit": digit_right,
        "thick": thickness_right[thick],
        "thin": thickness_right[~thick],
        "left": slant_right[~right],
        "right": slant_right[right],
        "all three": digit_right & thickness_right & slant_right,
    }
    return {what: hit for what, hit in hits.items() if len(hit)}


def markdown(drawn, table):
    """The table as text.  drawn: how the images were drawn."""
    lines = [f"| {what} | {shares} |" for what, shares in table.items()]
    return "\n".join([f"| {drawn} | drawn as asked |", "|---|---|", *lines, ""])


def rows_of(images, rows):
    """(pictures, columns, names): of each combination the first SHOWN images.  Image i has combination i modulo
    len(rows)."""
    columns = min(SHOWN, len(images) // len(rows)) or 1
    chosen = [images[k :: len(rows)][:columns] for k in range(min(len(rows), len(images)))]
    return np.concatenate(chosen), columns, [" ".join(row) for row in rows][: len(chosen)]


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_prompts.py")
    cli.add_backend(parser)
    parser.add_argument("--classifier", help="checkpoint.npz of train_classifier.py")
    parser.add_argument("--num", type=cli.up_to_a_million, help="number of prompts")
    parser.add_argument("--num-held-out", type=cli.up_to_a_million, help="prompts that name a held-out combination")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance: 0 ignores the prompt, 1 follows it")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of words and noise")
    parser.add_argument("--out", help="folder for prompts.md and held_out.png")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
