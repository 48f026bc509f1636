"""Draw what a sentence describes, with a checkpoint of train_prompts.py.

    python demos/prompts/prompt.py runs/prompts/checkpoint.npz "a thick seven leaning right"
    python demos/prompts/prompt.py runs/prompts/checkpoint.npz "two" --negative "thick" --scale 3
    python demos/prompts/prompt.py runs/prompts/checkpoint.npz "a thin seven" \\
        --steering steering.png --swap "thick two"

Guidance leads from the negative prompt, which is empty by default, in the direction of the prompt, --scale times as
far.  --steering writes a second picture, which shows how the words steer the steps from one x_T.  Its first block shows
x_t and x_0_hat at several times.  Its second block shows which pixels attend to each word: the weights of
cross-attention at half the resolution, averaged over heads and layers.  Its third block has the same noise, with --swap
in place of the prompt from half-way on or from the start.
Read next: evaluate_prompts.py.
"""

import contextlib
import os
from functools import partial
from pathlib import Path

import numpy as np
from captions import by_prompt, draw_images, load_trained, tokenize
from matplotlib.figure import Figure

from tinydiff import ops
from tinydiff.app import cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.generate import Recipe, check_room, check_steps
from tinydiff.app.outputs import file_to_write
from tinydiff.app.row_rng import row_rng
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, standard_normal, to_numpy, xp
from tinydiff.diffusion import sample, within
from tinydiff.more.layers import CrossAttention
from tinydiff.more.text import Prompted

MOMENTS = 10  # the number of times t in the steering figure, at most
SWAP = "a thick two"


def main(
    checkpoint,
    prompt,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=16,
    scale=3.0,
    negative="",
    steps=Recipe.num_steps,
    seed=0,
    out="runs/prompt.png",
    steering=None,
    swap=None,
    workers=None,
):
    """Write the pictures.  Returns the images (num, H, W, 1) in [-1, 1]."""
    ranks = cli.start(backend, precision, plain=plain)
    file_to_write("--out", out, ".png")
    if steering is not None:
        file_to_write("--steering", steering, ".png")
        if os.path.realpath(steering) == os.path.realpath(out):
            raise TinydiffError(f"--steering {steering}: this is the picture of --out too; choose another name")
    elif swap is not None:
        raise TinydiffError(f"--swap {swap!r}: it is for the picture of --steering, which is not given")
    swap = SWAP if swap is None else swap
    if negative and scale == 1:
        raise TinydiffError(f"--negative {negative!r}: guidance 1 leads away from no prompt; choose another --scale")
    pool, schedule, meta = load_trained(Path(checkpoint), workers or ranks.default_workers())
    with pool:
        check_steps(schedule.T, steps=steps)
        check_room(num, meta["data"]["image_shape"])
        tokens, other, avoided = (tokenize(text, meta["vocabulary"]) for text in (prompt, swap, negative))
        guide = partial(by_prompt, [tokens, other], avoided)
        recipe = Recipe(schedule, tuple(meta["data"]["image_shape"]), num_steps=steps, scale=scale, guide=guide)
        images = draw_images(pool, recipe, [0] * num, seed)
        plots.save_grid(out, images, columns=min(num, 8), title=title_of(prompt, negative, scale))
        print(f"{cli.counted(num, 'image')}: {out}")
        if steering:
            parts = steer(pool.model, recipe, tokens, seed)
            figure = steering_figure(blocks_of(parts, prompt, swap), parts["t"])
            with atomic_write(steering) as file:
                figure.savefig(file, format="png")
            print(f"how the words steer: {steering}")
    return images


# ------------------------------------------------------------------------------------------------------ the steering


def steer(model, recipe, tokens, seed):
    """The contents of the figure, from image 0 of `generate`, at up to MOMENTS times t, spread over the steps.

    Returns {"t": times, "x_t", "x_0_hat", "swapped", "other": (K, H, W, 1) each, "maps": (K, words, h, w)}.
    """
    first, second = (recipe.guide(model, [i], recipe.scale) for i in (0, 1))
    middle = recipe.schedule.T // 2
    ways = {"x_0_hat": first, "swapped": within(0, middle, second, first), "other": second}
    figure = {"t": []}
    for name, eps_fn in ways.items():
        states = list(walk(recipe, eps_fn, seed))
        shown = [states[k] for k in sorted({round(i * (len(states) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)})]
        figure[name] = np.concatenate([to_numpy(x_0_hat) for _, _, x_0_hat in shown])
        if name == "x_0_hat":
            figure["t"] = [t for t, _, _ in shown]
            figure["x_t"] = np.concatenate([to_numpy(x_t) for _, x_t, _ in shown])
            prompted = Prompted(model, [tokens], tokens)
            figure["maps"] = np.stack([maps(prompted, x_t, t) for t, x_t, _ in shown])
    return figure


def title_of(prompt, negative, scale):
    return f"{quoted(prompt)}{f' and not {negative!r}' if negative else ''}, guidance {scale:g}"


def quoted(prompt):
    return repr(prompt) if prompt.strip() else "the empty prompt"


def walk(recipe, eps_fn, seed):
    """Yield (t, x_t, x_0_hat at x_t) of each step, with the x_T and the noise of image 0 of this seed in `generate`."""
    rng = row_rng("picture", seed, rows=[0])
    x_t = standard_normal(rng, (1, *recipe.image_shape))
    pairs = recipe.pairs(recipe.schedule, recipe.num_steps)
    with no_grad():
        t = pairs[0][0]
        for s, x_s, x_0_hat in sample(recipe.step(recipe.schedule), eps_fn, pairs, x_t, rng):
            yield t, x_t, x_0_hat
            t, x_t = s, x_s


def maps(prompted, x_t, t):
    """How much each pixel attends to each word of prompt 0: (words, h, w), at half the resolution, sum 1 over words."""
    with recorded(prompted.unet) as weights, no_grad():
        prompted(x_t, t, 0)
    pixels = x_t.shape[1] * x_t.shape[2] // 4
    mean = np.mean([p.mean((0, 1)) for p in weights if p.shape[2] == pixels], 0)  # (L, M): over layers and heads
    return mean.T.reshape(-1, x_t.shape[1] // 2, x_t.shape[2] // 2)


@contextlib.contextmanager
def recorded(unet):
    """Within the block each cross-attention appends its weights (N, heads, L, M) to the yielded list."""
    recorded_weights = []

    def attend(q, k, v, *, mask):
        n, heads, m, _ = k.shape
        unit = xp.broadcast_to(xp.eye(m, dtype=k.dtype), (n, heads, m, m))
        weights = ops.attention(q, k, unit, mask=mask)  # the weighted mean of unit vectors equals the weights
        recorded_weights.append(to_numpy(weights))
        return weights @ v

    layers = list(cross_attentions(unet))
    for layer in layers:
        layer.attend = attend
    try:
        yield recorded_weights
    finally:
        for layer in layers:
            layer.attend = ops.attention


def cross_attentions(module):
    """Yield every CrossAttention of the tree of layers."""
    for _, child in module.children():
        if isinstance(child, CrossAttention):
            yield child
        yield from cross_attentions(child)


def blocks_of(parts, prompt, swap):
    """The three blocks of the figure, each as (title, labels of its rows, its rows, colours): image, words, swapped.

    parts: from `steer`.  A row is (K, H, W, 1), one picture for each time.
    """
    words = ["start", *prompt.lower().split()]
    scale = 2 / parts["maps"].max()
    attended = [m[..., None] * scale - 1 for m in parts["maps"].swapaxes(0, 1)[: len(words)]]  # the rest is padding
    attended = [m.repeat(2, 1).repeat(2, 2) for m in attended]  # to the size of the image
    swapped = [parts["x_0_hat"], parts["swapped"], parts["other"]]
    return [
        (quoted(prompt), ["x_t", "x_0_hat"], [parts["x_t"] / 2, parts["x_0_hat"]], "gray"),
        ("where each word is looked at", words, attended, "magma"),
        (f"x_0_hat, {quoted(swap)} in its place", ["never", "half-way", "always"], swapped, "gray"),
    ]


def steering_figure(blocks, times):
    """A figure of the blocks, one below the other, with time to the right."""
    heights, columns = [len(rows) + 0.8 for _, _, rows, _ in blocks], len(times)
    figure = Figure(figsize=(8, 0.72 * sum(heights)), dpi=100, layout="constrained", facecolor="white")
    for axes, (title, labels, rows, colours) in zip(figure.subplots(len(blocks), 1, height_ratios=heights), blocks):
        canvas = plots.tile(np.concatenate(rows), columns)
        axes.imshow(canvas[..., 0], cmap=colours, vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=12, loc="left")
        side = canvas.shape[0] / len(rows)
        axes.set_yticks([(i + 0.5) * side for i in range(len(rows))], labels, fontsize=10)
        axes.set_xticks([(i + 0.5) * side for i in range(columns)], [f"t = {t}" for t in times], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_prompts.py")
    parser.add_argument("prompt", help="a sentence in the words of captions.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.whole(1, 1000), help="images to draw")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance: 0 ignores the prompt, 1 follows it")
    parser.add_argument("--negative", help="a prompt that guidance leads away from")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    parser.add_argument("--out", help="the picture, a .png")
    steering = "also write a .png that shows how words steer the steps (default: none)"
    swap = f"the other prompt in the picture of --steering (default: {cli.as_typed(SWAP)})"
    parser.add_argument("--steering", metavar="FILE", help=steering)
    parser.add_argument("--swap", help=swap)
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
