"""The GPU's kernels on this machine: their text compiled by the host's C++ compiler and run on NumPy arrays.

kernels.cu and muon.cu: one block does all the work, of one lane or of several: lanes are threads that wait for each
other where the text says so, and what they share is one memory.  conv.cu: all blocks one after the other, each with all
its threads, as warps.cpp describes.  Factors are rounded as the device rounds them.  The rounding of its sums and its
speed are not seen.
"""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

from tinydiff.backend import FAST
from tinydiff.fast import install as table
from tinydiff.fast import kernels, tensor_cores

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
WARPS = Path(__file__).with_name("warps.cpp").read_text("utf-8")
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
SHARED = 232_448  # bytes of shared memory of a block, as on an H100
STRIDED = ("product",)  # kernels that take views of any strides
_one_block = threading.Lock()  # ranks of fake_mpi.py are threads, and warps.cpp has one memory for a block
launched: set[str] = set()  # the kernels that were run
muon_by_text = False  # or, for tests of other things, by NumPy: muon.cu takes a hundred times as long here


@functools.cache
def library(dtype: str, wide: bool, lanes: int) -> ctypes.CDLL:
    """The kernels for one dtype and width of integers."""
    types = {"T": {"f": "float", "d": "double"}[dtype], "I": "long long" if wide else "int"}
    text = f"typedef {types['T']} T;\ntypedef {types['I']} I;\n#define THREADS I({lanes})\n{HEAD}{kernels.SOURCE}"
    made = compiled(text, "-O1", "-pthread")
    made.prepare()
    return made


def compiled(text: str, *options: str) -> ctypes.CDLL:
    """The library that the compiler makes of a text; a warning is an error.

    It is kept for later runs and for the other processes of this one: to make it takes longer than most tests.
    """
    always = ["-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wdouble-promotion", "-Werror"]
    command = [str(COMPILER), *always, *options]
    CACHE.mkdir(parents=True, exist_ok=True)
    library = CACHE / f"{hashlib.sha256(repr((version(), command, text)).encode()).hexdigest()}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            source, made = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
            source.write_text(text)
            subprocess.run([*command, str(source), "-o", str(made)], check=True)
            made.replace(library)
    return ctypes.CDLL(str(library))


@functools.cache
def version() -> str:
    """What the compiler says of itself."""
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


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
        if name == "muon" and not muon_by_text:
            muon_by_numpy(*arguments)
            return
        arguments = [_as_c(a, dtype, name in STRIDED) for a in arguments]
        others = [threading.Thread(target=work, args=(lane, arguments)) for lane in range(1, lanes)]
        for thread in others:
            thread.start()
        work(0, arguments)
        for thread in others:
            thread.join()

    return run


def muon_by_numpy(size, theta, before, g, m, _scratch, norm, lr, table, _room, beta, a, b, c, rounds):
    """What the kernel of muon.cu computes, which test_muon_kernel.py holds it to."""
    if not np.isfinite(norm + lr[0]):
        return
    starts, sides = np.split(np.frombuffer(table.tobytes(), np.int64), 2)
    for start, rows, columns in zip(starts[:size], *sides.view(np.int32).reshape(2, -1)):
        part = slice(start, start + rows * columns)
        old, g_part, m_part = (a.reshape(-1)[part].reshape(rows, columns) for a in (before, g, m))
        n = (1 - beta) * g_part + beta * m_part
        n = n if rows >= columns else n.T
        x = n / (np.sqrt(np.sum(n * n)) + n.dtype.type(1e-20))
        r, product = x.T @ x, np.eye(len(n.T), dtype=n.dtype)
        for _ in range(int(rounds)):
            z = a * np.eye(len(r), dtype=n.dtype) + b * r + c * (r @ r)
            r, product = z @ r @ z, product @ z
        step = x @ product if rows >= columns else (x @ product).T
        theta.reshape(-1)[part] = (old - lr[0] * n.dtype.type(0.2 * max(rows, columns) ** 0.5) * step).reshape(-1)


def install(monkeypatch, lanes: int = 1) -> None:
    """Have every op take the GPU's way, its kernels run here by so many lanes, a power of two."""
    for name, fast in (table.EVERYWHERE | table.ON_A_GPU).items():
        monkeypatch.setitem(FAST, name, fast)
    monkeypatch.setattr(kernels, "backend_name", lambda: "cupy")
    monkeypatch.setattr(kernels, "_kernel", functools.partial(kernel, lanes=lanes))
    monkeypatch.setattr(tensor_cores, "why_not", lambda: None)
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda: SHARED)
    monkeypatch.setattr(tensor_cores, "_function", tensor_kernel)


class WarpError(AssertionError):
    """What a GPU would do with this text is undefined, or it would wait for ever."""


@functools.cache
def warps(text: str) -> ctypes.CDLL:
    """A text of conv.cu, with its first line that chooses a precision, on the lanes of warps.cpp."""
    head, body = text.split("\n", 1)
    made = compiled(f"{head}\n{WARPS}{body}", "-O2", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", "-Wno-clobbered")
    made.run.restype = ctypes.c_char_p
    return made


def tensor_kernel(name: str, precision: str, text: str = "", exact: bool = False, seed: int = 0):
    """What tensor_cores._function is on a GPU: f(blocks, threads, arguments, shared_mem=...).

    text: another text than conv.cu.  exact: factors are not rounded, in "tf32" only.  seed: of the warps' order.
    """
    made = warps(text or tensor_cores.text(precision))
    function = ctypes.cast(getattr(made, name), ctypes.c_void_p)

    def run(blocks, threads, arguments, shared_mem):
        launched.add(name)
        sizes = (ctypes.c_int * 5)(*blocks, *(1,) * (3 - len(blocks)), *threads, shared_mem)
        given = (ctypes.c_longlong * 13)(*(_number(a) for a in arguments))
        with _one_block:
            wrong = made.run(function, sizes, given, exact, seed)
        if wrong:
            raise WarpError(f"{name}: {wrong.decode()}")

    return run


def _number(a):
    if isinstance(a, np.ndarray):
        assert a.dtype == np.float32 and a.flags.c_contiguous
        return a.ctypes.data
    return a


def _as_c(a, dtype, strided=False):
    if isinstance(a, np.void):  # a struct, by value
        fields = [("bytes", ctypes.c_char * a.nbytes)]
        return type("Struct", (ctypes.Structure,), {"_fields_": fields}).from_buffer_copy(a)
    if isinstance(a, np.ndarray):
        assert a.dtype in (dtype, np.int64) and (strided or a.flags.c_contiguous)
        return ctypes.c_void_p(a.ctypes.data)
    return ctypes.c_double(a) if isinstance(a, float) else ctypes.c_longlong(a)
