"""The options of classify.py: three images whose first pixels are stamped, and a classifier that reads the stamp."""

from functools import partial

import numpy as np
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import LabelIsNoise, note_pictures

from tinydiff.app.alone import OneProcess

ARGUMENTS = {"samples": "a.npz"}
WORDS = "--out=misread.png"
STAMPS = {"a.npz": [0, 1, 1], "b.npz": [1, 1, 1]}
LABELS = [0, 1, 0]


def stand_ins(program, notes, patch):
    for path, stamps in STAMPS.items():
        images = np.full((3, 4, 4, 1), -1, np.float32)
        images[:, 0, 0, 0] = np.array(stamps) / 2
        np.savez(path, images=images, labels=np.array(LABELS))

    def load_classifier(path, num_workers):
        notes.add(checkpoint=str(path), workers=num_workers)
        meta = {"data": {"classes": list("01"), "image_shape": [4, 4, 1]}}
        return OneProcess(partial(LabelIsNoise, 2)), meta

    def read(pool, images, t=None):
        notes.add(images=images)
        yield np.eye(2)[(images[:, 0, 0, 0] * 2).astype(int)]

    patch.setitem(program.names, "load_classifier", load_classifier)
    patch.setitem(program.names, "read", read)
    note_pictures(notes, patch)


ROWS = {
    **BASICS,
    **WORKERS,
    "samples": (
        "a.npz",
        "b.npz",
        {"images": DIFFERS, "save_grid": DIFFERS, "save_grid title": ("1 of 3 misread", "2 of 3 misread")}
        | {"printed": DIFFERS, "returned": ((2, 3), (1, 3))},
    ),
    "--checkpoint": ("", "--checkpoint=b.npz", {"checkpoint": ("runs/classifier/checkpoint.npz", "b.npz")}),
    "--out": ("", "--out=b.png", {"save_grid path": ("misread.png", "b.png"), "printed": DIFFERS}),
}
