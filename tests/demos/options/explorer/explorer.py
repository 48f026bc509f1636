"""The options of explorer.py: what each recorded part is given is noted, and nothing is recorded."""

import numpy as np
from option_rows import BASICS, DIFFERS
from recorder import SCHEDULE, LabelIsNoise, note_data

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--labels=7,3"


def stand_ins(program, notes, patch):
    meta = {"data": {"name": "glyphs", "image_shape": [8, 8, 1]}, "step": 7}

    def load_trained(path, num_workers):
        notes.add(checkpoint=str(path), workers=num_workers)
        return OneProcess(LabelIsNoise), SCHEDULE, meta

    def load_classifier(path, num_workers, data):
        notes.add(classifier=str(path))
        return "reader", {}

    for f in (load_trained, load_classifier):
        patch.setitem(program.names, f.__name__, f)
    note_data(notes, patch, program.names)
    for name, parameters in (
        ("forward", "pictures"),
        ("reverse", "pool schedule shape labels steps moments seed known"),
        ("riddles", "pool schedule pictures digits moments seed known"),
        ("points", "steps num moments seed workers"),
        ("mistakes", "pool reader schedule meta most_steps num train_steps training_set seed"),
    ):

        def part(*given, name=name, parameters=parameters):
            assert len(given) == len(parameters.split())
            known = (np.ndarray, int, tuple, str, type(None))
            shown = {f"{name} {p}": value for p, value in zip(parameters.split(), given) if isinstance(value, known)}
            notes.add(**shown)
            return name

        patch.setattr(program.names["runs"], name, part)


def everywhere(what, old, new):
    parts = ("reverse", "riddles", "points", "mistakes")
    return {f"{part} {what}": (old, new) for part in parts}


PAGE = {"returned": DIFFERS, "printed": DIFFERS}
ROWS = {
    **BASICS,
    "--workers": [
        ("", "--workers=3", {"workers": (5, 3)}),
        ("--workers=1", "--workers=2", {"workers": (1, 2), "points workers": (1, 2)}),
    ],
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz"), "returned": DIFFERS}),
    "--labels": (
        "",
        "--labels=7",
        {
            "reverse labels": ((7, 3), (7,)),
            "returned": DIFFERS,
        },
    ),
    "--sample-steps": (
        "",
        "--sample-steps=9,2",
        {"reverse steps": ((1, 2, 3, 5, 10, 50), (2, 9)), "mistakes most_steps": (50, 9)},
    ),
    "--moments": (
        "",
        "--moments=9",
        {
            "reverse moments": (21, 5),
            "riddles moments": (16, 9),
            "points moments": (41, 9),
        },
    ),
    "--point-steps": ("", "--point-steps=9", {"points steps": (2000, 9)}),
    "--num": ("", "--num=12", {"mistakes num": (30, 12)}),
    "--known": (
        "",
        "--known=200",
        {"num_images": ([500, 5000], [500, 200]), "reverse known": DIFFERS, "riddles known": DIFFERS},
    ),
    "--classifier": ("", "--classifier=a.npz", {"classifier": (None, "a.npz"), "mistakes reader": (None, "reader")}),
    "--train-steps": (
        "",
        "--train-steps=4",
        {"mistakes train_steps": (0, 4), "num_images": ([500, 5000], [500, None]), "reverse known": DIFFERS,
         "riddles known": DIFFERS},
    ),
    "--data-dir": ("", "--data-dir=d", {"data_dir": ([None] * 2, ["d"] * 2)}),
    "--seed": ("", "--seed=7", {"data_seed": ([0] * 2, [7] * 2), **everywhere("seed", 0, 7)}),
    "--out": ("", "--out=x.html", {"files": (["runs/explorer.html"], ["x.html"]), **PAGE}),
}  # fmt: skip
