"""Every table that a demo prints fits into 100 columns, with the widest entries that it can have.

Tables of write_table are held to this in tests/app/test_tables.py, that of pitfalls.py in test_pitfalls.py.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest

from tinydiff.app.metrics import share
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="text is the same on every backend"),
]

MEASURE = Path(__file__).parents[2] / "demos" / "measure"


def fits(text):
    return max(map(len, text.splitlines())) <= 100


def test_the_showdowns_rows_stand_below_their_heading(load_demo):
    """The longest name, a thousand steps, an interval of three digits at both ends, hours of drawing."""
    demo = load_demo("sampler_showdown")
    for right, name in ((0, "2M"), (9_999, max(demo.SAMPLERS, key=len)), (10_000, "DDIM")):
        row = {"sampler": name, "steps": 1000, "scale": 2.0, "right": right, "num": 10_000}
        line = demo.line(row | {"frechet": 1.2345e-5, "floor": 0.0, "seconds": 99_999.0})
        assert fits(line) and len(line) == len(demo.HEADING) and "nan" not in line and "-0.0%" not in line


def test_the_table_of_edits_fits(load_demo, capsys):
    """Its longest share, and a round trip of a network that has learned nothing."""
    table = load_demo("edit").Table()
    table["read as the original, without 4, 7, 9"] = share(np.arange(10_000) < 9_999)
    table["round trip, 1,000 steps"] = "RMSE 2.95e+04, 1.476e+06% of the range; x_T's std 1.23e+03"
    assert fits(capsys.readouterr().out)


def test_a_class_with_many_answers_is_wrapped(load_demo):
    """Nine wrong answers with the longest names of Fashion-MNIST."""
    demo, names = load_demo("classify"), [f"Ankle boot {k}" for k in range(10)]
    text = demo.class_line(names[3], np.repeat(np.arange(10), 1000), 3, names)
    assert fits(text) and all(f"1000 as {name}" in " ".join(text.split()) for name in names if name != names[3])


def test_what_prompts_are_judged_by_fits(load_demo, capsys):
    demo = load_demo("prompts/evaluate_prompts")
    for what in ("digit", "all three"):
        print(f"  {'held out: ' + what:28}{share(np.arange(10**6) < 999_999)}")
    assert fits(capsys.readouterr().out) and demo.SHOWN


def test_the_list_of_exercises_fits(load_demo, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    load_demo("exercises/exercise").main("list", dir=tmp_path)
    table, _ = capsys.readouterr().out.split("\n\n")
    assert fits(table)


@pytest.mark.parametrize("milliseconds", [0.1, 9.999, 12.3, 99.96, 123.4, 9_999.0])
def test_the_benchmarks_tables_fit(monkeypatch, milliseconds):
    """Four contestants on the CPU, nine on a GPU, layers of a thousand channels, from 0.1 ms to 10 s a layer."""
    monkeypatch.syspath_prepend(MEASURE)
    on_cpu, on_gpu = (importlib.import_module(name) for name in ("on_cpu", "on_gpu"))
    names, s = (on_cpu.OURS, on_cpu.PLAIN, *on_cpu.LAYOUTS), milliseconds / 1e3
    conv, norm = ("conv", 999, 28, 1024, 1024, 2, True), ("group_norm_silu", 999, 28, 1024, 8)
    jobs = [conv, norm, ("attention", 999, 4, 784, 64), on_cpu.TRAIN, on_cpu.FORWARD, on_cpu.OPTIMIZER]
    seconds = {(cores, job): {name: [2 * s, s, s] for name in names} for job in jobs for cores in (1, 128)}
    for job in (on_cpu.TRAIN, on_cpu.FORWARD):
        seconds |= {(cores, job): {name: [99 * s, 99 * s] for name in names} for cores in (1, 128)}
    memory = dict.fromkeys(names, 99_999.99)
    report = {"settings": {"batch_size": 1024, "op_images": 1024}, "peak_mb": memory}
    report["medians"] = [on_cpu.entry(cores, job, 24, by) for (cores, job), by in seconds.items()]
    assert fits("\n".join(on_cpu.table_lines(report | on_cpu.ratios(seconds, memory, 128))))
    names = (on_cpu.OURS, on_cpu.PLAIN, *on_gpu.WAYS)
    failed = on_gpu.reason(RuntimeError("CUDA error: " + "out of memory " * 99))
    batch = {"seconds": {name: dict.fromkeys(names, 99 * s) for name in ("train", "forward")}}
    batch |= {"peak_mb": dict.fromkeys(names, 99_999.99), "ratios": dict.fromkeys("abc", 123.45)}
    batch |= {"first": {name: [999.9, 999.9] for name in names}, "failed": dict.fromkeys(on_gpu.WAYS, failed)}
    batch |= {"fastest": dict.fromkeys(("train", "forward"), max(on_gpu.WAYS, key=len)), "notes": {}}
    assert fits("\n".join(on_gpu.table_lines(65_536, batch)))


def test_the_tables_of_scaling_fit(monkeypatch):
    """A slow machine: seconds a step for every batch, channel and size, and hundreds of cores."""
    monkeypatch.syspath_prepend(MEASURE)
    scaling, roofline = (importlib.import_module(name) for name in ("scaling", "roofline"))
    cores = scaling.Sweep("cores", (1, 2, 4, 8, 16, 32, 64, 128, 192), "worker processes", None)
    growth = [
        (sweep, {value: 9.87654 * (1 + value) / 99 for value in sweep.values}) for sweep in (*scaling.SWEEPS, cores)
    ]
    work = {kind: roofline.Work(9_999 * 10**8, 10**9, 9.9999) for kind in ("product", "thin")}
    work["tanh"] = roofline.Work(10**9, 10**9, 9.9999)
    step = {"images": 64, "direct": 9_999 * 10**8, "work": work, "maps": 10**9, "state": 10**9}
    rates = {"product": 50.0, "memory": 9.0, "cache": 9.0, "tanh": 9.0}
    lines = [*scaling.growth_lines(growth), *roofline.step_lines(step | {"step": 99.0, "update": 9.0}, rates)]
    assert fits("\n".join(lines))
