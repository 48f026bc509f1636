"""The options of compare_settings.py: the main job notes what it is given, and the judge what it is shown."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import SCHEDULE, LabelIsNoise, note_sampler

from tinydiff.app import generate
from tinydiff.app.alone import OneProcess
from tinydiff.data import Dataset

ARGUMENTS = {"settings": "default"}
WORDS = "--seeds=0,1 --sample-steps=3 --num=10"
META = {"data": {"image_shape": [4, 4, 1]}}


def stand_ins(program, notes, patch):
    class Judge:
        def __init__(self, pool, test, num):
            notes.add(judged_with=test.name, of=num)
            self.num, self.real = num, {"right": num, "frechet": 0.5, "coverage": 1.0, "spread": 2.0}

        def __call__(self, images, labels):
            return {"right": len(images), "frechet": 1.0, "coverage": 0.5, "spread": 1.0}

    def load(name, split, data_dir, seed):
        notes.add(data=name, split=split, data_dir=data_dir)
        return Dataset("glyphs", np.zeros((10, 4, 4, 1), np.uint8), np.arange(10), "a source", tuple("0123456789"))

    def load_trained(path, workers):
        notes.add(drawn_with=str(path), drawing_workers=workers)
        return OneProcess(partial(LabelIsNoise, 10)), SCHEDULE, META

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def train(**options):
        notes.add(**{f"train.{name}": str(value) if name == "out" else value for name, value in options.items()})

    patch.setattr(program.names["train_mnist"], "main", train)
    for f in (Judge, load, load_trained, load_classifier):
        patch.setitem(program.names, f.__name__, f)
    patch.setattr(program.names["time"], "monotonic", lambda: 1.0)
    patch.setitem(program.names, "picture", lambda *_: Figure())
    note_sampler(notes, patch, vars(generate))


def both(a, b):
    """The values of the runs of both seeds."""
    return [a, a], [b, b]


OTHER = {"printed": DIFFERS, "files": DIFFERS, "returned": DIFFERS, "train.out": DIFFERS, "drawn_with": DIFFERS}
ROWS = {
    "--backend": BASICS["--backend"][:2] + ({"backend": ("numpy", "cupy"), "train.backend": both("numpy", "cupy")},),
    "--precision": ("", "--precision=tf32", {"precision": (None, "tf32"), "train.precision": both(None, "tf32")}),
    "--plain": ("", "--plain", {"plain": (False, True), "train.plain": both(False, True)}),
    "settings": [
        ("schedule=cosine", "schedule=sigmoid", OTHER | {"train.schedule": both("cosine", "sigmoid")}),
        ("steps=5", "steps=7", OTHER | {"train.steps": both(5, 7)}),
        ("'target=v min-snr=5'", "'target=v min-snr=4'", OTHER | {"train.min_snr": both(5.0, 4.0)}),
    ],
    "--classifier": ("", "--classifier=j", {"classifier": ("runs/classifier/checkpoint.npz", "j")}),
    # The training gets the name of the test set that was loaded.
    "--data": ("", "--data=mnist", {"data": ("auto", "mnist")}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d"), "train.data_dir": both(None, "d")}),
    "--steps": ("", "--steps=7", {"train.steps": both(600, 7)}),
    "--seeds": [
        ("", "--seeds=0,2", {"train.seed": ([0, 1], [0, 2])} | OTHER),
    ],
    "--num": (
        "",
        "--num=20",
        {"of": (10, 20), "eps_hat": DIFFERS, "x_T": DIFFERS, "printed": DIFFERS, "returned": DIFFERS},
    ),
    "--scale": ("", "--scale=3", {"eps_hat": DIFFERS, "printed": DIFFERS}),
    "--sample-steps": ("", "--sample-steps=2", {"pairs": DIFFERS}),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS, "train.out": DIFFERS, "drawn_with": DIFFERS}),
    "--workers": (
        "",
        "--workers=3",
        {"train.workers": both(5, 3), "judge_workers": (5, 3), "drawing_workers": both(5, 3)},
    ),
}
