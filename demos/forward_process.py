"""Look at the forward process: how a digit becomes noise, and what a schedule changes.

    python demos/forward_process.py                        takes a few seconds

    noising.png                one digit under each schedule, from the data to noise
    schedules.png              remaining signal and signal-to-noise ratio of each schedule over time
    chain_and_closed_form.png  1,000 small steps and one jump with the same noise: the same picture
    chain_statistics.png       mean and standard deviation of many chains beside the closed form

Read next: tinydiff/diffusion/schedule.py and gaussian.py, which contain every formula used here.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import tile
from tinydiff.backend import TinydiffError, asarray, default_rng, host_integers, standard_normal, to_numpy, xp
from tinydiff.data import NAMES, load
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import Schedule, q_sample, q_x_t_given_x_s

SCHEDULES = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "quadratic": Schedule.quadratic,
    "sigmoid": Schedule.sigmoid,
    "constant": Schedule.constant,
}


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    out="runs/forward_process",
    data="auto",
    data_dir=None,
    digit=3,
    seed=0,
    chains=4000,
):
    """Write the four pictures to `out`, and print how much the chain and the closed form differ."""
    cli.start(backend, precision, plain=plain)
    check_memory(f"--chains {chains}", 100.0 * chains)
    out = own_folder(out, "noising.png", "schedules.png", "chain_and_closed_form.png", "chain_statistics.png")
    dataset = load(data, data_dir=data_dir, seed=seed, num=1000)  # enough to contain a picture of each class
    digit = host_integers("digit", digit, 0, len(dataset.classes) - 1)
    name = dataset.classes[digit]
    rows = np.flatnonzero(dataset.known_labels() == digit)
    if not len(rows):
        raise TinydiffError(f"--digit {digit}: no image of class {name} is among the first {len(dataset):,}")
    x_0 = asarray(dataset.batch(rows[:1])[0])
    schedules = {name: make() for name, make in SCHEDULES.items()}
    linear = schedules["linear"]
    print(f"data: {dataset.source}")

    _write(out / "noising.png", noising(schedules, x_0, seed, name))
    _write(out / "schedules.png", curves(schedules))
    figure, gap = chain_and_closed_form(linear, x_0, seed, name)
    _write(out / "chain_and_closed_form.png", figure)
    print(f"{linear.T:,} steps and one jump with the same noise differ by {gap:.1e} at most, float32's rounding")
    figure, error = chain_statistics(linear, chains, seed)
    _write(out / "chain_statistics.png", figure)
    means = f"the means of {cli.counted(chains, 'chain')} lie within {error:.1f} standard errors of the closed form"
    print(f"{means} (chance: up to 4)")
    print(f"pictures: {out}/noising.png, schedules.png, chain_and_closed_form.png, chain_statistics.png")


def noising(schedules, x_0, seed, name):
    """A figure: one row for each schedule, one column for each time, the same noise everywhere."""
    eps = standard_normal(default_rng(seed), x_0.shape)
    times = _evenly(schedules["linear"].T, 11)
    rows = [[q_sample(schedule, x_0, t, eps) for t in times] for schedule in schedules.values()]
    title = f"x_t of one picture of class {name} under each schedule, with the same noise in all"
    return _picture_table(rows, list(schedules), times, title)


def chain_and_closed_form(schedule, x_0, seed, name):
    """A figure, and the largest difference between the Markov chain and the closed form with the chain's own noise.

    A second chain with the same draws starts from 0 and collects the noise.  At time t its value is
    sqrt(1 - alpha_bar_t) eps.  The closed form uses this eps.
    """
    rng, times = default_rng(seed), _evenly(schedule.T, 11)
    x_t, noise_t = x_0, 0 * x_0
    chain, jump = [x_0], [x_0]
    for t in range(1, schedule.T + 1):
        z = standard_normal(rng, x_0.shape)
        (mean, var), (noise_mean, _) = (q_x_t_given_x_s(schedule, x, t - 1, t) for x in (x_t, noise_t))
        x_t, noise_t = mean + xp.sqrt(var) * z, noise_mean + xp.sqrt(var) * z
        if t in times:
            chain.append(x_t)
            jump.append(q_sample(schedule, x_0, t, noise_t / schedule.one_minus_alpha_bar[t].item() ** 0.5))
    gap = max(float(abs(a - b).max()) for a, b in zip(chain, jump))
    magnified = [(a - b) * 1e5 for a, b in zip(chain, jump)]
    row_names = [f"{schedule.T:,} steps", "one jump", "difference\nx 100,000"]
    title = f"class {name}: the chain x_t, and one jump to x_t from x_0 with the noise that the chain has drawn until t"
    return _picture_table([chain, jump, magnified], row_names, times, title), gap


def chain_statistics(schedule, chains, seed):
    """A figure of mean and standard deviation over many Markov chains, and the largest error in standard errors."""
    grey_levels = {"white pixel, x_0 = 1": 1.0, "grey pixel, x_0 = 0.2": 0.2, "black pixel, x_0 = -1": -1.0}
    colours = colormaps["viridis"](np.linspace(0.75, 0, len(grey_levels)))
    rng, times = default_rng(seed), _evenly(schedule.T, 21)
    start = np.array(list(grey_levels.values()), dtype=np.float32)
    x_t = asarray(np.broadcast_to(start, (chains, len(start))))
    means, stds = [start], [0 * start]
    for t in range(1, schedule.T + 1):
        mean, var = q_x_t_given_x_s(schedule, x_t, t - 1, t)
        x_t = mean + xp.sqrt(var) * standard_normal(rng, x_t.shape)
        if t in times:
            means.append(to_numpy(x_t.mean(0)))
            stds.append(to_numpy(x_t.std(0)))
    t = np.arange(schedule.T + 1)
    true_mean = schedule.alpha_bar[:, None] ** 0.5 * start
    true_std = schedule.one_minus_alpha_bar**0.5
    error = np.abs(np.array(means) - true_mean[times])[1:] / (true_std[times][1:, None] / chains**0.5)

    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (label, colour) in enumerate(zip(grey_levels, colours)):
        left.plot(t, true_mean[:, k], color=colour, lw=1.5, label=label)
        left.plot(times, np.array(means)[:, k], "o", color=colour, ms=4)
        right.plot(times, np.array(stds)[:, k], "o", color=colour, ms=4)
    right.plot(t, true_std, color="0.3", lw=1.5, zorder=0, label="sqrt(1 - alpha_bar_t), the same for every pixel")
    _dress(left, "mean of x_t", "t")
    _dress(right, "standard deviation of x_t", "t")
    dots = f"dots: {cli.counted(chains, 'Markov chain')}, step by step"
    figure.suptitle(f"lines: q(x_t | x_0) in closed form.  {dots}", fontsize=12)
    return figure, float(error.max())


def curves(schedules):
    """A figure of sqrt(alpha_bar_t) and of the log signal-to-noise ratio over t for each schedule."""
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ["-", "-", "-", "--", ":"]
    for (name, schedule), style in zip(schedules.items(), styles):
        t = np.arange(schedule.T + 1)
        left.plot(t, schedule.alpha_bar**0.5, style, lw=1.8, label=name)
        right.plot(t[1:], schedule.log_snr[1:], style, lw=1.8, label=name)
    right.axhline(0, color="0.6", lw=0.8)
    right.text(schedules["linear"].T, 0.3, "as much noise as signal", ha="right", color="0.4", fontsize=9)
    _dress(left, "sqrt(alpha_bar_t): how much of x_0 is left in x_t", "t")
    _dress(right, "log SNR = log(alpha_bar_t / (1 - alpha_bar_t))", "t")
    right.set_ylim(-14, 11)
    return figure


def _evenly(T, num):
    """`num` times, evenly spread from 0 to T; fewer if T is small."""
    return sorted({i * T // (num - 1) for i in range(num)})


def _picture_table(rows, row_names, times, title):
    """A figure of images rows[i][j] (1, H, W, 1), with the name of each row at the left and the times on top."""
    images = np.concatenate([to_numpy(image) for row in rows for image in row])
    _, h, w, _ = images.shape
    n, k = len(row_names), len(times)
    figure = Figure(figsize=(1 + k, 0.7 + n), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    axes = figure.subplots()
    axes.imshow(tile(images, columns=k)[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([j * (w + 1) + w / 2 for j in range(k)], [f"t = {t}" for t in times])
    axes.set_yticks([i * (h + 1) + h / 2 for i in range(n)], row_names)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=10)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=12, pad=10)
    return figure


def _dress(axes, title, xlabel):
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _write(path, figure):
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--out", help="folder for the pictures")
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--digit", type=cli.whole(0, 9), help="the class to show")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    parser.add_argument("--chains", type=cli.up_to_a_million, help="Markov chains for the statistics")
    cli.run(main, parser)
