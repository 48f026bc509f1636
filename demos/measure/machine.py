"""The conditions of a benchmark: the processor or the GPU, versions, and environment variables."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np

from tinydiff.backend import backend_name, xp
from tinydiff.fast.processes import available_cores


def describe_cpu(torch):
    """Processor, cores and versions.  torch: whether PyTorch is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "blas_core": blas_core(),
        "torch": importlib.metadata.version("torch") if torch else None,
    }


def blas_core():
    """The kernels that OpenBLAS has chosen for this processor, such as "SkylakeX"; "unknown" with another BLAS."""
    maps, package = Path("/proc/self/maps"), Path(np.__file__).parent
    if maps.exists():
        paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "openblas" in line}
    else:
        paths = {
            str(path)
            for folder in (package.parent / "numpy.libs", package / ".dylibs")
            for path in folder.glob("*openblas*")
        }
    for path, prefix, suffix in itertools.product(sorted(paths), ("scipy_", ""), ("64_", "")):
        with contextlib.suppress(OSError, AttributeError):  # no such library, or no such function
            corename = getattr(ctypes.CDLL(path), f"{prefix}openblas_get_corename{suffix}")
            corename.restype = ctypes.c_char_p
            return corename().decode()
    return "unknown"


def describe_gpu():
    """Device, driver and versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    printed = subprocess.run(query, capture_output=True, text=True).stdout.strip() if shutil.which(query[0]) else ""
    device, _, driver = (printed.splitlines() or ["unknown, unknown"])[0].partition(", ")
    versions = {backend_name(): xp.__version__}
    if importlib.util.find_spec("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    return {"device": device, "driver": driver, **versions}


def speed_variables():
    """Environment variables that are set and change the speed, so that a benchmark is not what a user would get."""
    names = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    return {name: value for name, value in os.environ.items() if name in names or name.startswith("MALLOC_")}
