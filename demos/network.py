"""Look at the network: its maps, its code of t, what its skips are for, and its average of the weights.

    python demos/network.py                         two small trainings, a minute on two cores

    network.png    the U-Net, drawn from a real forward pass: the shape of the map after each part,
                   and the skips from the way down to the way up
    network.csv    the same as a table, with the parameters of each part
    time_code.png, time_code.csv
                   the code of sines and cosines that tells the network t, and why it is not t/T
    skips.png      the same network trained without its skips: loss and digits of both
    average.png    through the run: loss and digits of the raw weights, and of the average of the
                   weights, from the same noise
    losses.csv     the losses on held-out pictures, of both networks and both kinds of weights

Two networks are trained for --steps each, with the same weights at the start, the same batches and the same number of
parameters; in one of them, what comes over the skips is 0.  `summary(model, shape)` works for any network of your own.
If the demo is stopped, nothing is kept.  Read next: tinydiff/nn/unet.py.
"""

import inspect
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff.app import cli, training
from tinydiff.app.axes import log_scale, marker_of, step_scale
from tinydiff.app.generate import Recipe, check_steps, generate
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import save_figure, tile
from tinydiff.app.tables import write_table
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, to_numpy
from tinydiff.data import NAMES, load
from tinydiff.diffusion import Schedule
from tinydiff.nn import UNet
from tinydiff.nn.unet import ResBlock, time_code
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses

SHARES = (0.1, 0.2, 0.4, 0.7, 1)  # of the training steps: the moments that are looked at
BATCH = 32  # pictures of a training step
PICTURES = 10_000  # of training
HELD_OUT = 200  # test pictures whose loss is measured
FEATURES = inspect.signature(UNet).parameters["base_channels"].default  # in the code of t
APART = (1, 2, 5, 10, 100, 500, 999)  # differences of two times, in the table of their codes
COLOURS = {"ResBlock": "#cfe3f7", "Downsample": "#f9dcc4", "Upsample": "#d6efd2"}


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    steps=300,
    channels=16,
    sample_steps=20,
    seed=0,
    workers=None,
    out="runs/network",
):
    """Write the pictures and tables.  Returns the rows of network.csv, time_code.csv and losses.csv."""
    ranks = cli.start(backend, precision, plain=plain)
    if channels % 8:
        raise TinydiffError(f"--channels {channels}: must be a multiple of 8, the groups of each group norm")
    pictures = ("network.png", "time_code.png", "skips.png", "average.png")
    out = own_folder(out, *pictures, "network.csv", "time_code.csv", "losses.csv")
    schedule = Schedule.linear()
    check_steps(schedule.T, sample_steps=sample_steps)
    dataset, test = load(data, "train", data_dir, seed, PICTURES), load(data, "test", data_dir, seed, HELD_OUT)
    print(f"data: {dataset.source}; two networks, {steps} steps each")
    shape, classes = dataset.images.shape[1:], len(dataset.classes)
    config = {"in_channels": shape[2], "base_channels": channels, "num_classes": classes}
    train = TrainConfig(steps, BATCH, minutes=None, warmup=min(100, steps // 4), seed=seed)
    held_out = draw_batch(test, schedule, classes, TrainConfig(1, len(test), seed=seed), 0)
    recipe = Recipe(schedule, shape, num_steps=sample_steps)
    runs = {}
    for name, kind in NETWORKS.items():
        with ranks.workers(partial(build, kind, config, seed), workers or ranks.default_workers()) as pool:
            if not runs:
                parts = summary(pool.model, shape)
            state = training.diffusion_training(pool, schedule, train, dataset)
            runs[name] = moments_of(pool, state, ranks, held_out, recipe, np.arange(classes), seed, name)
    print(f"the network, from a forward pass of a picture of {shape_text(shape)}:")
    write_table(out / "network.csv", parts)
    print("how far the codes of t and t + d lie apart, as a share of the largest distance:")
    codes = code_table(schedule.T)
    write_table(out / "time_code.csv", codes)
    print(f"the loss on {len(test)} held-out pictures:")
    losses = loss_table(runs)
    write_table(out / "losses.csv", losses)
    save_figure(out / "network.png", drawn(parts), 96)
    save_figure(out / "time_code.png", code_picture(schedule.T), 96)
    save_figure(out / "skips.png", skips_picture(runs), 96)
    save_figure(out / "average.png", average_picture(runs[next(iter(runs))]), 96)
    print(f"done: open {out}/{pictures[0]} and {', '.join(pictures[1:])}")
    print(f"next: {cli.command(Path(__file__).with_name('same_start.py'), 'runs/mnist/checkpoint.npz')}")
    return parts, codes, losses


# ------------------------------------------------------------------------------------------------ the maps of a network


def summary(model, shape, t=1):
    """What each part of a network gets and gives, from a forward pass of one picture of zeros: a row for each part.

    A part is a child of the network that its forward pass calls, or its `head`.  shape: (H, W, C) of the picture.
    A row has the part's name, its class, the shape of its first argument and of its result, without the axis of the
    batch, and its number of parameters.  The rows have the order of the calls.
    """
    rows = []
    with noting(model, rows), no_grad():
        model(asarray(np.zeros((1, *shape), "float32")), t)
    for row in rows:
        if row["part"] == "head":  # its parameters are those of the children that it alone calls
            row["parameters"] = model.num_parameters() - sum(r["parameters"] for r in rows if r is not row)
    return rows


@contextmanager
def noting(model, rows):
    """Within the block each call of a part of the model adds its row; calls of a part within another add none."""
    parts = [(name, part, "forward") for name, part in model.children()]
    if hasattr(model, "head"):
        parts.append(("head", model, "head"))
    inside = []

    def replaced(name, part, method):
        call = getattr(part, method)

        def noted(x, *more):
            inside.append(name)
            y = call(x, *more)
            inside.pop()
            if not inside:
                own = {"kind": "norm, silu, conv" if part is model else type(part).__name__}
                shapes = {"gets": shape_text(x.shape[1:]), "gives": shape_text(y.shape[1:])}
                rows.append({"part": name, **own, **shapes, "parameters": part.num_parameters()})
            return y

        return noted

    for name, part, method in parts:
        vars(part)[method] = replaced(name, part, method)  # an attribute of the object hides the method of its class
    try:
        yield
    finally:
        for _, part, method in parts:
            del vars(part)[method]


def shape_text(shape):
    """(28, 28, 1) as 28x28x1; a batch of numbers has no other axis, and is a number."""
    return "x".join(map(str, shape)) or "number"


def shape_of(text):
    """shape_text back."""
    return tuple(map(int, text.split("x")))


def maps(rows):
    """The rows of the parts that work on maps, which have a height and a width."""
    return [row for row in rows if row["gives"].count("x") == 2]


def skips_of(rows):
    """(part of the way down, part of the way up that gets its map) of each skip: what was kept last is taken first."""
    kept, pairs = [], []
    for row in maps(rows):
        if row["part"] == "conv_in" or row["part"].startswith("down."):
            kept.append(row["part"])
        elif row["part"].startswith("up.") and row["kind"] != "Upsample":
            pairs.append((kept.pop(), row["part"]))
    return pairs


def places_of(rows):
    """{part: (x, y)}: x counts the parts from left to right; y falls by 1 where the map has half the height."""
    height = shape_of(maps(rows)[0]["gives"])[0]
    return {row["part"]: (x, -np.log2(height / shape_of(row["gives"])[0])) for x, row in enumerate(maps(rows))}


def drawn(rows):
    """A figure of the network: a box for each map, its shape, and a curved arrow for each skip."""
    places, shapes = places_of(rows), {row["part"]: row["gives"] for row in rows}
    figure = Figure(figsize=(15, 5.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(-0.6, len(places) - 0.4), ylim=(min(y for _, y in places.values()) - 0.4, 1.5))
    for (part, (x, y)), row in zip(places.items(), maps(rows)):
        box = {"boxstyle": "round,pad=0.45", "fc": COLOURS.get(row["kind"], "#eeeeee"), "ec": "#777777"}
        text = f"{part}\n{row['kind'].replace(', ', chr(10))}\n{row['gives']}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=box)
    for (x, y), (x_next, y_next) in zip(places.values(), [*places.values()][1:]):
        style = {"arrowstyle": "->", "color": "#333333", "shrinkA": 26, "shrinkB": 26}
        axes.annotate("", (x_next, y_next), (x, y), arrowprops=style)
    for source, target in skips_of(rows):
        style = {"arrowstyle": "->", "color": "C3", "alpha": 0.6, "connectionstyle": "arc3,rad=-0.28"}
        start, end = places[source], places[target]
        axes.annotate("", end, start, arrowprops=style | {"shrinkA": 24, "shrinkB": 24})
        added = f"+{shape_of(shapes[source])[2]}"
        axes.text(end[0], end[1] - 0.27, added, color="C3", fontsize=8, ha="center")
    total = sum(row["parameters"] for row in rows)
    what = "red: skips, and how many channels they add; each block also gets the code of t and of the label"
    axes.set_title(f"{total:,} parameters; the shape of the map after each part; {what}", fontsize=10, loc="left")
    return figure


# ----------------------------------------------------------------------------------------------------- the code of time


def codes_of(T):
    """{name: a code of each t = 1..T, (T, width)}: that of the reference network, and the one number t/T."""
    t = np.arange(1, T + 1)
    return {"sines and cosines": to_numpy(time_code(t, FEATURES, "float64")), "t/T": t[:, None] / T}


def distances(codes):
    """How far the codes of t and t + d lie apart, as a share of the largest such distance: (T - 1,), for d = 1..T-1.

    It does not depend on t: |code(t + d) - code(t)|^2 = sum over the frequencies f of 2 - 2 cos(d f), and d^2/T^2.
    """
    apart = np.linalg.norm(codes[1:] - codes[0], axis=1)
    return apart / apart.max()


def code_table(T):
    """A row for each of APART: the distance of two times that lie so far apart, in both codes."""
    shares = {name: distances(code) for name, code in codes_of(T).items()}
    return [{"d": d} | {name: f"{share[d - 1]:.3f}" for name, share in shares.items()} for d in APART if d < T]


def code_picture(T):
    """A figure: the code of every t, and how far two times lie apart in both codes."""
    codes = codes_of(T)
    figure = Figure(figsize=(12, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    left.imshow(codes["sines and cosines"].T, cmap="RdBu", aspect="auto", vmin=-1, vmax=1, extent=(1, T, FEATURES, 0))
    left.set(xlabel="t", ylabel="number of the code")
    left.set_title(
        f"the code of t: {FEATURES // 2} sines (above) and {FEATURES // 2} cosines, from fast to slow", fontsize=10
    )
    for name, code in codes.items():
        right.plot(np.arange(1, T), distances(code), lw=1.3, label=name)
    log_scale(right, "x")
    right.set(xlabel="d", ylim=(0, 1.05))
    right.set_title("distance between the codes of t and t + d, share of the largest", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    return figure


# --------------------------------------------------------------------------------------------------- without the skips


class HalfBlind(ResBlock):
    """A residual block that sees the first `seen` channels of its input, and 0 for the others; None: it sees all."""

    seen = None

    def forward(self, x, code):
        if self.seen is not None:
            x = x * Tensor(asarray(np.arange(x.shape[-1]) < self.seen, x.dtype))
        return super().forward(x, code)


class WithoutSkips(UNet):
    """A U-Net whose blocks on the way up see nothing of the maps of the way down: those come as 0.

    It has the parameters of the U-Net, and the same ones for the same rng.
    """

    def __init__(self, **config):
        super().__init__(**config)
        c = self.config["base_channels"] * self.config["channel_mults"][-1]
        for layer in self.up:
            if isinstance(layer, HalfBlind):
                layer.seen, c = c, layer.conv2.w.shape[-1]  # the map from below comes first

    def block(self, c_in, c_out, level, attend, rng):
        sizes = {name: self.config[name] for name in ("num_heads", "num_groups")}
        return HalfBlind(c_in, c_out, attend=attend, rng=rng, **sizes)


NETWORKS = {"with skips": UNet, "without skips": WithoutSkips}


def build(kind, config, seed):
    """A network; the function can be sent to workers."""
    return kind(**config, rng=default_rng("weights", seed))


# ---------------------------------------------------------------------------------- the run, with both kinds of weights


def steps_to_look_at(num_steps):
    """The steps at SHARES of a run, each once, the last among them."""
    return sorted({max(1, round(share * num_steps)) for share in SHARES})


def moments_of(pool, state, ranks, held_out, recipe, labels, seed, name):
    """Train, and look at the network on the way: a list of {"step", "raw", "average"}.

    raw, average: (loss on the batch `held_out`, a picture of each label), with the weights of this step and with their
    average; the noise is that of the seed, always the same.
    """
    wanted, moments = steps_to_look_at(state.num_steps), []

    def look():
        with no_grad():
            loss = float(to_numpy(noise_prediction_losses(pool.model, held_out)).mean())
        return loss, np.concatenate([frames[-1] for frames in generate(pool, recipe, labels, seed)])

    with tqdm(total=state.num_steps, desc=name, unit="step", dynamic_ncols=True) as bar:
        for _ in training.steps(state, ranks):
            bar.update()
            if state.step in wanted:
                raw = look()
                with pool.weights(state.ema.average):
                    moments.append({"step": state.step, "raw": raw, "average": look()})
    return moments


def loss_table(runs):
    """A row for each moment: the loss of each network with the raw weights and with their average."""
    columns = [(name, kind) for name in runs for kind in ("raw", "average")]
    table = []
    for i, moment in enumerate(next(iter(runs.values()))):
        losses = {f"{name}, {kind}": f"{runs[name][i][kind][0]:.4f}" for name, kind in columns}
        table.append({"step": moment["step"]} | losses)
    return table


def curves(axes, lines):
    """Losses over steps, both on log scales; lines: {name: ([steps], [losses])}."""
    for name, (steps, losses) in lines.items():
        axes.plot(steps, losses, marker=marker_of(steps), label=name)
    step_scale(axes)
    log_scale(axes, "y")
    axes.set_title("loss on held-out pictures", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def rows_of_pictures(figure_axes, named):
    """Rows of pictures with a name above each row; named: {name: pictures (N, H, W, C)}."""
    for axes, (name, pictures) in zip(figure_axes, named.items()):
        picture = tile(pictures, len(pictures), scale=3)
        axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=9, loc="left", pad=3)
        axes.axis("off")


def curve_of(moments, kind):
    return [m["step"] for m in moments], [m[kind][0] for m in moments]


def skips_picture(runs):
    """A figure: the loss of both networks, with the average of the weights, and what each draws at the end."""
    figure = Figure(figsize=(11, 3), dpi=100, layout="constrained")
    grid = figure.add_gridspec(len(runs), 2, width_ratios=[1, 1.9])
    curves(figure.add_subplot(grid[:, 0]), {name: curve_of(moments, "average") for name, moments in runs.items()})
    last = {f"{name}, after {m[-1]['step']:,} steps": m[-1]["average"][1] for name, m in runs.items()}
    rows_of_pictures([figure.add_subplot(grid[i, 1]) for i in range(len(runs))], last)
    return figure


def average_picture(moments):
    """A figure: the losses of raw weights and of their average, and what both draw at each moment, from one noise."""
    figure = Figure(figsize=(15, 0.75 * len(moments) + 1.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(len(moments), 3, width_ratios=[0.9, 1, 1])
    curves(figure.add_subplot(grid[:, 0]), {kind: curve_of(moments, kind) for kind in ("raw", "average")})
    for column, kind in ((1, "raw"), (2, "average")):
        named = {f"{kind}, step {m['step']:,}": m[kind][1] for m in moments}
        rows_of_pictures([figure.add_subplot(grid[i, column]) for i in range(len(moments))], named)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--steps", type=cli.positive_int, help="training steps of each of the two networks")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of a full-size map, a multiple of 8")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of a picture")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of weights, data and noise")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures and tables")
    cli.run(main, parser)
