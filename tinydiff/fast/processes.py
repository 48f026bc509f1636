"""Starting processes: whether they can start, what they inherit, what can be sent to them, and memory that they share.

A process is started anew (spawn): it imports the program's file and finds by name what it is sent.  Each thing that
can go wrong there is an error of one sentence in the parent.  Read next: mpi.py.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import TinydiffError

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")} | {"VECLIB_MAXIMUM_THREADS": "1"}
# A terminal and a service manager send these signals to every process of a program.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
NO_GUARD = 86  # exit code of a worker that ran the program's main part while it imported its file
TOP_LEVEL = (
    "functions for workers must be defined at the top level of a file, not in a notebook, on the command line or in "
    "another function; or use 1 worker"
)


class WorkerError(TinydiffError):
    """A worker process died or raised an exception, shared memory has no room, or the ranks of an MPI job differ."""


class WorkerMemoryError(WorkerError, MemoryError):
    """A worker process has too little memory for what it was asked for."""


def check_start(num_workers: int) -> None:
    """Raise WorkerError if so many worker processes cannot be started, or would only be slow."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_GUARD)  # this is a worker, which imports the program's file; the parent prints the reason
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if main.__spec__ is None and path is not None and not os.path.exists(path):  # python < program.py
        raise WorkerError(f"worker processes import the program's file, and {path} is none: use 1 worker, or a file")
    cores = available_cores()
    most = max(8, 4 * cores)
    if num_workers > most:
        raise WorkerError(
            f"{num_workers} workers on {cores} core(s) would be slow to start and to work: use {cores}, at most {most}"
        )


@contextmanager
def unheard() -> Iterator[None]:
    """Let signals wait for the end of the block.  Processes that are started in the block never get them.

    A terminal sends Ctrl-C to every process of a program.  Workers would print tracebacks; only the parent reacts.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():  # Windows
        yield
        return
    waiting: list[int] = []
    handlers = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}
    # Children inherit the mask.  Another thread of this process may get a signal all the same: its handler waits too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    for number in handlers:
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in waiting[:1]:
            signal.raise_signal(number)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set these environment variables within the block.  Processes started in the block inherit them."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def available_cores() -> int:
    """The number of cores that this process may use.  On Linux the hyperthreads of a core count once, and a cgroup v2
    quota is a limit."""
    logical = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in logical:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(cpu))
    cores = len(siblings)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, -(-int(limit) // int(period)))
    return max(1, cores)


def packed(command: str, args: tuple) -> Any:
    """The bytes of a command."""
    try:
        return bytes(ForkingPickler.dumps((command, args)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise WorkerError(f"{args[0]!r} cannot be sent to worker processes ({error}): {TOP_LEVEL}") from None


class SharedArrays:
    """Named arrays in one block of shared memory.  Without a name a new block is made; a worker opens it by name."""

    def __init__(self, layout: dict[str, tuple], name: str | None = None):
        self.layout = layout
        offsets, end = {}, 0
        for key, (shape, dtype) in layout.items():
            offsets[key] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # whole cache lines
        try:
            if os.name == "posix":
                resource_tracker.ensure_running()  # first: if it cannot start, nobody would remove the memory
            self.memory = SharedMemory(name, create=name is None, size=max(end, 1))
        except OSError as error:
            raise WorkerError(
                f"worker processes need shared memory, which cannot be made ({error.strerror}): make the machine's "
                "/dev/shm writable, or use 1 worker"
            ) from None
        if name is None and hasattr(os, "posix_fallocate"):
            _reserve(self.memory)
        buffer = self.memory.buf
        assert buffer is not None
        self.arrays = {
            key: np.frombuffer(buffer, dtype, int(np.prod(shape)), offsets[key]).reshape(shape)
            for key, (shape, dtype) in layout.items()
        }

    def close(self) -> None:
        self.arrays = {}
        try:
            self.memory.close()
        except BufferError:  # a view still exists; the memory is freed with the last view
            self.memory.close = lambda: None  # type: ignore[method-assign]


def _reserve(memory: SharedMemory) -> None:
    """Allocate the memory now.  Otherwise, if memory runs out, the first write to a missing page kills the process
    (SIGBUS)."""
    try:
        os.posix_fallocate(memory._fd, 0, memory.size)  # type: ignore[attr-defined]
    except OSError as error:
        memory.unlink()
        raise WorkerError(
            f"no room for {memory.size:,} bytes of shared memory ({error.strerror}): use fewer workers, "
            "or give the machine's /dev/shm more room (docker run --shm-size)"
        ) from None
