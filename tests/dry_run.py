"""Real CuPy on a machine without a GPU: what would a training step and a sampling step ask of the device?

    python tests/dry_run.py [--blas] [64]     needs cupy-cuda13x or 12x 14.2, in a process of its own

It prints as JSON what is counted, at batch 64, the line that the user gets about the recording, and the host's time of
a replayed step.  With --blas cuBLAS may be recorded, which CuPy refuses: so the rest of a step is seen without it.

CuPy's extension modules find each other's C functions as capsules in `__pyx_capi__`, when they are imported.  So the
two lowest, runtime and driver, are imported alone, their functions are replaced by ones that work on host memory and
count, and then CuPy is imported.  Argument checks, dtypes, shapes, kernel arguments and launch logic above are CuPy's
own; kernels do not run, so numbers mean nothing.  cuBLAS is replaced by a module that counts.
"""

import ctypes
import json
import sys
import time
import types
from collections import Counter
from functools import partial

import numpy as np

COUNTS: Counter[str] = Counter()
POINTER, INT, UNSIGNED, SIZE, OBJECT = (
    ctypes.c_ssize_t,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.py_object,
)
_kept: list = []  # what C code points to
_memory: dict[int, ctypes.Array] = {}  # device memory by its address
_functions: list[str] = []  # kernels by their handle
_capturing = -1  # the stream whose work becomes a graph


def replace(module, name, result, arguments, function):
    """Put `function` where other extension modules, and Python, look for module.name."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [OBJECT]
    api.PyCapsule_New.restype = OBJECT
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    signature = ctypes.create_string_buffer(api.PyCapsule_GetName(module.__pyx_capi__[name]))
    callback = ctypes.CFUNCTYPE(result, *arguments)(function)
    address = ctypes.cast(callback, ctypes.c_void_p)
    module.__pyx_capi__[name] = api.PyCapsule_New(address, ctypes.cast(signature, ctypes.c_char_p), None)
    _kept.extend((signature, callback))
    setattr(module, name, lambda *given: function(*given, *[0] * (len(arguments) - len(given))))


def constant(value):
    return lambda *_: value


def count(what, value=None):
    def counted(*_):
        COUNTS[what] += 1
        return value

    return counted


def allocate(size, *_):
    block = ctypes.create_string_buffer(size + 512)
    address = (ctypes.addressof(block) + 511) // 512 * 512
    _memory[address] = block
    return address


def copy(to, source, size, kind, *_):
    COUNTS[{1: "host to device", 2: "device to host"}.get(kind, "copy")] += 1
    if kind == 2:  # no kernel has run, so there is nothing to read
        ctypes.memset(to, 0, size)
    else:
        ctypes.memmove(to, source, size)


def fill(address, value, size, *_):
    COUNTS["memset"] += 1
    ctypes.memset(address, value, size)


def find_function(module, name, *_):
    _functions.append(name.decode() if isinstance(name, bytes) else name)
    return len(_functions)


def launch(function, *_):
    name = _functions[function - 1]
    COUNTS["launch"] += 1
    COUNTS[f"kernel {name}"] += 1
    if "float64" in name or "double" in name:
        COUNTS["float64 kernel"] += 1


def begin_capture(stream, *_):
    global _capturing
    _capturing = stream
    COUNTS["capture"] += 1


def end_capture(*_):
    global _capturing
    _capturing = -1
    return 77


def attribute(which, *_):
    """Of an H200: compute capability 9.0, 132 multiprocessors, warps of 32, 1,024 threads a block."""
    return {75: 9, 76: 0, 16: 132, 10: 32, 1: 1024, 97: 232_448}.get(which, 1)


def install():
    """Replace the device.  Call it before anything imports cupy."""
    import cupy_backends.cuda.api.driver as driver
    import cupy_backends.cuda.api.runtime as runtime

    p, i, u, z, o = POINTER, INT, UNSIGNED, SIZE, OBJECT
    for module, name, result, arguments, function in [
        (runtime, "getDevice", i, [i], constant(0)),
        (runtime, "getDeviceCount", i, [i], constant(1)),
        (runtime, "setDevice", o, [i, i], constant(None)),
        (runtime, "deviceGetAttribute", i, [i, i, i], attribute),
        (runtime, "driverGetVersion", i, [i], constant(13020)),
        (runtime, "deviceSynchronize", o, [i], count("synchronise")),
        (runtime, "streamSynchronize", o, [p, i], count("synchronise")),
        (runtime, "eventSynchronize", o, [p, i], count("synchronise")),
        (runtime, "streamIsCapturing", i, [p, i], lambda stream, *_: int(stream == _capturing)),
        (runtime, "streamBeginCapture", o, [p, i, i], begin_capture),
        (runtime, "streamEndCapture", p, [p, i], end_capture),
        (runtime, "graphInstantiate", p, [p, i], constant(78)),
        (runtime, "graphLaunch", o, [p, p, i], count("graph launch")),
        (runtime, "graphDestroy", o, [p, i], constant(None)),
        (runtime, "graphExecDestroy", o, [p, i], constant(None)),
        (runtime, "malloc", p, [z, i], allocate),
        (runtime, "hostAlloc", p, [z, u, i], allocate),
        (runtime, "free", o, [p, i], lambda address, *_: _memory.pop(address, None) and None),
        (runtime, "freeHost", o, [p, i], lambda address, *_: _memory.pop(address, None) and None),
        (runtime, "memcpy", o, [p, p, z, i, i], copy),
        (runtime, "memcpyAsync", o, [p, p, z, i, p, i], copy),
        (runtime, "memset", o, [p, i, z, i], fill),
        (runtime, "memsetAsync", o, [p, i, z, p, i], fill),
        (runtime, "eventCreateWithFlags", p, [u, i], constant(1)),
        (runtime, "eventRecord", o, [p, p, i], constant(None)),
        (runtime, "eventQuery", o, [p, i], constant(0)),
        (runtime, "eventDestroy", o, [p, i], constant(None)),
        (runtime, "streamCreateWithFlags", p, [u, i], constant(64)),
        (runtime, "streamCreateWithPriority", p, [u, i, i], constant(64)),
        (runtime, "streamDestroy", o, [p, i], constant(None)),
        (runtime, "_ensure_context", o, [], constant(None)),
        (runtime, "deviceCanAccessPeer", i, [i, i, i], constant(1)),
        (runtime, "pointerGetMemoryType", i, [p, i], lambda address, *_: 2 if address in _memory else 0),
        (driver, "ctxGetCurrent", p, [i], constant(1)),
        (driver, "moduleLoadData", p, [o, i], constant(1)),
        (driver, "moduleUnload", o, [p, i], constant(None)),
        (driver, "moduleGetFunction", p, [p, o, i], find_function),
        (driver, "launchKernel", o, [p, u, u, u, u, u, u, u, p, p, p, i], launch),
        (driver, "funcGetAttribute", i, [i, p, i], constant(1024)),
        (driver, "funcSetAttribute", o, [p, i, i, i], constant(None)),
    ]:
        replace(module, name, result, arguments, function)

    blas = types.ModuleType("cupy_backends.cuda.libs.cublas")
    quiet = {"create", "destroy", "setStream", "setMathMode"}

    def look_up(name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("CUBLAS_"):
            return 1
        if name in quiet or not name[0].islower():
            return constant(1)
        return refused_in_a_capture(count(f"cublas {name}", 1))

    blas.__getattr__ = look_up  # type: ignore[method-assign]
    import cupy_backends.cuda.libs as libs

    sys.modules["cupy_backends.cuda.libs.cublas"] = libs.cublas = blas

    import cupy.cuda.compiler
    from cupy.cuda import function

    def compile_nothing(source, *_, **__):
        module = function.Module()
        module.load(b"nothing")
        return module

    cupy.cuda.compiler._compile_module_with_cache = compile_nothing


def refused_in_a_capture(f):
    """As CuPy refuses all of cuBLAS (cublas.pyx, _setStream)."""

    def called(*arguments):
        if _capturing != -1 and "--blas" not in sys.argv:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        return f(*arguments)

    return called


def counts_of(f, twice=True):
    """What one call of f asks of the device.  twice: the second call is counted, once everything is compiled."""
    if twice:
        f()
    COUNTS.clear()
    f()
    return dict(sorted(COUNTS.items()))


def main():
    from tinydiff.backend import asarray, default_rng, use_backend

    use_backend("cupy")
    from tinydiff.app.generate import build_unet
    from tinydiff.app.training import diffusion_training, steps
    from tinydiff.autograd import no_grad
    from tinydiff.data import Dataset
    from tinydiff.diffusion import Schedule, ddim_step, sample, timestep_pairs, unconditional
    from tinydiff.fast.gpu import PERIOD
    from tinydiff.fast.graph import WARM, recorded
    from tinydiff.fast.workers import ALONE, Workers
    from tinydiff.optim import EMA, Adam, clip_grad_norm
    from tinydiff.train import TrainConfig, noise_prediction_losses, train

    rng = default_rng(0)
    batch_size = int(sys.argv[-1]) if sys.argv[-1].isdigit() else 64
    x, eps = rng.standard_normal((2, batch_size, 28, 28, 1), dtype="float32")
    batch = {"x_t": asarray(x), "target": asarray(eps), "t": rng.integers(1, 1001, batch_size)}
    pool = Workers(partial(build_unet, {}, 0), 1)
    adam, average = Adam(pool.parameters), EMA(pool.parameters)

    def one_step():
        pool.gradients(noise_prediction_losses, batch)
        clip_grad_norm(pool.parameters, 1.0)
        adam.step(1e-3)
        average.update()

    # What train_mnist.py does: batches of labelled images, a network with classes, metrics.
    images, labels = rng.integers(0, 256, (999, 28, 28, 1), dtype="uint8"), rng.integers(0, 10, 999).astype("uint8")
    dataset = Dataset("noise", images, labels, "noise", tuple("0123456789"))
    config, lines = TrainConfig(num_steps=10**6, minutes=None, batch_size=batch_size), []

    def demo():
        workers = Workers(partial(build_unet, {"num_classes": 10}, 0), 1)
        return diffusion_training(workers, Schedule.linear(1000), config, dataset)

    ordered, replayed = train(demo()), steps(demo(), ALONE, None, lines.append)

    def drawn(model):
        chain = sample(
            partial(ddim_step, Schedule.linear(1000), clip=True),
            unconditional(model),
            timestep_pairs(1000, 1),
            batch["x_t"],
            np.random.default_rng(0),
        )
        with no_grad():
            list(chain)

    network = recorded(pool.model)
    calls = {
        "train": one_step,
        "sample": lambda: drawn(pool.model),
        "demo": lambda: next(ordered),
        "period": lambda: [next(ordered) for _ in range(PERIOD)],
        "recording": lambda: [next(replayed) for _ in range(WARM + 2)],
        "replay": lambda: next(replayed),
        "replayed period": lambda: [next(replayed) for _ in range(PERIOD)],
        "recording of drawing": lambda: [drawn(network) for _ in range(WARM + 2)],
        "replayed sample": lambda: drawn(network),
    }
    counts = {name: counts_of(call, twice="recording" not in name) for name, call in calls.items()}
    print(json.dumps({"counts": counts, "lines": lines, "host ms": min(seconds_of(calls["replay"])) * 1e3}))


def seconds_of(f, times=60):
    """The seconds of some calls of f, each after a pause in which the threads draw their batches."""
    for _ in range(times):
        time.sleep(0.02)
        began = time.perf_counter()
        f()
        yield time.perf_counter() - began


if __name__ == "__main__":
    install()
    main()
