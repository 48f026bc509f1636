"""The options of edit.py: what each edit is asked for is noted, and every edit leaves the digits as they are."""

import numpy as np
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import note_data, note_trained

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=4 --digits=3 --steps=2 --round-trips=5"


def stand_ins(program, notes, patch):
    note_trained(program, notes, patch)
    note_data(notes, patch, program.names)
    load_trained = program.names["load_trained"]

    def with_seed(*args):
        pool, schedule, meta = load_trained(*args)
        return pool, schedule, meta | {"train": {"seed": 5}}

    def edit(pool, f, x_0, name, seed):
        what, settings = f.func.__name__, f.args[1:]
        if what == "complete":
            _, steps, resample, reader = settings
            settings = {"steps": steps, "resample": resample, "reader": reader}
        notes.add(**{what: settings, f"{what} of": x_0, f"{what} seed": seed})
        return np.stack([x_0, x_0], 1) if what == "round_trip" else x_0

    def picture_blocks(pool, schedule, dataset, fill_in, known, steps, seed):
        notes.add(picture=(fill_in.args[2:], steps, seed))
        return []

    def readings(path, workers, done, labels, classes):
        notes.add(classifier=str(path), classifier_workers=workers)
        return [("all images", "1 of 1")]

    def load_noisy_classifier(path, schedule, num_classes, data):
        return f"reader of {path}"

    def load_kind(path, kind):
        notes.add(opened_first=(str(path), kind))
        return {}, {"data": {"image_shape": [4, 4, 1]}}

    patch.setitem(program.names, "load_trained", with_seed)
    patch.setitem(program.names, "load_kind", load_kind)
    patch.setitem(program.names, "save_blocks", lambda path, blocks: notes.add(picture_path=str(path)))
    patch.setitem(program.names, "save_table", lambda path, table: notes.add(table_path=str(path)))
    for f in (edit, picture_blocks, readings, load_noisy_classifier):
        patch.setitem(program.names, f.__name__, f)


def complete(steps=2, resample=10, reader=None):
    return {"steps": steps, "resample": resample, "reader": reader}


PRINTED = {"returned": DIFFERS, "printed": DIFFERS}
ROWS = {
    **BASICS,
    **WORKERS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--classifier": (
        "",
        "--classifier=r.npz",
        {
            "opened_first": (None, ("r.npz", "classifier")),
            "classifier": (None, "r.npz"),
            "classifier_workers": (None, 5),
            **PRINTED,
        },
    ),
    "--noisy-classifier": (
        "",
        "--noisy-classifier=n.npz",
        {
            "complete": (complete(), complete(reader="reader of n.npz")),
            "picture": (((2, 10, None), 5, 0), ((2, 10, "reader of n.npz"), 5, 0)),
        },
    ),
    "--num": ("", "--num=6", {"complete of": DIFFERS, **PRINTED}),
    "--steps": (
        "",
        "--steps=3",
        {"complete": (complete(), complete(steps=3)), "picture": (((2, 10, None), 5, 0), ((3, 10, None), 5, 0))},
    ),
    "--resample": (
        "",
        "--resample=4",
        {"complete": (complete(), complete(resample=4)), "picture": (((2, 10, None), 5, 0), ((2, 4, None), 5, 0))},
    ),
    "--digits": ("", "--digits=6", {"round_trip of": DIFFERS, **PRINTED}),
    "--round-trips": (
        "",
        "--round-trips=7",
        {"round_trip": ((5,), (7,)), "picture": (((2, 10, None), 5, 0), ((2, 10, None), 7, 0)), **PRINTED},
    ),
    "--seed": (
        "",
        "--seed=1",
        {
            "complete seed": (0, 1),
            "round_trip seed": (0, 1),
            "picture": (((2, 10, None), 5, 0), ((2, 10, None), 5, 1)),
        },
    ),
    "--data-dir": ("", "--data-dir=folder", {"data_dir": (None, "folder")}),
    "--out": (
        "",
        "--out=x",
        {
            "picture_path": ("runs/edit/edit.png", "x/edit.png"),
            "table_path": ("runs/edit/edit.md", "x/edit.md"),
            "printed": DIFFERS,
        },
    ),
}
