"""What would be wrong on CuPy is found without one: mistakes planted into the package's own text, and what finds each.

    lint      cupy_lint.py reads the text
    strict    strict.py runs it: an error, another number of waits for the device, or NaN from unwritten memory
    twin      the kernels' text, compiled for the host, gives other numbers than NumPy's way
    muon      the same, of the one kernel that moves matrices
    dry run   real CuPy counts what a step asks of a device: only where CuPy 14.2.0 is installed

A planted text is imported as a package of its own, beside the one under test.  NumPy runs most of them as if nothing
were wrong, which is why the layers are there.
"""

import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import emulate
import numpy as np
import pytest
from cupy_lint import lint
from test_launches import why_no_dry_run

import tinydiff

pytestmark = pytest.mark.engine

PACKAGE = Path(tinydiff.__file__).parent
TESTS = Path(__file__).parent
with_kernels = pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON)


class Planted(NamedTuple):
    """A mistake: `old` becomes `new` in `file`, and `layer` finds it by `sign`.

    sign: the lint's rule; what the strict device's error says, or {kind of wait: how many}, or "nan"; a count's name.
    numpy: what NumPy makes of it: "same" numbers, "other" ones, an "error", or "chance": what the memory held.
    plain: whether it lies in a plain form that a GPU has a faster one for, and so runs with nothing installed.
    conv_cu: whether products run by its text.  It takes long, and has mistakes of its own in fast/test_tensor_cores.py.
    """

    what: str
    file: str
    old: str
    new: str
    layer: str
    sign: Any = None
    numpy: str = "same"
    plain: bool = False
    conv_cu: bool = False


CLIP = "return xp.clip(x_0_hat, -1, 1) if clip else x_0_hat"
LOSS = "losses = ops.mean(error * error, axis=(1, 2, 3))"
PICK = 'indices = asarray(host_integers("indices", indices, 0, size - 1))'
ADD_UP = "return ((one_hot @ g.reshape(indices.size, math.prod(shape[1:]))).reshape(shape),)"
TARGET = 'batch.get("labels")) - asarray(batch["target"])'
WINDOWS = "windows = xp.lib.stride_tricks.as_strided(padded, (n, oh, ow, kh, kw, c), strides)"
STEP = "x_t, x_0_hat = step(x_t, eps_hat, t, s, noise)"

PLANTED = [
    # What CuPy has not, or has otherwise: read off the text.
    Planted("a name that only NumPy has", "optim.py", "xp.vdot(", "xp.vecdot(", "lint", "name"),
    Planted("reduce of a ufunc that has none", "ops/reduce.py", "y = xp.exp(x - x.max(-1, keepdims=True))",
            "y = xp.exp(x - xp.maximum.reduce(x, -1, keepdims=True))", "lint", "name"),
    Planted("clip(where=)", "diffusion/samplers.py", "clip(x_0_hat, -1, 1)", "clip(x_0_hat, -1, 1, where=True)",
            "lint", "keyword"),
    Planted("sum(initial=)", "ops/reduce.py", "return x.sum(axis), lambda", "return x.sum(axis, initial=0), lambda",
            "lint", "keyword"),
    Planted("more arguments than CuPy takes", "ops/reduce.py", "largest = x.max(-1, keepdims=True)",
            "largest = x.max(-1, None, True, -1e30)", "lint", "count"),
    Planted("an attribute that CuPy's arrays lack", "optim.py", "self.average = [",
            "self.average = [p.data.setflags(write=True) or ", "lint", "attribute"),
    Planted("sliding windows, which wait", "fast/conv.py", WINDOWS,
            "windows = xp.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (1, 2))[:, ::stride, ::stride]"
            ".transpose(0, 1, 2, 4, 5, 3)", "lint", "waits"),
    Planted("repeated indices by add.at", "ops/shape.py", ADD_UP,
            "dx = xp.zeros(shape, g.dtype)\n"
            "        xp.add.at(dx, indices, g)\n"
            "        return (dx,)", "lint", "at"),
    Planted("a function out of the lint's sight", "ops/pointwise.py", "y = xp.exp(x)", 'y = getattr(xp, "exp")(x)',
            "lint", "hidden"),
    Planted("noise drawn on the device", "backend.py",
            "return xp.asarray(rng.standard_normal(shape, dtype=np.dtype(dtype)))",
            "return xp.random.default_rng(int(rng.integers(9))).standard_normal(shape, dtype=np.dtype(dtype))",
            "lint", "random", numpy="other"),
    Planted("the root of a number is a float64", "ops/matrix.py", "scale = 1 / math.sqrt(q.shape[-1])",
            "scale = 1 / xp.sqrt(q.shape[-1])", "lint", "float64", numpy="error"),
    # What shows when it runs on a device that refuses what CuPy refuses.
    Planted("a host array in arithmetic", "train.py", TARGET, 'batch.get("labels")) - batch["target"]',
            "strict", "a host array", plain=True),
    Planted("a host array compared", "more/classifier.py",
            "= asarray(host_integers(\"labels\", labels, 0, num_classes - 1, n))",
            "= host_integers(\"labels\", labels, 0, num_classes - 1, n)", "strict", "device arrays only"),
    Planted("a NumPy array as an index", "ops/shape.py", PICK, PICK.replace("asarray", ""),
            "strict", "indices on the host", plain=True),
    Planted("NumPy's function of a device array", "diffusion/samplers.py", CLIP,
            "import numpy as np\n    " + CLIP.replace("xp.", "np."), "strict", "use xp.clip"),
    Planted("a device array as a NumPy array", "train.py", LOSS,
            "assert np.isfinite(np.asarray(error.data)).all()\n    " + LOSS, "strict", "use to_numpy"),
    Planted("float64 coefficients", "diffusion/gaussian.py", "a = coef.astype(x.dtype)", "a = coef",
            "strict", "float32 became float64|arrays of one dtype are needed", numpy="error"),
    Planted("a NumPy number as guidance's scale", "diffusion/guidance.py", "return float(value)",
            "import numpy as np\n    return np.float64(value)", "strict", "float32 became float64", numpy="error"),
    Planted("a root on the device", "ops/reduce.py", "axis) * weight", "axis) * xp.sqrt(weight * weight)",
            "strict", "float32 became float64", numpy="error"),
    Planted("a boolean mask", "diffusion/samplers.py", CLIP,
            "if clip:\n        x_0_hat[x_0_hat > 1] = 1\n        x_0_hat[x_0_hat < -1] = -1\n    return x_0_hat",
            "strict", "a boolean mask"),
    Planted("places assigned to twice, the last to win", "ops/shape.py", ADD_UP,
            "rows = indices.reshape(-1)\n"
            "        so_far = (rows[:, None] == rows) * xp.tri(len(rows), dtype=g.dtype)\n"
            "        dx = xp.zeros(shape, g.dtype)\n"
            "        dx[rows] = so_far @ g.reshape(len(rows), -1)\n"
            "        return (dx,)", "strict", "two values for one place", plain=True),
    Planted("an index out of range, which CuPy wraps", "ops/shape.py", PICK, PICK + " + 2",
            "strict", "out of bounds", numpy="error", plain=True),
    Planted("float(loss) every step", "train.py", LOSS,
            "float((error.data * error.data).sum())\n    " + LOSS, "strict", {"float": 1}),
    Planted("a question to the device in a sampler", "diffusion/samplers.py", CLIP,
            "assert abs(x_0_hat).max() < 1e9\n    " + CLIP, "strict", {"bool": 3}),
    Planted("a copy to the host every step", "diffusion/samplers.py", STEP,
            "from tinydiff.backend import asarray, to_numpy\n        " + STEP +
            "\n        x_t = asarray(to_numpy(x_t))",
            "strict", {"get": 3}),
    Planted("every gradient asked whether it is finite", "fast/optim.py", "        return flat.norm\n",
            "        return flat.norm if xp.isfinite(flat.grad).all() else math.nan\n", "strict",
            {"bool": 1}),
    Planted("empty for zeros", "nn/layers.py", 'values = xp.zeros(shape, "float32")',
            'values = xp.empty(shape, "float32")', "strict", "nan", numpy="chance"),
    Planted("empty for zeros in Adam", "optim.py", "self.m, self.v = ([xp.zeros_like(",
            "self.m, self.v = ([xp.empty_like(", "strict", "nan", numpy="chance"),
    Planted("empty for zeros in a plain convolution", "ops/conv.py", "dx = xp.zeros((n, h +", "dx = xp.empty((n, h +",
            "strict", "nan", numpy="chance", plain=True),
    Planted("a launch one row short", "fast/kernels.py", 'launch("softmax", math.prod(x.shape[:-1]),',
            'launch("softmax", math.prod(x.shape[:-1]) - 1,', "strict", "nan"),
    # Wrong kernels: NumPy never runs them.
    Planted("a window reads over the edge", "fast/kernels.cu", "column >= 0", "column >= -1", "twin"),
    Planted("a window's row off by one", "fast/kernels.cu", "I row = top + k,", "I row = top + k + 1,", "twin"),
    Planted("shares that are left out", "fast/kernels.cu", "s < parts.count[first]", "s < 1", "twin",
            conv_cu=True),
    Planted("a norm without its mean", "fast/kernels.cu", "c + k] - level;", "c + k];", "twin"),
    Planted("the wrong moment", "fast/kernels.cu", "T(1 - beta2)", "T(1 - beta1)", "twin"),
    Planted("an average that runs away", "fast/kernels.cu", "(theta[i] - average[i])", "(theta[i] + average[i])",
            "twin"),
    Planted("softmax's gradient without its sum", "fast/kernels.cu", "* (g[i * width + k] - sum)",
            "* g[i * width + k]", "twin"),
    # A wrong kernel of Muon, which in `work` moves too little to be seen.
    Planted("a step as long as the shorter side has it", "fast/muon.cu", "sqrt(T(length))", "sqrt(T(side))", "muon"),
    Planted("a gradient with the share of the moment", "fast/muon.cu", "T(1 - beta) * g", "T(beta) * g", "muon"),
    Planted("a sum without its last number", "fast/muon.cu", "term(t) < depth", "term(t) + 1 < depth", "muon"),
    Planted("a square that no round renews", "fast/muon.cu", "which == 3 ? r", "which == 3 ? z",
            "muon"),
    # What neither values nor refusals show: only real CuPy counts it.
    Planted("a float64 factor, in place", "fast/attention.py", "    p = softmax_array(",
            "    scores *= xp.ones((), 'float64')\n    p = softmax_array(", "dry run", "float64 kernel"),
    Planted("a transposed copy where strides would do", "fast/attention.py", "k.swapaxes(-1, -2), scale=scale)",
            "xp.ascontiguousarray(k.swapaxes(-1, -2)), scale=scale)", "dry run", "launch"),
    Planted("a table sent to the device for each launch", "fast/kernels.py", "    dx = xp.empty(p.shape, p.dtype)\n",
            "    dx = xp.empty(p.shape, p.dtype)\n    xp.asarray(__import__('numpy').zeros(3))\n", "dry run",
            "host to device"),
    Planted("gradients set to zero and then written", "fast/kernels.py", "    dx = xp.empty(p.shape, p.dtype)\n",
            "    dx = xp.zeros(p.shape, p.dtype)\n", "dry run", "memset"),
]  # fmt: skip
by_what = [pytest.param(row, id=row.what) for row in PLANTED]


def planted_text(row):
    """The file with its mistake.  An anchor that is gone or stands twice is an error: the row then proves nothing."""
    text = (PACKAGE / row.file).read_text("utf-8")
    assert text.count(row.old) == 1, f"{row.file} holds {row.old!r} {text.count(row.old)} times"
    return text.replace(row.old, row.new)


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds one module of the package with another text."""

    def __init__(self, row):
        self.path, self.text = str(PACKAGE / row.file), planted_text(row)
        self.name = "tinydiff." + row.file.removesuffix(".py").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_filename(self, fullname):
        return self.path

    def get_data(self, path):
        return self.text.encode()


OWN = ("tinydiff", "strict")  # imported anew; emulate keeps what it has compiled


@contextmanager
def imported_with(row):
    """Within the block `import tinydiff` finds the package with this mistake (None: as it is)."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in OWN}
    finders = [_Loader(row)] if row is not None and row.file.endswith(".py") else []
    for name in before:
        del sys.modules[name]
    sys.meta_path[:0] = finders
    patch = pytest.MonkeyPatch()
    try:
        strict = importlib.import_module("strict")
        importlib.import_module("tinydiff.fast.kernels")
        patch.setattr(emulate, "muon_by_text", row is not None and row.file == "fast/muon.cu")
        if row is not None and row.file.endswith(".cu"):
            kernels = sys.modules["tinydiff.fast.kernels"]
            right_text = (PACKAGE / row.file).read_text("utf-8")
            patch.setattr(kernels, "SOURCE", kernels.SOURCE.replace(right_text, planted_text(row)))
            patch.setattr(emulate, "kernels", kernels)
            patch.setattr(emulate, "library", cache(emulate.library.__wrapped__))
        yield strict
    finally:
        patch.undo()
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
            del sys.modules[name]
        sys.modules.update(before)


def work():
    """Two training steps, two sampling steps with guidance and a classifier's gradient: host arrays, by name.

    With what is waited for in a step of each, where that is counted.
    """
    import strict

    from tinydiff import ops
    from tinydiff.app.alone import one_process
    from tinydiff.app.training import diffusion_training
    from tinydiff.autograd import Tensor, no_grad
    from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
    from tinydiff.data import Dataset
    from tinydiff.diffusion import Schedule, classifier_free, ddpm_step, sample, timestep_pairs
    from tinydiff.more.classifier import Classifier, cross_entropy
    from tinydiff.nn import UNet
    from tinydiff.train import TrainConfig, train

    rng, schedule, labels = default_rng("planted"), Schedule.linear(100), [2, 0, 2]
    found, waits = {}, []

    def network():
        shape = {"base_channels": 8, "channel_mults": (1, 2), "num_heads": 2, "num_groups": 4}
        return UNet(**shape, num_classes=3, rng=default_rng("network"))

    images, classes = rng.integers(0, 256, (9, 8, 8, 1), "uint8"), rng.integers(0, 3, 9).astype("uint8")
    dataset = Dataset("noise", images, classes, "", tuple("abc"))
    with one_process().workers(network, 1) as workers:
        config = TrainConfig(num_steps=9, minutes=None, batch_size=4, clip_norm=0.01)
        state = diffusion_training(workers, schedule, config, dataset)
        steps = train(state)
        for _ in range(2):
            before = strict.syncs.copy()
            next(steps)
            waits.append(dict(strict.syncs - before))
        for name, arrays in (("weights", [p.data for p in workers.parameters]), ("average", state.ema.average)):
            found[name] = np.concatenate([to_numpy(a).reshape(-1) for a in arrays])
        found["metrics"] = np.array(state.metrics())[:, :3]
        x_T = standard_normal(rng, (3, 8, 8, 1))
        step = lambda *args: ddpm_step(schedule, *args, clip=True)  # noqa: E731
        before = strict.syncs.copy()
        with no_grad():
            *_, (_, x_0, _) = sample(
                step, classifier_free(workers.model, labels, 3.0), timestep_pairs(100, 3), x_T, rng
            )
        waits.append(dict(strict.syncs - before))
        found["samples"] = to_numpy(x_0)
    model = Classifier(1, (8,), 3, rng=rng)
    loss = ops.mean(cross_entropy(model(x_T), labels))
    loss.backward()
    found |= {name: to_numpy(p.grad) for name, p in model.named_parameters()}
    q = Tensor(standard_normal(rng, (5, 4)), requires_grad=True)
    y = ops.total(ops.softmax(q) * ops.exp(q), axis=1) + ops.logsumexp(q)
    y.backward(asarray(np.arange(5, dtype="float32")))
    found["of small ops"] = to_numpy(q.grad)
    return found, waits


def on(name, row, plain=False, conv_cu=False):
    """What `work` gives on a backend, with a mistake or (None) without."""
    with (
        imported_with(row) as strict,
        strict.backend(name, plain=plain or (row is not None and row.plain), rounding="float32"),
    ):
        strict.has_tensor_cores(conv_cu or (row is not None and row.conv_cu))
        return work()


@cache
def right(name, plain=False, conv_cu=False):
    return on(name, None, plain, conv_cu)


def furthest(found, expected):
    """The largest difference of an array from the one expected, over the largest there; nan where there is nan."""
    assert found.keys() == expected.keys()
    off = [float(abs(found[key] - a).max() / abs(a).max()) for key, a in expected.items()]
    return math.nan if any(map(math.isnan, off)) else max(off)


@with_kernels
def test_without_a_mistake_no_layer_complains():
    """Both backends agree, plain or not, and with all installed no step waits, of training or of sampling."""
    values, waits = right("cupy")
    # Float32 sums in another order: 2e-7 each, through ten layers and two steps of Adam, which enlarges.
    products, more_waits = right("cupy", conv_cu=True)
    for found in (values, products, right("cupy", plain=True)[0], right("numpy", plain=True)[0]):
        assert furthest(found, right("numpy")[0]) < 1e-3
    assert waits == more_waits == [{}] * 3


@pytest.mark.parametrize(
    "row", [row for row in by_what if row.values[0].file[-2:] == "py" and row.values[0].numpy != "chance"]
)
def test_what_numpy_makes_of_it(row):
    """Most mistakes are none on NumPy: the same numbers, so that a suite on NumPy alone would pass."""
    if row.numpy == "error":
        with pytest.raises((TypeError, ValueError, IndexError)):
            on("numpy", row)
        return
    found, _ = on("numpy", row)
    assert row.numpy == "other" or furthest(found, right("numpy", row.plain)[0]) < 1e-3  # the bound above


@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "lint"])
def test_the_lint_reads_it(row):
    """One finding more than without the mistake, by the rule that is meant."""
    before = [(found.what, found.rule) for found in lint((PACKAGE / row.file).read_text("utf-8"))]
    after = [(found.what, found.rule) for found in lint(planted_text(row))]
    assert {rule for what, rule in after if (what, rule) not in before} == {row.sign}


@with_kernels
@pytest.mark.filterwarnings("ignore:invalid value|overflow:RuntimeWarning")  # NaN, which is what is looked for
@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "strict"])
def test_the_strict_device_shows_it(row):
    """An error that says why; or the same numbers with other waits; or NaN from memory that nobody wrote to."""
    if isinstance(row.sign, dict):
        found, waits = on("cupy", row)
        assert row.sign in waits and waits != right("cupy", row.plain, row.conv_cu)[1]
        assert furthest(found, right("cupy", row.plain, row.conv_cu)[0]) < 1e-3
        return
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError), match=row.sign):
        on("cupy", row)


@with_kernels
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "twin"])
def test_the_kernels_twin_computes_otherwise(row):
    """Far more than rounding, of which there is none: both run the same text.  Or an error from what it leads to."""
    try:
        found, _ = on("cupy", row)
    except RuntimeError as error:
        assert "nan" in str(error) or "inf" in str(error)
        return
    assert not furthest(found, right("cupy")[0]) < 1e-3


def moved(row):
    """Matrices after two steps of Muon, and a vector, with a mistake or (None) without."""
    with imported_with(row) as strict, strict.backend("cupy", rounding="float32"):
        from tinydiff.autograd import Tensor
        from tinydiff.backend import default_rng, standard_normal, to_numpy
        from tinydiff.fast.optim import Flat
        from tinydiff.muon import Muon

        rng, shapes = default_rng("muon"), [(40, 20), (19, 40), (7,), (3, 2, 4, 21)]
        parameters = [Tensor(standard_normal(rng, shape), requires_grad=True) for shape in shapes]
        optimizer = Muon([Flat(parameters)])
        for _ in range(2):
            for p in parameters:
                p.grad = standard_normal(rng, p.shape)
            optimizer.step(0.1)
        return {str(p.shape): to_numpy(p.data) for p in parameters}


@with_kernels
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "muon"])
def test_matrices_move_otherwise(row):
    """Than by NumPy's way, from which the kernel without a mistake differs by its rounding."""
    assert not furthest(moved(row), moved(None)) < 1e-3
    assert furthest(moved(row._replace(new=row.old)), moved(None)) < 1e-4


def counts(folder):
    """What dry_run.py counts for a training step of the package in this folder."""
    run = [sys.executable, str(TESTS / "dry_run.py"), "--blas"]
    out = subprocess.run(
        run, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)["counts"]["train"]


@pytest.mark.skipif(why_no_dry_run() is not None, reason=str(why_no_dry_run()))
@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "dry run"])
def test_real_cupy_counts_it(row, tmp_path):
    """More of what the row names than without the mistake."""
    shutil.copytree(PACKAGE, tmp_path / "tinydiff")
    before = counts(tmp_path)
    (tmp_path / "tinydiff" / row.file).write_text(planted_text(row), "utf-8")
    after = counts(tmp_path)
    assert after.get(row.sign, 0) > before.get(row.sign, 0)
