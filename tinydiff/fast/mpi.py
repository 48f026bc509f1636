"""The batch split over the ranks of an MPI job, on one machine or many, through mpi4py.

    mpiexec -n 4 python demos/train_mnist.py --parallel mpi

Every rank runs the whole program on its own replica of the network.  Only rank 0 reads files, writes and prints.  It
broadcasts what it reads, and the parameters, so all ranks start from the same bits.  In a step each rank draws its rows
of the batch (app/blocks.py) and computes their losses.  Then

    gradient of the mean over the batch = mean over the ranks of (ranks / batch) sum of its rows' gradients

is one Allreduce of the flat gradient.  The losses lie behind the gradient in the same buffer, with zeros in the rows of
other ranks.  Every rank then makes the same update.  The batch does not depend on the number of ranks, only the order
of summation does.

Faults: a rank that raises aborts the job when it ends, mpiexec ends it when a rank dies.  The ranks' programs, sources
and versions are compared at the start, their parameters every CHECK_EVERY steps.  Read next: gpu.py.
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
from tinydiff.fast.workers import ONE_THREAD, Ranks, WorkerError, Workers, losses_and_gradient
from tinydiff.nn import Module
from tinydiff.train import Batch, Losses

CHECK_EVERY = 50  # steps


class MPIRanks(Ranks):
    """The ranks of an MPI communicator.

    ended_well: whether this rank has done its part.  A program that ends earlier ends all ranks.
    """

    def __init__(self, comm: Any, local_rank: int = 0, reads_gpu: bool = False):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.local_rank, self.reads_gpu = local_rank, reads_gpu
        self.ended_well = False
        self._saver: int | None = None

    def default_workers(self, most: int = 64) -> int:
        return self.size

    def broadcast(self, make: Callable[[], Any]) -> Any:
        if self._saver is not None:  # which writes what make may write
            os.waitpid(self._saver, 0)
            self._saver = None
        return self.comm.bcast(make() if self.rank == 0 else None, root=0)

    def allreduce_mean(self, a: Any) -> Any:
        if self.reads_gpu:
            synchronize()  # MPI does not know of what is still to be computed
        host = a if self.reads_gpu else to_numpy(a)  # of a GPU's array a copy, the only one
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
            self.comm.Barrier()  # rank 0 does not come: its end is the end of all

    def rescue(self, save: Callable[[], Any]) -> None:
        """Save in a process that outlives this one: Open MPI kills its ranks a quarter of a second after SIGTERM.

        It is called by a signal handler.  On a GPU it does nothing: no other process sees the GPU's arrays, and a step
        is short enough to end in time.
        """
        if self.rank > 0 or backend_name() != "numpy":
            return
        self._saver = os.fork()
        if self._saver == 0:
            try:
                os.setsid()  # out of the group that is killed
                save()
            finally:
                os._exit(0)

    def workers(self, build: Callable[[], Module], num_workers: int) -> "RankWorkers":
        if num_workers != self.size:
            raise TinydiffError(f"--workers {num_workers}: under MPI each rank is one worker, here {self.size}")
        return RankWorkers(build, self)

    def end(self) -> None:
        """At exit: end all ranks unless the work is done, because they would wait for this rank for ever."""
        if not self.ended_well:
            print(f"rank {self.rank} of {self.size} on {platform.node()} has ended the job", file=sys.stderr)
            sys.stderr.flush()
            self.comm.Abort(1 if hasattr(sys, "last_value") else 2)  # 1: a bug, with its traceback


class RankWorkers(Workers):
    """This rank's replica of the network.  All ranks call its methods together."""

    def __init__(self, build: Callable[[], Module], ranks: MPIRanks):
        super().__init__(build)
        self.ranks, self.num_workers = ranks, ranks.size
        self._buffer = self.flat.grad  # and the losses behind it
        self._calls = 0
        self.flat.data[...] = asarray(ranks.broadcast(lambda: to_numpy(self.flat.data)))
        # The norm of a gradient is such a sum.  If processors rounded it differently, parameters would drift apart.
        norm = float(xp.vdot(self.flat.data, self.flat.data))
        arrays = f"{backend_name()} {xp.__version__}, products in {precision()}"
        ranks.check_same({"what computes": arrays, "the parameters' sum of squares": norm})

    def gradients(self, losses_of: Losses, batch: Batch) -> Any:
        """Losses (N,) of the batch's examples; the gradient of their mean goes to flat.grad.  Both are the same on
        every rank."""
        size, n, theta = self.ranks.size, len(next(iter(batch.values()))), self.flat.data
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
        """Yield f(model, job) for each job, in order, on every rank; each rank does every size-th job."""
        rank, size = self.ranks.rank, self.ranks.size
        self._check_parameters()  # or the average, inside `weights`
        for i in range(0, len(jobs), size):
            results = [f(self.model, job) for job in jobs[i + rank : i + rank + 1]]
            for done in self.ranks.comm.allgather(results):
                yield from done

    def _check_parameters(self) -> None:
        self.ranks.check_same({"the parameters' checksum": zlib.crc32(to_numpy(self.flat.data).tobytes())})

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.ranks.ended_well = kind is None
        if kind is not None and self.ranks.rank > 0:
            time.sleep(1)  # an error of all ranks is printed by rank 0, which ends the others
        super().__exit__()


def world() -> MPIRanks:
    """All ranks that mpiexec has started.  TinydiffError without mpi4py, WorkerError if the ranks are not alike.

    From here on only rank 0 prints to standard output.
    """
    if not ONE_THREAD.keys() & os.environ.keys():  # NumPy has read them: begin again, with one thread a rank
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
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "tinydiff's source": _digest()}
    ranks.check_same({"the command line": sys.argv} | versions)
    return ranks


def _digest() -> str:
    """A digest of this package's files: two commits may have the same version number."""
    folder = Path(__file__).parents[1]
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cu"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _reads_gpu() -> bool:
    """Whether the loaded MPI library takes a GPU's arrays; a library without the query does not."""
    for name in ("libmpi.so.40", "libmpi.so.12"):  # Open MPI, MPICH
        with contextlib.suppress(OSError, AttributeError):
            return bool(ctypes.CDLL(name, mode=os.RTLD_NOLOAD).MPIX_Query_cuda_support())
    return False
