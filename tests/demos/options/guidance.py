"""The options of guidance.py: generate notes each row's recipe, labels and seed, and draws grey."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise, note_data, note_trained

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=12 --steps=2"


def stand_ins(program, notes, patch):
    note_trained(program, notes, patch)
    note_data(notes, patch, program.names)
    load_trained = program.names["load_trained"]

    def with_seed(*args):
        pool, schedule, meta = load_trained(*args)
        return pool, schedule, meta | {"train": {"seed": 5}}

    def generate(pool, recipe, labels, seed):
        notes.add(rows=(recipe.num_steps, recipe.scale, getattr(recipe.guide, "func", recipe.guide).__name__))
        notes.add(labels=labels, seed=seed)
        yield np.zeros((1, len(labels), 4, 4, 1), np.float32)

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def load_noisy_classifier(path, schedule, num_classes, data):
        notes.add(noisy=str(path))

    def look(pool, images):
        return np.zeros(len(images), int), np.arange(2.0 * len(images)).reshape(-1, 2)

    patch.setitem(program.names, "load_trained", with_seed)
    for f in (generate, load_classifier, load_noisy_classifier, look):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "draw", lambda rows, pictures: Figure())


ROWS_OF = {"rows": DIFFERS, "labels": DIFFERS, "seed": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}
ROWS = {
    **BASICS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--classifier": ("", "--classifier=j", {"classifier": ("runs/classifier/checkpoint.npz", "j")}),
    "--noisy-classifier": [
        ("", "--noisy-classifier=n", {"noisy": (None, "n"), **ROWS_OF}),
        ("--noisy-classifier=m", "--noisy-classifier=n", {"noisy": ("m", "n")}),
    ],
    "--num": ("", "--num=13", {"labels": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}),
    "--scales": (
        "--scales=1",
        "--scales=2",
        {
            "rows": tuple(
                [(2, s, "classifier_free"), (2, s, "in_interval"), (2, s, "with_contrast")] for s in (1.0, 2.0)
            ),
            "printed": DIFFERS,
            "returned": DIFFERS,
        },
    ),
    "--classifier-scales": (
        "--noisy-classifier=n --methods=classifier --classifier-scales=1",
        "--noisy-classifier=n --methods=classifier --classifier-scales=3",
        {"rows": ((2, 1.0, "by_classifier"), (2, 3.0, "by_classifier")), "printed": DIFFERS, "returned": DIFFERS},
    ),
    "--methods": (
        "--methods=interval",
        "--methods=rescaled",
        {"rows": ((2, 8.0, "in_interval"), (2, 8.0, "with_contrast")), "printed": DIFFERS, "returned": DIFFERS},
    ),
    "--steps": ("", "--steps=3", {"rows": DIFFERS, "printed": DIFFERS}),
    "--seed": ("", "--seed=1", {"seed": ([0] * 7, [1] * 7), "printed": DIFFERS}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS}),
    "--workers": ("", "--workers=3", {"workers": (5, 3), "judge_workers": (5, 3)}),
}
