"""The options of demos/measure/scaling.py: the functions that measure note their rounds, and answer at once."""

from contextlib import contextmanager
from types import SimpleNamespace

from option_rows import DIFFERS

WORDS = "--rounds=2"


def stand_ins(program, notes, patch):
    @contextmanager
    def one_core(workers, context):
        def submit(measure, *arguments):
            notes.add(**{measure.__name__: arguments})
            return SimpleNamespace(result=lambda: None)

        yield SimpleNamespace(submit=submit)

    def grow(sweep, rounds, bar):
        notes.add(**{sweep.name: sweep.values, f"rounds of {sweep.name}": rounds})
        bar.update(len(sweep.values) * (rounds + 2))
        notes.add(left=bar.total - bar.n)
        return {value: 0.1 * value for value in sweep.values}

    def draw(growth):
        notes.add(drawn=[(sweep.name, by) for sweep, by in growth])
        return SimpleNamespace(savefig=lambda file, format: file.write(format.encode()))

    patch.setitem(program.names, "ProcessPoolExecutor", one_core)
    patch.setitem(program.names, "available_cores", lambda: 2)
    patch.setitem(program.names, "grow", grow)
    patch.setitem(program.names, "rate_lines", lambda rates: [])
    patch.setitem(program.names, "step_lines", lambda step, rates: [])
    patch.setitem(program.names, "draw", draw)


REFERENCE = {"batch_size": 64, "channels": 32, "size": 28, "cores": 1}
ROUNDS = {f"rounds of {name}": (2, 3) for name in REFERENCE}
ROWS = {
    "--rounds": (
        "",
        "--rounds=3",
        {
            "measure_rates": ((2,), (3,)),
            "measure_step": ((REFERENCE, 2), (REFERENCE, 3)),
            "left": ([48, 32, 8, 0], [60, 40, 10, 0]),
            **ROUNDS,
        },
    ),
    "--out": ("", "--out=a", {"files": (["runs/scaling/scaling.png"], ["a/scaling.png"]), "printed": DIFFERS}),
}
