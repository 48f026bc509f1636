"""The options of prompt.py: images and steering are noted, and not drawn."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import SCHEDULE, LabelIsNoise, note_pictures

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"checkpoint": "c.npz", "prompt": "two"}
WORDS = "--num=2 --steering=s.png"


def stand_ins(program, notes, patch):
    vocabulary = program.names["tokenize"].__globals__["VOCABULARY"]
    meta = {"data": {"image_shape": [4, 4, 1]}, "vocabulary": vocabulary}

    def said(tokens):
        return " ".join(vocabulary[word] for word in tokens[1:] if word)

    def load_trained(path, num_workers):
        notes.add(checkpoint=str(path), workers=num_workers)
        return OneProcess(LabelIsNoise), SCHEDULE, meta

    def draw_images(pool, recipe, labels, seed):
        (first, other), negative = recipe.guide.args
        notes.add(prompt=said(first), swap=said(other), negative=said(negative), seed=seed, labels=labels)
        notes.add(num_steps=recipe.num_steps, scale=recipe.scale)
        return np.zeros((len(labels), 4, 4, 1), np.float32)

    def steer(model, recipe, tokens, seed):
        notes.add(steered=said(tokens), steering_seed=seed)
        parts = {name: np.zeros((1, 4, 4, 1)) for name in ("x_t", "x_0_hat", "swapped", "other")}
        return parts | {"t": [9], "maps": np.ones((1, 16, 2, 2))}

    def steering_figure(blocks, times):
        notes.add(titles=[title for title, *_ in blocks], words=blocks[1][1])
        return Figure(figsize=(1, 1))

    for f in (load_trained, draw_images, steer, steering_figure):
        patch.setitem(program.names, f.__name__, f)
    note_pictures(notes, patch)


def title(prompt="'two'", scale=3):
    return f"{prompt}, guidance {scale}"


ROWS = {
    **BASICS,
    **WORKERS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "prompt": (
        "two",
        "thin",
        {
            "prompt": ("two", "thin"),
            "steered": ("two", "thin"),
            "titles": DIFFERS,
            "words": (["start", "two"], ["start", "thin"]),
            "save_grid title": (title(), title("'thin'")),
        },
    ),
    "--num": (
        "",
        "--num=3",
        {"labels": ([0, 0], [0, 0, 0]), "save_grid": DIFFERS, "returned": DIFFERS, "printed": DIFFERS},
    ),
    "--scale": ("", "--scale=0", {"scale": (3.0, 0.0), "save_grid title": (title(), title(scale=0))}),
    "--negative": (
        "",
        "--negative=thick",
        {"negative": ("", "thick"), "save_grid title": (title(), title("'two' and not 'thick'"))},
    ),
    "--steps": ("", "--steps=9", {"num_steps": (50, 9)}),
    "--seed": ("", "--seed=7", {"seed": (0, 7), "steering_seed": (0, 7)}),
    "--out": ("", "--out=x.png", {"save_grid path": ("runs/prompt.png", "x.png"), "printed": DIFFERS}),
    "--steering": (
        "",
        "--steering=x.png",
        {"files": (["s.png"], ["x.png"]), "printed": DIFFERS},
    ),
    "--swap": ("", "--swap=7", {"swap": ("a thick two", "7"), "titles": DIFFERS}),
}
