"""Workers: splitting a batch over processes changes nothing but the speed, and no process outlives its use."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from parallel_jobs import (
    blas_threads,
    build,
    build_wide,
    by_number,
    die,
    fail,
    fail_at_two,
    ignored_signals,
    installed,
    scalar,
    squared_error,
    weights_and_pid,
)
from plain import fast, plain

from tinydiff.autograd import Tensor
from tinydiff.backend import FAST, BackendError, backend_name
from tinydiff.fast import processes
from tinydiff.fast.workers import ALONE, WorkerError, Workers, available_cores, default_workers, rows_of
from tinydiff.muon import orthogonalize, orthogonalized

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory"),
]


def make_batch(rng, n):
    return {
        "x": rng.standard_normal((n, 3), dtype="float32"),
        "y": rng.standard_normal((n, 2), dtype="float32"),
    }


@pytest.fixture(scope="module")
def two():
    with Workers(partial(build, 0), 2) as workers:
        yield workers


@pytest.fixture(scope="module")
def three():
    with Workers(partial(build, 0), 3) as workers:
        yield workers


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("n", range(10))
def test_parts_follow_each_other_and_differ_by_at_most_one_row(n, size):
    """Together they are all rows, each once, in order; with fewer rows than workers some parts are empty."""
    parts = [range(n)[rows_of(n, rank, size)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(n))
    assert {len(part) for part in parts} <= {n // size, -(-n // size)}
    assert (rows_of(n, 0, size).start, rows_of(n, size - 1, size).stop) == (0, n)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_split_batch_gives_the_loss_and_gradient_of_the_whole(two, three, rng, n):
    """Losses are those of one process, in order; the gradient differs by float32 rounding only, also for odd sizes.

    A worker without an example adds nothing, and not what it had of a larger batch before.
    """
    batch = make_batch(rng, n)
    for many in (two, three):
        many.gradients(squared_error, make_batch(rng, 65))
    with Workers(partial(build, 0), 1) as one:
        losses = one.gradients(squared_error, batch)
        assert losses.shape == (n,)
        for many in (two, three):  # BLAS sums products of other shapes in another order
            np.testing.assert_allclose(many.gradients(squared_error, batch), losses, rtol=1e-5)
            np.testing.assert_allclose(many.flat.grad, one.flat.grad, rtol=1e-4, atol=1e-6)
        assert np.abs(one.flat.grad).max() > 0.01


def test_gradient_is_that_of_the_mean(rng):
    """flat.grad is d mean(losses) / d theta: a small step against it lowers the mean by lr |grad|^2."""
    batch = make_batch(rng, 16)
    with Workers(partial(build, 0), 1) as one:
        before = one.gradients(squared_error, batch).mean()
        grad = one.flat.grad.copy()
        one.flat.data -= 1e-3 * grad
        after = one.gradients(squared_error, batch).mean()
    assert before - after == pytest.approx(1e-3 * float(grad @ grad), rel=0.05)  # the second-order term is about 1e-3


def test_the_same_batch_gives_the_same_bits(two, rng):
    """Whichever worker is done first, gradients are added in the workers' order: a run can be repeated."""
    batch = make_batch(rng, 8)
    first = two.gradients(squared_error, batch)
    grad = two.flat.grad.copy()
    two.gradients(squared_error, make_batch(rng, 8))
    assert (two.flat.grad != grad).any()
    for _ in range(5):
        assert (two.gradients(squared_error, batch) == first).all() and (two.flat.grad == grad).all()


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_orthogonalise_each_its_matrices(rng, num_workers, monkeypatch):
    """Muon's products are those of one process, in order; the sum of the gradients stays.  Afterwards, without workers,
    this process computes them."""
    shapes, asked = [(40, 24), (24, 50)], []
    ns = [rng.standard_normal(shape, dtype="float32") for shape in shapes]
    with Workers(partial(build_wide, 0), num_workers) as pool:
        pool.flat.grad[...] = before = rng.standard_normal(pool.flat.grad.size, dtype="float32")
        ask = pool._ask
        monkeypatch.setattr(pool, "_ask", lambda *message: asked.append(message) or ask(*message))
        got = [a.copy() for a in orthogonalize(pool.flat, ns)]
        np.testing.assert_array_equal(pool.flat.grad, before)
    after = orthogonalize(pool.flat, ns)
    for shape, n, of_workers, of_one in zip(shapes, ns, got, after, strict=True):
        assert of_workers.shape == of_one.shape == shape
        # BLAS may add in another order with other numbers of threads: some roundings of 6e-8, times 3.4^5 at the most
        np.testing.assert_allclose(of_workers, orthogonalized(n), atol=1e-4)
        np.testing.assert_array_equal(of_one, orthogonalized(n))
    ((command, parts),) = asked
    assert command == "orthogonalize" and sorted(size for (part,) in parts for _, size in part) == sorted(shapes)


def test_workers_see_updates_and_borrowed_weights(two):
    """An update of flat.data is every worker's at once; weights() lends others and gives the old ones back."""
    before = two.flat.data.copy()
    two.flat.data += 1
    seen = list(two.map(weights_and_pid, range(6)))
    assert [job for job, _, _ in seen] == list(range(6))
    assert len({pid for _, _, pid in seen}) == 2 and os.getpid() not in {pid for _, _, pid in seen}
    assert all((w == two.model.a.w.data).all() for _, w, _ in seen)
    with two.weights([np.zeros_like(before)]):
        assert all((w == 0).all() for _, w, _ in two.map(weights_and_pid, range(4)))
    assert (two.flat.data == before + 1).all()
    two.flat.data -= 1


@pytest.mark.parametrize("num", range(5))
def test_workers_may_have_less_to_do_than_there_are_of_them(three, num):
    """No job, fewer than three workers, as many, one more: each is done once, in order."""
    assert [job for job, _, _ in three.map(weights_and_pid, range(num))] == list(range(num))
    assert list(three.map(weights_and_pid, [])) == []


def test_map_that_is_left_early_leaves_nothing_behind(two, rng):
    """Stopping in the middle of a map does not mix its answers into the next call."""
    for _ in two.map(weights_and_pid, range(10)):
        break
    assert two.gradients(squared_error, make_batch(rng, 5)).shape == (5,)


def test_failure_in_a_worker_names_its_cause(rng):
    """An exception in a worker is raised here with its traceback; one that is killed, with its exit code."""
    with Workers(partial(build, 0), 2) as workers:
        with pytest.raises(WorkerError, match=r"(?s)^worker 0 failed:.*ZeroDivisionError: planted"):  # of two that fail
            workers.gradients(fail, make_batch(rng, 4))
    with Workers(partial(build, 0), 2) as workers:
        with pytest.raises(WorkerError, match="exit code -9"):
            list(workers.map(die, [0]))
        processes = list(workers._processes)
    assert not any(process.is_alive() for process in processes)


def test_shared_memory_in_use_has_no_name_and_a_batch_of_another_shape_takes_its_place(two, rng):
    """Without a name it vanishes with its last user, whatever ends this process."""
    two.gradients(squared_error, make_batch(rng, 8))
    first = two._batch
    two.gradients(squared_error, make_batch(rng, 8))
    assert two._batch is first
    two.gradients(squared_error, make_batch(rng, 9))
    assert two._batch is not first and first.arrays == {}
    for shared in (two._shared, two._batch):
        with pytest.raises(FileNotFoundError):
            SharedMemory(shared.memory.name)


def test_workers_leave_signals_to_their_parent(two):
    """Ctrl-C and a service manager's signals reach every process of a program."""
    for ignored in two.map(ignored_signals, range(2)):
        assert ignored >= {"SIGINT", "SIGTERM"} | ({"SIGHUP"} if hasattr(signal, "SIGHUP") else set())


def test_by_default_each_core_has_a_worker(monkeypatch):
    """But at most so many as are asked for, 64 without a word."""
    for cores, most, expected in ((5, (), 5), (5, (3,), 3), (5, (9,), 5), (100, (), 64), (100, (80,), 80)):
        monkeypatch.setattr("tinydiff.fast.workers.available_cores", partial(int, cores))
        assert default_workers(*most) == ALONE.default_workers(*most) == expected


def test_parameters_outlive_the_workers():
    """After close the model keeps its values, in memory of its own."""
    workers = Workers(partial(build, 0), 2)
    workers.flat.data += 2
    expected = workers.flat.data.copy()
    workers.close()
    assert (np.concatenate([p.data.reshape(-1) for p in workers.model.parameters()]) == expected).all()


def test_a_view_outlives_the_workers():
    """Whoever still holds a view of the shared parameters can read it after close."""
    with Workers(partial(build, 0), 2) as workers:
        view, expected = workers.model.a.w.data, workers.model.a.w.data.copy()
    assert (view == expected).all()


def test_a_job_that_fails_ends_the_map_and_nothing_else(two):
    """An exception in one job is raised here once the others have answered, and the workers go on."""
    with pytest.raises(WorkerError, match="ZeroDivisionError: planted"):
        list(two.map(fail_at_two, range(5)))
    assert [job for job, _, _ in two.map(weights_and_pid, range(3))] == [0, 1, 2]


def test_one_conversation_at_a_time(two, rng):
    """A call in the middle of an unfinished map is refused: it would read the map's answers."""
    unfinished = two.map(weights_and_pid, range(4))
    next(unfinished)
    for call in (lambda: two.gradients(squared_error, make_batch(rng, 4)), lambda: next(two.map(die, [0]))):
        with pytest.raises(RuntimeError, match="in the middle of another map"):
            call()
    assert [job for job, _, _ in unfinished] == [1, 2, 3]


def test_a_conversation_that_is_broken_off_ends_the_workers(rng, monkeypatch):
    """Ctrl-C in the middle of a step leaves answers behind, so these workers are closed and say so."""
    batch = make_batch(rng, 4)
    with Workers(partial(build, 0), 2) as workers:
        workers.gradients(squared_error, batch)

        def interrupt(pipe):
            raise KeyboardInterrupt

        monkeypatch.setattr(workers, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            workers.gradients(squared_error, batch)
        for call in (lambda: workers.gradients(squared_error, batch), lambda: next(workers.map(die, [0]))):
            with pytest.raises(RuntimeError, match="closed"):
                call()


@pytest.mark.parametrize("forms", [plain, fast])
def test_workers_compute_with_the_forms_of_their_parent(forms):
    """With nothing installed where nothing is, so that --plain would be plain in every process; else with all."""
    with forms(), Workers(partial(build, 0), 2) as workers:
        assert list(workers.map(installed, range(4))) == [tuple(FAST)] * 4
        assert bool(FAST) == (forms is fast)
        assert default_workers() == (available_cores() if FAST else 1)


def test_each_worker_computes_on_one_thread(monkeypatch):
    """BLAS is told to use one thread in a worker, the workers being the parallelism; here its setting stays."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    with Workers(partial(build, 0), 2) as workers:
        assert list(workers.map(blas_threads, range(4))) == ["1"] * 4
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7"


def test_too_little_shared_memory_is_said_before_it_kills(monkeypatch):
    """Where the system has no room for the shared arrays, Workers says what to do; nothing is left behind."""

    def full(*_):
        raise OSError(28, "No space left on device")

    made = []
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(processes, "SharedMemory", lambda *a, **b: made.append(SharedMemory(*a, **b)) or made[-1])
    with pytest.raises(WorkerError, match=r"no room for .* bytes of shared memory .*fewer workers"):
        Workers(partial(build, 0), 2)
    assert len(made) == 1
    with pytest.raises(FileNotFoundError):
        SharedMemory(made[0].name)


def test_bad_number_of_workers():
    """num_workers below 1 is refused by name."""
    with pytest.raises(ValueError, match="num_workers must be 1 or more, got 0"):
        Workers(partial(build, 0), 0)


def test_a_gpu_has_no_worker_processes(monkeypatch):
    """Shared host memory is no place for a GPU's arrays: refused by name."""
    monkeypatch.setattr("tinydiff.fast.workers.backend_name", lambda: "cupy")
    with pytest.raises(BackendError, match="num_workers=2: worker processes need the numpy backend"):
        Workers(partial(build, 0), 2)
    assert default_workers() == 1


def test_available_cores_is_a_possible_number():
    """At least one core, and no more than the machine has."""
    assert 1 <= available_cores() <= os.cpu_count()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="looks at Linux's folder of shared memory")
def test_kill_9_leaves_no_process_and_no_shared_memory(tmp_path):
    """When the parent is killed with signal 9, its workers end by themselves and no shared memory keeps a name."""
    script = tmp_path / "victim.py"
    script.write_text(
        "from functools import partial\n"
        "from tinydiff.app.generate import build_unet\n"
        "from tinydiff.fast.workers import Workers\n"
        "import time\n"
        "if __name__ == '__main__':\n"
        "    with Workers(partial(build_unet, {'base_channels': 8}, 0), 2) as workers:\n"
        "        print(*(process.pid for process in workers._processes), flush=True)\n"
        "        time.sleep(60)\n"
    )
    before = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(_alive(pid) for pid in pids)
    assert {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= before
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What is checked.


@pytest.mark.parametrize("losses_of", [scalar, by_number])
def test_losses_of_another_shape_are_refused_wherever_they_are_computed(two, rng, losses_of):
    """In this process a ValueError, in another one a WorkerError with its text; the workers go on."""
    batch = make_batch(rng, 8)
    with (
        Workers(partial(build, 0), 1) as one,
        pytest.raises(ValueError, match=r"losses_of must return a Tensor of shape \(8,\)"),
    ):
        one.gradients(losses_of, batch)
    with pytest.raises(WorkerError, match=r"losses_of must return a Tensor of shape \(4,\)"):
        two.gradients(losses_of, batch)
    assert two.gradients(squared_error, batch).shape == (8,)


@pytest.mark.parametrize("sizes", [(8, 7), (7, 8), (0, 0)])
def test_a_batch_whose_arrays_differ_is_refused(two, rng, sizes):
    """A row of each for each example: else the rows that only one of them has would be left out in silence."""
    batch = {name: a[:n] for n, (name, a) in zip(sizes, make_batch(rng, 8).items())}
    with Workers(partial(build, 0), 1) as one:
        for workers in (one, two):
            with pytest.raises(ValueError, match="a batch must hold a row for each example, got"):
                workers.gradients(squared_error, batch)


def test_a_layer_that_is_frozen_here_only_is_refused(rng):
    """Each worker has a network of its own, which build() freezes; one process may freeze where it likes."""
    batch = make_batch(rng, 8)
    for num_workers in (1, 2):
        with Workers(partial(build, 0), num_workers) as workers:
            workers.gradients(squared_error, batch)
            workers.model.parameters()[0].requires_grad = False
            if num_workers == 1:
                workers.gradients(squared_error, batch)
            else:
                with pytest.raises(RuntimeError, match=r"freeze it in build\(\)"):
                    workers.gradients(squared_error, batch)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_worker_processes_are_not_copied(two, way):
    """Nothing of another process is in this one: TypeError that says what to copy.  One process alone is copied."""
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: copy the network, workers\.model"):
        way(two)
    with Workers(partial(build, 0), 1) as one:
        way(one) if way is not copy.copy else way(one.model)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_borrowed_weights_make_older_graphs_stale(num_workers):
    """Inside weights() and after it a graph from before it is refused: its parameters were written to."""
    with Workers(partial(build, 0), num_workers) as workers:
        x = Tensor(np.ones((1, 3), "float32"), requires_grad=True)
        before = workers.model(x)
        with workers.weights([workers.flat.data + 1]):
            inside = workers.model(x)
            with pytest.raises(RuntimeError, match="an update has changed an input of linear"):
                before.backward(np.ones((1, 2), "float32"))
        with pytest.raises(RuntimeError, match="an update has changed an input of linear"):
            inside.backward(np.ones((1, 2), "float32"))
        workers.model(x).backward(np.ones((1, 2), "float32"))
