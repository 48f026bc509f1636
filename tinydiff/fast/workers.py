"""The batch split over worker processes that share one set of parameters.

Each worker has the same network.  All replicas keep their parameters in one array in shared memory.  This process
updates that array, and every worker sees the update at once.  In a step this process copies the batch to shared memory.
Each worker computes the losses and the gradient of its part of the batch.  This process adds the gradients in the order
of the workers.  So the same seed and the same number of workers give the same bits.  Workers are processes, not
threads: two threads of NumPy code lose a quarter of their speed to the interpreter lock.

    with Workers(build, 2) as workers:
        losses = workers.gradients(losses_of, batch)            # leaves the mean's gradient in workers.flat.grad
        images = workers.map(draw, jobs)                        # draw(model, job) for each job

With one worker all work is done in this process.  Functions and jobs go through a pipe, so they must be picklable.  The
arrays of a step go through shared memory.  Read next: mpi.py.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.autograd import mark_written
from tinydiff.backend import FAST, BackendError, TinydiffError, backend_name, use_backend, xp
from tinydiff.fast.optim import Flat
from tinydiff.nn import Module
from tinydiff.train import Batch, Losses, checked_losses, rows

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")} | {"VECLIB_MAXIMUM_THREADS": "1"}


class WorkerError(TinydiffError):
    """A worker process died or raised an exception, shared memory has no room, or the ranks of an MPI job differ."""


def rows_of(n: int, rank: int, size: int) -> slice:
    """The slice of n rows that belongs to number `rank` of `size` workers or ranks.  Workers and ranks share this rule,
    so that both give the same bits."""
    return slice(n * rank // size, n * (rank + 1) // size)


class Ranks:
    """The processes that run this program together.  In this class: this process alone.  In mpi.MPIRanks: many.

    rank: the number of this process.  size: the number of processes.  local_rank: this process's number on its machine.
    """

    rank, size, local_rank = 0, 1, 0

    def default_workers(self, most: int = 64) -> int:
        """The number of workers if the user gives none."""
        return default_workers(most)

    def part(self, n: int) -> slice:
        """The slice of n rows that belongs to this rank."""
        return rows_of(n, self.rank, self.size)

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Call make() on rank 0, and return its result on every rank."""
        return make()

    def allreduce_mean(self, a: Any) -> Any:
        """Replace the float32 array `a` by its mean over the ranks, and return it.  Every rank gives the same shape."""
        return a

    def rescue(self, save: Callable[[], Any]) -> None:
        """Save immediately if the launcher kills processes soon after a signal, as MPI does.  A local run has time to
        finish its step."""

    def workers(self, build: Callable[[], Module], num_workers: int) -> "Workers":
        return Workers(build, num_workers)


ALONE = Ranks()


class Workers:
    """num_workers replicas of the network; build() makes a replica.  model: the replica of this process.

    flat: all parameters as one array that the workers share, and the gradient that `gradients` computed last.
    """

    ranks: Any = ALONE  # or MPIRanks

    def __init__(self, build: Callable[[], Module], num_workers: int = 1):
        if num_workers < 1:
            raise ValueError(f"num_workers must be 1 or more, got {num_workers}")
        if num_workers > 1 and backend_name() != "numpy":
            raise BackendError(f"num_workers={num_workers}: worker processes need the numpy backend")
        self.num_workers = num_workers
        self.model = build()
        self._busy = False
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._shared: _SharedArrays | None = None
        self._batch: _SharedArrays | None = None
        self.flat = Flat(self.model.parameters())
        self.parameters = [self.flat]  # as Adam and EMA take them
        self._trained = [p.requires_grad for p in self.flat.parameters]  # what the replicas take from build()
        if num_workers == 1:
            _keep_heap()
            return
        size = len(self.flat.data)
        self._shared = _SharedArrays({"theta": ((size,), "float32"), "grad": ((num_workers, size), "float32")})
        self._shared.arrays["theta"][:] = self.flat.data
        self.flat.move(self._shared.arrays["theta"], self._shared.arrays["grad"][0])  # the sum is made in row 0
        try:
            self._start(build, self._shared)
        except BaseException:
            self._shared.memory.unlink()
            self.close()
            raise

    def gradients(self, losses_of: Losses, batch: Batch) -> Any:
        """Return the losses (N,) of the batch's examples, and write the gradient of their mean to flat.grad.

        losses_of(model, part of the batch) -> Tensor of that part's losses.  On a GPU the losses are a device array.
        """
        n = rows(batch)
        if self.num_workers == 1:
            return losses_and_gradient(self.model, self.flat, losses_of, batch, slice(0, n), n)
        with self._conversation():
            return self._shared_gradients(losses_of, batch, n)

    def _shared_gradients(self, losses_of: Losses, batch: Batch, n: int) -> np.ndarray:
        assert self._shared is not None
        if self._trained != [p.requires_grad for p in self.flat.parameters]:
            raise RuntimeError("a parameter was frozen or unfrozen here only: freeze it in build(), for every worker")
        layout = {name: (a.shape, str(a.dtype)) for name, a in batch.items()}
        if self._batch is None or self._batch.layout != layout:
            if self._batch is not None:
                self._batch.close()
            self._batch = _SharedArrays(layout)
            try:
                self._ask("attach", [(self._batch.memory.name, layout)] * self.num_workers)
            finally:
                self._batch.memory.unlink()
        for name, a in batch.items():
            self._batch.arrays[name][...] = a
        size = self.num_workers
        losses = self._ask("gradients", [(losses_of, rows_of(n, w, size), n) for w in range(size)])
        total, *others = self._shared.arrays["grad"]
        for g in others:
            total += g
        return np.concatenate(losses)

    def map(self, f: Callable[[Module, Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """Yield f(model, job) for each job, in order.  A free worker gets the next job."""
        if self.num_workers == 1:
            yield from (f(self.model, job) for job in jobs)
            return
        with self._conversation():
            yield from self._shared_map(f, jobs)

    def _shared_map(self, f: Callable[[Module, Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        done: dict[int, Any] = {}
        running: dict[Any, int] = {}
        waiting, next_out = list(enumerate(jobs))[::-1], 0
        idle = list(self._pipes)
        try:
            while waiting or running:
                while idle and waiting:
                    index, job = waiting.pop()
                    pipe = idle.pop(0)
                    self._send(pipe, "call", (f, job))
                    running[pipe] = index
                for pipe in wait(list(running)):
                    index = running.pop(pipe)  # before _receive, which may raise: this answer has been read
                    done[index] = self._receive(pipe)
                    idle.append(pipe)
                while next_out in done:
                    yield done.pop(next_out)
                    next_out += 1
        except (GeneratorExit, WorkerError):  # the caller stopped early, or a job failed: read the other answers
            self._receive_all(list(running))
            raise

    @contextmanager
    def _conversation(self) -> Iterator[None]:
        """Allow one exchange with the workers at a time.  If an exchange breaks off in the middle, end the workers:
        otherwise the next exchange would read the old answers."""
        if self._busy or not self._pipes:
            state = "in the middle of another map" if self._busy else "closed"
            raise RuntimeError(f"these workers are {state}")
        self._busy = True
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, WorkerError) or not all(process.is_alive() for process in self._processes):
                self.close()
            raise
        finally:
            self._busy = False

    @contextmanager
    def weights(self, average: Sequence[Any]) -> Iterator[None]:
        """Within the block every replica computes with the parameters `average`, the list EMA.average."""
        before = self.flat.data.copy()
        (self.flat.data[...],) = average
        mark_written(self.flat.parameters)
        try:
            yield
        finally:
            self.flat.data[...] = before
            mark_written(self.flat.parameters)

    def close(self) -> None:
        """End the worker processes.  If this process dies, the pipes close, and each worker ends by itself."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():  # in the middle of a long computation
                process.kill()
                process.join()
        atexit.unregister(self.close)
        self._processes, self._pipes = [], []
        if self._batch is not None:
            self._batch.close()
        if self._shared is not None:
            self.flat.move()  # to copies, which outlive the shared memory
            self._shared.close()
        self._batch = self._shared = None

    def __enter__(self) -> "Workers":
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self._processes:
            raise TypeError("worker processes cannot be copied or pickled: copy the network, workers.model")
        return vars(self)

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start(self, build: Callable[[], Module], shared: "_SharedArrays") -> None:
        atexit.register(self.close)  # runs before multiprocessing waits for the workers, which wait for this process
        context = multiprocessing.get_context("spawn")  # spawn works on every system, and a child inherits nothing
        with environment(ONE_THREAD):  # one BLAS thread for each worker: the workers already use all cores
            for index in range(self.num_workers):
                pipe, end = context.Pipe()
                arguments = (end, build, index, shared.memory.name, shared.layout, not FAST)
                process = context.Process(target=_serve, args=arguments, daemon=True, name=f"tinydiff-worker-{index}")
                process.start()
                end.close()
                self._processes.append(process)
                self._pipes.append(pipe)
        self._receive_all(self._pipes)
        # Every worker has opened the memory now.  Without a name it vanishes with its last user, even after kill -9.
        shared.memory.unlink()

    def _ask(self, command: str, arguments: Sequence[tuple]) -> list[Any]:
        for pipe, args in zip(self._pipes, arguments):
            self._send(pipe, command, args)
        return self._receive_all(self._pipes)

    def _receive_all(self, pipes: Sequence[Any]) -> list[Any]:
        """Return the answers from all pipes.  A failure is raised only after all workers have answered: so no answer
        stays in a pipe."""
        results, failure = [], None
        for pipe in pipes:
            try:
                results.append(self._receive(pipe))
            except WorkerError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return results

    def _send(self, pipe: Any, command: str, args: tuple) -> None:
        try:
            pipe.send((command, args))
        except OSError:
            raise self._died(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        sentinel = self._processes[self._pipes.index(pipe)].sentinel
        try:
            if pipe not in wait([pipe, sentinel]):
                raise EOFError
            error, result = pipe.recv()
        except (EOFError, OSError):
            raise self._died(pipe) from None
        if error is not None:
            raise WorkerError(f"worker {self._pipes.index(pipe)} failed:\n{error}")
        return result

    def _died(self, pipe: Any) -> WorkerError:
        index = self._pipes.index(pipe)
        process = self._processes[index]
        process.join(timeout=2)
        return WorkerError(f"worker {index} (process {process.pid}) died with exit code {process.exitcode}")


def default_workers(most: int = 64) -> int:
    """One worker for each core, at most `most`; with plain functions 1; on a GPU 1, because one process keeps it
    busy."""
    return min(available_cores(), most) if FAST and backend_name() == "numpy" else 1


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


class _SharedArrays:
    """Named arrays in one block of shared memory.  Without a name a new block is made; a worker opens it by name."""

    def __init__(self, layout: dict[str, tuple], name: str | None = None):
        self.layout = layout
        offsets, end = {}, 0
        for key, (shape, dtype) in layout.items():
            offsets[key] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # whole cache lines
        self.memory = SharedMemory(name, create=name is None, size=max(end, 1))
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


class _Replica:
    """The network in a worker process.  Each method is a command that the parent may send."""

    def __init__(self, model: Module, theta: Any, grad: Any):
        self.model, self.flat = model, Flat(model.parameters())
        self.flat.move(theta, grad)
        self.batch: _SharedArrays | None = None

    def attach(self, name: str, layout: dict[str, tuple]) -> None:
        if self.batch is not None:
            self.batch.close()
        self.batch = _SharedArrays(layout, name)

    def gradients(self, losses_of: Losses, part: slice, n: int) -> np.ndarray:
        assert self.batch is not None
        return losses_and_gradient(self.model, self.flat, losses_of, self.batch.arrays, part, n)

    def call(self, f: Callable, job: Any) -> Any:
        return f(self.model, job)


def losses_and_gradient(model: Module, flat: Flat, losses_of: Losses, batch: Batch, part: slice, n: float) -> Any:
    """Return the losses of batch[part], and write the gradient of (sum of these losses) / n to flat.grad."""
    if part.start == part.stop:  # more workers than examples
        flat.grad[...] = 0
        return xp.empty(0, "float32")
    flat.grad = None
    losses = checked_losses(part.stop - part.start, losses_of(model, {name: a[part] for name, a in batch.items()}))
    losses.backward(xp.full(losses.shape, 1 / n, losses.dtype))
    flat.gather()
    return losses.data


def _serve(
    pipe: Any, build: Callable[[], Module], index: int, name: str, layout: dict[str, tuple], plain: bool
) -> None:
    """The main function of a worker process: answer commands until the pipe closes."""
    use_backend("numpy", plain=plain)
    for number in (signal.SIGINT, signal.SIGTERM):  # only the parent reacts to a signal to the whole group
        signal.signal(number, signal.SIG_IGN)
    _keep_heap()
    answer: tuple[str | None, Any] = (None, None)
    try:
        shared = _SharedArrays(layout, name)
        replica = _Replica(build(), shared.arrays["theta"], shared.arrays["grad"][index])
    except Exception:
        answer = (traceback.format_exc(), None)
    try:
        while True:
            pipe.send(answer)
            command, args = pipe.recv()
            try:
                answer = (None, getattr(replica, command)(*args))
            except Exception:
                answer = (traceback.format_exc(), None)
    except (EOFError, OSError):
        pass  # the parent is gone
    os._exit(0)  # views of the shared memory are still alive here; the system unmaps it


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


def _keep_heap() -> None:
    """Make glibc keep freed memory for the next arrays.  The system would zero every page before it returned the page.

    Every step frees and allocates the same arrays.  Without this setting a tenth of a step's time goes into page
    faults.  The setting applies to the whole process and cannot be undone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not glibc: macOS, Windows, musl
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no array gets a mapping of its own
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


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
