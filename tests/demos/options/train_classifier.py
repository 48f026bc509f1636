"""The options of train_classifier.py: a training of no steps, and a network that reads every digit as 0."""

import numpy as np
from option_rows import BASICS, DIFFERS
from recorder import note_data, note_network, note_pictures, note_training

from tinydiff.app import checkpoint
from tinydiff.diffusion import Schedule

WORDS = "--steps=5"


def stand_ins(program, notes, patch):
    def finish(state, pool, path, settings, resume):
        notes.add(
            unfinished=str(path), resume=resume, **{f"settings.{name}": value for name, value in settings.items()}
        )
        notes.add(config=state.config)
        note_training(notes, state)
        path.write_bytes(b"")

    def read(pool, images, t=None):
        notes.add(read=images, read_t=t)
        yield np.eye(10)[np.zeros(len(images), int)]

    def save_classifier(path, pool, config, dataset, test, errors, schedule=None):
        notes.add(
            saved=str(path),
            trained=config == notes["config"][0],
            saved_data=(dataset.name, len(dataset), test.name, len(test)),
        )
        notes.add(saved_errors=errors, saved_beta=None if schedule is None else schedule.beta)

    patch.setattr(checkpoint, "set_aside", lambda path: notes.add(set_aside=str(path)))
    patch.setitem(program.names, "finish", finish)
    patch.setitem(program.names, "read", read)
    patch.setitem(program.names, "save_classifier", save_classifier)
    note_data(notes, patch, program.names)
    note_network(program.names, notes, patch, "build_classifier")
    note_pictures(notes, patch)


def setting(name, first, second):
    """A setting of the run, which a resumed training compares too."""
    return dict.fromkeys((f"config.{name}", f"settings.{name}"), (first, second)) | {"config": DIFFERS}


def title(data):
    return f"{data}: the most confidently misread of 27 in 30"  # three of 30 digits are a 0


BATCH = {"batch.x": DIFFERS, "batch.labels": DIFFERS}
NOISED = {"t": DIFFERS, "eps": DIFFERS, "batch.t": DIFFERS, "read_t": DIFFERS, "read": DIFFERS, "save_grid": DIFFERS}
ROWS = {
    **BASICS,
    "--data": (
        "",
        "--data=fashion",
        {
            "data": (["auto", "glyphs"], ["fashion"] * 2),  # test digits are of the set that "auto" has found
            "settings.data": ("glyphs", "fashion"),
            "saved_data": (("glyphs", 30, "glyphs", 30), ("fashion", 30, "fashion", 30)),
            "save_grid title": (title("glyphs"), title("fashion")),
        },
    ),
    "--data-dir": ("", "--data-dir=folder", {"data_dir": ([None] * 2, ["folder"] * 2)}),
    "--size": ("", "--size=16", {"size": (None, [16] * 2), "settings.size": (None, 16)}),
    "--steps": ("", "--steps=7", {**setting("num_steps", 5, 7), "num_steps": (5, 7)}),
    "--batch-size": ("", "--batch-size=9", {**BATCH, **setting("batch_size", 128, 9)}),
    "--seed": (
        "--noisy",
        "--noisy --seed=1",
        {**BATCH, **NOISED, **setting("seed", 0, 1), "x_0": DIFFERS, "weights": DIFFERS, "printed": DIFFERS}
        | {"data_seed": ([0, 0], [1, 1])},
    ),
    "--workers": ("", "--workers=3", {"workers": (5, 3), "printed": DIFFERS}),
    "--noisy": (
        "",
        "--noisy",
        {**NOISED, "batch.x": DIFFERS, "x_0": DIFFERS, "printed": DIFFERS, "settings.noisy": (False, True)}
        | {
            "network": (
                {"in_channels": 1, "num_classes": 10, "time": False},
                {"in_channels": 1, "num_classes": 10, "time": True},
            )
        }
        | {"saved_beta": (None, Schedule.linear().beta)},
    ),
    "--out": (
        "",
        "--out=x",
        {
            "saved": ("runs/classifier/checkpoint.npz", "x/checkpoint.npz"),
            "set_aside": ("runs/classifier/checkpoint.npz", "x/checkpoint.npz"),
            "unfinished": ("runs/classifier/unfinished.npz", "x/unfinished.npz"),
            "save_grid path": ("runs/classifier/misread.png", "x/misread.png"),
            "printed": DIFFERS,
        },
    ),
    "--resume": ("", "--resume", {"resume": (False, True)}),
}
