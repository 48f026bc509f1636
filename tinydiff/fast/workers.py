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
arrays of a step go through shared memory.  Read next: processes.py.
"""

import atexit
import ctypes
import math
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from tinydiff.autograd import mark_written
from tinydiff.backend import FAST, BackendError, backend_name, use_backend, xp
from tinydiff.fast.optim import Flat
from tinydiff.fast.processes import (
    NO_GUARD,
    ONE_THREAD,
    STOPPING,
    TOP_LEVEL,
    SharedArrays,
    WorkerError,
    WorkerMemoryError,
    available_cores,
    check_start,
    environment,
    packed,
    unheard,
)
from tinydiff.fast.shares import gathered
from tinydiff.muon import orthogonalized
from tinydiff.nn import Module
from tinydiff.train import Batch, Losses, checked_losses, rows


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
        if num_workers > 1:
            check_start(num_workers)
        self.num_workers = num_workers
        self.model = build()
        self._busy = False
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._shared: SharedArrays | None = None
        self._batch: SharedArrays | None = None
        self.flat = Flat(self.model.parameters())
        self.parameters = [self.flat]  # as Adam and EMA take them
        self._trained = [p.requires_grad for p in self.flat.parameters]  # what the replicas take from build()
        if num_workers == 1:
            _keep_heap()
            return
        size = len(self.flat.data)
        try:
            with unheard():
                self._shared = SharedArrays({"theta": ((size,), "float32"), "grad": ((num_workers, size), "float32")})
            self._shared.arrays["theta"][:] = self.flat.data
            self.flat.move(self._shared.arrays["theta"], self._shared.arrays["grad"][0])  # the sum is made in row 0
            self._start(build, self._shared)
            self.flat.shared = self._orthogonalize
        except BaseException:
            if self._shared is not None:
                with suppress(FileNotFoundError):  # the memory has no name any more
                    self._shared.memory.unlink()
            self.close(0)
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
            self._batch = SharedArrays(layout)
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

    def _orthogonalize(self, ns: Sequence[Any]) -> list[Any]:
        """O(N) of each matrix, see muon.py.  The results lie in shared memory and hold until the next step.

        The matrices take the place of worker 1's gradient, which has been added to the sum in row 0.
        """
        assert self._shared is not None
        spare, places, start = self._shared.arrays["grad"][1], list[tuple[int, tuple[int, ...]]](), 0
        for n in ns:
            spare[start : start + n.size] = n.reshape(-1)
            places.append((start, n.shape))
            start += n.size
        with self._conversation():
            self._ask("orthogonalize", [(places[w :: self.num_workers],) for w in range(self.num_workers)])
        return [spare[start : start + math.prod(shape)].reshape(shape) for start, shape in places]

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
                    self._send(pipe, packed("call", (f, job)))
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
                self.close(0)
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

    def close(self, seconds: float = 2.0) -> None:
        """End the worker processes.  If this process dies, the pipes close, and each worker ends by itself.

        seconds: the time that all workers together have to end by themselves.  Then the others are killed.
        """
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + seconds
        for process in self._processes:
            process.join(timeout=max(0.0, end - time.monotonic()))
            if process.is_alive():  # in the middle of a long computation, or stopped
                process.kill()
                process.join()
        atexit.unregister(self.close)
        self._processes, self._pipes, self.flat.shared = [], [], None
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

    def _start(self, build: Callable[[], Module], shared: "SharedArrays") -> None:
        atexit.register(self.close)  # runs before multiprocessing waits for the workers, which wait for this process
        context = multiprocessing.get_context("spawn")  # spawn works on every system, and a child inherits nothing
        with environment(ONE_THREAD):  # one BLAS thread for each worker: the workers already use all cores
            for index in range(self.num_workers):
                try:
                    with unheard():
                        pipe, end = context.Pipe()
                        arguments = (end, index, shared.memory.name, shared.layout, not FAST)
                        process = context.Process(
                            target=_serve, args=arguments, daemon=True, name=f"tinydiff-worker-{index}"
                        )
                        process.start()
                        end.close()
                        self._processes.append(process)
                        self._pipes.append(pipe)
                except OSError as error:
                    raise WorkerError(
                        f"worker {index} of {self.num_workers} cannot be started ({error.strerror}): "
                        "use fewer workers, or raise the limit (ulimit -n, ulimit -u)"
                    ) from None
        self._ask("build", [(build,)] * self.num_workers)
        # Every worker has opened the memory now.  Without a name it vanishes with its last user, even after kill -9.
        shared.memory.unlink()

    def _ask(self, command: str, arguments: Sequence[tuple]) -> list[Any]:
        messages = [packed(command, args) for args in arguments]  # all of them before the first is sent
        for pipe, message in zip(self._pipes, messages):
            self._send(pipe, message)
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

    def _send(self, pipe: Any, message: Any) -> None:
        try:
            pipe.send_bytes(message)
        except OSError:
            raise self._died(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        sentinel = self._processes[self._pipes.index(pipe)].sentinel
        try:
            if pipe not in wait([pipe, sentinel]):
                raise EOFError
            error, result = pipe.recv()  # the class of an error and its message, or None and the result
        except (EOFError, OSError):
            raise self._died(pipe) from None
        if error is not None:
            raise error(f"worker {self._pipes.index(pipe)} {result}")
        return result

    def _died(self, pipe: Any) -> WorkerError:
        index = self._pipes.index(pipe)
        process = self._processes[index]
        process.join(timeout=60)  # its end of the pipe is closed, so it is ending; giving back its memory takes a while
        if process.exitcode == NO_GUARD:
            return WorkerError(
                "each worker imports the program's file, and there it came to the start of workers again: put what the "
                'program does below the line  if __name__ == "__main__":'
            )
        reason = {-signal.SIGKILL: ": was memory too short?  Use fewer workers or smaller batches"}
        return WorkerError(
            f"worker {index} (process {process.pid}) died with exit code {process.exitcode}"
            f"{reason.get(process.exitcode, ': its error is above')}"
        )


def default_workers(most: int = 64) -> int:
    """One worker for each core, at most `most`; with plain functions 1; on a GPU 1, because one process keeps it
    busy."""
    return min(available_cores(), most) if FAST and backend_name() == "numpy" else 1


class _Replica:
    """The network in a worker process.  Each method is a command that the parent may send."""

    def __init__(self, index: int, name: str, layout: dict[str, tuple]):
        self.index, self.name, self.layout = index, name, layout
        self.batch: SharedArrays | None = None

    def build(self, build: Callable[[], Module]) -> None:
        self.shared = SharedArrays(self.layout, self.name)
        self.model = build()
        self.flat = Flat(self.model.parameters())
        self.flat.move(self.shared.arrays["theta"], self.shared.arrays["grad"][self.index])

    def attach(self, name: str, layout: dict[str, tuple]) -> None:
        if self.batch is not None:
            self.batch.close()
        self.batch = SharedArrays(layout, name)

    def gradients(self, losses_of: Losses, part: slice, n: int) -> np.ndarray:
        assert self.batch is not None
        return losses_and_gradient(self.model, self.flat, losses_of, self.batch.arrays, part, n)

    def orthogonalize(self, places: list[tuple[int, tuple[int, ...]]]) -> None:
        for start, shape in places:
            n = self.shared.arrays["grad"][1, start : start + math.prod(shape)].reshape(shape)
            n[...] = orthogonalized(n)

    def call(self, f: Callable, job: Any) -> Any:
        return f(self.model, job)


def losses_and_gradient(model: Module, flat: Flat, losses_of: Losses, batch: Batch, part: slice, n: float) -> Any:
    """Return the losses of batch[part], and write the gradient of (sum of these losses) / n to flat.grad."""
    if part.start == part.stop:  # more workers than examples
        flat.grad[...] = 0
        return xp.empty(0, "float32")
    flat.grad = None
    losses = checked_losses(part.stop - part.start, losses_of(model, {name: a[part] for name, a in batch.items()}))
    with gathered(flat):
        losses.backward(xp.full(losses.shape, 1 / n, losses.dtype))
    return losses.data


def _serve(pipe: Any, index: int, name: str, layout: dict[str, tuple], plain: bool) -> None:
    """The main function of a worker process: answer commands until the pipe closes."""
    use_backend("numpy", plain=plain)
    for number in STOPPING:  # only the parent reacts to a signal to the whole group
        signal.signal(number, signal.SIG_IGN)
    _keep_heap()
    replica = _Replica(index, name, layout)
    try:
        while True:
            pipe.send_bytes(_answer(replica, pipe.recv_bytes()))
    except (EOFError, OSError):
        pass  # the parent is gone
    os._exit(0)  # views of the shared memory are still alive here; the system unmaps it


def _answer(replica: _Replica, message: bytes) -> Any:
    """The bytes of (None, result) of a command, or of (class of an error, message)."""
    try:
        command, args = pickle.loads(message)
    except Exception as error:
        return bytes(ForkingPickler.dumps((WorkerError, f"cannot load what it was sent ({error!r}): {TOP_LEVEL}")))
    try:
        return bytes(ForkingPickler.dumps((None, getattr(replica, command)(*args))))
    except MemoryError as error:
        return bytes(ForkingPickler.dumps((WorkerMemoryError, f"has too little memory: {error}")))
    except Exception:
        return bytes(ForkingPickler.dumps((WorkerError, f"failed:\n{traceback.format_exc()}")))


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
