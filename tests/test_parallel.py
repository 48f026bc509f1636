"""Workers: splitting a batch over processes changes nothing but the speed, and no process outlives its use."""

import os
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from tinydiff.backend import backend_name
from tinydiff.parallel import WorkerError, Workers, available_cores

sys.path.insert(0, os.path.dirname(__file__))  # which a spawned worker gets too
from parallel_jobs import build, die, fail, noisy_error, squared_error, weights_and_pid

pytestmark = pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")


def make_batch(rng, n):
    return {
        "x": rng.standard_normal((n, 3), dtype="float32"),
        "y": rng.standard_normal((n, 2), dtype="float32"),
    }


@pytest.fixture(scope="module")
def two():
    with Workers(partial(build, 0), 2) as workers:
        yield workers


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_split_batch_gives_the_loss_and_gradient_of_the_whole(two, rng, n):
    """Losses are those of one process, in order; the gradient differs by float32 rounding only, also for odd sizes."""
    batch = make_batch(rng, n)
    with Workers(partial(build, 0), 1) as one:
        losses = one.gradients(squared_error, batch, (0,))
        losses_2 = two.gradients(squared_error, batch, (0,))
        assert losses.shape == (n,)
        np.testing.assert_allclose(losses_2, losses, rtol=1e-5)  # BLAS sums products of other shapes in another order
        np.testing.assert_allclose(two.flat.grad, one.flat.grad, rtol=1e-4, atol=1e-6)
        assert np.abs(one.flat.grad).max() > 0.01


def test_gradient_is_that_of_the_mean(rng):
    """flat.grad is d mean(losses) / d theta: a small step against it lowers the mean by lr |grad|^2."""
    batch = make_batch(rng, 16)
    with Workers(partial(build, 0), 1) as one:
        before = one.gradients(squared_error, batch, (0,)).mean()
        grad = one.flat.grad.copy()
        one.flat.data -= 1e-3 * grad
        after = one.gradients(squared_error, batch, (0,)).mean()
    assert before - after == pytest.approx(1e-3 * float(grad @ grad), rel=0.05)  # the second-order term is about 1e-3


def test_same_seed_same_bits_and_own_streams(two, rng):
    """The same seed gives the same bits; the two halves of a batch do not see the same noise."""
    half = make_batch(rng, 4)
    batch = {k: np.concatenate([v, v]) for k, v in half.items()}
    first = two.gradients(noisy_error, batch, (3, 1))
    grad = two.flat.grad.copy()
    again = two.gradients(noisy_error, batch, (3, 1))
    assert (first == again).all() and (two.flat.grad == grad).all()
    assert (first[:4] != first[4:]).all()
    assert (two.gradients(noisy_error, batch, (3, 2)) != first).any()


def test_workers_see_updates_and_borrowed_weights(two):
    """An update of flat.data is every worker's at once; weights() lends others and gives the old ones back."""
    before = two.flat.data.copy()
    two.flat.data += 1
    seen = list(two.map(weights_and_pid, range(6)))
    assert [job for job, _, _ in seen] == list(range(6))
    assert len({pid for _, _, pid in seen}) == 2 and os.getpid() not in {pid for _, _, pid in seen}
    assert all((w == two.model.a.w.data).all() for _, w, _ in seen)
    with two.weights(np.zeros_like(before)):
        assert all((w == 0).all() for _, w, _ in two.map(weights_and_pid, range(4)))
    assert (two.flat.data == before + 1).all()
    two.flat.data -= 1


def test_map_that_is_left_early_leaves_nothing_behind(two, rng):
    """Stopping in the middle of a map does not mix its answers into the next call."""
    for _ in two.map(weights_and_pid, range(10)):
        break
    assert two.gradients(squared_error, make_batch(rng, 5), (0,)).shape == (5,)


def test_failure_in_a_worker_names_its_cause(rng):
    """An exception in a worker is raised here with its traceback; one that is killed, with its exit code."""
    with Workers(partial(build, 0), 2) as workers:
        with pytest.raises(WorkerError, match="ZeroDivisionError: planted"):
            workers.gradients(fail, make_batch(rng, 4), (0,))
    with Workers(partial(build, 0), 2) as workers:
        with pytest.raises(WorkerError, match="exit code -9"):
            list(workers.map(die, [0]))
        processes = list(workers._processes)
    assert not any(process.is_alive() for process in processes)


def test_parameters_outlive_the_workers():
    """After close the model keeps its values, in memory of its own."""
    workers = Workers(partial(build, 0), 2)
    workers.flat.data += 2
    expected = workers.flat.data.copy()
    workers.close()
    assert (np.concatenate([p.data.reshape(-1) for p in workers.model.parameters()]) == expected).all()


def test_bad_number_of_workers():
    """num_workers below 1 is refused by name."""
    with pytest.raises(ValueError, match="num_workers must be 1 or more, got 0"):
        Workers(partial(build, 0), 0)


def test_available_cores_is_a_possible_number():
    """At least one core, and no more than the machine has."""
    assert 1 <= available_cores() <= os.cpu_count()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="looks at Linux's folder of shared memory")
def test_kill_9_leaves_no_process_and_no_shared_memory(tmp_path):
    """When the parent is killed with signal 9, its workers end by themselves and no shared memory keeps a name."""
    script = tmp_path / "victim.py"
    script.write_text(
        "from functools import partial\n"
        "from tinydiff.generate import build_unet\n"
        "from tinydiff.parallel import Workers\n"
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
