"""Train a network of 1 x 5 convolutions on the waveforms of three timbres, and draw new sounds.

    python demos/waves_1d.py                      two minutes

    waves_1d.png   real and drawn waveforms of each timbre, and their mean spectra
    waves_1d.wav   a few drawn notes of each timbre, to listen to
    results.csv    the distance in dB between drawn and real spectra, for each pair of timbres

Ctrl-C, SIGTERM and SIGHUP save and end the training; the same command with --resume continues it.

A wave is an image of height 1: (N, 1, L, 1).  The process, the sampler, the training loop, convolution, norm, attention
and the optimizer are those of the digits.  A U-Net in one dimension needs two new things, 60 lines in this file.  The
first is a convolution that pads with zeros only on the left and on the right.  The second is a reshape that changes the
resolution: it puts the channels of neighbours side by side.
"""

import time
import wave
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff import ops
from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.fit import any_training, finish
from tinydiff.app.generate import check_steps
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import save_figure
from tinydiff.app.row_rng import row_rng
from tinydiff.app.run import check_batch
from tinydiff.app.tables import write_table
from tinydiff.app.training import drawing
from tinydiff.autograd import Tensor, no_grad, op
from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy, xp
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import Schedule, ddpm_step, q_sample, sample, timestep_pairs
from tinydiff.more.layers import NormSilu
from tinydiff.nn import Attention, Conv2d, Embedding, Linear, Module
from tinydiff.nn.unet import time_code
from tinydiff.train import LoopConfig, noise_prediction_losses

RATE, LENGTH = 8000, 1024  # samples a second; samples of a wave: 0.128 s
LOWEST, HIGHEST = 100, 200  # Hz: pitches
BAND = 2000  # Hz: the highest frequency of a harmonic
TIMBRES = ("flute", "clarinet", "string")
T = 1000
PATCH, CHANNELS, CODE = 8, 32, 64  # samples in a patch, channels at full resolution, width of the code
FLOOR = -50  # dB relative to a wave's loudest frequency; softer frequencies are set to FLOOR
MULTIPLES = np.arange(0.5, 16, 0.025)  # multiples of the pitch at which spectra are compared
SLICE = 16  # waves that a worker draws at a time


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    steps=1500,
    batch_size=64,
    sample_steps=200,
    num=64,
    seed=0,
    workers=None,
    out="runs/waves_1d",
    resume=False,
):
    """Train, draw num waves of each timbre and compare their spectra.  Returns the rows of the table of distances."""
    ranks = cli.start(backend, precision, plain=plain)
    check_steps(T, sample_steps=sample_steps)
    check_memory(f"--num {num}", 300_000.0 * num)  # the complex spectra of the waves, and their powers
    check_batch(batch_size, (LENGTH, 1))
    out = own_folder(out, "waves_1d.png", "waves_1d.wav", "results.csv")
    schedule = Schedule.linear(T)
    with ranks.workers(partial(WaveNet, seed), workers or ranks.default_workers()) as pool:
        print(f"network: {pool.model.num_parameters():,} parameters; {pool.num_workers} worker(s); results in {out}/")
        began = time.monotonic()
        state = training_of(pool, schedule, steps, batch_size, seed)
        settings = {"steps": steps, "batch_size": batch_size, "seed": seed}
        finish(state, pool, out / "unfinished.npz", settings, resume, "training")
        seconds = time.monotonic() - began
        with drawing(pool, state):
            drawn = draw_each(pool, schedule, sample_steps, num, seed)
    real, more_real = held_out(num, seed)
    rows = distances(drawn, real, more_real)
    print(f"trained in {seconds:.0f} s; rms difference of mean spectra in dB, {cli.counted(num, 'wave')} each:")
    write_table(out / "results.csv", rows)
    title = f"three timbres: {cli.counted(state.step, 'training step')}, {cli.counted(sample_steps, 'DDPM step')}"
    save_figure(out / "waves_1d.png", portrait(real, drawn, rows, title), 32)
    save_wav(out / "waves_1d.wav", notes(drawn))
    (out / "unfinished.npz").unlink()
    print(f"done: open {out}/waves_1d.png, listen to {out}/waves_1d.wav; table: {out}/results.csv")
    print(f"next: {cli.command(Path(__file__).with_name('points_2d.py'))}")
    return rows


# The data.


def waves(rng, labels):
    """Draw a wave of each label's timbre, (N, LENGTH) float32, with random pitch and phase, no harmonic above BAND.

        x(s) = g sum_k a_k Im z(s)^k,   z(s) = exp((2 pi i f - d) s + i phase),   a_k = 0 where k f > BAND

        flute      a = 1, 0.3, 0.1             clarinet   a_k = 1/k, k odd             both d = 0
        string     a_k = 1/k, d = 10/s, so that harmonic k fades k times as fast

    f is log-uniform in LOWEST..HIGHEST, and g makes the power sum_k (g a_k)^2/2 at s = 0 equal 1.
    """
    labels = np.asarray(labels)[:, None]
    f = LOWEST * (HIGHEST / LOWEST) ** rng.random((len(labels), 1))
    phase = rng.uniform(0, 2 * np.pi, (len(labels), 1))
    k = np.arange(1, BAND // LOWEST + 1)
    a = np.choose(labels, [np.select([k == 1, k == 2, k == 3], [1, 0.3, 0.1]), k % 2 / k, 1 / k]) * (k * f <= BAND)
    a *= np.sqrt(2 / (a**2).sum(1, keepdims=True))
    z = np.exp((2j * np.pi * f - 10 * (labels == 2)) * (np.arange(LENGTH) / RATE) + 1j * phase).astype(np.complex64)
    x, power = np.zeros(z.shape, np.float32), z
    for a_k in a.T.astype(np.float32):
        x += a_k[:, None] * power.imag
        power = power * z
    return x


# The network.


@op
def pad(x, *, side):
    """`side` zeros before and after each row of a map: (N, H, W, C) -> (N, H, W + 2 side, C)."""
    w = x.shape[2]
    return xp.pad(x, ((0, 0), (0, 0), (side, side), (0, 0))), lambda g: (g[:, :, side : side + w],)


class Conv1d(Conv2d):
    """A 1 x kernel_size convolution of maps (N, 1, W, in_channels) that keeps W.

    conv2d pads both axes equally.  Here only the width needs padding, so `pad` pads the width first.
    """

    def __init__(self, in_channels, out_channels, kernel_size=5, *, rng, zero=False):
        super().__init__(in_channels, out_channels, kernel_size, padding=0, rng=rng, zero=zero)
        self.side = side = kernel_size // 2
        middle = self.w.data[side : side + 1] * kernel_size**0.5  # one row, scaled for its smaller fan-in
        self.w = Tensor(middle.copy(), requires_grad=True)

    def forward(self, x):
        return super().forward(pad(x, side=self.side))


class ResBlock1d(Module):
    """skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time(code)))), as in nn/unet.py; code: (N, CODE)."""

    def __init__(self, in_channels, out_channels, *, rng):
        self.norm1 = NormSilu(8, in_channels)
        self.conv1 = Conv1d(in_channels, out_channels, rng=rng)
        self.time = Linear(CODE, out_channels, rng=rng)
        self.norm2 = NormSilu(8, out_channels)
        self.conv2 = Conv1d(out_channels, out_channels, rng=rng, zero=True)
        self.skip = Linear(in_channels, out_channels, rng=rng)

    def forward(self, x, code):
        h = self.conv1(self.norm1(x)) + self.time(code)[:, None, None]  # (N, C) -> (N, 1, 1, C)
        return self.skip(x) + self.conv2(self.norm2(h))


class WaveNet(Module):
    """eps_hat = model(x_t, t, labels): (N, 1, L, 1) -> (N, 1, L, 1), L divisible by 4 PATCH.

        patches -> blocks -> fold 4 -> block, attention, block -> unfold 4 -> concat -> blocks -> norm, silu -> patches

    fold puts the channels of `factor` neighbours side by side, (N, 1, W, C) -> (N, 1, W / factor, factor C).  unfold
    separates them again.  Both are reshapes.  t: an integer or (N,) integers in 0..T.  labels: (N,) timbres.
    """

    def __init__(self, seed):
        rng = default_rng("weights", seed)
        c = CHANNELS
        self.codes = to_numpy(time_code(range(T + 1), CODE))
        self.time1, self.time2 = Linear(CODE, CODE, rng=rng), Linear(CODE, CODE, rng=rng)
        self.label = Embedding(len(TIMBRES), CODE, rng=rng)
        self.inner = Linear(PATCH, c, rng=rng)
        self.before = [ResBlock1d(c, c, rng=rng) for _ in range(2)]
        self.down = Linear(4 * c, 2 * c, rng=rng)
        self.middle1 = ResBlock1d(2 * c, 2 * c, rng=rng)
        self.attention = Attention(2 * c, num_heads=4, num_groups=8, rng=rng)
        self.middle2 = ResBlock1d(2 * c, 2 * c, rng=rng)
        self.up = Linear(2 * c, 4 * c, rng=rng)
        self.after = [ResBlock1d(2 * c, c, rng=rng), ResBlock1d(c, c, rng=rng)]
        self.norm = NormSilu(8, c)
        self.outer = Linear(c, PATCH, rng=rng, zero=True)

    def forward(self, x_t, t, labels):
        code = self.time1(Tensor(asarray(self.codes[np.broadcast_to(t, len(x_t))])))
        code = ops.silu(self.time2(ops.silu(code)) + self.label(labels))
        h = self.inner(fold(Tensor(asarray(x_t)), PATCH))
        for block in self.before:
            h = block(h, code)
        m = self.middle1(self.down(fold(h, 4)), code)
        m = self.up(self.middle2(self.attention(m), code))
        h = ops.concat(h, fold(m, 1 / 4))
        for block in self.after:
            h = block(h, code)
        return fold(self.outer(self.norm(h)), 1 / PATCH)


def fold(x, factor):
    """(N, 1, W, C) -> (N, 1, W / factor, factor C): places become channels; if factor < 1, channels become places."""
    n, _, w, c = x.shape
    return ops.reshape(x, shape=(n, 1, int(w / factor), int(c * factor)))


def draw_batch(schedule, config, step):
    """The examples of 0-based `step`, fresh waves, on the host: x_t, target (B, 1, L, 1) float32; t, labels (B,)."""
    n, rng = config.batch_size, default_rng("batch", config.seed, step)
    labels = rng.integers(len(TIMBRES), size=n)
    x_0 = waves(rng, labels)[:, None, :, None]  # (B, L) -> (B, 1, L, 1)
    t = rng.integers(1, schedule.T + 1, n)
    eps = rng.standard_normal(x_0.shape, dtype="float32")
    return {"x_t": q_sample(schedule, x_0, t, eps), "t": t, "labels": labels, "target": eps}


def training_of(pool, schedule, num_steps, batch_size, seed):
    """The workers' Training on waves (Ho et al. 2020, algorithm 1)."""
    config = LoopConfig(num_steps, batch_size, peak_lr=2e-3, seed=seed)
    draw = partial(draw_batch, schedule)
    return any_training(pool, noise_prediction_losses, draw, config)


def draw(schedule, pairs, model, job):
    """Waves (n, LENGTH) on the host.  job: their n labels, and (seed, timbre, index of the first)."""
    labels, (*name, first) = job
    rng = row_rng("sample", *name, rows=range(first, first + len(labels)))
    x_T = standard_normal(rng, (len(labels), 1, LENGTH, 1))
    with no_grad():
        for _, x_t, _ in sample(  # noqa: B007
            partial(ddpm_step, schedule), lambda x_t, t: asarray(model(x_t, t, labels)), pairs, x_T, rng
        ):
            pass
    return to_numpy(x_t)[:, 0, :, 0]


def draw_each(pool, schedule, sample_steps, num, seed):
    """num waves of each timbre, (timbres, num, LENGTH), with the present weights of the workers."""
    starts = [(timbre, i) for timbre in range(len(TIMBRES)) for i in range(0, num, SLICE)]
    jobs = [([timbre] * min(SLICE, num - i), (seed, timbre, i)) for timbre, i in starts]
    parts = pool.map(partial(draw, schedule, timestep_pairs(schedule.T, sample_steps)), jobs)
    waves_of_slices = list(tqdm(parts, "drawing", len(jobs), dynamic_ncols=True))
    return np.concatenate(waves_of_slices).reshape(len(TIMBRES), num, LENGTH)


def held_out(num, seed):
    """Two sets of num real waves of each timbre, drawn apart from all batches: to compare with, and for the floor."""
    words, timbres = ("real", "other"), range(len(TIMBRES))
    return [[waves(default_rng(word, seed, timbre), [timbre] * num) for timbre in timbres] for word in words]


# The spectra, the sound and the picture.


def spectrum(x):
    """Power in dB at MULTIPLES of each wave's pitch, relative to its loudest frequency, at least FLOOR: (N, M).

    The pitch is the frequency near LOWEST..HIGHEST with the most power.  Measured in multiples of the pitch, the
    harmonics of all waves coincide, and between them lies little but noise.  x: (N, LENGTH); a Hann window is applied.
    """
    size = 8 * LENGTH  # zeros after the wave make the spectrum finer
    power = np.abs(np.fft.rfft(x * np.hanning(LENGTH), size)) ** 2
    decibel = 10 * np.log10((power / power.max(1, keepdims=True)).clip(10 ** (FLOOR / 10)))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    near = (hertz > 0.9 * LOWEST) & (hertz < 1.1 * HIGHEST)
    pitch = hertz[near][power[:, near].argmax(1)]
    return np.stack([np.interp(MULTIPLES * f, hertz, row) for f, row in zip(pitch, decibel)])


def spectral_distance(x, y):
    """Root of the mean over MULTIPLES of (mean spectrum of x - mean spectrum of y)^2, in dB."""
    return float(np.sqrt(np.mean((spectrum(x).mean(0) - spectrum(y).mean(0)) ** 2)))


def distances(drawn, real, more_real):
    """The rows of the table: drawn waves of each timbre to real ones of all, and two real sets of one timbre."""
    rows = []
    for i, name in enumerate(TIMBRES):
        row = {"drawn": name}
        row |= {f"to real {other}": round(spectral_distance(drawn[i], x), 2) for other, x in zip(TIMBRES, real)}
        rows.append(row | {"real to real": round(spectral_distance(more_real[i], real[i]), 2)})
    return rows


def notes(drawn):
    """What is listened to: up to four waves of each timbre in turn."""
    return [note for timbre in drawn for note in timbre[:4]]


def save_wav(path, notes, pause=0.05):
    """Write notes (each (L,)) and pauses as 16-bit mono at RATE.  Fading in and out over 4 ms prevents clicks."""
    ramp = np.minimum(np.arange(LENGTH) + 1, 32) / 32
    silence = np.zeros(round(pause * RATE))
    sound = np.concatenate([part for note in notes for part in (note * ramp * ramp[::-1], silence)])
    sound = np.rint(sound / max(abs(sound).max(), 1e-9) * 30_000).astype("<i2")
    with atomic_write(path) as file, wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE)
        wav.writeframes(sound.tobytes())


def portrait(real, drawn, rows, title):
    """A figure with a row for each timbre: real waves, drawn waves and the mean spectra of both."""
    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained", facecolor="white")
    grid = figure.subplots(3, 3, width_ratios=[1, 1, 1.1])
    ms = np.arange(LENGTH) / RATE * 1000
    shown = ms < 64
    for row, (name, axes) in enumerate(zip(TIMBRES, grid)):
        for panel, (what, x, colour) in zip(axes, (("real", real[row], "0.35"), ("drawn", drawn[row], "C3"))):
            lines = range(min(3, len(x)))
            for i in lines:
                panel.plot(ms[shown], x[i][shown] - 6 * i, color=colour, lw=0.8)
            panel.set(title=f"{what} {name}", xlim=(0, 64))
            panel.set_yticks([level - 6 * i for i in lines for level in (0, 2)], ["0", "2"] * len(lines), fontsize=7)
        axes[2].plot(MULTIPLES, spectrum(real[row]).mean(0), color="0.35", lw=2.2, label="real")
        axes[2].plot(MULTIPLES, spectrum(drawn[row]).mean(0), color="C3", lw=1, label="drawn")
        distance, floor = rows[row][f"to real {name}"], rows[row]["real to real"]
        axes[2].set(title=f"mean spectra {distance} dB apart, real ones {floor}", xlim=(0, 16), ylabel="dB")
        for panel in axes:
            panel.title.set_fontsize(10)
            panel.spines[["top", "right"]].set_visible(False)
    grid[0][2].legend(frameon=False)
    for panel, unit in zip(grid[2], ("ms", "ms", "frequency / pitch")):
        panel.set_xlabel(unit)
    figure.suptitle(title, fontsize=12)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--steps", type=cli.positive_int, help="number of training steps")
    parser.add_argument("--batch-size", type=cli.positive_int, help="waves a step")
    parser.add_argument("--sample-steps", type=cli.positive_int, help=f"steps of DDPM, at most {T}")
    parser.add_argument("--sampling-steps", dest="sample_steps", type=cli.positive_int, help=cli.HIDDEN)
    parser.add_argument("--num", type=cli.whole(1, 10_000), help="waves to draw of each timbre")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of all random numbers")
    parser.add_argument("--workers", type=cli.positive_int, help="processes that share the work (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    cli.run(main, parser)
