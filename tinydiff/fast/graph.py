"""A step on a GPU as one recorded graph: Python orders a few steps, and from then on one launch replays the step.

A small network on a GPU waits for Python, which orders some hundred launches in a step.  A CUDA graph contains all of
them.  The graph's arguments are fixed: each address, and each number that a kernel receives by value.  So what changes
from step to step (the batch, the time codes, the rate) lies in device memory, in two buffers, each filled by one copy.

    RecordedStep        a training step: gradients, clipping, update and average.  The loop of train.py stays as it is
    RecordedNetwork     an evaluation of a U-Net while images are drawn

Two steps are ordered as ever, so that all kernels are compiled.  The third step is recorded.  The fourth step is
replayed and also ordered; if the bits of the two results differ, all further steps are ordered.  If shapes or arrays
change, the step is recorded anew.  Not recorded are

* steps of several ranks, which exchange their gradients through MPI in the middle of a step;
* a step that sends to the GPU what is not in its batch, such as random numbers, or that waits for the GPU;
* a step in which a number that depends on the batch reaches a kernel by value; the fourth step shows this;
* steps for which CuPy, the driver or the memory refuses a graph;
* in drawing, the arithmetic of guidance and sampler, whose coefficients are numbers by value, and networks that read
  a text or classify.  Training of such networks is recorded.

Read next: device.py.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, host_integers, to_numpy, xp
from tinydiff.fast import kernels
from tinydiff.fast.device import synchronize
from tinydiff.fast.gpu import Packed
from tinydiff.fast.optim import Flat
from tinydiff.nn import UNet
from tinydiff.nn.unet import time_code
from tinydiff.train import Batch, Losses, Training, rows

WARM = 2  # steps ordered before the step that is recorded; the second of them shows what a step sends to the GPU
NUMBERS = "rate, eps and rest"  # the entry of a batch with the numbers of the optimizer and of the average
MOST_CODES = 1 << 10  # times below this have their codes in a table
RECORDED = "the training step is recorded: from now on one launch replays it"
NOT_RECORDED = "the training step is not recorded, and each kernel is launched by itself"
NOT_DRAWN = "drawing is not recorded, and each kernel is launched by itself"


class CannotRecord(Exception):
    """The step cannot be recorded.  The message is the reason."""


class Source(NamedTuple):
    """An array that a step sends to the GPU, as a function of the batch: an entry, or the time code of an entry."""

    name: str
    coded: bool
    shape: tuple[int, ...]
    dtype: str

    def of(self, batch: Batch) -> np.ndarray:
        entry = batch[self.name]
        return _codes(entry, self.shape[1], self.dtype) if self.coded else entry.astype(self.dtype, copy=False)


def source_of(a: np.ndarray, batch: Batch) -> Source:
    """The Source of an array that a step sends.  Raises CannotRecord if the batch does not contain the array."""
    for name, entry in batch.items():
        coded = entry.ndim == 1 and entry.dtype.kind in "iu" and a.ndim == 2 and a.dtype.kind == "f"
        source = Source(name, coded, a.shape, a.dtype.str)
        if a.shape[: 1 if coded else None] == entry.shape and source.of(batch).tobytes() == a.tobytes():
            return source
    raise CannotRecord(f"it sends the GPU an array of shape {a.shape} that is not in the batch")


class Inputs:
    """The arrays that a step receives from the host, at fixed addresses on the GPU.

    They lie in two buffers: the batch as it was drawn, and what follows from the batch or is the step's own.
    """

    def __init__(self, sources: set[Source], batch: Batch):
        drawn = {name: Source(name, False, a.shape, a.dtype.str) for name, a in batch.items()}
        rest = {s: np.zeros(s.shape, s.dtype) for s in sources - set(drawn.values())}
        self._rest, packed = Packed(rest), Packed.of(batch)
        self._buffers = [xp.zeros(p.buffer.size, "uint8") for p in (packed, self._rest)]
        self._arrays = {drawn[name]: a for name, a in packed.views(self._buffers[0]).items()}
        self._arrays |= self._rest.views(self._buffers[1])

    def send(self, batch: Batch, own: Batch) -> None:
        """Fill the two buffers, each by one copy, from the batch and from the step's own arrays."""
        for source, a in self._rest.items():
            a[...] = source.of({**own, **batch})
        for buffer, packed in zip(self._buffers, (Packed.of(batch), self._rest)):
            if packed:
                buffer[...] = asarray(packed.buffer)

    def array(self, source: Source) -> Any:
        """The device array of a source.  Raises CannotRecord for a source that was not there when this was made."""
        if source not in self._arrays:
            raise CannotRecord("it sends the GPU other arrays than the step before")
        return self._arrays[source]


class Graph:
    """The work of orders() as a CUDA graph.  result: the array that orders() returned; each launch writes it anew.

    The graph's arrays lie in a memory pool of its own, so no other array ever gets one of their addresses.  Nothing is
    computed before the first launch.  Raises CannotRecord if CuPy, the driver or the memory does not allow the graph.
    """

    def __init__(self, orders: Callable[[], Any]):
        xp.get_default_memory_pool().free_all_blocks()  # the pool below needs the memory of an ordered step again
        self._pool, self._stream = xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
        try:
            with self._apart():
                self._stream.begin_capture()
                try:
                    self.result = orders()
                except BaseException:
                    with suppress(Exception):  # which would only repeat that the recording failed
                        self._stream.end_capture()
                    raise
                self._graph = self._stream.end_capture()
        except (NotImplementedError, RuntimeError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CannotRecord(f"CuPy does not record it ({reason})") from None

    def launch(self) -> None:
        self._graph.launch()

    def ordered(self, orders: Callable[[], Any]) -> np.ndarray:
        """The result of orders() on the host.  The work uses the memory of the graph, not as much again."""
        with self._apart():
            return to_numpy(orders())

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Within the block, work and memory are those of the graph's own stream and pool."""
        synchronize()
        with xp.cuda.using_allocator(self._pool.malloc), self._stream:
            yield
        self._stream.synchronize()


class Replay:
    """orders(batch), which returns a device array.  After a few calls one launch replays it, with the same bits.

    report(reason) is called once: with "" when a replay has passed its test, or with the reason why there is none.
    """

    def __init__(self, report: Callable[[str], Any]):
        self._report, self._reported, self._refused = report, False, False
        self._fixed: tuple[Any, ...] = ()
        self._graph: Graph | None = None
        self._forget()

    def __call__(self, orders: Callable[[Batch], Any], fixed: tuple[Any, ...], batch: Batch, own: Batch) -> Any:
        """The result of orders({**own, **batch}), to be read before the next call.

        batch: host arrays, drawn ahead maybe.  own: host arrays of the step itself.  fixed: what a replay has in common
        with the recorded step: arrays by identity, the rest by value.  The names, shapes and dtypes of the batch are
        added here.  If anything of it changes, the step is recorded anew.
        """
        given = {**own, **batch}
        fixed += tuple((name, a.shape, a.dtype.str) for name, a in given.items())
        if len(fixed) != len(self._fixed) or not all(map(_same, fixed, self._fixed)):
            self._fixed = fixed
            self._forget()
        self._calls += 1
        try:
            return orders(given) if self._refused or self._calls < WARM else self._next(orders, batch, own)
        except CannotRecord as error:
            self._end(str(error))
            return orders(given)

    def _next(self, orders: Callable[[Batch], Any], batch: Batch, own: Batch) -> Any:
        given = {**own, **batch}
        if self._calls == WARM:
            if not all(isinstance(a, np.ndarray) for a in given.values()):
                raise CannotRecord("its batch is not on the host")
            with sending(lambda a: self._sources.add(source_of(a, given))):
                return orders(given)
        if self._graph is None:
            self._inputs = inputs = Inputs(self._sources, batch)
            with sending(lambda a: inputs.array(source_of(a, given))):
                self._graph = Graph(partial(orders, given))
        if self._calls == WARM + 2:
            return self._tested(self._graph, partial(orders, given), batch, own)
        self._inputs.send(batch, own)
        self._graph.launch()
        return self._graph.result

    def _tested(self, graph: Graph, orders: Callable[[], Any], batch: Batch, own: Batch) -> Any:
        """The result of the ordered step, which the replay must have too.  The replay updates nothing."""
        self._inputs.send(batch, {name: a * math.nan if name == NUMBERS else a for name, a in own.items()})
        graph.launch()
        replayed, ordered = to_numpy(graph.result), graph.ordered(orders)
        self._end("" if replayed.tobytes() == ordered.tobytes() else "a replay gives other numbers")
        return asarray(ordered)

    def _end(self, reason: str) -> None:
        if reason:
            self._forget()
            self._refused = True
        if not self._reported:
            self._report(reason)
        self._reported = True

    def _forget(self) -> None:
        self._calls, self._sources = 0, set[Source]()
        self._inputs, self._graph = Inputs(set(), {}), None


class RecordedStep:
    """A training step of one process, recorded.  `train` calls its parts, and `average`, the last one, launches them.

    gradients makes this object the recorder of the Flat, average ends that: what happens between two steps is no part
    of a step.  gradients, clip and update only note what is to be done.  The losses and the norm that they return are
    arrays on the GPU that the launch fills.  So they may be read after the step, as `note` of gpu.py does.
    """

    def __init__(self, gradients: Callable[[Losses, Batch], Any], flat: Flat, report: Callable[[str], Any]):
        self._gradients, self._flat = gradients, flat
        self._replay = Replay(report)

    def gradients(self, losses_of: Losses, batch: Batch) -> Any:
        self._flat.recorder, self._losses_of, self._batch = self, losses_of, batch
        self._out = xp.empty(rows(batch) + 1, self._flat.norm.dtype)  # a new array: late rows keep it
        return self._out[:-1]

    def clip(self, max_norm: float) -> Any:
        self._max_norm, self._flat.norm = max_norm, self._out[-1]
        return self._flat.norm

    def update(self, orders: Callable, m: Any, v: Any, betas: tuple[float, float], numbers: list[float]) -> None:
        self._update, self._m, self._v, self._betas, self._numbers = orders, m, v, betas, numbers

    def average(self, average: Any, rest: float) -> None:
        self._flat.recorder, self._average, norm = None, average, self._flat.norm
        numbers = np.array([*self._numbers, rest], self._flat.norm.dtype)
        frozen = tuple(p.requires_grad for p in self._flat.parameters)
        kept = frozen, self._losses_of, self._max_norm, self._update, self._betas
        arrays = self._flat.data, self._flat._grad, self._m, self._v, average
        self._out[...] = self._replay(self._orders, (*kept, *arrays), self._batch, {NUMBERS: numbers})
        self._flat.norm = norm

    def _orders(self, batch: Batch) -> Any:
        """Order the whole step, and return its losses and its norm as one array (N + 1,)."""
        flat, numbers = self._flat, asarray(batch[NUMBERS])
        losses = self._gradients(self._losses_of, {name: a for name, a in batch.items() if name != NUMBERS})
        flat.norm = kernels.clip(flat.grad, self._max_norm)
        self._update(flat, self._m, self._v, self._betas, numbers[:-1])
        kernels.ema(self._average, flat.data, flat.norm, numbers[-1:])
        out = xp.empty(losses.size + 1, flat.norm.dtype)
        kernels.gather([losses, flat.norm], [losses.size, 1], out)
        return out


@contextmanager
def recording(state: Training, ranks: Any, report: Callable[[str], Any]) -> Iterator[None]:
    """Within the block the steps of train(state) are recorded and replayed.

    report(line) is called once, with one line for the user: that the step has been recorded, or why it is not.
    """
    flat, ordered = state.parameters[0], state.gradients
    if ranks.size > 1 or not isinstance(flat, Flat):
        several = "the ranks exchange their gradients in its middle"
        report(f"{NOT_RECORDED}: {several if ranks.size > 1 else 'its parameters are not one buffer'}")
        yield
        return
    step = RecordedStep(ordered, flat, lambda reason: report(f"{NOT_RECORDED}: {reason}" if reason else RECORDED))
    state.gradients = step.gradients
    try:
        yield
    finally:
        state.gradients, flat.recorder = ordered, None


class RecordedNetwork:
    """model(x_t, t, labels) of a U-Net, without gradients, recorded.  Its other attributes are those of the U-Net."""

    def __init__(self, model: UNet):
        self._model, self._parameters, self._x_t = model, model.parameters(), xp.empty(0)
        self._replay = Replay(lambda reason: reason and _print_once(f"{NOT_DRAWN}: {reason}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x_t: Any, t: Any, labels: Any = None) -> Tensor:
        n = len(x_t)
        own = {"t": host_integers("t", t, 0, 2**31, n)}
        if labels is not None:
            own["labels"] = host_integers("labels", labels, 0, self._model.num_classes or 0, n)
        if (x_t.shape, x_t.dtype) != (self._x_t.shape, self._x_t.dtype):
            self._x_t = xp.empty(x_t.shape, x_t.dtype)
        self._x_t[...] = x_t
        fixed = self._x_t, *(p.data for p in self._parameters)
        return Tensor(self._replay(self._orders, fixed, {}, own).copy())

    def _orders(self, batch: Batch) -> Any:
        return self._model(self._x_t, batch["t"], batch.get("labels")).data


def recorded(model: Any) -> Any:
    """The model as a function for drawing on a GPU, its U-Net recorded.  A model without a U-Net stays as it is."""
    if type(model) is UNet:
        return RecordedNetwork(model)
    parts = {name: getattr(model, name) for name in ("network", "weak") if hasattr(model, name)}  # of trained.py
    if parts:  # one that converts the prediction of another target, or a pair of networks
        model = copy.copy(model)
        vars(model).update({name: recorded(part) for name, part in parts.items()})
    return model


@contextmanager
def sending(send: Callable[[np.ndarray], Any]) -> Iterator[None]:
    """Within the block send(a) is called with each host array that xp.asarray receives.

    If send returns an array, this is the device array; if it returns None, the host array is copied as ever.
    """
    copied = xp.asarray

    def asarray_of(a: Any, dtype: Any = None) -> Any:
        found = None if isinstance(a, xp.ndarray) else send(np.asarray(a, dtype))
        return copied(a, dtype=dtype) if found is None else found

    xp.__dict__["asarray"] = asarray_of
    try:
        yield
    finally:
        xp.__dict__["asarray"] = copied


def _same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, xp.ndarray) or isinstance(b, xp.ndarray) else a == b


def _codes(t: np.ndarray, features: int, dtype: str) -> np.ndarray:
    """time_code(t, features, dtype) on the host, by a table where all times are small."""
    small = t.min() >= 0 and t.max() < MOST_CODES
    return _table(MOST_CODES, features, dtype)[t] if small else _on_host(t, features, dtype)


@lru_cache(4)
def _table(size: int, features: int, dtype: str) -> np.ndarray:
    return _on_host(range(size), features, dtype)


def _on_host(t: Any, features: int, dtype: str) -> np.ndarray:
    with sending(lambda a: a):
        return time_code(t, features, dtype)


@lru_cache(None)
def _print_once(line: str) -> None:
    print(line)
