"""What the option tables of train_mnist.py and train_images.py share: a run of no steps, and the rows of demos/job.py.

The grids come from a sampler that notes what it is given.
"""

from dataclasses import asdict

from option_rows import BASICS, DIFFERS
from recorder import WEAK, note_data, note_network, note_pictures, note_sampler, note_training, pair_of_labels

from tinydiff.app import checkpoint, choices, generate, kinds, networks, run, training
from tinydiff.app.alone import OneProcess
from tinydiff.diffusion import Schedule, timestep_pairs
from tinydiff.train import TrainConfig

WORDS = "--sample-steps=3"
NETWORK = {
    "in_channels": 1,
    "base_channels": 32,
    "channel_mults": [1, 2, 2],
    "attention_levels": [],
    "num_classes": 10,
}


def stand_ins(program, notes, patch):
    def run_of_no_steps(state, ranks, save, save_every, draw, draw_every):
        notes.add(save_every=save_every, sample_every=draw_every)
        note_training(notes, state)
        draw()

    def load_if_there(path, kind):
        notes.add(asked_for=(str(path), kind))
        data = {"name": "glyphs", "source": "a source", "num": 30, "image_shape": [8, 8, 1], "classes": [*"0123456789"]}
        meta = {"model": NETWORK, "data": data, "train": asdict(TrainConfig()), "num_workers": 5}
        meta |= {"step": 9, "num_steps": 2000}
        return {"schedule/beta": Schedule.linear().beta}, meta

    patch.setattr(run, "run", run_of_no_steps)
    patch.setattr(run, "load_if_there", load_if_there)
    patch.setattr(run, "save_loss", lambda state, path, title: notes.add(loss_path=str(path), loss_title=title))
    patch.setattr(training, "restore", lambda state, path, *_: notes.add(restored=str(path)))
    made = run.schedule
    patch.setattr(run, "schedule", lambda *named: notes.add(schedule=named) or made(*named))
    patch.setattr(networks, "cost", lambda state: "what a step takes")
    patch.setattr(checkpoint, "set_aside_run", lambda folder, names: notes.add(set_aside=str(folder)))
    patch.setattr(kinds, "load", lambda path, kind: notes.add(start=(path, kind)) or load_if_there("start", kind))
    started = lambda model, arrays, meta, classes: notes.add(started=(meta["num_workers"], classes))  # noqa: E731
    patch.setitem(vars(program.names["job"]), "start_from", started)
    pair = lambda path, workers, ranks: notes.add(drawn_from=str(path)) or (OneProcess(pair_of_labels), None, None)  # noqa: E731
    patch.setitem(vars(program.names["job"]), "load_guided", pair)
    note_data(notes, patch, vars(run))
    note_network(vars(program.names["job"]), notes, patch, "build_unet")
    note_sampler(notes, patch, vars(generate))
    note_pictures(notes, patch)


GUIDED = choices.guidance(pair_of_labels(), None, None)[1]  # the default, in words


def titles(grid="step 0 of 2,000, glyphs", samples=f"glyphs, 0 steps, {GUIDED}"):
    """The titles of the grid on the way and of samples.png."""
    return {"save_grid title": [grid, samples], "save_filmstrip title": f"denoising: {samples}"}


def between(a, b):
    """What differs between two dictionaries of notes, as a row has it."""
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def paths(out):
    return {
        "save_grid path": [f"{out}/progress/step_000000.png", f"{out}/samples.png"],
        "save_filmstrip path": f"{out}/denoising.png",
        "save_gif path": f"{out}/denoising.gif",
        "loss_path": f"{out}/loss.png",
        "drawn_from": f"{out}/checkpoint.npz",
        "set_aside": out,
    }


def guided(on_the_way, scale, auto):
    """eps_hat of the slices of 20 images: of a grid of five a class, with classifier-free guidance, and of the samples.

    No label is 10, and the early network of the samples answers WEAK more than a label.
    """
    free = [[10.0 + s * (k - 10) for k in range(10)] for s in (on_the_way, scale)]
    grid = [free[0][k] for k in range(10) for _ in range(5)]
    samples = [auto * free[1][k] + (1 - auto) * (k + WEAK) for k in range(10) for _ in range(10)]
    return [part[i : i + 20] for part in (grid, samples) for i in range(0, len(part), 20)]


def other(scale, auto, title):
    """What differs from the defaults with another guidance."""
    eps_hat = guided(2.0, choices.SCALE, 1.0), guided(2.0 if scale is None else scale, scale or 1.0, auto)
    return {"eps_hat": eps_hat} | between(titles(), titles(samples=f"glyphs, 0 steps, {title}"))


def length(num_steps, minutes, shown):
    return {"num_steps": num_steps, "config.num_steps": num_steps, "config.minutes": minutes} | titles(
        f"step 0 of {shown}, glyphs"
    )


BATCH = {"x_0": DIFFERS, "batch.x_t": DIFFERS, "batch.labels": DIFFERS}
NOISE = {"t": DIFFERS, "eps": DIFFERS, "batch.t": DIFFERS, "batch.target": DIFFERS}
LOSS = "glyphs, loss per pixel of the target"
DEFAULT = length(2000, 8.0, "2,000")


def rows(out):
    """The rows of the options of job.train, and of what both programs have; out: the default of --out."""
    return {
        **BASICS,
        "--workers": ("", "--workers=3", {"workers": (5, 3), "printed": DIFFERS}),
        # Without mpiexec there is one rank, and each rank is a worker.
        "--parallel": ("", "--parallel=mpi", {"parallel": ("local", "mpi"), "workers": (5, 1), "printed": DIFFERS}),
        "--steps": [
            ("", "--steps=7", between(DEFAULT, length(7, None, "7")) | {"printed": DIFFERS}),  # too few to guide by
            ("", "--steps=2000", {"config.minutes": (8.0, None)}),
        ],
        "--minutes": [
            ("", "--minutes=60", between(DEFAULT, length(run.UNLIMITED, 60.0, "1,000,000,000"))),  # not cut at 2,000
            ("--minutes=60", "--minutes=8", {"config.minutes": (60.0, 8.0)}),
        ],
        "--data-dir": ("", "--data-dir=folder", {"data_dir": (None, "folder")}),
        "--num-images": ("", "--num-images=20", {**BATCH, "num_images": (None, 20)}),
        "--target": [
            (
                "",
                f"--target={name}",
                {"config.target": ("eps", name), "batch.target": DIFFERS, "eps_hat": DIFFERS}
                | {"loss_title": (f"{LOSS} eps", f"{LOSS} {name}")},
            )
            for name in ("x_0", "v")
        ]
        + [
            (
                "",
                "--target=flow",
                {"config.target": ("eps", "flow"), "batch.target": DIFFERS, "batch.x_t": DIFFERS, "eps_hat": DIFFERS}
                | {"schedule": (("linear", 1000), ("straight", 1000)), "loss_title": (f"{LOSS} eps", f"{LOSS} flow")},
            )
        ],
        "--min-snr": (
            "--min-snr=3",
            "--min-snr=5",
            {"config.min_snr": (3.0, 5.0), "batch.weight": DIFFERS},
        ),
        "--lr": ("", "--lr=0.01", {"config.peak_lr": (3e-3, 0.01)}),
        "--optimizer": ("", "--optimizer=adam", {"config.optimizer": ("muon", "adam")}),
        "--ema-decay": ("", "--ema-decay=0.9", {"config.ema_decay": (0.995, 0.9)}),
        # The same pictures, times and noise, mixed in other shares.
        "--schedule": [
            ("", f"--schedule={name}", {"schedule": (("linear", 1000), (name, 1000)), "batch.x_t": DIFFERS})
            for name in ("cosine", "quadratic", "sigmoid", "constant", "straight")
        ]
        # The schedule that the user names is the run's, with any target.
        + [
            (
                "--target=flow",
                "--target=flow --schedule=linear",
                {"schedule": (("straight", 1000), ("linear", 1000)), "batch.x_t": DIFFERS, "eps_hat": DIFFERS},
            )
        ],
        "--T": (
            "",
            "--T=500",
            {
                "schedule": (("linear", 1000), ("linear", 500)),
                "pairs": ([timestep_pairs(1000, 3)] * 8, [timestep_pairs(500, 3)] * 8),
                "t": DIFFERS,
                "batch.t": DIFFERS,
                "batch.x_t": DIFFERS,
                "save_filmstrip": DIFFERS,
            },
        ),
        "--from": (
            "",
            "--from=c.npz",
            {
                "start": (None, ("c.npz", "diffusion")),
                "asked_for": (None, ("start", "diffusion")),
                "started": (None, (5, tuple("0123456789"))),
            },
        ),
        "--sample-every": ("", "--sample-every=9", {"sample_every": (250, 9)}),
        "--save-every": ("", "--save-every=9", {"save_every": (100, 9)}),
        "--sample-steps": (
            "--sample-steps=2",
            "--sample-steps=5",
            {
                "pairs": ([timestep_pairs(1000, 2)] * 8, [timestep_pairs(1000, 5)] * 8),
                "save_filmstrip": DIFFERS,
                "save_gif": DIFFERS,
            },
        ),
        "--scale": ("", "--scale=3", other(3.0, 1.0, "guidance 3")),
        "--auto": ("", "--auto=3", other(None, 3.0, "autoguidance 3")),  # of the samples, not of the grids
        "--batch-size": (
            "",
            "--batch-size=9",
            {**BATCH, **NOISE, "config.batch_size": (64, 9)},
        ),
        "--channels": (
            "",
            "--channels=8",
            {"network": (NETWORK, NETWORK | {"base_channels": 8})},
        ),
        # Of weights, data and noise; the pictures always start from the same noise.
        "--seed": ("", "--seed=1", {**BATCH, **NOISE, "config.seed": (0, 1), "data_seed": (0, 1), "weights": DIFFERS}),
        "--out": ("", "--out=x", between(paths(out), paths("x")) | {"printed": DIFFERS}),
        "--resume": (
            "--workers=5 --num-images=30",
            "--workers=5 --num-images=30 --resume",
            {
                "asked_for": (None, (f"{out}/checkpoint.npz", "diffusion")),
                "restored": (None, f"{out}/checkpoint.npz"),
                "set_aside": (out, None),
                "schedule": (("linear", 1000), None),  # it is the checkpoint's
            },
        ),
    }
