"""The options of pitfalls.py: what each drawing and the trainings are asked for; every image is grey."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise, note_data, note_trained

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"checkpoint": "c.npz", "classifier": "k.npz"}
WORDS = "--num=10 --sample-steps=2"


def stand_ins(program, notes, patch):
    def grey(jobs):
        return np.zeros((sum(len(labels) for labels, _ in jobs), 4, 4, 1))

    def draw(pool, how, schedule, steps, jobs, shape):
        notes.add(steps=steps, jobs=jobs)
        return grey(jobs)

    def ideal_in_one_step(dataset, schedule, jobs, shape):
        notes.add(ideal_jobs=jobs)
        return grey(jobs)

    def train_and_draw(dataset, channels, train_steps, seed, ranks, workers, steps, jobs, shape):
        notes.add(trained_on=dataset.name, channels=channels, train_steps=train_steps, train_seed=seed)
        notes.add(train_workers=workers, train_jobs=jobs, trained_drawn_in=steps)
        yield program.names["TRAINING"][0], grey(jobs)

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def read(pool, images):
        yield np.eye(10)[np.zeros(len(images), int)]

    note_trained(program, notes, patch)
    note_data(notes, patch, program.names)
    for f in (draw, ideal_in_one_step, train_and_draw, load_classifier, read):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "picture", lambda rows: Figure())


SHOWN = {"printed": DIFFERS, "returned": DIFFERS}
ROWS = {
    **BASICS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "classifier": ("a.npz", "b.npz", {"classifier": ("a.npz", "b.npz")}),
    "--num": ("", "--num=30", {"jobs": DIFFERS, "ideal_jobs": DIFFERS, "train_jobs": DIFFERS, "returned": DIFFERS}),
    "--sample-steps": ("", "--sample-steps=3", {"steps": DIFFERS, "trained_drawn_in": (2, 3), **SHOWN}),
    "--train-steps": ("", "--train-steps=9", {"train_steps": (400, 9), **SHOWN}),
    "--channels": ("", "--channels=8", {"channels": (16, 8)}),
    "--data-dir": ("", "--data-dir=folder", {"data_dir": (None, "folder")}),
    "--seed": (
        "",
        "--seed=1",
        dict.fromkeys(("jobs", "ideal_jobs", "train_jobs"), DIFFERS) | {"train_seed": (0, 1), "data_seed": (0, 1)},
    ),
    "--out": (
        "",
        "--out=x",
        {
            "files": (
                ["runs/pitfalls/pitfalls.md", "runs/pitfalls/pitfalls.png"],
                ["x/pitfalls.md", "x/pitfalls.png"],
            ),
            "printed": DIFFERS,
        },
    ),
    "--workers": ("", "--workers=3", {"workers": (5, 3), "judge_workers": (5, 3), "train_workers": (5, 3)}),
}
