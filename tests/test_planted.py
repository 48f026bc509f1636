"""What would be wrong on CuPy is found without one: mistakes planted into the package's own text, and what finds each.

    lint      cupy_lint.py reads the text
    strict    strict.py runs it: an error, another number of waits for the device, or NaN from unwritten memory
    twin      the kernels' text, compiled for the host, gives other numbers than NumPy's way
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
    """

    what: str
    file: str
    old: str
    new: str
    layer: str
    sign: Any = None
    numpy: str = "same"


CLIP = "return xp.clip(x_0_hat, -1, 1) if clip else x_0_hat"
LOSS = "losses = ops.mean(error * error, axis=(1, 2, 3))"
PICK = 'indices = asarray(host_integers("indices", indices, 0, size - 1))'
ADD_UP = "return (xp.moveaxis(xp.tensordot(one_hot, picked, 1), 0, axis),)"
WINDOWS = "windows = xp.lib.stride_tricks.as_strided(padded, (n, oh, ow, kh, kw, c), strides)"
STEP = "x_t, x_0_hat = step(x_t, eps_hat, t, s, noise)"

PLANTED = [
    # What CuPy has not, or has otherwise: read off the text.
    Planted("a name that only NumPy has", "optim.py", "xp.vdot(", "xp.vecdot(", "lint", "name"),
    Planted("reduce of a ufunc that has none", "ops/reduce.py", "top = x.max(axis, keepdims=True)\n    y =",
            "top = xp.maximum.reduce(x, axis, keepdims=True)\n    y =", "lint", "name"),
    Planted("clip's new keywords", "diffusion/samplers.py", "clip(x_0_hat, -1, 1)", "clip(x_0_hat, min=-1, max=1)",
            "lint", "keyword"),
    Planted("sum(initial=)", "ops/reduce.py", "return x.sum(axis, keepdims=keepdims)",
            "return x.sum(axis, keepdims=keepdims, initial=0)", "lint", "keyword"),
    Planted("more arguments than CuPy takes", "ops/reduce.py", "return x.max(axis, keepdims=keepdims)",
            "return x.max(axis, None, keepdims, -math.inf)".replace("math.inf", "1e30"), "lint", "count"),
    Planted("an attribute that CuPy's arrays lack", "optim.py", "self.data = self.flat.data.copy()",
            "self.data = self.flat.data.copy()\n        self.data.setflags(write=True)", "lint", "attribute"),
    Planted("sliding windows, which wait", "ops/conv.py", WINDOWS,
            "windows = xp.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (1, 2))[:, ::stride, ::stride]"
            ".transpose(0, 1, 2, 4, 5, 3)", "lint", "waits"),
    Planted("repeated indices by add.at", "ops/shape.py", ADD_UP,
            "dx = xp.zeros((size, *picked.shape[1:]), g.dtype)\n"
            "        xp.add.at(dx, asarray(indices.reshape(-1)), picked)\n"
            "        return (xp.moveaxis(dx, 0, axis),)", "lint", "at"),
    Planted("a function out of the lint's sight", "ops/pointwise.py", "y = xp.tanh(x)", 'y = getattr(xp, "tanh")(x)',
            "lint", "hidden"),
    Planted("noise drawn on the device", "backend.py",
            "return xp.asarray(rng.standard_normal(shape, dtype=np.dtype(dtype)))",
            "return xp.random.default_rng(int(rng.integers(9))).standard_normal(shape, dtype=np.dtype(dtype))",
            "lint", "random", numpy="other"),
    Planted("the root of a number is a float64", "ops/attention.py", "scale = 1 / math.sqrt(q.shape[-1])",
            "scale = 1 / xp.sqrt(q.shape[-1])", "lint", "float64", numpy="error"),
    # What shows when it runs on a device that refuses what CuPy refuses.
    Planted("a host array in arithmetic", "ops/pointwise.py",
            'keep = asarray(rng.random(x.shape, dtype="float32") >= p)',
            'keep = (rng.random(x.shape, dtype="float32") >= p)', "strict", "a host array"),
    Planted("a host array compared", "nn/classifier.py",
            "= asarray(host_integers(\"labels\", labels, 0, num_classes - 1, n))",
            "= host_integers(\"labels\", labels, 0, num_classes - 1, n)", "strict", "device arrays only"),
    Planted("a NumPy array as an index", "ops/shape.py", PICK, PICK.replace("asarray", ""),
            "strict", "a host array"),
    Planted("NumPy's function of a device array", "diffusion/samplers.py", CLIP,
            "import numpy as np\n    " + CLIP.replace("xp.", "np."), "strict", "use xp.clip"),
    Planted("a device array as a NumPy array", "train.py", LOSS,
            "assert np.isfinite(np.asarray(error.data)).all()\n    " + LOSS, "strict", "use to_numpy"),
    Planted("float64 coefficients", "diffusion/gaussian.py", "a = coef.astype(x.dtype)", "a = coef",
            "strict", "float32 became float64|of different dtypes", numpy="error"),
    Planted("a NumPy number as guidance's scale", "diffusion/guidance.py", "return float(value)",
            "import numpy as np\n    return np.float64(value)", "strict", "float32 became float64", numpy="error"),
    Planted("a root on the device", "ops/pointwise.py", "* (1 / (1 - p))", "/ xp.sqrt((1.0 - p) ** 2)",
            "strict", "float32 became float64", numpy="error"),
    Planted("a boolean mask", "diffusion/samplers.py", CLIP,
            "if clip:\n        x_0_hat[x_0_hat > 1] = 1\n        x_0_hat[x_0_hat < -1] = -1\n    return x_0_hat",
            "strict", "a boolean mask"),
    Planted("places assigned to twice, the last to win", "ops/shape.py", ADD_UP,
            "rows = asarray(indices.reshape(-1))\n"
            "        so_far = (rows[:, None] == rows) * xp.tri(len(rows), dtype=g.dtype)\n"
            "        dx = xp.zeros((size, *picked.shape[1:]), g.dtype)\n"
            "        dx[rows] = xp.tensordot(so_far, picked, 1)\n"
            "        return (xp.moveaxis(dx, 0, axis),)", "strict", "two values for one place"),
    Planted("an index out of range, which CuPy wraps", "ops/shape.py", PICK, PICK + " + 2",
            "strict", "out of bounds", numpy="error"),
    Planted("float(loss) every step", "train.py", LOSS,
            "float((error.data * error.data).sum())\n    " + LOSS, "strict", {"float": 1}),
    Planted("a question to the device in a sampler", "diffusion/samplers.py", CLIP,
            "assert abs(x_0_hat).max() < 1e9\n    " + CLIP, "strict", {"bool": 3}),
    Planted("a copy to the host every step", "diffusion/samplers.py", STEP,
            "from tinydiff.backend import asarray, to_numpy\n        " + STEP +
            "\n        x_t = asarray(to_numpy(x_t))",
            "strict", {"get": 3}),
    Planted("every gradient asked whether it is finite", "optim.py", "        return parameters.norm\n",
            "        return parameters.norm if xp.isfinite(parameters.grad).all() else math.nan\n", "strict",
            {"bool": 1}),
    Planted("empty for zeros", "nn/layers.py", 'return Tensor(xp.zeros(shape, "float32")',
            'return Tensor(xp.empty(shape, "float32")', "strict", "nan", numpy="chance"),
    Planted("empty for zeros in Adam", "optim.py", "self.m, self.v = xp.zeros_like(self.flat.data), xp.zeros_like",
            "self.m, self.v = xp.empty_like(self.flat.data), xp.empty_like", "strict", "nan", numpy="chance"),
    Planted("a launch one row short", "kernels.py", 'launch("softmax", math.prod(x.shape[:-1]),',
            'launch("softmax", math.prod(x.shape[:-1]) - 1,', "strict", "nan"),
    # Wrong kernels: NumPy never runs them.
    Planted("a window reads over the edge", "kernels.cu", "column < w;", "column <= w;", "twin"),
    Planted("a window's row off by one", "kernels.cu", "I row = top + k,", "I row = top + k + 1,", "twin"),
    Planted("the adjoint forgets the padding", "kernels.cu", "pixel % w + pad", "pixel % w", "twin"),
    Planted("a norm without its mean", "kernels.cu", "c + k] - level;", "c + k];", "twin"),
    Planted("the wrong moment", "kernels.cu", "T(1 - beta2)", "T(1 - beta1)", "twin"),
    Planted("an average that runs away", "kernels.cu", "(theta[i] - average[i])", "(theta[i] + average[i])", "twin"),
    Planted("softmax's gradient without its sum", "kernels.cu", "* (g[i * width + k] - sum)", "* g[i * width + k]",
            "twin"),
    # What neither values nor refusals show: only real CuPy counts it.
    Planted("a float64 factor, in place", "ops/attention.py", "ds *= scale", "ds *= xp.asarray(scale)",
            "dry run", "float64 kernel"),
    Planted("a transposed copy where a flag would do", "ops/linear.py", "return w.T if kernels.available() else",
            "return w.T.copy() if kernels.available() else", "dry run", "launch"),
    Planted("a table sent to the device for each launch", "kernels.py", "    dx = xp.empty(p.shape, p.dtype)\n",
            "    dx = xp.empty(p.shape, p.dtype)\n    xp.asarray(__import__('numpy').zeros(3))\n", "dry run",
            "host to device"),
    Planted("gradients set to zero and then written", "kernels.py", "    dx = xp.empty(p.shape, p.dtype)\n",
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
        importlib.import_module("tinydiff.kernels")
        if row is not None and row.file == "kernels.cu":
            kernels = sys.modules["tinydiff.kernels"]
            patch.setattr(kernels, "SOURCE", planted_text(row))
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
    from tinydiff.nn.classifier import Classifier, cross_entropy
    from tinydiff.parallel import Workers

    from tinydiff import ops
    from tinydiff.autograd import Tensor, no_grad
    from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy, xp
    from tinydiff.data import Dataset
    from tinydiff.diffusion import Schedule, classifier_free, ddpm_step, sample, timestep_pairs
    from tinydiff.nn import UNet
    from tinydiff.train import TrainConfig, Training

    rng, schedule, labels = default_rng("planted"), Schedule.linear(100), [2, 0, 2]
    found, waits = {}, []

    def network():
        shape = {"base_channels": 8, "channel_mults": (1, 2), "num_heads": 2, "num_groups": 4}
        return UNet(**shape, num_classes=3, dropout=0.1, rng=default_rng("network"))

    images, classes = rng.integers(0, 256, (9, 8, 8), "uint8"), rng.integers(0, 3, 9).astype("uint8")
    dataset = Dataset("noise", images, classes, "", tuple("abc"))
    with Workers(network) as workers:
        state = Training(workers, schedule, TrainConfig(num_steps=9, minutes=None, batch_size=4, clip_norm=0.01))
        for _ in range(2):
            before = strict.syncs.copy()
            state.advance(dataset)
            waits.append(dict(strict.syncs - before))
        found["weights"], found["average"] = to_numpy(workers.flat.data), to_numpy(state.ema.data)
        found["metrics"] = np.array(state.metrics)[:, :3]
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
    y = ops.tanh(ops.sum(ops.softmax(q) * ops.max(q), axis=0)) + ops.logsumexp(q, axis=0)
    y.backward(xp.ones_like(y.data) * asarray(np.arange(4, dtype="float32")))
    found["of small ops"] = to_numpy(q.grad)
    return found, waits


def on(name, row):
    """What `work` gives on a backend, with a mistake or (None) without."""
    with imported_with(row) as strict, strict.backend(name):
        return work()


@cache
def right(name):
    return on(name, None)


def furthest(found, expected):
    """The largest difference of an array from the one expected, over the largest there; nan where there is nan."""
    assert found.keys() == expected.keys()
    off = [float(abs(found[key] - a).max() / abs(a).max()) for key, a in expected.items()]
    return math.nan if any(map(math.isnan, off)) else max(off)


@with_kernels
def test_without_a_mistake_no_layer_complains():
    """Both backends agree, and no step waits, of training or of sampling."""
    values, waits = right("cupy")
    # Float32 sums in another order: 2e-7 each, through ten layers and two steps of Adam, which enlarges.
    assert furthest(values, right("numpy")[0]) < 1e-3
    assert waits == [{}] * 3


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
    assert row.numpy == "other" or furthest(found, right("numpy")[0]) < 1e-3  # the bound above


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
        assert row.sign in waits and waits != right("cupy")[1]
        assert furthest(found, right("cupy")[0]) < 1e-3
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


def counts(folder):
    """What dry_run.py counts for a training step of the package in this folder."""
    run = [sys.executable, str(TESTS / "dry_run.py")]
    out = subprocess.run(
        run, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)["train"]


@pytest.mark.skipif(why_no_dry_run() is not None, reason=str(why_no_dry_run()))
@pytest.mark.parametrize("row", [row for row in by_what if row.values[0].layer == "dry run"])
def test_real_cupy_counts_it(row, tmp_path):
    """More of what the row names than without the mistake."""
    shutil.copytree(PACKAGE, tmp_path / "tinydiff")
    before = counts(tmp_path)
    (tmp_path / "tinydiff" / row.file).write_text(planted_text(row), "utf-8")
    after = counts(tmp_path)
    assert after.get(row.sign, 0) > before.get(row.sign, 0)
