"""The options of sampler_showdown.py: draw notes each row's recipe and what decides it, and draws grey."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise, note_trained

from tinydiff.app.alone import OneProcess
from tinydiff.data import Dataset

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=10 --steps=1 --longest=2"


def stand_ins(program, notes, patch):
    note_trained(program, notes, patch)
    load_trained = program.names["load_trained"]

    def with_seed(*args):
        pool, schedule, meta = load_trained(*args)
        return pool, schedule, meta | {"train": {"seed": 5}}

    def load(name, split, data_dir, seed):
        notes.add(data=(name, split, seed), data_dir=data_dir)
        images = np.arange(80, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
        return Dataset("x", images, np.arange(80) % 10, "a source", tuple("0123456789"))

    def draw(folder, settings, pool, recipe, labels, seed):
        names = ("sampler", "steps", "scale")
        notes.add(rows=tuple(settings[name] for name in names), labels=labels, seed=seed, folder=str(folder))
        notes.add(plain_digits=settings["arrays"][-1], of=settings["checkpoint"])
        return np.zeros((len(labels), 4, 4, 1), np.float32), 1.0

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def features(pool, images):
        yield images.reshape(len(images), -1)

    def look(pool, images):
        return np.zeros(len(images), int), images.reshape(len(images), -1)

    patch.setitem(program.names, "load_trained", with_seed)
    for f in (load, draw, load_classifier, features, look):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "read_file", lambda path: str(path).encode())
    patch.setitem(program.names, "picture", lambda *_: Figure())


EACH = {"rows": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}
PER_ROW = dict.fromkeys(("labels", "seed", "folder", "plain_digits", "of"), DIFFERS)
ROWS = {
    **BASICS,
    "--plain": ("", "--plain", {"plain": (False, True), "plain_digits": (["fast"] * 9, ["plain"] * 9)}),
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz"), "of": DIFFERS}),
    "--classifier": ("", "--classifier=j", {"classifier": ("runs/classifier/checkpoint.npz", "j")}),
    "--num": ("", "--num=20", {"labels": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}),
    "--steps": [("", "--steps=3", EACH), ("", "--steps=1,3", {**EACH, **PER_ROW})],
    "--longest": ("", "--longest=4", EACH),
    "--seed": ("", "--seed=1", {"seed": ([0] * 9, [1] * 9)}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--out": ("", "--out=x", {"folder": DIFFERS, "files": DIFFERS, "printed": DIFFERS}),
    "--workers": ("", "--workers=3", {"workers": (5, 3), "judge_workers": (5, 3)}),
}
