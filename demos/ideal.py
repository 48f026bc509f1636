"""Look at exact denoisers, without training: the mean of all that is possible, which noise, guidance.

    python demos/ideal.py                                           a second or two
    python demos/ideal.py --checkpoint runs/mnist/checkpoint.npz    with the network beside it

    ideal.png      one x_t with less and less noise, and E[x_0 | x_t] over some thousand training
                   pictures: a blur, until few pictures are left from which x_t may come.  With
                   --checkpoint the network's x_0_hat stands below it (without a label)
    ideal.csv      how many pictures still matter, 1/sum w^2; how far the network is from the mean
    which_noise.png
                   a network predicts all the noise in x_t; of the noise of the last step x_t tells
                   only the share R^2 = beta_t/(1 - alpha_bar_t)
    guidance_in_the_plane.png, .csv
                   eight Gaussians, a class of two: as the scale grows, guided chains move outwards
                   and narrow, and leave the tilted density p(x)^(1 - scale) p(x | class)^scale

The network's x_0_hat at large t is black and white speckle, and not the blur.  Its eps_hat is nearly right there.  But
x_0_hat divides the error of eps_hat by sqrt(alpha_bar_t), which is 0.006 at t = 1000.  The ideal x_0_hat is a mean of
pictures, so it stays in their range.  Read next: exact.py, which contains the formulas.
"""

import textwrap
from functools import partial
from pathlib import Path

import numpy as np
from exact import (
    ExactModel,
    guided_stds,
    ideal_x_0_fn,
    mixture_eps_fn,
    mixture_log_density,
    still_matter,
    told_of_last_noise,
)
from matplotlib.figure import Figure

from tinydiff.app import cli
from tinydiff.app.axes import log_scale
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import save_figure, tile
from tinydiff.app.tables import WIDTH, write_table
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, host_integers, standard_normal, to_numpy
from tinydiff.data import NAMES, load
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    ddpm_step,
    eps_from_x_0,
    q_sample,
    q_x_t_given_x_s,
    sample,
    timestep_pairs,
    unconditional,
    x_0_from_eps,
)

SHARES = (1, 0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.2)  # of T: the times of ideal.png
RADIUS, STD, CLASS = 2.0, 0.4, (1, 2)  # eight Gaussians of this width on a circle, and the two of the class
CENTRES = RADIUS * np.stack([f((np.arange(8) + 0.5) * np.pi / 4) for f in (np.cos, np.sin)], 1)
SCALES = (1.0, 2.0, 4.0, 8.0)
STEPS = {"DDIM": ddim_step, "DDPM": ddpm_step}
POINTS, NUM_STEPS = 1000, 100  # chains in the plane, and their steps
VIEW = 4.5  # the plane is shown, and densities are integrated, within -VIEW..VIEW
GRID = np.linspace(-VIEW, VIEW, 181)


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    checkpoint=None,
    data=None,
    data_dir=None,
    num=5000,
    digit=3,
    seed=0,
    out="runs/ideal",
):
    """Write the pictures and tables.  Returns the rows of ideal.csv and those of guidance_in_the_plane.csv."""
    cli.start(backend, precision, plain=plain)
    names = ("ideal.csv", "ideal.png", "which_noise.png", "guidance_in_the_plane.csv", "guidance_in_the_plane.png")
    out = own_folder(out, *names)
    if checkpoint is not None and data is not None:
        raise TinydiffError(f"--data {data}: the checkpoint names its data; leave it out")
    schedule, network, meta = Schedule.linear(), None, None
    if checkpoint is not None:
        pool, schedule, meta = load_trained(Path(checkpoint), 1)
        network = unconditional(pool.model)
    name, size = (data or "auto", {}) if meta is None else (data_name(meta, EVERY), data_size(meta))
    dataset = load(name, "train", data_dir, seed, num, **size)
    check_memory(f"--num {num}", 24.0 * dataset.images.size)
    digit = host_integers("digit", digit, 0, len(dataset.classes) - 1)
    rows = np.flatnonzero(dataset.known_labels() == digit)
    if not len(rows):
        first = f"the first {len(dataset):,}"
        raise TinydiffError(f"--digit {digit}: no image of class {dataset.classes[digit]} is among {first}")
    pictures, _ = dataset.batch(np.arange(len(dataset)))
    x_0 = pictures[rows[:1]]
    print(f"data: {dataset.source}")

    moments = denoised(schedule, pictures, x_0, times_of(schedule.T), seed, network)
    rows = [figures_of(schedule, moment) for moment in moments]
    print(f"E[x_0 | x_t] over {len(dataset):,} training pictures, for one x_t with less and less noise:")
    write_table(out / "ideal.csv", rows)
    if network is not None:
        print(textwrap.fill(why_they_differ(rows[0]), WIDTH))
    title = f"{dataset.name}: the mean of all pictures that x_t may come from, of {len(dataset):,}"
    save_figure(out / "ideal.png", picture_of(moments, title), 160)

    last = last_noises(schedule, x_0, (2, schedule.T // 10, schedule.T // 2), seed)
    told = ", ".join(f"{share:.2g} at t = {t}" for t, share, *_ in last)
    print(f"of the noise of the last step x_t tells beta_t/(1 - alpha_bar_t): {told}")
    save_figure(out / "which_noise.png", which_noise(schedule, last), 160)

    guided = in_the_plane(seed)
    plane = [row for row, _ in guided]
    print(f"eight Gaussians, a class of two; {POINTS:,} guided chains beside the tilted density:")
    write_table(out / "guidance_in_the_plane.csv", plane)
    stds = ", ".join(f"{what} {std:.3f}" for what, std in guided_stds(2, 1, 0.25).items())
    print(f"in closed form, a class of std 0.5 among data of std 1, scale 2: {stds}")
    save_figure(out / "guidance_in_the_plane.png", plane_picture(guided), 160)
    print(f"pictures: {out}/ideal.png, which_noise.png, guidance_in_the_plane.png")
    return rows, plane


# ------------------------------------------------------------------------------------- the mean of all that is possible


def times_of(T):
    """The times of ideal.png, from T down."""
    return sorted({max(1, round(share * T)) for share in SHARES}, reverse=True)


def denoised(schedule, pictures, x_0, times, seed, network=None):
    """x_t of x_0 (1, H, W, C) at each time, always with the same noise, and what is predicted from it.

    Returns a dictionary for each time: "t", "x_t", "matter", the number of pictures that still matter, and pairs
    (eps_hat, x_0_hat) as "ideal" and, with a network, as "network".  network: None, or eps_fn(x_t, t).
    """
    x_0_fn, x_0 = ideal_x_0_fn(schedule, pictures), asarray(x_0)
    eps, moments = standard_normal(default_rng("ideal", seed), x_0.shape), []
    for t in times:
        x_t = q_sample(schedule, x_0, t, eps)
        x_0_hat, w = x_0_fn(x_t, t)
        moment = {"t": t, "x_t": to_numpy(x_t), "matter": float(still_matter(w)[0])}
        moment["ideal"] = to_numpy(eps_from_x_0(schedule, x_t, t, x_0_hat)), to_numpy(x_0_hat)
        if network is not None:
            with no_grad():
                eps_hat = network(x_t, t)
            moment["network"] = to_numpy(eps_hat), to_numpy(x_0_from_eps(schedule, x_t, t, eps_hat))
        moments.append(moment)
    return moments


def figures_of(schedule, moment):
    """The row of ideal.csv: with a network, also how far its predictions are from the ideal ones (root mean square)."""
    t = moment["t"]
    row = {"t": t, "sqrt(alpha_bar_t)": f"{schedule.alpha_bar[t] ** 0.5:.4f}"}
    row["pictures that matter"] = rounded(moment["matter"])
    if "network" in moment:
        for i, name in enumerate(("eps_hat", "x_0_hat")):
            row[f"network from ideal, {name}"] = f"{rms(moment['network'][i] - moment['ideal'][i]):.3g}"
    return row


def rounded(number):
    """A number of pictures as text, with one decimal below 100."""
    return f"{number:,.1f}" if number < 99.95 else f"{number:,.0f}"


def rms(a):
    """The root of the mean square."""
    return float((a.astype("float64") ** 2).mean()) ** 0.5


def why_they_differ(row):
    """A sentence on the first row of the table, the one with the most noise."""
    of_eps, of_x_0 = row["network from ideal, eps_hat"], row["network from ideal, x_0_hat"]
    return (
        f"At t = {row['t']} the network's eps_hat is off by {of_eps}.  x_0_hat divides this by sqrt(alpha_bar_t) = "
        f"{row['sqrt(alpha_bar_t)']} and is off by {of_x_0}: speckle, where pictures lie in -1..1."
    )


def picture_of(moments, title):
    """A figure: a column for each time, with x_t, the ideal x_0_hat and, if there is one, the network's."""
    rows = {"x_t": [m["x_t"] for m in moments], "ideal x_0_hat": [m["ideal"][1] for m in moments]}
    if "network" in moments[0]:
        rows["network's x_0_hat"] = [m["network"][1] for m in moments]
    heads = [f"t = {m['t']}\n{rounded(m['matter'])} matter" for m in moments]
    figure = Figure(figsize=(1.6 + len(moments), 0.8 + 1.03 * len(rows)), dpi=100, layout="constrained")
    show_pictures(figure.subplots(), rows, heads)
    figure.suptitle(title, fontsize=11)
    return figure


def show_pictures(axes, rows, heads):
    """Rows {name: pictures, each (1, H, W, C)} on axes, with the name of each row, and a head for each column."""
    images = np.concatenate([image for row in rows.values() for image in row])
    n, k, (_, h, w, _) = len(rows), len(heads), images.shape
    axes.imshow(tile(images, k), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([j * (w + 1) + w / 2 for j in range(k)], heads)
    axes.set_yticks([i * (h + 1) + h / 2 for i in range(n)], rows)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=9)
    axes.spines[:].set_visible(False)


# -------------------------------------------------------------------------------------------------------- which noise?


def last_noises(schedule, x_0, times, seed):
    """(t, R^2, x_t, z, eps) for each time: the noise z of the step t - 1 -> t, and all the noise eps in x_t.

    x_0: (1, H, W, C).  The arrays have its shape, on the host.  Times below 2 are left out: there is one noise only.
    """
    x_0, found = asarray(x_0), []
    for t in times:
        if t < 2:
            continue
        before, z = (standard_normal(default_rng(word, seed, t), x_0.shape) for word in ("before", "last"))
        mean, var = q_x_t_given_x_s(schedule, q_sample(schedule, x_0, t - 1, before), t - 1, t)
        x_t = mean + var**0.5 * z
        eps = eps_from_x_0(schedule, x_t, t, x_0)
        found.append((t, float(told_of_last_noise(schedule, t)), *(to_numpy(a) for a in (x_t, z, eps))))
    return found


def which_noise(schedule, last):
    """A figure: for each t pictures of both noises, and each pixel's pair of them; at the right R^2 over t."""
    figure = Figure(figsize=(11, 0.8 + 1.6 * len(last)), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    heads, grid = ["x_t", "z", "eps", "R eps"], left.subplots(len(last), 2, squeeze=False, width_ratios=(3.4, 1))
    for i, (axes, (t, share, x_t, z, eps)) in enumerate(zip(grid, last)):
        noises = [x_t, *(a / 3 for a in (z, eps, share**0.5 * eps))]  # grey is 0, white is +3
        show_pictures(axes[0], {f"t = {t}": noises}, heads if i == 0 else [""] * len(heads))
        scatter = axes[1]
        scatter.plot(eps.reshape(-1), z.reshape(-1), ".", ms=2, color="C0")
        scatter.plot([-3, 3], [-3 * share**0.5, 3 * share**0.5], color="C3", lw=1.5)
        scatter.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[-2, 0, 2], yticks=[-2, 0, 2], aspect="equal")
        scatter.set_title(f"z over eps, R^2 = {share:.2g}", fontsize=9)
        scatter.tick_params(labelsize=8)
    axes, t = right.subplots(), np.arange(1, schedule.T + 1)
    axes.plot(t, told_of_last_noise(schedule, t), lw=1.8)
    axes.plot([row[0] for row in last], [row[1] for row in last], "o", color="C3")
    axes.set_xlabel("t")
    axes.set_title("R^2 = beta_t/(1 - alpha_bar_t):\nthe share of z that x_t tells", fontsize=10)
    log_scale(axes, "x")
    log_scale(axes, "y")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    what = "z: the noise of the last step;  eps: all the noise in x_t, which a network predicts"
    figure.suptitle(f"{what};  R eps: the best guess at z", fontsize=11)
    return figure


# ------------------------------------------------------------------------------------------------ guidance in the plane


def plane_model(schedule):
    """The exact denoisers of the eight Gaussians: label 0 is the class of two, label 1 is "no label"."""
    both = (CENTRES[list(CLASS)], CENTRES)
    return ExactModel([mixture_eps_fn(schedule, np.full(len(c), 1 / len(c)), c, STD**2) for c in both])


def tilted(x, scale):
    """log p(x)^(1 - scale) p(x | class)^scale at each row of x (N, 2), up to a constant."""
    of_class, of_all = (
        mixture_log_density(x, np.full(len(c), 1 / len(c)), c, STD**2) for c in (CENTRES[list(CLASS)], CENTRES)
    )
    return (1 - scale) * of_all + scale * of_class


def lump_figures(x, w):
    """(radius, spread) of points x (N, 2) with weights w (N,): mean distance from 0, and width of each lump.

        spread^2 = mean of |x - mean of its lump|^2/2

    A lump: the points that are nearest to one of the two centres of the class.
    """
    w = w / w.sum()
    of = ((x[:, None] - CENTRES[list(CLASS)]) ** 2).sum(2).argmin(1)
    var = 0.0
    for k in set(of.tolist()):
        points, share = x[of == k], w[of == k]
        mean = (points * share[:, None]).sum(0) / share.sum()
        var += float((((points - mean) ** 2).sum(1) / 2 * share).sum())
    return float((np.hypot(*x.T) * w).sum()), var**0.5


def in_the_plane(seed):
    """[(row of the table, points (POINTS, 2))] for each sampler and scale: guided chains and the tilted density."""
    schedule = Schedule.linear()
    model, places, found = plane_model(schedule), np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 2), []
    for name, step in STEPS.items():
        for scale in SCALES:
            x_T, log_p = standard_normal(default_rng("plane", seed), (POINTS, 2), "float64"), tilted(places, scale)
            pairs, rng = timestep_pairs(schedule.T, NUM_STEPS), default_rng("way", seed)
            *_, (_, x_0, _) = sample(partial(step, schedule), classifier_free(model, 0, scale), pairs, x_T, rng)
            x_0 = to_numpy(x_0)
            radius, spread = lump_figures(x_0, np.ones(POINTS))
            of_density = lump_figures(places, np.exp(log_p - log_p.max()))
            row = {"sampler": name, "scale": f"{scale:g}", "radius": f"{radius:.2f}", "spread": f"{spread:.2f}"}
            row |= {"radius of the density": f"{of_density[0]:.2f}", "spread of the density": f"{of_density[1]:.2f}"}
            found.append((row, x_0))
    return found


def plane_picture(guided):
    """A figure: a row for each sampler, a column for each scale: the points on the tilted density."""
    figure = Figure(figsize=(11, 6.4), dpi=100, layout="constrained")
    places = np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 2)
    for axes, (row, x) in zip(figure.subplots(len(STEPS), len(SCALES)).flat, guided):
        log_p = tilted(places, float(row["scale"]))
        density = np.exp(log_p - log_p.max()).reshape(len(GRID), len(GRID))
        axes.imshow(density, cmap="Blues", vmax=1.3, origin="lower", extent=(-VIEW, VIEW, -VIEW, VIEW))
        axes.scatter(*CENTRES.T, s=14, marker="+", color="0.5", lw=0.8)
        axes.scatter(*x.T, s=1.5, color="C3")
        axes.set(xlim=(-2.7, 2.7), ylim=(-1, VIEW), xticks=[], yticks=[], aspect="equal")
        figures = f"radius {row['radius']} ({row['radius of the density']})"
        spread = f"spread {row['spread']} ({row['spread of the density']})"
        axes.set_title(f"{row['sampler']}, scale {row['scale']}\n{figures}, {spread}", fontsize=9)
    what = "red: guided chains with exact scores; blue, and in brackets: the tilted density"
    figure.suptitle(f"a class of two among eight Gaussians, {what}", fontsize=11)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    trained = "checkpoint.npz of train_mnist.py, to compare with (default: none)"
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", help=trained)
    named = "auto: MNIST, or drawn digits if MNIST cannot be loaded (default: auto, or the checkpoint's data)"
    parser.add_argument("--data", choices=NAMES, help=named)
    cli.add_data_dir(parser)
    parser.add_argument("--num", type=cli.whole(2, 50_000), help="training pictures that x_t may come from")
    parser.add_argument("--digit", type=cli.whole(0, 9), help="the class of the picture that is noised")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures and tables")
    cli.run(main, parser)
