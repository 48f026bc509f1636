"""Real CuPy on a machine without a GPU (dry_run.py): precision, the line on the device, and what a full memory does.

CUPY_TF32=1 CUPY_GPU_MEMORY_LIMIT=60000000 python tests/dry_precision.py          prints its findings as JSON
"""

import json
import os
from dataclasses import replace
from functools import partial

import dry_run


def products():
    """What cuBLAS is asked for by a product in each precision, switched to and fro."""
    from tinydiff.backend import use_backend, xp

    TYPES.clear()
    for precision in ("float32", "tf32", None, "float32"):
        use_backend("cupy", precision)  # which multiplies once
        a = xp.ones((8, 8), "float32")
        _ = a @ a
    return list(TYPES)


def full_memory():
    """The message of a step whose batch does not fit, and whether the batch it names fits, and one a quarter larger."""
    from tinydiff.app.alone import one_process
    from tinydiff.app.generate import build_unet
    from tinydiff.app.training import diffusion_training, steps
    from tinydiff.data import load
    from tinydiff.diffusion import Schedule
    from tinydiff.fast.workers import Workers
    from tinydiff.train import TrainConfig, TrainingError

    pool = Workers(partial(build_unet, {"base_channels": 8, "num_classes": 10}, 0), 1)
    dataset = load("glyphs", num=100)

    def step(batch_size):
        try:
            config = replace(TrainConfig(), batch_size=batch_size)
            next(steps(diffusion_training(pool, Schedule.linear(), config, dataset), one_process()))
        except TrainingError as error:
            return str(error)

    said = step(1000)
    fits = int(said.split("batch size ")[2].split()[0])
    return {"said": said, "fits": step(fits), "larger": step(fits + fits // 4 + 2)}


def main():
    import cupy

    from tinydiff.backend import use_backend
    from tinydiff.fast.device import describe

    runtime = cupy.cuda.runtime
    runtime.memGetInfo = lambda: (3 << 30, 4 << 30)
    runtime.getDeviceProperties = lambda device: {"name": b"A GPU"}
    use_backend("cupy")
    print(json.dumps({"describe": describe(), "products": products(), "memory": full_memory()}), flush=True)
    os._exit(0)  # the pretended device does not outlive Python's own clearing up


TYPES: list[str] = []  # how cuBLAS was asked to multiply

if __name__ == "__main__":
    dry_run.install()
    import cupy_backends.cuda.libs.cublas as blas

    blas.CUBLAS_COMPUTE_32F, blas.CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77

    def gemm(*arguments):
        TYPES.append({68: "float32", 77: "tf32"}[arguments[17]])

    blas.gemmEx = gemm
    main()
