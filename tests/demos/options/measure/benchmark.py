"""The options of demos/measure/benchmark.py: both tables note what they are given, and measure nothing."""

WORDS = ""


def stand_ins(program, notes, patch):
    def noting(table):
        def compare(**settings):
            notes.add(table=table, **{f"settings.{name}": value for name, value in settings.items()})
            return {"a ratio": 1.5}

        return compare

    for table in ("on_cpu", "on_gpu"):
        patch.setattr(program.names[table], "compare", noting(table))
    patch.setitem(program.names, "current_precision", lambda: "what the backend computes in")
    patch.setitem(program.names, "write_json", lambda path, report: notes.add(json=path, written=report))


# On a GPU there are no workers, several batches, and PyTorch's device.
TABLES = {
    "backend": ("numpy", "cupy"),
    "table": ("on_cpu", "on_gpu"),
    "settings.backend": ("numpy", "cupy"),
    "settings.batch_size": (64, None),
    "settings.batch_sizes": (None, (64, 128, 512)),
    "settings.device": (None, "cuda"),
    "settings.compile_limit": (None, 120),
    "settings.precision": (None, "what the backend computes in"),
    "settings.workers": (5, None),
}
ROWS = {
    "--backend": ("--backend=numpy", "--backend=cupy", TABLES),
    "--precision": [
        ("--backend=cupy", "--backend=cupy --precision=float32", {"precision": (None, "float32")}),
        ("", "--precision=float32", {"precision": (None, "float32"), "settings.precision": (None, "float32")}),
    ],
    "--plain": [
        ("", "--plain", {"settings.plain": (False, True)}),
        ("--backend=cupy", "--backend=cupy --plain", {"settings.plain": (False, True)}),
    ],
    "--batch-size": [
        ("", "--batch-size=7", {"settings.batch_size": (64, 7)}),
        ("--backend=cupy", "--backend=cupy --batch-size=7,8", {"settings.batch_sizes": ((64, 128, 512), [7, 8])}),
    ],
    "--data-shape": [
        ("", "--data-shape=32,32,3", {"settings.data_shape": ((28, 28, 1), (32, 32, 3))}),
        ("--backend=cupy", "--backend=cupy --data-shape=64,64,1", {"settings.data_shape": ((28, 28, 1), (64, 64, 1))}),
    ],
    "--channels": [
        ("", "--channels=16", {"settings.channels": (32, 16)}),
        ("--backend=cupy", "--backend=cupy --channels=16", {"settings.channels": (32, 16)}),
    ],
    "--rounds": [
        ("", "--rounds=3", {"settings.rounds": (11, 3)}),
        ("--backend=cupy", "--backend=cupy --rounds=3", {"settings.rounds": (11, 3)}),
    ],
    "--compile-limit": (
        "--backend=cupy",
        "--backend=cupy --compile-limit=9",
        {"settings.compile_limit": (120, 9)},
    ),
    "--workers": ("", "--workers=3", {"settings.workers": (5, 3)}),
    "--json": ("", "--json=a.json", {"json": (None, "a.json"), "written": (None, {"a ratio": 1.5})}),
}
