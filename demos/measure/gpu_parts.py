"""The parts of gpu_session.py, each a function of the backend and of a folder for its files, which returns figures.

Figures are a dictionary that JSON can hold; `lines` makes text of them, and `goals` compares them with what should
hold.  Each part runs in a process of its own.  With the backend numpy the parts rehearse on the CPU.
"""

import json
import re
import select
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from figures import number
from machine import describe_gpu
from on_cpu import layer_jobs
from ours import SIDE

from tinydiff import ops
from tinydiff.app.alone import one_process
from tinydiff.app.generate import build_unet
from tinydiff.app.training import arrays_of, diffusion_training
from tinydiff.app.training import steps as training_steps
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, use_backend, xp
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.fast import kernels, tensor_cores
from tinydiff.train import TrainConfig, gradients_of, noise_prediction_losses, train

DEMOS = Path(__file__).parents[1]
LIMITS = {"float32": 1e-5, "tf32": 3e-3, "bf16": 2e-2}  # of a relative error against float64, by precision
NETWORK = {"float32": 1e-6, "tf32": 2e-3, "bf16": 1e-2}  # of the error of the whole gradient
WHOLE = "gradient of the reference U-Net"
ODD = (
    (3, 5, 7, 3, 1),
    (2, 9, 1, 33, 1),
    (1, 7, 40, 8, 2),
    (2, 28, 32, 1, 1),
    (1, 3, 8, 16, 1),
)  # n, side, C, O, stride
STEPS = 20  # recorded and ordered
BATCHES = (64, 128, 512)


def precisions(backend):
    """The precisions that the backend has."""
    return tuple(LIMITS) if backend == "cupy" else ("float32",)


# ------------------------------------------------------------------------------------------------------ computations


def conditions(backend, folder):
    """Card, driver and versions."""
    use_backend(backend)
    machine = describe_gpu() | {"python": sys.version.split()[0], "numpy": np.__version__}
    if backend == "cupy":
        free, total = xp.cuda.runtime.memGetInfo()
        machine |= {"memory": f"{free >> 20} of {total >> 20} MB free", "CUDA": xp.cuda.runtime.runtimeGetVersion()}
    return machine


def cases(backend, folder):
    """Relative errors against float64 of each convolution of the reference U-Net and of odd ones, and of the gradient
    of the whole network: {precision: {case: the largest of its errors}}."""
    shapes = [(n, size, c, o, stride) for _, n, size, c, o, stride, _ in convolutions(4)] + list(ODD)
    use_backend("numpy", plain=True)
    right = {shape: conv_arrays(*shape, "float64") for shape in shapes}
    whole = network_gradient("float64")
    errors = {}
    for precision in precisions(backend):
        use_backend(backend, precision)
        by_case = {}
        for shape in shapes:
            found = conv_arrays(*shape, "float32")
            n, side, c, o, stride = shape
            name = f"conv {n}x{side}x{side}x{c} -> {o}{', stride 2' * (stride == 2)}"
            by_case[name] = max(map(relative_error, found, right[shape]))
        by_case[WHOLE] = relative_error(network_gradient("float32"), whole)
        errors[precision] = by_case
    return {"limits": {name: LIMITS[name] for name in errors}, "errors": errors}


def convolutions(images):
    """The jobs of layer_jobs that are convolutions."""
    return [job for job in layer_jobs(32, images, SIDE, {}) if job[0] == "conv"]


def conv_arrays(n, side, c, o, stride, dtype):
    """Output and gradients of a 3x3 convolution of fixed random arrays, on the host."""
    rng = default_rng("conv", n, side, c, o, stride)
    shapes = (n, side, side, c), (3, 3, c, o), (o,)
    x, w, b = (Tensor(asarray(rng.standard_normal(shape, "float32"), dtype), requires_grad=True) for shape in shapes)
    y = ops.conv2d(x, w, b, stride=stride, padding=1)
    y.backward(asarray(rng.standard_normal(y.shape, "float32"), dtype))
    return [to_numpy(a) for a in (y, x.grad, w.grad, b.grad)]


def network_gradient(dtype):
    """The gradient of the reference U-Net's loss for a batch of 4, as one host array.  No parameter is 0."""
    model, rng = build_unet({"base_channels": 32}, 0), default_rng("network")
    for p in model.parameters():
        fan_in = p.size / p.shape[-1]
        start = rng.standard_normal(p.shape) / fan_in**0.5 if p.ndim > 1 else rng.normal(0.5, 0.3, p.shape)
        p.data = asarray(start.astype("float32"), dtype)
    x_t, target = rng.standard_normal((2, 4, 28, 28, 1), "float32").astype(dtype)
    batch = {"x_t": x_t, "target": target, "t": rng.integers(1, 1001, 4)}
    gradients_of(model, noise_prediction_losses, batch)
    return np.concatenate([to_numpy(p.grad).reshape(-1) for p in model.parameters()])


def relative_error(found, right):
    """|found - right| / |right|, both lengths Euclidean; computed in float64."""
    return float(np.linalg.norm(found - right.astype("float64")) / np.linalg.norm(right))


def recorded(backend, folder):
    """STEPS steps of training in the main loop, where a GPU replays them, against the same steps ordered one by one.

    {precision: {"different": names of the arrays whose bits differ, "notes": what the loop reports}}
    """
    found = {}
    for precision in precisions(backend):
        use_backend(backend, precision)
        notes = []
        batch_size = 64 if backend == "cupy" else 4
        replayed = arrays_after(batch_size, partial(training_steps, report=notes.append))
        ordered = arrays_after(batch_size, lambda state, ranks: train(state))
        found[precision] = {"arrays": len(ordered), "different": different(replayed, ordered), "notes": notes}
    return found


def arrays_after(batch_size, loop):
    """All arrays of a run of STEPS steps, by name."""
    ranks, dataset = one_process(), load("glyphs", num=2000)
    config = TrainConfig(num_steps=STEPS, minutes=None, batch_size=batch_size, warmup=5)
    build = partial(build_unet, {"base_channels": 32, "num_classes": len(dataset.classes)}, 0)
    with ranks.workers(build, 1) as workers:
        state = diffusion_training(workers, Schedule.linear(), config, dataset)
        for _ in loop(state, ranks):
            pass
        return arrays_of(state)


def different(a, b):
    """The names of the arrays whose bits differ."""
    return [name for name in a | b if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()]


def registers(backend, folder):
    """{kernel: {"registers", "local bytes", "shared bytes"}} of the float32 kernels, and of the tensor-core kernels in
    each precision; local bytes are spilled."""
    use_backend(backend)
    if backend != "cupy":
        return {}
    used = {name: usage(kernels._kernel(name, "f", False).attributes) for name in kernel_names()}
    if tensor_cores.why_not() is None:
        for precision in LIMITS:
            for name in tensor_names():
                used[f"{name}, {precision}"] = usage(tensor_cores._function(name, precision).attributes)
    return used


def kernel_names():
    """The names of all kernels in kernels.cu."""
    return re.findall(r"__global__ void (\w+)\(", kernels.SOURCE)


def tensor_names():
    """The names of all kernels in conv.cu: its last lines make one for each size of a tile."""
    rows = re.findall(r"^(CONV|FILTER)\(([\d, ]+)\)$", tensor_cores.SOURCE, re.MULTILINE)
    return [f"conv{'_filter' * (kind == 'FILTER')}_{sizes.replace(', ', '_')}" for kind, sizes in rows]


def usage(attributes):
    """What a kernel uses, from CuPy's attributes of it."""
    names = {"registers": "num_regs", "local bytes": "local_size_bytes", "shared bytes": "shared_size_bytes"}
    return {name: attributes[key] for name, key in names.items()}


# ---------------------------------------------------------------------------------------------------------- programs


def default_run(backend, folder):
    """The main job with its defaults, from the command line: seconds until its first step and until samples.png."""
    out = Path(folder) / "run"
    more = [] if backend == "cupy" else ["--steps", "3", "--num-images", "200", "--sample-steps", "2"]
    program = [sys.executable, str(DEMOS / "train_mnist.py"), "--backend", backend, "--out", str(out), *more]
    return timed_run(program, out / "samples.png")


def timed_run(program, picture):
    """Run a program, and return the seconds until its bar shows a step, until the picture is there and until its end.

    Raises RuntimeError if it fails.
    """
    began, seconds, text = time.monotonic(), {}, ""
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        stream = process.stdout
        while True:
            if select.select([stream], [], [], 0.02)[0]:
                if not (piece := stream.read1(1 << 16)):
                    break
                text += piece.decode(errors="replace")
            if "first step" not in seconds and has_stepped(text):
                seconds["first step"] = time.monotonic() - began
            if picture.name not in seconds and picture.exists():
                seconds[picture.name] = time.monotonic() - began
    print(text.replace("\r", "\n"))
    if process.returncode or not picture.exists():
        raise RuntimeError(f"exit code {process.returncode}: {text.strip().splitlines()[-1:]}")
    return {picture.name: time.monotonic() - began} | seconds | {"end": time.monotonic() - began}


def has_stepped(text):
    """Whether a bar in this output has counted a step: "1/2000 [", or "1step [" while the number of steps is open."""
    return re.search(r"\b[1-9]\d*(/\d+|step) \[", text) is not None


def read_as_asked(backend, folder):
    """The share of 1,000 digits of the default run that a classifier, trained here, reads as asked."""
    folder, num = Path(folder), 1000 if backend == "cupy" else 20
    digits, judge = folder / "digits.npz", folder / "classifier"
    less = [] if backend == "cupy" else ["--steps", "5"]
    run("train_classifier.py", "--backend", backend, "--data", "glyphs", "--out", judge, *less)
    checkpoint = folder / "run" / "checkpoint.npz"
    run(
        "sample.py",
        checkpoint,
        "--backend",
        backend,
        "--num",
        num,
        "--save-npz",
        digits,
        "--out",
        folder / "digits.png",
    )
    text = run("classify.py", digits, "--checkpoint", judge / "checkpoint.npz", "--backend", backend)
    right, of = re.search(r": (\d+) of (\d+) read as the label asked for", text).groups()
    return {"right": int(right), "of": int(of)}


def run(program, *words):
    """Run a demo to its end, show what it prints, and return that.  Raises RuntimeError if it fails."""
    ended = subprocess.run([sys.executable, str(DEMOS / program), *map(str, words)], capture_output=True, text=True)
    print(ended.stdout, ended.stderr, flush=True)
    if ended.returncode:
        raise RuntimeError(f"{program}: exit code {ended.returncode}: {ended.stderr.strip()[-200:]}")
    return ended.stdout


def benchmark(backend, folder):
    """The report of benchmark.py."""
    path = Path(folder) / "benchmark_report.json"
    words = ["--backend", backend, "--batch-size", ",".join(map(str, BATCHES)), "--rounds", 7, "--compile-limit", 60]
    if backend != "cupy":
        words = ["--batch-size", 2, "--rounds", 1, "--channels", 8, "--workers", 1]
    run("measure/benchmark.py", *words, "--json", path)
    return json.loads(path.read_text())


def suite(backend, folder):
    """The tests with this backend: how many passed, failed and were skipped, and the names of those that failed."""
    options = ["-q", "-p", "no:cacheprovider", "-rfE", "--backend", backend]
    chosen = [str(DEMOS.parent / "tests" / name) for name in (("",) if backend == "cupy" else ("test_backend.py",))]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        text = ""
        for line in process.stdout:  # shown as it comes: a suite that is cut off has shown what it did
            print(line, end="", flush=True)
            text += line
    return outcome(text)


def outcome(text):
    """{"passed", "failed", "skipped", "errors": numbers, "failures": names} of what pytest printed."""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    numbers = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    counts = {word: numbers.get(word, 0) for word in ("passed", "failed", "skipped", "error")}
    return counts | {"failures": re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)}


# -------------------------------------------------------------------------------------------------------------- text


def lines(name, figures):
    """What the text report says of a part's figures."""
    return {
        "conditions": _condition_lines, "cases": _case_lines, "recorded": _recorded_lines,
        "registers": _register_lines, "default_run": _run_lines, "read_as_asked": _read_lines,
        "benchmark": _benchmark_lines, "suite": _suite_lines,
    }[name](figures)  # fmt: skip


def _condition_lines(figures):
    return [", ".join(f"{name} {value}" for name, value in figures.items())]


def _case_lines(figures):
    for precision, errors in figures["errors"].items():
        worst, limit = max(errors, key=errors.get), figures["limits"][precision]
        over = [case for case, error in errors.items() if not error <= limit]
        yield f"{precision}: {len(errors)} cases, {len(over)} above {limit:g}; largest {errors[worst]:.1e}, {worst}"
        yield from (f"    {case}: {errors[case]:.1e}" for case in over)


def _recorded_lines(figures):
    for precision, found in figures.items():
        names = found["different"]
        same = f"{len(names)} differ, such as {names[0]}" if names else "all have the same bits"
        yield f"{precision}: {STEPS} steps in the loop and ordered: {found['arrays']} arrays, {same}"
        yield from (f"    {note}" for note in found["notes"])


def _register_lines(figures):
    for name, used in figures.items():
        yield f"{name}: " + ", ".join(f"{value} {what}" for what, value in used.items())


def _run_lines(figures):
    return [", ".join(f"{name} after {seconds:.1f} s" for name, seconds in figures.items())]


def _read_lines(figures):
    return [f"{figures['right']} of {figures['of']} read as asked"]


def _benchmark_lines(figures):
    for size, batch in figures.get("batches", {}).items():
        ratios = ", ".join(f"{name} {number(ratio)}" for name, ratio in batch["ratios"].items())
        ways = ", ".join(f"{job}: {way}" for job, way in batch["fastest"].items())
        yield f"batch {size}: ratios {ratios}; fastest of PyTorch {ways}"
        yield from (f"    {name}: {why}" for name, why in batch["failed"].items())


def _suite_lines(figures):
    yield ", ".join(f"{value} {name}" for name, value in figures.items() if name != "failures")
    yield from (f"    {name}" for name in figures["failures"])


def goals(figures):
    """(what, value or None, bound, whether it is met or None) of what should hold on a GPU.

    figures: {part: its figures} of the parts that have ended well.
    """
    batches = figures.get("benchmark", {}).get("batches", {})
    asked = figures.get("read_as_asked")
    rows = []
    for size, least in ((128, 1.5), (512, 1.0)):
        ratios = batches.get(str(size), {}).get("ratios", {})
        rows += [
            (f"{job}, batch {size}: PyTorch's time / ours", ratios.get(job), least, 1) for job in ("train", "forward")
        ]
    rows += [(f"memory, batch {n}: ours / PyTorch's", batches.get(str(n), {}).get("ratios", {}).get("memory"), 1.0, -1)
             for n in BATCHES]  # fmt: skip
    errors = figures.get("cases", {}).get("errors", {})
    rows += [(f"error of the gradient, {name}", errors.get(name, {}).get(WHOLE), NETWORK[name], -1) for name in NETWORK]
    rows.append(("seconds to samples.png", figures.get("default_run", {}).get("samples.png"), 30.0, -1))
    rows.append(("share read as asked", asked and asked["right"] / asked["of"], 0.99, 1))
    return [
        (
            what,
            value,
            f"at {'least' if sign > 0 else 'most'} {bound:g}",
            None if value is None else sign * (value - bound) >= 0,
        )
        for what, value, bound, sign in rows
    ]


def work(name, backend, folder):
    """The program of a part's process: write its figures to folder/NAME.json."""
    figures = globals()[name](backend, folder)
    (Path(folder) / f"{name}.json").write_text(json.dumps(figures))
