"""Train a small network on points in the plane (moons, a spiral, eight Gaussians), and draw points from noise.

    python demos/points_2d.py                          some 25 s a set
    python demos/points_2d.py --data spiral --target v
    python demos/points_2d.py --target flow           rectified flow: straight paths

    points_2d_SET.png   paths of particles, samples beside held-out data, the field at six times
    points_2d.gif       the moving particles
    results.csv         the two-sample test that compares samples with held-out data

Ctrl-C, SIGTERM and SIGHUP save and end a training; the same command with --resume continues it.

In two dimensions everything can be seen.  The network below has 25 lines; its batch and its loss have 15.  The process,
the samplers, the training loop and the optimizer are those of the digits, because they work on arrays of any shape.

Points are drawn twice.  The particles of the pictures follow DDIM, which draws no noise.  The field -v_hat(x_t, t)
carries each particle.  This field is the velocity of the probability flow (Song et al. 2021, Score-Based Generative
Modeling, eq. 13) with respect to the angle phi, where alpha_bar_t = cos(phi)^2.  The samples take all T steps of DDPM;
the fresh noise of each step reduces the errors of earlier steps.  Do the samples have the distribution of the data?
The energy distance of two distributions is 0 only if the two are equal.  Random relabelling of the points measures how
large the distance of two sets becomes by chance alone (Szekely & Rizzo 2013).
"""

import math
import time
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from tinydiff import ops
from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.fit import any_training, finish
from tinydiff.app.generate import check_steps
from tinydiff.app.kinds import SCHEDULES, default_schedule
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import save_figure
from tinydiff.app.run import check_batch
from tinydiff.app.tables import write_table
from tinydiff.app.training import drawing
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, standard_normal, to_numpy, xp
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import (
    ddim_step,
    ddpm_step,
    q_sample,
    sample,
    timestep_pairs,
    v_from_x_0_eps,
    x_0_from_eps,
)
from tinydiff.diffusion.targets import TARGETS, as_eps_fn
from tinydiff.nn import Linear, Module
from tinydiff.nn.unet import time_code
from tinydiff.train import LoopConfig

T = 1000
WIDTH, BLOCKS, TIME_FEATURES, OCTAVES = 128, 3, 64, 3  # of the network
STEPS = {"ddim": ddim_step, "ddpm": ddpm_step}
SLICE = 250  # points that a worker draws at a time
PERMUTATIONS = 999
VIEW = 3.0  # pictures show the square of -VIEW..VIEW
_INNER = np.linspace(-VIEW, VIEW, 23)[1:-1]
GRID = np.stack(np.meshgrid(_INNER, _INNER), -1).reshape(-1, 2).astype(np.float32)  # where the field is shown
FILM_COLOURS = 24


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    data="all",
    target="eps",
    steps=6000,
    batch_size=256,
    sample_steps=200,
    num=1000,
    seed=0,
    workers=None,
    out="runs/points_2d",
    resume=False,
):
    """Train on each set, draw num points, compare them with num held-out points.  Returns the rows of results.csv."""
    ranks = cli.start(backend, precision, plain=plain)
    check_steps(T, sample_steps=sample_steps)
    if num < 2:
        raise TinydiffError(f"--num {num}: a two-sample test needs 2 points or more")
    check_memory(f"--num {num}", 96.0 * num**2 + 20.0 * num * T)  # differences of all pairs of points, and paths
    check_batch(batch_size, (WIDTH, 1))
    names = list(SETS) if data == "all" else [data]
    out = own_folder(out, "points_2d.gif", "results.csv", *(f"points_2d_{name}.png" for name in names))
    schedule, way = SCHEDULES[default_schedule(target)](T), TARGETS[target]
    rows, films = [], {}
    settings = {"target": target, "steps": steps, "batch_size": batch_size, "seed": seed}
    for name in names:
        began = time.monotonic()
        with ranks.workers(partial(PointNet, seed), workers or ranks.default_workers(2)) as pool:
            state = training_of(pool, SETS[name], schedule, way, steps, batch_size, seed)
            finish(state, pool, out / f"unfinished_{name}.npz", settings | {"data": name}, resume, name)
            seconds = time.monotonic() - began
            with drawing(pool, state):
                flows = flows_of(pool, schedule, way, sample_steps, num, seed)
                moments = moments_of(schedule, eps_fn_of(pool.model, schedule, way), flows["ddim"])
        real, more_real = held_out(SETS[name], num, seed)
        found = verdicts(flows, real, more_real, seed)
        head = {"data": name, "target": target, "seed": seed, "steps": state.step, "seconds": round(seconds, 1)}
        rows += [head | {"points": num, "sampler": sampler} | cells(found[sampler]) for sampler in found]
        films[name] = flows["ddim"]
        title = f"{name}: target {target}, {cli.counted(state.step, 'training step')}"
        _, samples = flows["ddpm"][-1]
        figure = portrait(flows["ddim"], moments, samples, real, title, found["ddpm"])
        save_figure(out / f"points_2d_{name}.png", figure, 128)
    save_film(out / "points_2d.gif", *film(films))
    write_table(out / "results.csv", rows)
    for name in names:
        (out / f"unfinished_{name}.npz").unlink()
    print(f"done: open {out}/points_2d.gif and points_2d_{names[0]}.png; table: {out}/results.csv")
    print(f"next: {cli.command(Path(__file__).with_name('waves_1d.py'))}")
    return rows


# The data: each generator draws n points, (n, 2) float32, from a host generator.  Both axes spread by about 1.


def moons(rng, n):
    """Two half circles of radius sqrt(2), with noise of std 0.1.  Each is the other, turned by 180 degrees about 0.

    x = +-sqrt(2) (cos a - 1/2, sin a - 1/4) + 0.1 z,  a uniform on 0..pi
    """
    a, side = rng.uniform(0, np.pi, n), rng.choice([-1, 1], n)
    return _noisy(rng, 2**0.5 * side * (np.cos(a) - 0.5), 2**0.5 * side * (np.sin(a) - 0.25), 0.1)


def spiral(rng, n):
    """One arm of 2 1/4 turns out to radius 2, with about the same density everywhere and noise of std 0.05.

    x = 2 r (cos a, sin a) + 0.05 z,  a = 4.5 pi r,  r^2 uniform on 0..1
    """
    r = np.sqrt(rng.random(n))
    return _noisy(rng, 2 * r * np.cos(4.5 * np.pi * r), 2 * r * np.sin(4.5 * np.pi * r), 0.05)


def mixture(rng, n):
    """Eight Gaussians of std 0.1 on a circle of radius sqrt(2), equally likely."""
    a = rng.integers(8, size=n) * np.pi / 4
    return _noisy(rng, 2**0.5 * np.cos(a), 2**0.5 * np.sin(a), 0.1)


SETS = {"moons": moons, "spiral": spiral, "mixture": mixture}


def _noisy(rng, x, y, std):
    return (np.stack([x, y], 1) + std * rng.standard_normal((len(x), 2))).astype(np.float32)


# The network, its batch and its loss.


class PointNet(Module):
    """prediction = model(x_t, t), (N, 2) -> (N, 2): residual blocks on features of the point; each block adds t.

        h = W [x_t, sin(1.5 x_t), cos(1.5 x_t), sin(3 x_t), ...]
        h <- h + B_i silu(A_i silu(h + code(t)))          for each block
        prediction = W' silu(h)

    The sines let the prediction change over short distances (Tancik et al. 2020).  t: an integer or (N,) integers in
    0..T.
    """

    def __init__(self, seed):
        rng = default_rng("weights", seed)
        self.codes = to_numpy(time_code(range(T + 1), TIME_FEATURES))
        self.inner = Linear(2 + 4 * OCTAVES, WIDTH, rng=rng)
        self.time = Linear(TIME_FEATURES, WIDTH, rng=rng)
        self.a = [Linear(WIDTH, WIDTH, rng=rng) for _ in range(BLOCKS)]
        self.b = [Linear(WIDTH, WIDTH, rng=rng, zero=True) for _ in range(BLOCKS)]
        self.outer = Linear(WIDTH, 2, rng=rng, zero=True)

    def forward(self, x_t, t):
        x_t = asarray(x_t)
        waves = [wave(x_t * (1.5 * 2**k)) for k in range(OCTAVES) for wave in (xp.sin, xp.cos)]
        h = self.inner(Tensor(xp.concatenate([x_t, *waves], 1)))
        code = self.time(Tensor(asarray(self.codes[np.atleast_1d(t)])))  # (N, WIDTH), or (1, WIDTH) for one t
        for a, b in zip(self.a, self.b):
            h = h + b(ops.silu(a(ops.silu(h + code))))
        return self.outer(ops.silu(h))


def draw_batch(points, schedule, target, config, step):
    """The examples of 0-based `step`, on the host: x_t and target (B, 2) float32, and t (B,).

    Every batch contains new points.  So the network cannot memorize points, and points drawn later are held-out data.
    """
    n, rng = config.batch_size, default_rng("batch", config.seed, step)
    x_0 = points(rng, n)
    t = rng.integers(1, schedule.T + 1, n)
    eps = rng.standard_normal(x_0.shape, dtype="float32")
    return {"x_t": q_sample(schedule, x_0, t, eps), "t": t, "target": target.of(schedule, x_0, t, eps)}


def squared_errors(model, batch):
    """The loss of each example (N,): mean of (prediction - target)^2 over the coordinates."""
    error = model(batch["x_t"], batch["t"]) - asarray(batch["target"])
    return ops.mean(error * error, axis=1)


def training_of(pool, points, schedule, target, num_steps, batch_size, seed):
    """The workers' Training on points (Ho et al. 2020, algorithm 1, with any target); gradients are not clipped."""
    config = LoopConfig(num_steps, batch_size, peak_lr=2e-3, clip_norm=math.inf, ema_decay=0.999, seed=seed)
    draw = partial(draw_batch, points, schedule, target)
    return any_training(pool, squared_errors, draw, config)


def eps_fn_of(model, schedule, target):
    return as_eps_fn(target, schedule, lambda x_t, t: asarray(model(x_t, t)))


def draw(step, schedule, target, pairs, model, job):
    """The paths of n particles from noise to data, (len(pairs) + 1, n, 2) on the host.  job: n, name of the stream."""
    n, name = job
    rng = default_rng("sample", *name)
    x_T = standard_normal(rng, (n, 2))
    with no_grad():
        walk = sample(partial(step, schedule), eps_fn_of(model, schedule, target), pairs, x_T, rng)
        return np.stack([to_numpy(x_T), *(to_numpy(x_t) for _, x_t, _ in walk)])


def flows_of(pool, schedule, target, sample_steps, num, seed):
    """{sampler: its flow}, with the present weights of the workers.  DDIM takes sample_steps steps, DDPM all T.

    A flow is a list of (t, x_t) from t = T down to 0, with x_t (num, 2), the places of the particles.
    """
    jobs = [(min(SLICE, num - i), (seed, i // SLICE)) for i in range(0, num, SLICE)]
    pairs = {"ddim": timestep_pairs(schedule.T, sample_steps), "ddpm": timestep_pairs(schedule.T, schedule.T)}
    flows = {}
    for sampler, step in STEPS.items():
        paths = pool.map(partial(draw, step, schedule, target, pairs[sampler]), jobs)
        times = [schedule.T, *(s for _, s in pairs[sampler])]
        flows[sampler] = list(zip(times, np.concatenate(list(paths), 1)))  # slices side by side: (K, num, 2)
    return flows


def flow_velocity(schedule, eps_fn, x_t, t):
    """-v_hat(x_t, t), (N, 2) on the host: how the probability flow moves a point as its noise fades."""
    x_t = asarray(x_t)
    with no_grad():
        eps_hat = eps_fn(x_t, t)
        return -to_numpy(v_from_x_0_eps(schedule, x_0_from_eps(schedule, x_t, t, eps_hat), t, eps_hat))


# The two-sample test, in plain NumPy.


def held_out(points, num, seed):
    """Two sets of num points, drawn apart from all batches: one to compare samples with, one for the floor."""
    return [points(default_rng(word, seed), num) for word in ("held out", "held out too")]


def verdicts(flows, real, more_real, seed):
    """{sampler: (distance of the samples from real points, its p, distance of other real points: the floor)}."""
    floor, found = energy_distance(more_real, real), {}
    for sampler, flow in flows.items():
        _, samples = flow[-1]
        found[sampler] = (*energy_test(samples, real, default_rng("permutations", seed)), floor)
    return found


def cells(verdict):
    """A verdict as cells of the table."""
    distance, p, floor = verdict
    return {"energy distance": f"{distance:.5f}", "of real": f"{floor:.5f}", "p": round(p, 3)}


def energy_distance(x, y):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over the points of two sets, x (n, d), y (m, d) (Szekely & Rizzo 2013, eq. 6).

    The distance is at least 0, and it is 0 if both sets have the same points.  For two samples of one distribution it
    falls as 1/n + 1/m.
    """
    return float(max(0.0, _energy(_distances(x, y), _signs(x, y)[None])[0]))  # rounding may give -1e-16


def energy_test(x, y, rng, permutations=PERMUTATIONS):
    """The energy distance, and its p-value: the share of random relabellings with a distance at least as large.

    p = (1 + #{relabelled >= observed}) / (1 + permutations), uniform on the multiples of 1/(1 + permutations) if x
    and y have the same distribution.
    """
    signs = _signs(x, y)
    relabelled = np.stack([signs, *(rng.permutation(signs) for _ in range(permutations))])
    distances = _energy(_distances(x, y), relabelled)
    p = np.mean(distances >= distances[0] - 1e-12)  # 1e-12: equal up to rounding
    return float(max(0.0, distances[0])), float(p)


def _distances(x, y):
    points = np.concatenate([x, y]).astype(np.float64)
    return np.sqrt(((points[:, None] - points) ** 2).sum(-1))


def _signs(x, y):
    return np.repeat([1 / len(x), -1 / len(y)], [len(x), len(y)])


def _energy(distances, signs):
    """-sum_ij s_i |z_i - z_j| s_j for each row s of signs: all relabellings in one product."""
    return -np.sum(signs @ distances * signs, 1)


# Pictures.


def moments_of(schedule, eps_fn, flow, num=6):
    """At most num moments of the flow, evenly spread in the angle: (t, std of the noise, x_t, velocity on GRID)."""
    chosen = [flow[k] for k in _evenly_in_angle(schedule, flow[:-1], num)]
    return [
        (t, schedule.one_minus_alpha_bar[t] ** 0.5, x_t, flow_velocity(schedule, eps_fn, GRID, t)) for t, x_t in chosen
    ]


def portrait(flow, moments, samples, real, title, verdict):
    """A figure: trajectories, samples beside held-out data, and the field at six moments of the flow."""
    figure = Figure(figsize=(8, 9.6), dpi=100, layout="constrained", facecolor="white")
    panels = figure.subplot_mosaic([["way"] * 3 + ["end"] * 3] * 3 + [[i // 2 for i in range(6)]] * 2 +
                                   [[3 + i // 2 for i in range(6)]] * 2)  # fmt: skip
    path = np.stack([x_t for _, x_t in flow])[:, :120]  # (K, N, 2)
    for i, colour in enumerate(_colours(path[0])):
        panels["way"].plot(*path[:, i].T, color=colour, lw=0.7, alpha=0.8)
    panels["way"].scatter(*path[0].T, s=5, color="0.6", zorder=3)
    panels["way"].scatter(*path[-1].T, s=5, color="black", zorder=3)
    panels["way"].set_title("from noise (grey) to data (black)", fontsize=10)
    panels["end"].scatter(*real.T, s=4, color="0.65", label=f"{len(real):,} held-out points")
    outside = int((abs(samples) > VIEW).any(1).sum())
    label = f"{len(samples):,} samples" + (f", {outside:,} of them outside" if outside else "")
    panels["end"].scatter(*samples.T, s=4, color="C3", label=label)
    distance, p, floor = verdict
    panels["end"].set_title(f"energy distance {distance:.4g}, real {floor:.4g}, p = {p:.2f}", fontsize=10)
    panels["end"].legend(fontsize=8, loc="upper right", framealpha=0.9, borderpad=0.3, handletextpad=0.1)
    for panel in range(len(moments), 6):
        panels[panel].set_axis_off()  # with few steps some stay empty
    for panel, (t, noise_std, x_t, velocity) in enumerate(moments):
        speed = np.linalg.norm(velocity, axis=1)
        axes = panels[panel]
        axes.scatter(*x_t[:500].T, s=1.5, color="0.75")
        arrows = velocity / speed[:, None].clip(1e-6)
        axes.quiver(*GRID.T, *arrows.T, speed, cmap="viridis_r", clim=(0, 3), scale=30, width=0.006, headwidth=4)
        axes.set_title(f"t = {t}, noise {noise_std:.2f}", fontsize=9)
    for axes in panels.values():
        axes.set(xlim=(-VIEW, VIEW), ylim=(-VIEW, VIEW), xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")
        axes.tick_params(labelsize=7, length=2)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("below: the way that the flow carries a point at that time, dark = fast", fontsize=9)
    return figure


def film(flows, side=240, num=700, frames=48):
    """The frames of a film of num particles of each set, side by side, from noise to data: (pictures, captions, times).

    flows: {name: flow}, all with the same schedule and number of steps.  A picture (side, side len(flows)) uint8 has 0
    for white and 2, 3, ... for the colour of a particle, which shows where it started.  captions: a list for each
    picture, one for each set.  times: of each picture in milliseconds, the first and the last one longer.
    """
    pictures, captions = [], []
    count = len(next(iter(flows.values())))
    for k in np.unique(np.linspace(0, count - 1, frames).astype(int)):
        canvas = np.zeros((side, side * len(flows)), np.uint8)
        for i, flow in enumerate(flows.values()):
            start, x_t = flow[0][1][:num], flow[k][1][:num]
            index = 2 + (_angle(start) * FILM_COLOURS).astype(np.uint8) % FILM_COLOURS
            column, row = np.rint((x_t * [1, -1] / VIEW + 1) / 2 * (side - 1)).astype(int).T
            inside = (row >= 0) & (row < side - 1) & (column >= 0) & (column < side - 1)
            for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                canvas[row[inside] + down, i * side + column[inside] + right] = index[inside]
        pictures.append(canvas)
        captions.append([f"{name}, t = {flow[k][0]}" for name, flow in flows.items()])
    return pictures, captions, ([800] + (len(pictures) - 2) * [70] + [2500])[: len(pictures)]


def save_film(path, pictures, captions, times):
    """Write the frames of `film` as a looping .gif, each caption above its set."""
    hues = np.rint(255 * colormaps["hsv"](np.arange(FILM_COLOURS) / FILM_COLOURS))[:, :3]
    palette = [255, 255, 255, 60, 60, 60, *map(int, hues.ravel())]  # white, the ink of the captions, the particles
    images = []
    for canvas, texts in zip(pictures, captions):
        image = Image.fromarray(canvas)
        image.putpalette(palette)
        for i, text in enumerate(texts):
            ImageDraw.Draw(image).text((i * canvas.shape[1] // len(texts) + 6, 4), text, fill=1)
        images.append(image)
    with atomic_write(path) as file:
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0)


def _angle(x):
    """The direction of each point from the origin, in turns, 0..1."""
    return np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi) % 1


def _colours(x):
    return colormaps["hsv"](_angle(x))


def _evenly_in_angle(schedule, flow, num):
    """Indices of at most num moments of the flow, spread over phi, alpha_bar_t = cos(phi)^2, without the ends."""
    angles = np.array([np.arccos(schedule.alpha_bar[t] ** 0.5) for t, _ in flow])
    return sorted({int(abs(angles - phi).argmin()) for phi in np.linspace(1.45, 0.1, num)})


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--data", choices=[*SETS, "all"], help="which set, or all of them in turn")
    parser.add_argument("--target", choices=TARGETS, help="what the network is trained to predict")
    parser.add_argument("--steps", type=cli.positive_int, help="how many batches to train on")
    parser.add_argument("--batch-size", type=cli.positive_int, help="points a step")
    parser.add_argument("--sample-steps", type=cli.positive_int, help=f"steps of DDIM, at most {T}")
    parser.add_argument("--flow-steps", dest="sample_steps", type=cli.positive_int, help=cli.HIDDEN)
    parser.add_argument("--num", type=cli.whole(2, 5000), help="number of points to draw and to hold out")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of all random numbers")
    most = "processes that share the work (default: all cores, at most 2)"
    parser.add_argument("--workers", type=cli.positive_int, help=most)
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    cli.run(main, parser)
