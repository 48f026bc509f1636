"""The stand-in for CUDA graphs: nothing is computed while it notes, and a launch computes on the same arrays."""

from contextlib import ExitStack

import emulate
import numpy as np
import pytest
import strict
import tape

from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.fast import kernels

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def device():
    with strict.backend("cupy"):
        yield


def noted(orders):
    """(result, tape) of orders() on a stream of its own, as CuPy wants it."""
    pool, stream = xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
    with xp.cuda.using_allocator(pool.malloc), stream:
        stream.begin_capture()
        try:
            result = orders()
        finally:
            graph = stream.end_capture()
    return result, graph


ORDERS = {
    "a ufunc": lambda a, i: a + 1,
    "an operator in place": lambda a, i: a.__iadd__(2),
    "out": lambda a, i: xp.multiply(a, 3.0, out=a),
    "a reduction": lambda a, i: a.sum(0),
    "a number": lambda a, i: a.sum() * 2,
    "a product": lambda a, i: a.T @ a,
    "a transposed result": lambda a, i: a.T * 2,
    "assignment": lambda a, i: a.__setitem__((slice(1), slice(2)), a[1:, :2]) or a,
    "rows by indices": lambda a, i: a[i],
    "take": lambda a, i: xp.take(a, i, 0),
    "filled": lambda a, i: a.fill(7) or a,
    "zeros": lambda a, i: xp.zeros(3) + a[0],
    "a copy": lambda a, i: a.copy(),
    "a view": lambda a, i: a.reshape(-1)[1:],
    "joined": lambda a, i: xp.concatenate([a, a]),
    "cast": lambda a, i: a.astype("float32"),
    "compared": lambda a, i: (a > 0).astype("float64"),
}


@pytest.mark.parametrize("orders", ORDERS.values(), ids=ORDERS)
def test_what_is_noted_is_computed_at_each_launch(orders):
    """Nothing changes before a launch; two launches on new numbers give what the orders give on them."""
    numbers = [np.random.default_rng(k).standard_normal((2, 3)) for k in range(3)]
    rows = [np.array(r) for r in ([0, 1, 1], [1, 1, 0], [0, 0, 0])]
    a, i = asarray(numbers[0]), asarray(rows[0])
    result, graph = noted(lambda: orders(a, i))
    np.testing.assert_array_equal(to_numpy(a), numbers[0])
    for values, index in zip(numbers[1:], rows[1:]):
        a[...], i[...] = asarray(values), asarray(index)
        graph.launch()
        np.testing.assert_array_equal(to_numpy(result), to_numpy(orders(asarray(values), asarray(index))))


@pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON)
def test_kernels_are_noted_with_their_arrays_and_numbers():
    """gather receives addresses, not arrays: what lies there is kept.  A number by value stays what it was."""
    factor = [2.0]
    a = asarray(np.arange(4.0))

    def orders():
        out = xp.empty(8)
        kernels.gather([a * factor[0], a + 1], [4, 4], out)
        return out

    result, graph = noted(orders)
    assert np.isnan(to_numpy(result)).all()
    factor[0] = 3.0
    a += 1
    graph.launch()
    assert to_numpy(result).tolist() == [2, 4, 6, 8, 2, 3, 4, 5]


def test_an_array_that_was_replaced_is_not_read():
    """The tape reads the array that it was noted with, whatever its name means later."""
    arrays = {"a": xp.ones(2)}
    result, graph = noted(lambda: arrays["a"] * 5)
    arrays["a"] = xp.zeros(2)
    graph.launch()
    assert to_numpy(result).tolist() == [5, 5]


REFUSED = {
    "a copy to the device": lambda a: asarray([1.0]),
    "a copy to the host": to_numpy,
    "a number": float,
    "a choice": bool,
    "a wait": lambda a: xp.cuda.get_current_stream().synchronize(),
    "a wait for its own stream": lambda a: xp.cuda.Stream(non_blocking=True).synchronize(),
    "memory given back": lambda a: xp.get_default_memory_pool().free_all_blocks(),
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
def test_what_waits_is_refused_while_it_notes(ask):
    a = xp.ones(())
    with pytest.raises(RuntimeError, match=tape.REFUSED):
        noted(lambda: ask(a))
    ask(a)  # afterwards it is allowed


def test_a_recording_needs_a_stream_and_a_pool_of_its_own():
    """Otherwise another array could get an address of the graph, or its work would be the default stream's."""
    for non_blocking, current, private in ((False, True, True), (True, False, True), (True, True, False)):
        stream = xp.cuda.Stream(non_blocking=non_blocking)
        with ExitStack() as entered:
            if private:
                entered.enter_context(xp.cuda.using_allocator(xp.cuda.MemoryPool().malloc))
            if current:
                entered.enter_context(stream)
            with pytest.raises(RuntimeError, match="non-blocking stream, made current, and a memory pool of its own"):
                stream.begin_capture()
    with tape.driver_that_cannot_capture("planted"), pytest.raises(RuntimeError, match="planted"):
        noted(lambda: None)
