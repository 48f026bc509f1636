"""The options of demos/measure/ranks.py: the functions that measure note what they are given, and answer at once."""

from types import SimpleNamespace

from option_rows import DIFFERS

WORDS = "--rounds=2"
COSTS = {"c": 0.008, "d": 1e-5, "u": 0.003, "numbers": 1000}


def stand_ins(program, notes, patch):
    def measure_step(pool, dataset, rounds):
        notes.add(images=dataset.images, weights=pool.parameters[0].data, rounds=rounds)
        return 0.5, dict(COSTS)

    def measure_others(dataset, rounds):
        notes.add(rounds_of_others=rounds)
        return 1e-7

    def picture(costs):
        notes.add(drawn=costs)
        return SimpleNamespace(savefig=lambda file, format: file.write(format.encode()))

    patch.setitem(program.names, "measure_step", measure_step)
    patch.setitem(program.names, "measure_others", measure_others)
    patch.setitem(program.names, "picture", picture)


def line(what):
    return f"{what}: 500.0 ms a step, 128.0 img/s\n"


ROWS = {
    "--workers": [
        ("", "--workers=3", {"workers": (5, 3), "printed": (line("5 local worker(s)"), line("3 local worker(s)"))}),
        # With one worker the program also predicts, and writes.
        (
            "",
            "--workers=1",
            {"workers": (5, 1), "rounds_of_others": (None, 2)} | dict.fromkeys(("printed", "files", "drawn"), DIFFERS),
        ),
    ],
    "--parallel": (
        "",
        "--parallel=mpi",
        {"parallel": ("local", "mpi"), "printed": (line("5 local worker(s)"), line("5 MPI rank(s)"))},
    ),
    "--rounds": ("--workers=1", "--workers=1 --rounds=3", {"rounds": (2, 3), "rounds_of_others": (2, 3)}),
    "--out": (
        "--workers=1",
        "--workers=1 --out=a",
        {"files": (["runs/ranks/ranks.md", "runs/ranks/ranks.png"], ["a/ranks.md", "a/ranks.png"]), "printed": DIFFERS},
    ),
}
