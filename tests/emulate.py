"""The GPU's kernels on this machine: their text compiled by the host's C++ compiler and run on NumPy arrays.

A kernel is a loop over independent results (kernels.py); here one thread runs all of it.  Races, the device's rounding
and speed are not seen.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tinydiff import kernels

COMPILER = shutil.which("g++") or shutil.which("clang++")
REASON = "no C++ compiler (g++ or clang++): the kernels' text cannot be run here"
HEAD = """
#include <cmath>
using std::exp; using std::sqrt; using std::tanh;
#define __global__
#define FIRST 0
#define STEP 1
"""
launched: set[str] = set()  # the kernels that were run


@functools.cache
def library(dtype: str) -> ctypes.CDLL:
    """The kernels for one dtype."""
    number = {"float32": "float", "float64": "double"}[dtype]
    text = f"{HEAD}#define T {number}\n{kernels.SOURCE}"
    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
        source.write_text(text)
        options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([str(COMPILER), *options, str(source), "-o", str(result)], check=True)
        return ctypes.CDLL(str(result))


def kernel(name: str, dtype: str):
    """What kernels._kernel is on a GPU: f(blocks, threads, arguments)."""
    function = getattr(library(dtype), name)
    function.restype = None

    def run(blocks, threads, arguments):
        launched.add(name)
        size = arguments[0]
        assert blocks[0] * threads[0] >= size > (blocks[0] - 1) * threads[0]
        function(*(_as_c(a, dtype) for a in arguments))

    return run


def install(monkeypatch) -> None:
    """Have every op take the GPU's way, its kernels run here."""
    monkeypatch.setattr(kernels, "backend_name", lambda: "cupy")
    monkeypatch.setattr(kernels, "_kernel", kernel)


def _as_c(a, dtype):
    if isinstance(a, np.void):  # a struct, by value
        fields = [("bytes", ctypes.c_char * a.nbytes)]
        return type("Struct", (ctypes.Structure,), {"_fields_": fields}).from_buffer_copy(a)
    if isinstance(a, np.ndarray):
        assert a.dtype == dtype and a.flags.c_contiguous
        return ctypes.c_void_p(a.ctypes.data)
    return ctypes.c_double(a) if isinstance(a, float) else ctypes.c_longlong(a)
