"""The options of one_shot_vs_gradual.py: what is trained, made, drawn and judged is noted, and nothing is trained."""

from functools import partial
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import LabelIsNoise, note_data, note_pictures, note_trained

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"source": "c.npz"}
WORDS = "--num=20 --sample-steps=2"


def stand_ins(program, notes, patch):
    def make(model, job):
        notes.add(z=job[0], asked=job[1])
        return np.zeros((len(job[1]), 8, 8, 1), np.float32)

    def one_shot_models(size, channels, num_classes, seed):
        notes.add(size=size, channels=channels, num_classes=num_classes, weights_seed=seed)
        model = program.names["OneShot"](LabelIsNoise, "losses", make, (3,), 0.5, (0.1, 0.2))
        return {"VAE": model, "GAN": model}

    def steps_that_fit(pool, losses_of, draw, config, minutes):
        notes.add(minutes=minutes, batch_size=config.batch_size, batch=draw(config, 0))
        return 9

    def any_training(pool, losses_of, draw, config):
        return SimpleNamespace(metrics=lambda: [[1.0, 2.0]])

    def finish(state, pool, path, settings, resume, name):
        notes.add(settings=settings, resume=resume, name=name)
        path.write_bytes(b"")

    def generate(pool, recipe, labels, seed):
        notes.add(drawn=labels, steps=(recipe.num_steps, recipe.keep), scale=recipe.scale, noise_seed=seed)
        yield np.zeros((recipe.keep, len(labels), 8, 8, 1), np.float32)

    class Judge:
        def __init__(self, pool, test, num):
            notes.add(judged_with=(test.name, len(test), num))
            self.num, self.real = num, {"right": 3, "frechet": 1.0, "coverage": 0.5, "spread": 2.0}

        def __call__(self, images, labels):
            notes.add(judged=labels)
            return self.real

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def load_kind(path, kind):
        notes.add(curve_of=(str(path), kind))
        return {"metrics": np.ones((3, 2))}, {}

    note_trained(program, notes, patch)
    load_trained = program.names["load_trained"]

    def with_training(*args):
        pool, schedule, meta = load_trained(*args)
        return pool, schedule, meta | {"train": {"batch_size": 64, "minutes": None}}

    for f in (one_shot_models, steps_that_fit, any_training, finish, generate, Judge, load_classifier, load_kind):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "load_trained", with_training)
    patch.setitem(program.names, "loss_figure", lambda curves: Figure(figsize=(1, 1)))
    patch.setitem(program.names, "time", SimpleNamespace(perf_counter=partial(next, iter(range(99)))))
    note_data(notes, patch, program.names)
    note_pictures(notes, patch)


def both(a, b):
    """The values a and b of an option, noted once for the VAE and once for the GAN."""
    return [a] * 2, [b] * 2


FILES = ["loss.png", "one_shot_vs_gradual.md"]
SHOWN = {"printed": DIFFERS, "returned": DIFFERS}
ROWS = {
    **BASICS,
    "source": (
        "a.npz",
        "b.npz",
        {
            "checkpoint": ("a.npz", "b.npz"),
            "curve_of": (("a.npz", "diffusion"), ("b.npz", "diffusion")),
            "printed": DIFFERS,
        },
    ),
    "--classifier": ("", "--classifier=j", {"classifier": ("runs/classifier/checkpoint.npz", "j")}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": both(None, "d")}),
    "--minutes": ("", "--minutes=60", {"minutes": both(8.0, 60.0), "settings": DIFFERS, **SHOWN}),
    "--batch-size": (
        "",
        "--batch-size=9",
        {"batch_size": both(64, 9), "batch": DIFFERS, "settings": DIFFERS, **SHOWN},
    ),
    "--num": (
        "",
        "--num=30",
        {
            "judged_with": (("glyphs", 30, 20), ("glyphs", 30, 30)),
            "judged": tuple([np.arange(n) % 10] * 3 for n in (20, 30)),
            "asked": tuple([np.arange(n) % 10] * 2 for n in (20, 30)),
            "drawn": tuple([*range(10)] * n for n in (2, 3)),
            "z": DIFFERS,
            **SHOWN,
        },
    ),
    "--sample-steps": ("", "--sample-steps=9", {"steps": ((2, 2), (9, 9)), "save_grid": DIFFERS, **SHOWN}),
    "--scale": ("", "--scale=1", {"scale": (2.0, 1.0), **SHOWN}),  # one evaluation a step in place of two
    "--seed": (
        "",
        "--seed=7",
        {
            "weights_seed": (0, 7),
            "noise_seed": (0, 7),
            "data_seed": both(0, 7),
            "batch": DIFFERS,
            "z": DIFFERS,
            "settings": DIFFERS,
        },
    ),
    "--out": (
        "",
        "--out=x",
        {
            "files": ([f"runs/one_shot_vs_gradual/{name}" for name in FILES], [f"x/{name}" for name in FILES]),
            "save_grid path": tuple(f"{out}/one_shot_vs_gradual.png" for out in ("runs/one_shot_vs_gradual", "x")),
            "printed": DIFFERS,
        },
    ),
    "--resume": ("", "--resume", {"resume": both(False, True)}),
    "--workers": (
        *WORKERS["--workers"][:2],
        {"workers": ([5] * 3, [3] * 3), "judge_workers": (5, 3), "printed": DIFFERS},
    ),
}
