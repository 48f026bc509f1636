"""The speed of one core, and the time that a training step needs at this speed: the upper part of scaling.py's table.

`measure_rates` times products, copies and tanh.  `measure_step` counts the step's operations and bytes call by call,
and takes the time of each call.  `step_lines` combines the two.  Both measure in this process, which must have one BLAS
thread.  The least time of a product is the longer of two times, that of its operations and that of its bytes (the
roofline of Williams et al. 2009).
"""

import contextlib
import statistics
import time
import tracemalloc
from dataclasses import dataclass
from unittest import mock

import numpy as np
from contestant import SAMPLE_SECONDS, WARM_UP, mean_seconds
from ours import Ours

from tinydiff import ops
from tinydiff.backend import FAST, default_rng, xp
from tinydiff.fast import winograd
from tinydiff.train import noise_prediction_losses

PRODUCT = (36, 84, 64), (36, 64, 64)  # the most frequent shapes in the reference step
MEMORY, CACHE = 1 << 27, 1 << 18  # bytes of an array that is copied
RATES = {
    "product": f"GFLOP/s, matrix products {PRODUCT[0]} @ {PRODUCT[1]}",
    "memory": "GB/s, copy in memory",
    "cache": "GB/s, copy in cache",
    "tanh": "ns a number, tanh",
}
THIN = 6  # a product with a side of at most 6 is a Winograd transform or a sum over pixels


class Step(Ours):
    """A training step on one core, in two stages, and what its forward pass keeps."""

    def train(self):
        return [self.gradients, self.update]

    def kept_bytes(self):
        """The bytes of the arrays that exist after a forward pass, for the backward pass."""
        tracemalloc.start()
        losses = noise_prediction_losses(self.workers.model, self.batch)
        kept = tracemalloc.get_traced_memory()[0]
        del losses  # only now: losses keeps the arrays
        tracemalloc.stop()
        return kept


@dataclass
class Work:
    """The work of all calls of one kind.  operations: 2 for a multiply-add, 1 for a tanh.  bytes: read + written."""

    operations: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counting():
    """Within the block xp.matmul, xp.dot, xp.tanh and the products of attention are counted and timed.

    Yields {"product", "thin" or "tanh": Work}.  thin: products with a side of at most THIN.  Their bytes limit their
    speed, not their operations.
    """
    work = {kind: Work() for kind in ("product", "thin", "tanh")}

    def counted(function, kind_of, operations_of):
        def call(*arrays, **options):
            start = time.perf_counter()
            y = function(*arrays, **options)
            seconds = time.perf_counter() - start
            done = work[kind_of(*arrays)]
            done.seconds += seconds
            done.operations += operations_of(y, *arrays)
            done.bytes += y.nbytes + sum(a.nbytes for a in arrays)
            return y

        return call

    def product_kind(x, y):
        return "thin" if min(*x.shape[-2:], y.shape[-1]) <= THIN else "product"

    matmul, dot = (
        counted(multiply, product_kind, lambda z, x, y: 2 * x.shape[-1] * z.size)  # z holds the broadcast batch
        for multiply in (np.matmul, np.dot)  # dot: of two matrices
    )
    tanh = counted(np.tanh, lambda x: "tanh", lambda y, x: y.size)
    with mock.patch.dict(vars(xp), matmul=matmul, dot=dot, tanh=tanh), mock.patch.dict(FAST, attention=_attention):
        yield work


class _Operand(np.ndarray):
    """An array whose operator `@` calls xp.matmul, so that the product is counted."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        function = xp.matmul if ufunc is np.matmul else getattr(ufunc, method)
        arrays = (np.asarray(a) if isinstance(a, _Operand) else a for a in inputs)
        if "out" in options:
            options["out"] = tuple(np.asarray(a) for a in options["out"])  # a view: the result goes to the same memory
        return function(*arrays, **options).view(_Operand)


def _attention(*arrays, **static):
    """ops.attention with counted products.  It is the only function of a step that uses `@` for its products."""
    y, vjp = ops.attention.__wrapped__(*(a.view(_Operand) for a in arrays), **static)
    return np.asarray(y), lambda g: [np.asarray(dx) for dx in vjp(g)]


def measure_rates(rounds):
    """The rates of one core: GFLOP/s of products, GB/s of copies, ns a number of tanh."""
    rng = default_rng(0)
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in PRODUCT)
    z = np.matmul(x, w)
    numbers, result = rng.standard_normal((2, CACHE // 4), dtype="float32")
    large = np.ones((2, MEMORY // 4), "float32")
    measured = {
        "product": lambda _: np.matmul(x, w, out=z),
        "memory": lambda _: np.copyto(large[1], large[0]),
        "cache": lambda _: np.copyto(result, numbers),
        "tanh": lambda _: np.tanh(numbers, out=result),
    }
    seconds = {name: median_seconds(f, rounds) for name, f in measured.items()}
    return {
        "product": 2 * x.shape[-1] * z.size / seconds["product"] / 1e9,
        "memory": 2 * MEMORY / seconds["memory"] / 1e9,
        "cache": 2 * CACHE / seconds["cache"] / 1e9,
        "tanh": seconds["tanh"] / numbers.size * 1e9,
    }


def rate_lines(rates):
    """One row for each rate, with its unit."""
    return ["the machine, one core", *(f"{rate:9.2f} {RATES[name]}" for name, rate in rates.items())]


def median_seconds(f, rounds):
    """The median over rounds of the seconds that f takes."""
    repeats = max(1, round(SAMPLE_SECONDS / min(mean_seconds([f], 1)[0] for _ in range(WARM_UP))))
    return statistics.median(mean_seconds([f], repeats)[0] for _ in range(rounds))


def measure_step(config, rounds):
    """A dictionary about a step in this process: Work by kind (seconds: medians), bytes, seconds of the stages."""
    with contextlib.closing(Step(backend="numpy", **config)) as step:
        mean_seconds(step.train(), WARM_UP)
        with mock.patch.object(winograd, "pays", return_value=False), counting() as direct:
            step.gradients(None)
        stages, counts = [], []
        for _ in range(rounds):
            stages.append(mean_seconds(step.train(), 1))
            with counting() as work:
                step.gradients(None)
            counts.append(work)
        for kind, done in work.items():
            done.seconds = statistics.median(count[kind].seconds for count in counts)
        return {
            "images": config["batch_size"],
            "direct": direct["product"].operations,
            "work": work,
            "maps": step.kept_bytes(),
            "state": 5 * step.workers.flat.data.nbytes,  # parameters, gradient, two moments, average
            "step": statistics.median(map(sum, stages)),
            "update": statistics.median(update for _, update in stages),
        }


def step_lines(step, rates):
    """One row for each kind of work: operations and bytes of the batch and of an image, least time, measured time."""
    n, (product, thin, tanh) = step["images"], step["work"].values()

    def roofline(done):
        return max(done.operations / rates["product"], done.bytes / rates["cache"]) / 1e9

    def through_memory(size):  # written once, read once
        return 2 * size / rates["memory"] / 1e9

    def line(what, operations, size, least, took):
        columns = [(operations, 1, 1e9), (operations, 3, 1e9 * n), (size, 1, 1e6), (size, 2, 1e6 * n)]
        columns += [(least, 1, 1e-3), (took, 1, 1e-3), (took, 1, step["step"] / 100)]  # value, digits, unit
        cells = ["-" if value is None else f"{value / unit:,.{digits}f}" for value, digits, unit in columns]
        return _row(what, cells)

    rows = [
        ("products over channels", product.operations, product.bytes, roofline(product), product.seconds),
        ("transforms, sums over pixels", thin.operations, thin.bytes, roofline(thin), thin.seconds),
        ("tanh", None, tanh.bytes, tanh.operations * rates["tanh"] / 1e9, tanh.seconds),
        ("weights, gradient, moments, average", None, step["state"], through_memory(step["state"]), step["update"]),
        ("maps kept for the backward pass", None, step["maps"], through_memory(step["maps"]), None),
    ]
    least, took = (sum(row[i] or 0 for row in rows) for i in (3, 4))
    heads = ("GFLOP", "an image", "MB", "an image", "least ms", "took ms", "% of it")
    return [
        _row(f"a step of {n} images, one core", heads),
        line("direct convolution, not done", step["direct"], None, step["direct"] / rates["product"] / 1e9, None),
        *(line(*row) for row in rows),
        line("all else: norm, SiLU, frames, Python", None, None, None, step["step"] - took),
        line("the step", product.operations + thin.operations, None, least, step["step"]),
    ]


def _row(what, cells):
    return f"{what:<36}" + "".join(f" {cell:>8}" for cell in cells)
