"""The parts of a session on a GPU: what they compare is compared, and what they say follows from known figures."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recorder import Program

from tinydiff.backend import FAST, backend_name
from tinydiff.ops.conv import conv2d

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]


PRECISIONS = ("float32", "tf32", "bf16")  # of a GPU


@pytest.fixture
def parts(module):
    return module("gpu_parts")


@pytest.fixture
def small(parts, monkeypatch):
    """The parts with one layer of the network, two odd shapes, and a small network of 8 channels."""
    build = parts.build_unet

    def layer_jobs(channels, n, size, network):
        assert (channels, size, network) == (32, 28, {})  # the reference network
        return {("conv", n, 6, 8, 16, 2, True): 1, ("attention",): 1}

    monkeypatch.setattr(parts, "layer_jobs", layer_jobs)
    monkeypatch.setattr(parts, "ODD", ((3, 5, 7, 3, 1), (1, 3, 2, 1, 2)))
    monkeypatch.setattr(parts, "build_unet", lambda config, seed: build(config | {"base_channels": 8}, seed))
    return parts


CASES = ["conv 4x6x6x8 -> 16, stride 2", "conv 3x5x5x7 -> 3", "conv 1x3x3x2 -> 1, stride 2"]


def test_the_cases_are_the_convolutions_the_odd_ones_and_the_network(small):
    """On a CPU all errors are those of float32, and none is exactly 0 in all cases: float64 was compared with."""
    found = small.cases("numpy", None)
    assert found["limits"] == {"float32": 1e-5} and list(found["errors"]) == ["float32"]
    errors = found["errors"]["float32"]
    assert list(errors) == [*CASES, small.WHOLE] and all(1e-9 < error < 5e-6 for error in errors.values())


@pytest.mark.parametrize("number", range(4))
def test_a_wrong_array_shows_in_its_case(small, monkeypatch, number):
    """Output, dx, dw or db 1% too large: each convolution has an error of 1% then, and the network a large one."""
    choose = small.use_backend

    def use_backend(*args, **options):
        choose(*args, **options)
        if not options.get("plain"):
            FAST.clear()
            FAST["conv2d"] = wrong

    def wrong(*arrays, **static):
        y, vjp = conv2d.__wrapped__(*arrays, **static)

        def off(g):
            parts = [part() for part in vjp(g)]
            return [a * np.float32(1 + 0.01 * (i == number - 1)) for i, a in enumerate(parts)]

        return y * np.float32(1 + 0.01 * (number == 0)), off

    monkeypatch.setattr(small, "use_backend", use_backend)
    errors = small.cases("numpy", None)["errors"]["float32"]
    assert [errors[case] for case in CASES] == pytest.approx([0.01] * 3, rel=1e-3) and errors[small.WHOLE] > 1e-4


def test_a_relative_error_is_a_ratio_of_lengths(parts):
    """(3, 4) off by (0, 0.5) is off by a tenth."""
    assert parts.relative_error(np.float32([3, 4.5]), np.float32([3, 4])) == 0.1


def test_steps_in_the_loop_are_ordered_steps(small, monkeypatch):
    """No bit differs, in any array of the state; one array that a loop changes is named."""
    monkeypatch.setattr(small, "STEPS", 2)
    (found,) = small.recorded("numpy", None).values()
    assert found["different"] == found["notes"] == [] and found["arrays"] > 4 * 50
    loop = small.training_steps

    def other(state, ranks, report):
        yield from loop(state, ranks, report=report)
        state.ema.average[0].reshape(-1)[0] += 1
        report("recorded")

    monkeypatch.setattr(small, "training_steps", other)
    (found,) = small.recorded("numpy", None).values()
    assert len(found["different"]) == 1 and found["different"][0].startswith("ema/") and found["notes"] == ["recorded"]


def test_bits_are_compared_and_names(parts):
    """0 and -0 differ; so do a name on one side, and another dtype of the same numbers."""
    a = {"x": np.zeros(2), "y": np.ones(1), "z": np.float32([1])}
    assert parts.different(a, {name: array.copy() for name, array in a.items()}) == []
    assert parts.different(a, a | {"x": -np.zeros(2)}) == ["x"]
    assert parts.different(a, {"x": a["x"], "z": np.float64([1]), "w": a["y"]}) == ["y", "z", "w"]


def test_what_a_kernel_uses_has_its_names(parts):
    attributes = {"num_regs": 84, "local_size_bytes": 16, "shared_size_bytes": 1024, "binary_version": 90}
    assert parts.usage(attributes) == {"registers": 84, "local bytes": 16, "shared bytes": 1024}
    assert parts.registers("numpy", None) == {}


@pytest.mark.parametrize("why_not", [None, "too old"])
def test_every_kernel_is_asked_what_it_uses(parts, monkeypatch, why_not):
    """All of kernels.cu, in float32 with short indices; all of conv.cu in each precision, on a GPU that can run it."""
    asked = []

    def kernel(name, *how):
        asked.append(how)
        return SimpleNamespace(attributes={"num_regs": len(asked), "local_size_bytes": 0, "shared_size_bytes": 1})

    monkeypatch.setattr(parts, "use_backend", lambda name: None)
    monkeypatch.setattr(parts.kernels, "_kernel", kernel)
    monkeypatch.setattr(parts.tensor_cores, "_function", kernel)
    monkeypatch.setattr(parts.tensor_cores, "why_not", lambda: why_not)
    used = list(parts.registers("cupy", None))
    plain, tensor = parts.kernel_names(), [] if why_not else parts.tensor_names()
    assert len(plain) == parts.kernels.SOURCE.count("__global__") and {"adam", "softmax", "gather"} <= set(plain)
    assert used == plain + [f"{name}, {precision}" for precision in ("float32", "tf32", "bf16") for name in tensor]
    expected = [("f", False)] * len(plain) + [(p,) for p in ("float32", "tf32", "bf16") for _ in tensor]
    assert asked == expected and (why_not or len(tensor) == 10)


@pytest.mark.parametrize(
    "text, stepped",
    [
        ("0step [00:00, ?step/s]", False),
        ("0/2000 [00:00<?, ?step/s]", False),
        ("\r  0%|  | 0/2000 [00:00<?]\r  0%|  | 1/2000 [00:01<30:00]", True),
        ("\r1step [00:01, 1.0step/s]", True),
        ("at most 8 minutes: 20step [00:02", True),
        ("30 of 30 images", False),
    ],
)
def test_a_bar_has_stepped_if_it_counts_one(parts, text, stepped):
    """Both forms of the bar of the main job, with and without the number of all steps."""
    assert parts.has_stepped(text) is stepped


RUN = """
import sys, time
from pathlib import Path
time.sleep(0.1); print("0/5 [", file=sys.stderr, flush=True)
time.sleep(0.1); print("1/5 [", file=sys.stderr, flush=True)
time.sleep(0.1); Path(sys.argv[1]).write_text("") if sys.argv[2] == "0" else None
time.sleep(0.1); print("out of memory"); sys.exit(int(sys.argv[2]))
"""


def test_a_run_is_timed_from_the_command_to_its_step_and_its_picture(parts, tmp_path):
    """By sleeps, which end no sooner: a step after 0.2 s, the picture after 0.3, the end after 0.4."""
    picture = tmp_path / "samples.png"
    seconds = parts.timed_run([sys.executable, "-c", RUN, str(picture), "0"], picture)
    assert seconds["first step"] > 0.2 and seconds["samples.png"] > seconds["first step"] + 0.05
    assert seconds["end"] > seconds["samples.png"] + 0.05
    with pytest.raises(RuntimeError, match=r"exit code 3: .*out of memory"):  # with a picture, and without one
        parts.timed_run([sys.executable, "-c", RUN, str(tmp_path / "other.png"), "3"], picture)
    with pytest.raises(RuntimeError, match=r"exit code 0: "):
        parts.timed_run([sys.executable, "-c", RUN, str(picture), "0"], tmp_path / "other.png")


SAYS = "import sys; print(sys.argv[1:]); print('out of memory', file=sys.stderr); sys.exit(len(sys.argv) - 2)"


def test_a_program_that_fails_stops_its_part(parts, tmp_path, monkeypatch, capsys):
    """What it prints is shown and returned; with an exit code other than 0 the error has the code and the reason."""
    monkeypatch.setattr(parts, "DEMOS", tmp_path)
    (tmp_path / "says.py").write_text(SAYS)
    assert parts.run("says.py", 7) == "['7']\n" and "['7']" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"^says.py: exit code 2: out of memory$"):
        parts.run("says.py", 1, 2, 3)


@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_the_programs_of_a_session_take_their_words_and_each_others_files(parts, tmp_path, monkeypatch, backend):
    """Each program's own parser takes the words.  On a GPU the main job and the classifier have their defaults, a
    thousand digits of that job are read, and the benchmark measures each batch that has a goal."""
    runs, real = [], backend == "cupy"

    def run(program, *words):
        runs.append(given := options(program, *words))
        if "json_path" in given:
            Path(given["json_path"]).write_text('{"batches": 1}')
        return "digits.npz: 7 of 9 read as the label asked for: 77.8%\n"

    def options(program, *words):
        return vars(Program(program.removesuffix(".py")).parser.parse_args([*map(str, words)]))

    def timed_run(command, picture):
        assert command[0] == sys.executable
        run(Path(command[1]).relative_to(parts.DEMOS).as_posix(), *command[2:])
        return {"picture": picture}

    monkeypatch.setattr(parts, "run", run)
    monkeypatch.setattr(parts, "timed_run", timed_run)
    assert parts.default_run(backend, str(tmp_path)) == {"picture": tmp_path / "run" / "samples.png"}
    assert parts.read_as_asked(backend, str(tmp_path)) == {"right": 7, "of": 9}
    assert parts.benchmark(backend, str(tmp_path)) == {"batches": 1}
    job, trained, drawn, read, measured = runs
    assert {run["backend"] for run in runs} == {backend}
    assert job["out"] == str(tmp_path / "run") and drawn["checkpoint"] == f"{job['out']}/checkpoint.npz"
    assert read["samples"] == drawn["save_npz"] and read["checkpoint"] == f"{trained['out']}/checkpoint.npz"
    if real:
        assert job == options("train_mnist.py") | {"backend": backend, "out": job["out"]}
        assert trained == options("train_classifier.py") | {"backend": backend, "out": trained["out"], "data": "glyphs"}
        assert drawn["num"] == 1000
        goals = {what for what, *_ in parts.goals({}) if ", batch " in what}
        assert {int(what.partition(", batch ")[2].partition(":")[0]) for what in goals} == {*measured["batch_sizes"]}
    else:  # a rehearsal is short
        assert max(job["steps"], trained["steps"]) <= 5 and drawn["num"] <= 20 and measured["rounds"] == 1


@pytest.mark.parametrize("backend, chosen", [("numpy", "tests/test_backend.py"), ("cupy", "tests")])
def test_the_suite_runs_on_the_backend_and_its_lines_are_shown(parts, monkeypatch, capsys, backend, chosen):
    """All tests on a GPU, one file in a rehearsal; pytest names what fails and what cannot be run."""
    commands = []

    def popen(command, **_):
        commands.append(command)
        return nullcontext(SimpleNamespace(stdout=iter(PRINTED.splitlines(keepends=True))))

    monkeypatch.setattr(parts.subprocess, "Popen", popen)
    assert parts.suite(backend, None) == parts.outcome(PRINTED) and capsys.readouterr().out == PRINTED
    ((python, dash_m, pytest_, *options, last),) = commands
    assert (python, dash_m, pytest_) == (sys.executable, "-m", "pytest") and "-rfE" in options
    assert options[options.index("--backend") + 1] == backend
    assert Path(last) == parts.DEMOS.parent / chosen


def test_on_a_gpu_each_precision_has_its_batch_and_the_card_its_memory(parts, monkeypatch):
    """Steps of 64 images in each precision of the backend; memory in MB."""
    chosen, batches = [], []
    monkeypatch.setattr(parts, "use_backend", lambda *names: chosen.append(names))
    monkeypatch.setattr(parts, "arrays_after", lambda n, loop: batches.append(n) or {"a": np.zeros(n)})
    found = parts.recorded("cupy", None)
    assert chosen == [("cupy", name) for name in PRECISIONS] and list(found) == [*PRECISIONS]
    assert batches == [64] * 6 and found["bf16"] == {"arrays": 1, "different": [], "notes": []}
    assert parts.LIMITS.keys() == parts.NETWORK.keys() == {*PRECISIONS}
    runtime = SimpleNamespace(memGetInfo=lambda: (5 << 20, 80 << 20), runtimeGetVersion=lambda: 13000)
    monkeypatch.setattr(parts, "xp", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(parts, "describe_gpu", lambda: {"device": "a card"})
    figures = parts.conditions("cupy", None)
    assert (figures["device"], figures["memory"], figures["CUDA"]) == ("a card", "5 of 80 MB free", 13000)


def test_a_part_s_figures_are_the_file_of_its_name(parts, monkeypatch, tmp_path):
    """With the backend and the folder that it was given."""
    monkeypatch.setattr(parts, "cases", lambda backend, folder: {"given": [backend, folder]})
    parts.work("cases", "cupy", str(tmp_path))
    assert json.loads((tmp_path / "cases.json").read_text()) == {"given": ["cupy", str(tmp_path)]}


PRINTED = """..F.s
FAILED tests/test_a.py::test_b[x-1] - AssertionError: 1 != 2
ERROR tests/test_c.py - ImportError
1 failed, 1,234 passed, 5 skipped, 2 warnings, 1 error in 61.20s (0:01:01)
"""


def test_the_outcome_of_the_suite_is_pytests(parts):
    """The numbers of the last line, and the names of what failed."""
    found = parts.outcome(PRINTED.replace("1,234", "1234"))
    assert found == {"passed": 1234, "failed": 1, "skipped": 5, "error": 1,
                     "failures": ["tests/test_a.py::test_b[x-1]", "tests/test_c.py"]}  # fmt: skip
    assert parts.outcome("") == {"passed": 0, "failed": 0, "skipped": 0, "error": 0, "failures": []}


def batch(train, forward, memory, fastest="A", failed=None):
    ratios = {"train": train, "forward": forward, "memory": memory}
    return {"ratios": ratios, "fastest": {"train": fastest, "forward": "B"}, "failed": failed or {}}


BENCHMARK = {
    "64": batch(3.0, None, 0.5),
    "128": batch(1.5, 1.49, 1.0, failed={"C": "no"}),
    "512": batch(0.99, 1.0, 1.01),
}


def test_the_goals_follow_from_the_figures(parts):
    """On the bound a goal is met; without figures it is not measured."""
    figures = {"benchmark": {"batches": BENCHMARK}, "default_run": {"samples.png": 30.1}}
    figures |= {"read_as_asked": {"right": 990, "of": 1000}, "cases": {"errors": {"tf32": {parts.WHOLE: 0.002}}}}
    met = [(value, bound, met) for _, value, bound, met in parts.goals(figures)]
    assert met == [
        (1.5, "at least 1.5", True), (1.49, "at least 1.5", False), (0.99, "at least 1", False),
        (1.0, "at least 1", True),
        (0.5, "at most 1", True), (1.0, "at most 1", True), (1.01, "at most 1", False),
        (None, "at most 1e-06", None), (0.002, "at most 0.002", True), (None, "at most 0.01", None),
        (30.1, "at most 30", False), (0.99, "at least 0.99", True),
    ]  # fmt: skip
    assert {(value, met) for _, value, _, met in parts.goals({})} == {(None, None)} and len(parts.goals({})) == 12


def test_each_parts_lines_say_its_figures(parts):
    """Known figures give known lines; what is wrong is named below."""
    errors = {"a": 1e-7, "b": 3e-6, "c": float("nan")}
    told = {
        "conditions": {"device": "H100", "driver": "580"},
        "cases": {"limits": {"float32": 1e-6}, "errors": {"float32": {"a": 1e-7, "b": 3e-6}}},
        "recorded": {"tf32": {"arrays": 9, "different": [], "notes": ["n"]},
                     "float32": {"arrays": 9, "different": ["x", "y"], "notes": []}},
        "registers": {"conv": {"registers": 84, "local bytes": 0}},
        "default_run": {"first step": 2.04, "samples.png": 11.0},
        "read_as_asked": {"right": 998, "of": 1000},
        "benchmark": {"batches": {"128": BENCHMARK["128"]}},
        "suite": {"passed": 7, "failed": 1, "failures": ["t.py::a"]},
    }  # fmt: skip
    assert {name: list(parts.lines(name, figures)) for name, figures in told.items()} == {
        "conditions": ["device H100, driver 580"],
        "cases": ["float32: 2 cases, 1 above 1e-06; largest 3.0e-06, b", "    b: 3.0e-06"],
        "recorded": ["tf32: 20 steps in the loop and ordered: 9 arrays, all have the same bits", "    n",
                     "float32: 20 steps in the loop and ordered: 9 arrays, 2 differ, such as x"],
        "registers": ["conv: 84 registers, 0 local bytes"],
        "default_run": ["first step after 2.0 s, samples.png after 11.0 s"],
        "read_as_asked": ["998 of 1000 read as asked"],
        "benchmark": [
            "batch 128: ratios train 1.50, forward 1.49, memory 1.00; fastest of PyTorch train: A, forward: B",
            "    C: no",
        ],
        "suite": ["7 passed, 1 failed", "    t.py::a"],
    }  # fmt: skip
    lines = list(parts.lines("cases", {"limits": {"tf32": 1e-6}, "errors": {"tf32": errors}}))
    assert "2 above" in lines[0] and lines[1:] == ["    b: 3.0e-06", "    c: nan"]  # nan is no small error
