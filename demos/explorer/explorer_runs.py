"""The runs that explorer.py shows, recorded as sheets of small pictures and tables of numbers.

    forward     a picture of each class, and the schedules; diffusion.js makes the chain and the jump of them
    reverse     x_t, eps_hat, x_0_hat and the exact mean, for every sampler, number of steps and guidance scale
    riddles     digits with less and less noise, the network's x_0_hat of each, and the exact mean
    points      particles in the plane: the forward chain, the flow back, and the field that the flow follows
    mistakes    the mistakes of pitfalls.py, each beside the correct pictures

Each function returns values that JSON can store.  A sheet has a row for each kind of picture and a column for each
moment.  A sheet has 16 greys, or 16 levels of each colour.  Noise does not compress: a picture of 28 x 28 in grey takes
up to 400 bytes, one of 16 x 16 in colour some 500.
Read next: main.js.
"""

import base64
import io
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tinydiff.app.alone import one_process
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M
from tinydiff.app.generate import DDPM
from tinydiff.app.plots import tile
from tinydiff.app.row_rng import row_rng
from tinydiff.app.training import drawing
from tinydiff.autograd import no_grad
from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy, xp
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    q_sample,
    q_x_t_given_x_s,
    sample,
    timestep_pairs,
    unconditional,
    x_0_from_eps,
)
from tinydiff.diffusion.targets import V
from tinydiff.train import train

# Python finds modules beside the script only.  The demos that the page shows are programs in the folder above.
sys.path.append(str(Path(__file__).parents[1]))
import exact
import pitfalls
import points_2d
from forward_process import SCHEDULES
from pitfalls import SAMPLING

SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "2m": DPM_SOLVER_2M}
SCALES = (0, 1, 3)  # guidance scales: ignore the label, follow it, exaggerate it
EPS_RANGE = 3  # grey is 0, white is +3
GREYS = 16
WAYS = 3  # runs that begin in the same x_T
VIEW = points_2d.VIEW
SHOWN = 5  # pictures of each mistake, few and large, because many errors are only a few grey levels
CHANNELS = 16  # of the small networks for the mistakes in training
GRID = 17  # arrows along a side of the field


def sheet(rows):
    """Images (rows, moments, H, W, C) in [-1, 1] as one .png in base64, with a column for each moment."""
    rows, step = np.asarray(rows), 255 // (GREYS - 1)
    levels = np.rint(tile(rows.reshape(-1, *rows.shape[2:]), rows.shape[1], gap=0) / step).astype(np.uint8)
    if levels.shape[2] == 1:
        picture = Image.fromarray(levels[..., 0])
        picture.putpalette([i * step for i in range(GREYS) for _ in "rgb"])  # 16 colours need 4 bits a pixel
    else:
        picture = Image.fromarray(levels * step)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def packed(numbers):
    """Numbers as little-endian int16 in units of 1/4096, in base64.  Numbers outside -8..8 are clipped."""
    units = np.rint(np.clip(np.asarray(numbers) * 4096, -32768, 32767))
    return base64.b64encode(units.astype("<i2").tobytes()).decode()


def floats(numbers):
    """Numbers as little-endian float32, in base64."""
    return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


def forward(x_0):
    """What the page needs to noise pictures x_0 (N, H, W, C) itself: their bytes, and beta_1..beta_T by schedule."""
    levels = np.rint((np.asarray(x_0) + 1) * 127.5).astype(np.uint8)
    return {
        "pictures": [base64.b64encode(picture.tobytes()).decode() for picture in levels],
        "schedules": {name: floats(make().beta[1:]) for name, make in SCHEDULES.items()},
    }


class Possible:
    """E[x_0 | x_t] if the data are some pictures (K, H, W, C), all as likely."""

    def __init__(self, schedule, pictures):
        self.pictures, self.x_0_fn = asarray(pictures), exact.ideal_x_0_fn(schedule, pictures)

    def mean(self, x_t, t):
        """The mean, like x_t (N, H, W, C), and how many pictures still matter (N,), on the host.

        At t = 0, as in the limit, it is the nearest picture.
        """
        x_t = asarray(x_t)
        if t == 0:
            distances = xp.stack([((self.pictures - x) ** 2).sum((1, 2, 3)) for x in x_t])
            return to_numpy(self.pictures[distances.argmin(1)]), np.ones(len(x_t))
        x_0_hat, w = self.x_0_fn(x_t, t)
        return to_numpy(x_0_hat), to_numpy(exact.still_matter(w))


def reverse(pool, schedule, shape, labels, steps, moments, seed, known):
    """Every label, drawn by each sampler with each number of steps and each scale, always from the same x_T.

    known: images and labels to take the exact mean of: of the label's own images, or of all at scale 0.
    """
    images, their_labels = known
    each, of_all = {label: images[their_labels == label] for label in labels}, Possible(schedule, images)
    possible = {label: Possible(schedule, own) for label, own in each.items()}
    jobs = [(sampler, num_steps, scale) for sampler in SAMPLERS for num_steps in steps for scale in SCALES]
    record = partial(trajectory, schedule, shape, labels, moments, seed)
    runs = {}
    recorded = tqdm(pool.map(record, jobs), "reverse", len(jobs))  # zip must ask the bar first, else it ends below 100%
    for (times, seen, ends), (sampler, num_steps, scale) in zip(recorded, jobs):
        sheets, counts = [], []
        for i in range(seen.shape[2]):
            of = possible[labels[i]] if scale else of_all
            mean, count = zip(*(of.mean(x_t[i : i + 1], t) for t, x_t in zip(times, seen[0])))
            sheets.append(sheet([*seen[:, :, i], np.concatenate(mean)]))
            counts.append(rounded(np.concatenate(count)))
        alpha_bar = rounded(schedule.alpha_bar[list(times)])
        run = {"times": times, "alpha_bar": alpha_bar, "counts": counts, "sheets": sheets, "ends": sheet(ends)}
        runs[f"{sampler} {num_steps} {scale}"] = run
    ways = {"steps": list(steps), "scales": list(SCALES), "samplers": list(SAMPLERS)}
    return {**ways, "known": [len(images), [len(each[label]) for label in labels]], "runs": runs}


def trajectory(schedule, shape, labels, moments, seed, model, job):
    """The times of some moments of a run, down to 0, (x_t, eps_hat, x_0_hat) at these, and other ends of the same x_T.

    job: sampler, number of steps, scale.  With scale 0 labels have no effect, so N is 1.  At t = 0 eps_hat is set to 0.
    The pictures are (3, moments, N, H, W, C).  The ends are (WAYS, N, H, W, C): each way has other noise in its steps,
    and the first one is the run.
    """
    sampler, num_steps, scale = job
    labels = labels if scale else labels[:1]
    shown, labels = slice(len(labels)), labels * WAYS
    guided, calls = classifier_free(model, labels, scale), []

    def eps_fn(x_t, t):
        eps_hat = guided(x_t, t)
        calls.append((t, x_t[shown], eps_hat[shown]))
        return eps_hat

    x_T = xp.repeat(standard_normal(default_rng("start", seed), (1, *shape)), len(labels), 0)
    pairs = timestep_pairs(schedule.T, num_steps)
    rng = row_rng("way", seed, rows=range(len(labels)))
    with no_grad():
        steps = list(sample(SAMPLERS[sampler](schedule), eps_fn, pairs, x_T, rng))
    ends = to_numpy(steps[-1][1]).reshape(WAYS, -1, *shape)
    x_0 = steps[-1][1][shown]
    seen = [(*before, x_0_hat[shown]) for before, (_, _, x_0_hat) in zip(calls, steps)] + [(0, x_0, 0 * x_0, x_0)]
    times, x_t, eps_hat, x_0_hat = zip(*(seen[k] for k in evenly(num_steps, moments)))
    pictures = [np.stack([to_numpy(x) for x in kind]) for kind in (x_t, eps_hat, x_0_hat)]
    pictures[1] = pictures[1] / EPS_RANGE
    return times, np.stack(pictures), ends


def riddles(pool, schedule, x_0, labels, moments, seed, known):
    """Each picture with less and less of the same noise, the network's x_0_hat without a label, and the exact mean."""
    times = evenly_in_signal(schedule, moments)[::-1]
    eps = standard_normal(default_rng("riddles", seed), x_0.shape)
    x_t = [q_sample(schedule, asarray(x_0), t, eps) for t in times]
    x_0_hat = list(pool.map(partial(guess, schedule), list(zip(x_t, times))))
    possible = Possible(schedule, known[0])
    means = [possible.mean(x, t)[0] for x, t in zip(x_t, times)]
    seen = np.stack([[to_numpy(x) for x in x_t], x_0_hat, means])  # (3, moments, N, H, W, C)
    items = [
        {"label": int(label), "sheet": sheet(seen[:, :, i]), "answer": sheet(x_0[None, i : i + 1])}
        for i, label in enumerate(labels)
    ]
    return {"times": times, "log_snr": rounded(schedule.log_snr[times]), "items": items}


def guess(schedule, model, job):
    x_t, t = job
    with no_grad():
        return to_numpy(x_0_from_eps(schedule, x_t, t, unconditional(model)(x_t, t)))


def points(steps, num, moments, seed, workers):
    """For each set of points_2d.py: the paths of num particles, to noise and back, and the field of a small network.

    The network is trained for `steps` steps.  It predicts v, and the field is -v.  In nearly pure noise a field from
    eps_hat would be a small difference divided by sqrt(alpha_bar_T) = 0.0064.
    """
    schedule = Schedule.linear(points_2d.T)
    times = evenly_in_angle(schedule, moments)  # from 0 to T
    sets = {}
    with tqdm(total=steps * len(points_2d.SETS), desc="points", unit="step") as bar:
        for name, draw_data in points_2d.SETS.items():
            with one_process().workers(partial(points_2d.PointNet, seed), workers) as pool:
                state = points_2d.training_of(pool, draw_data, schedule, V, steps, 256, seed)
                for _ in train(state):
                    bar.update()
                with drawing(pool, state):
                    back, field = flow(pool.model, schedule, times, num, seed)
            sets[name] = {
                "forward": packed(spread(draw_data, schedule, times, num, seed)),
                "reverse": packed(back),
                "field": packed(field),
            }
    return {"times": times, "num": num, "view": VIEW, "grid": GRID, "training_steps": steps, "sets": sets}


def spread(draw_data, schedule, times, num, seed):
    """The paths of num points from data to noise: a chain of jumps from each of these times to the next."""
    rng = default_rng("forward points", seed)
    x_t = asarray(draw_data(rng, num))
    path = [to_numpy(x_t)]
    for s, t in pairwise(times):
        mean, var = q_x_t_given_x_s(schedule, x_t, s, t)
        x_t = mean + var**0.5 * standard_normal(rng, x_t.shape)
        path.append(to_numpy(x_t))
    return path


def flow(model, schedule, times, num, seed):
    """The paths of num particles from T to 0, and the field at each of these times, from T down."""
    pairs = [(t, s) for s, t in pairwise(times)][::-1]
    paths = points_2d.draw(ddim_step, schedule, V, pairs, model, (num, (seed,)))
    axis = np.linspace(-VIEW, VIEW, GRID + 2)[1:-1]
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    eps_fn = points_2d.eps_fn_of(model, schedule, V)
    # At t = 0 there is no noise to predict, so the field of the time before is shown again.
    return paths, [points_2d.flow_velocity(schedule, eps_fn, grid, max(t, times[1])) for t in times[::-1]]


def mistakes(pool, reader, schedule, meta, most_steps, num, train_steps, training_set, seed):
    """The mistakes of pitfalls.py, with some digits of each beside the correct digits.

    most_steps: the number of reverse steps, limited to the shortest schedule of pitfalls.py.  train_steps: the steps of
    each mistake in training, or 0 to leave these mistakes out; training_set is then not used.
    """
    steps = min(most_steps, pitfalls.FEW)
    numbers = pitfalls.facts(schedule, steps, max(train_steps, 1))
    labels = np.arange(num) % pool.model.num_classes
    how = steps, pitfalls.jobs_of(labels, seed), tuple(meta["data"]["image_shape"])
    groups = {
        "sampling": [(case, pitfalls.draw(pool, case.draw, schedule, *how)) for case in tqdm(SAMPLING, "mistakes")]
    }
    if train_steps:
        ranks, workers = one_process(), pool.num_workers
        runs = pitfalls.train_and_draw(training_set, CHANNELS, train_steps, seed, ranks, workers, *how)
        groups["training"] = list(runs)
    rows = [row for group, drawn in groups.items() for row in compared(group, drawn, reader, labels, numbers)]
    return {"num": num, "shown": SHOWN, "steps": steps, "train_steps": train_steps, "rows": rows}


def compared(group, drawn, reader, labels, numbers):
    """A row for each mistake of a group: its texts, its figures and its pictures, beside those of the right way.

    drawn: pairs of a case of pitfalls.py and its images; the first is right.  reader: None, or workers of a classifier.
    numbers: see pitfalls.facts.  Only mistakes in sampling have the noise of the right way, so only these have `moved`.
    """
    (_, right), *wrong = drawn
    right_figures, rows = pitfalls.measure(reader, right, labels), []
    for case, images in wrong:
        case = pitfalls.explained(case, numbers)
        figures = pitfalls.measure(reader, images, labels, right if group == "sampling" else None)
        pair = {"right": sheet(right[None, :SHOWN]), "other": sheet(images[None, :SHOWN])}
        kind = "wrong" if case.is_mistake else "also right"
        texts = {"name": case.name, "kind": kind, "why": case.why, "figures": figures, "right_figures": right_figures}
        rows.append({"group": group, **texts, **pair})
    return rows


def evenly(last, num):
    """`num` whole numbers, evenly spread from 0 to last, or all of 0..last if there are fewer."""
    return sorted({i * last // (num - 1) for i in range(num)})


def evenly_in_angle(schedule, num):
    """Times from 0 to T, evenly spread over phi, alpha_bar_t = cos(phi)^2: in phi the flow moves evenly."""
    angles = np.arccos(schedule.alpha_bar**0.5)
    return sorted({int(abs(angles - phi).argmin()) for phi in np.linspace(0, angles[-1], num)})


def evenly_in_signal(schedule, num):
    """At most num times from 1 to T, evenly spread over sqrt(alpha_bar): each shows a little less of x_0."""
    signal = schedule.alpha_bar[1:] ** 0.5
    return sorted({1 + int(abs(signal - share).argmin()) for share in np.linspace(signal[0], signal[-1], num)})


def rounded(values):
    """Numbers with 4 digits for JSON.  Infinity becomes null, because JSON has no infinity."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in np.asarray(values, np.float64)]
