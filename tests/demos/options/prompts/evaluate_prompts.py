"""The options of evaluate_prompts.py: what is drawn is noted, and read by a classifier that knows every digit."""

import numpy as np
from option_rows import BASICS, DIFFERS
from recorder import SCHEDULE, LabelIsNoise, note_pictures

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=4 --num-held-out=3"


def stand_ins(program, notes, patch):
    captions = program.names["tokenize"].__globals__
    thresholds = {name: [0.0, 0.5, 1.0] for name in captions["NAMES"]}
    meta = {"data": {"image_shape": [4, 4, 1]}, "vocabulary": captions["VOCABULARY"], "thresholds": thresholds}
    meta |= {"held_out": [list(row) for row in captions["HELD_OUT"]], "step": 7}

    def load_trained(path, num_workers):
        notes.add(checkpoint=str(path), workers=num_workers)
        return OneProcess(LabelIsNoise), SCHEDULE, meta

    def load_classifier(path, num_workers, data):
        notes.add(classifier=str(path), judge_workers=num_workers)
        return OneProcess(LabelIsNoise), {}

    def draw(pool, recipe, prompts, seed):
        notes.add(prompts=prompts, numbers=len(prompts), seed=seed, num_steps=recipe.num_steps, scale=recipe.scale)
        return np.zeros((len(prompts), 4, 4, 1), np.float32)

    for f in (load_trained, load_classifier, draw):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "read", lambda pool, images: [np.eye(10)[[0] * len(images)]])
    note_pictures(notes, patch)


COUNTED = {"prompts": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}
ROWS = {
    **BASICS,
    "--workers": ("", "--workers=3", {"workers": (5, 3), "judge_workers": (5, 3)}),
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--classifier": ("", "--classifier=a.npz", {"classifier": ("runs/classifier/checkpoint.npz", "a.npz")}),
    "--num": ("", "--num=5", {**COUNTED, "numbers": ([4, 3], [5, 3])}),
    "--num-held-out": (
        "",
        "--num-held-out=5",
        {**COUNTED, "numbers": ([4, 3], [4, 5]), "save_grid": DIFFERS},
    ),
    "--scale": ("", "--scale=1", {"scale": ([3.0, 3.0], [1.0, 1.0])}),
    "--steps": ("", "--steps=9", {"num_steps": ([50, 50], [9, 9])}),
    "--seed": ("", "--seed=7", {"seed": ([0, 0], [7, 7]), "prompts": DIFFERS}),
    "--out": (
        "",
        "--out=x",
        {
            "files": (["runs/evaluate_prompts/prompts.md"], ["x/prompts.md"]),
            "save_grid path": ("runs/evaluate_prompts/held_out.png", "x/held_out.png"),
            "printed": DIFFERS,
        },
    ),
}
