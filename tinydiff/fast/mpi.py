"""The batch split over the ranks of an MPI job, on one machine or many, through mpi4py.

    mpiexec -n 4 python demos/train_mnist.py --parallel mpi

Every rank runs the whole program on its own replica of the network.  Only rank 0 reads files, writes and prints.  Rank
0 broadcasts the data that it reads and the parameters, so all ranks start from the same bits.  In a step each rank
draws its rows of the batch (app/blocks.py) and computes their losses.  Then

    gradient of the mean over the batch = mean over the ranks of (ranks / batch) sum of its rows' gradients

is one Allreduce of the flat gradient.  The losses lie behind the gradient in the same buffer, with zeros in the rows of
other ranks.  Every rank then makes the same update.  The batch does not depend on the number of ranks; only the order
of summation does.

Faults: a rank that raises an exception aborts the whole job.  If a rank dies, mpiexec ends the job.  At the start the
command lines, sources and versions of all ranks are compared.  The parameters are compared every CHECK_EVERY steps.
Read next: gpu.py.
"""

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import TinydiffError, asarray, backend_name, precision, to_numpy, xp
from tinydiff.fast.device import synchronize
from tinydiff.fast.processes import ONE_THREAD, STOPPING, WorkerError
from tinydiff.fast.workers import Ranks, Workers, losses_and_gradient
from tinydiff.nn import Module
from tinydiff.train import Batch, Losses, rows

CHECK_EVERY = 50  # steps


class MPIRanks(Ranks):
    """The ranks of an MPI communicator.

    local_rank: the number of this rank among the ranks of its machine.  reads_gpu: whether MPI reads a GPU's memory.
    ended_well: whether this rank has finished its work.  A program that exits before that ends all ranks.
    """

    def __init__(self, comm: Any, local_rank: int = 0, reads_gpu: bool = False):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.local_rank, self.reads_gpu = local_rank, reads_gpu
        self.ended_well = False
        self._saver: int | None = None

    def default_workers(self, most: int = 64) -> int:
        return self.size

    def broadcast(self, make: Callable[[], Any]) -> Any:
        if self._saver is not None:  # wait for the process of `rescue`: make() may write the same file
            os.waitpid(self._saver, 0)
            self._saver = None
        return self.comm.bcast(make() if self.rank == 0 else None, root=0)

    def allreduce_mean(self, a: Any) -> Any:
        if self.reads_gpu:
            synchronize()  # MPI does not wait for the GPU's unfinished work
        host = a if self.reads_gpu else to_numpy(a)  # a GPU's array is copied to the host; a NumPy array is not
        self.comm.Allreduce(None, host)  # None: in place
        if host is not a:
            a[...] = asarray(host)
        a /= self.size
        return a

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise WorkerError, on rank 0, if these values are not the same on every rank."""
        ranks = self.comm.allgather(settings)
        differences = [
            f"rank {rank}: {key} is {values.get(key)!r}, on rank 0 {value!r}"
            for rank, values in enumerate(ranks)
            for key, value in ranks[0].items()
            if values.get(key) != value
        ]
        if differences and self.rank == 0:
            raise WorkerError("the ranks do not agree: " + "; ".join(differences[:3]))
        if differences:
            self.comm.Barrier()  # wait here: rank 0 raises, and that ends all ranks

    def rescue(self, save: Callable[[], Any]) -> None:
        """Save in a process that outlives this one: Open MPI kills its ranks a quarter of a second after SIGTERM.

        A signal handler calls this method.  Only rank 0 saves.  On a GPU the method does nothing: another process
        cannot read the GPU's arrays, and a step is short enough to end in time.
        """
        if self.rank > 0 or backend_name() != "numpy":
            return
        self._saver = os.fork()
        if self._saver == 0:
            try:
                os.setsid()  # leave the group of processes that is killed
                save()
            finally:
                os._exit(0)

    def workers(self, build: Callable[[], Module], num_workers: int) -> "RankWorkers":
        if num_workers != self.size:
            raise TinydiffError(f"--workers {num_workers}: under MPI each rank is one worker, here {self.size}")
        return RankWorkers(build, self)

    def end(self) -> None:
        """Called at exit.  If the work is not done, end all ranks: they would wait for this rank for ever."""
        if not self.ended_well:
            print(f"rank {self.rank} of {self.size} on {platform.node()} has ended the job", file=sys.stderr)
            sys.stderr.flush()
            self.comm.Abort(1 if hasattr(sys, "last_value") else 2)  # 1: an exception has printed its traceback


class RankWorkers(Workers):
    """This rank's replica of the network.  All ranks call its methods together."""

    def __init__(self, build: Callable[[], Module], ranks: MPIRanks):
        super().__init__(build)
        self.ranks, self.num_workers = ranks, ranks.size
        self._buffer = self.flat.grad  # the gradient; in the first step space for the losses is added behind it
        self._calls = 0
        self.flat.data[...] = asarray(ranks.broadcast(lambda: to_numpy(self.flat.data)))
        # The norm of a gradient is a sum of squares too.  If processors rounded it differently, the ranks' parameters
        # would drift apart.
        norm = float(xp.vdot(self.flat.data, self.flat.data))
        arrays = f"{backend_name()} {xp.__version__}, products in {precision()}"
        ranks.check_same({"what computes": arrays, "the parameters' sum of squares": norm})

    def gradients(self, losses_of: Losses, batch: Batch) -> Any:
        """Losses (N,) of the batch's examples; the gradient of their mean goes to flat.grad.  Both are the same on
        every rank."""
        size, n, theta = self.ranks.size, rows(batch), self.flat.data
        if self._calls % CHECK_EVERY == 0:
            self._check_parameters()
        self._calls += 1
        if len(self._buffer) != len(theta) + n:
            self._buffer = xp.zeros(len(theta) + n, theta.dtype)
            self.flat.move(theta, self._buffer[: len(theta)])
        losses, part = self._buffer[len(theta) :], self.ranks.part(n)
        losses[...] = 0
        losses[part] = losses_and_gradient(self.model, self.flat, losses_of, batch, part, n / size)
        self.ranks.allreduce_mean(self._buffer)
        return losses * size

    def map(self, f: Callable[[Module, Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """Yield f(model, job) for each job, in order, on every rank.  Rank r computes the jobs r, r + size, ..."""
        rank, size = self.ranks.rank, self.ranks.size
        self._check_parameters()  # inside `weights` these are the averaged parameters
        for i in range(0, len(jobs), size):
            results = [f(self.model, job) for job in jobs[i + rank : i + rank + 1]]
            for done in self.ranks.comm.allgather(results):
                yield from done

    def _check_parameters(self) -> None:
        self.ranks.check_same({"the parameters' checksum": zlib.crc32(to_numpy(self.flat.data).tobytes())})

    def __exit__(self, kind: Any, error: Any = None, *_: Any) -> None:
        stopped = isinstance(error, SystemExit) and error.code in [128 + number for number in STOPPING]
        self.ranks.ended_well = kind is None or stopped  # a signal stops all ranks after the same step
        if not self.ranks.ended_well and self.ranks.rank > 0:
            time.sleep(1)  # if all ranks fail alike, rank 0 prints the error and then ends the others
        super().__exit__()


def world() -> MPIRanks:
    """The ranks that mpiexec has started.  From this call on only rank 0 prints to standard output.

    Raises TinydiffError if mpi4py is missing or does not work.  Raises WorkerError, on rank 0, if the ranks have
    different command lines, versions or sources.
    """
    if not ONE_THREAD.keys() & os.environ.keys():  # too late for NumPy: restart with one thread
        os.execve(sys.executable, sys.orig_argv, os.environ | ONE_THREAD)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise TinydiffError(f"MPI does not work here ({error}): pip install 'tinydiff[mpi]'") from None
    comm = MPI.COMM_WORLD
    ranks = MPIRanks(comm, comm.Split_type(MPI.COMM_TYPE_SHARED).rank, _reads_gpu())
    atexit.register(ranks.end)
    if ranks.rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "tinydiff's source": source_digest()}
    ranks.check_same({"the command line": sys.argv} | versions)
    return ranks


def source_digest() -> str:
    """A digest of this package's source files.  A version number is not enough: two commits may have the same."""
    folder = Path(__file__).parents[1]
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cu"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _reads_gpu() -> bool:
    """Whether the loaded MPI library reads a GPU's arrays.  False for a library without the function that tells it."""
    for name in ("libmpi.so.40", "libmpi.so.12"):  # Open MPI, MPICH
        with contextlib.suppress(OSError, AttributeError):
            return bool(ctypes.CDLL(name, mode=os.RTLD_NOLOAD).MPIX_Query_cuda_support())
    return False
