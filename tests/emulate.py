"""The GPU's kernels on this machine: their text compiled by the host's C++ compiler and run on NumPy arrays.

One block does all the work, of one lane or of several: lanes are threads that wait for each other where the text says
so, and what they share is one memory.  The device's rounding and speed are not seen.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

from tinydiff.backend import FAST
from tinydiff.fast import install as table
from tinydiff.fast import kernels

COMPILER = shutil.which("g++") or shutil.which("clang++")
REASON = "no C++ compiler (g++ or clang++): the kernels' text cannot be run here"
HEAD = """
#include <cmath>
#include <pthread.h>
using std::exp; using std::sqrt; using std::tanh;
#define __global__
#define __device__ static
#define __shared__ static
#define BLOCK I(0)
#define NUM_BLOCKS I(1)
#define LANE lane
static thread_local I lane = 0;
static pthread_barrier_t barrier;
extern "C" void prepare() { pthread_barrier_init(&barrier, nullptr, THREADS); }
extern "C" void become(int i) { lane = i; }
static void __syncthreads() { if (THREADS > 1) pthread_barrier_wait(&barrier); }
"""
launched: set[str] = set()  # the kernels that were run


@functools.cache
def library(dtype: str, wide: bool, lanes: int) -> ctypes.CDLL:
    """The kernels for one dtype and width of integers."""
    types = {"T": {"f": "float", "d": "double"}[dtype], "I": "long long" if wide else "int"}
    text = f"typedef {types['T']} T;\ntypedef {types['I']} I;\n#define THREADS I({lanes})\n{HEAD}{kernels.SOURCE}"
    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
        source.write_text(text)
        options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread"]
        options += ["-Wall", "-Wextra", "-Wdouble-promotion", "-Werror"]
        subprocess.run([str(COMPILER), *options, str(source), "-o", str(result)], check=True)
        made = ctypes.CDLL(str(result))
        made.prepare()
        return made


def kernel(name: str, dtype: str, wide: bool, lanes: int = 1):
    """What kernels._kernel is on a GPU: f(blocks, threads, arguments)."""
    made = library(dtype, wide, lanes)
    function = getattr(made, name)
    function.restype = None

    def work(lane, arguments):
        made.become(lane)
        function(*arguments)

    def run(blocks, threads, arguments):
        launched.add(name)
        size = arguments[0]
        assert threads == (kernels.THREADS,) and blocks in ((-(-size // kernels.THREADS),), (size,))
        arguments = [_as_c(a, dtype) for a in arguments]
        others = [threading.Thread(target=work, args=(lane, arguments)) for lane in range(1, lanes)]
        for thread in others:
            thread.start()
        work(0, arguments)
        for thread in others:
            thread.join()

    return run


def install(monkeypatch, lanes: int = 1) -> None:
    """Have every op take the GPU's way, its kernels run here by so many lanes, a power of two."""
    for name, fast in (table.EVERYWHERE | table.ON_A_GPU).items():
        monkeypatch.setitem(FAST, name, fast)
    monkeypatch.setattr(kernels, "backend_name", lambda: "cupy")
    monkeypatch.setattr(kernels, "_kernel", functools.partial(kernel, lanes=lanes))


def _as_c(a, dtype):
    if isinstance(a, np.void):  # a struct, by value
        fields = [("bytes", ctypes.c_char * a.nbytes)]
        return type("Struct", (ctypes.Structure,), {"_fields_": fields}).from_buffer_copy(a)
    if isinstance(a, np.ndarray):
        assert a.dtype == dtype and a.flags.c_contiguous
        return ctypes.c_void_p(a.ctypes.data)
    return ctypes.c_double(a) if isinstance(a, float) else ctypes.c_longlong(a)
