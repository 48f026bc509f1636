"""Ranks: splitting a batch over an MPI job changes nothing but the speed, and ranks that differ are found out.

The ranks are threads here (fake_mpi.py); demos/test_mpiexec.py starts real ones.
"""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from fake_mpi import Comm, on_ranks
from parallel_jobs import build, squared_error
from small_run import arrays_of, same_bits, small_run

from tinydiff.app import blocks, training
from tinydiff.app.generate import Recipe, build_unet, generate
from tinydiff.app.training import steps
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.diffusion import Schedule
from tinydiff.fast import mpi
from tinydiff.fast.mpi import MPIRanks
from tinydiff.fast.processes import STOPPING
from tinydiff.fast.workers import ALONE, WorkerError, Workers
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.training


def make_batch(rng, n):
    return {"x": rng.standard_normal((n, 3), dtype="float32"), "y": rng.standard_normal((n, 2), dtype="float32")}


def on_workers(size, program, seeds=lambda rank: 0):
    """[program(the workers of one rank) of each rank], their networks built from seeds(rank)."""

    def run(comm):
        ranks = MPIRanks(comm)
        with ranks.workers(partial(build, seeds(comm.rank)), size) as workers:
            return program(workers)

    return on_ranks(size, run)


def gradients(losses_of, batch, workers):
    losses = to_numpy(workers.gradients(losses_of, batch))
    return losses, to_numpy(workers.flat.grad).copy()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_any_number_of_ranks_has_the_losses_and_the_gradient_of_the_whole_batch(rng, size, n):
    """On every rank, in order, also where parts are unequal or empty; only the order of summation differs.

    A number of the gradient is a sum of up to 64 float32 terms, here below 1: 64 x 6e-8 bounds what another order does.
    """
    batch = make_batch(rng, n)
    with Workers(partial(build, 0)) as one:
        losses, grad = gradients(squared_error, batch, one)
    assert np.abs(grad).max() > 0.01
    results = on_workers(size, partial(gradients, squared_error, batch))
    for its_losses, its_grad in results:
        np.testing.assert_allclose(its_losses, losses, rtol=1e-5)  # BLAS sums products of other shapes otherwise
        np.testing.assert_allclose(its_grad, grad, rtol=1e-4, atol=4e-6)
        assert (its_grad == results[0][1]).all() and (its_losses == results[0][0]).all()


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")
def test_two_ranks_are_two_local_workers_bit_for_bit(rng):
    """a + b = b + a, and halves are exact in binary: the same losses and the same gradient."""
    batch = make_batch(rng, 6)
    with Workers(partial(build, 0), 2) as two:
        losses, grad = gradients(squared_error, batch, two)
    for its_losses, its_grad in on_workers(2, partial(gradients, squared_error, batch)):
        assert (its_losses == losses).all() and (its_grad == grad).all()


def test_training_on_ranks_is_training(monkeypatch):
    """A U-Net's losses over some steps, its batch in blocks of which a rank draws its own only, by rank 0's clock.

    Every rank ends with the same bits; they differ from one process's by what another order of summation makes.
    """
    monkeypatch.setattr(blocks, "BLOCK", 3)
    monkeypatch.setattr(blocks, "SMALLEST", 1)
    here = threading.local()

    def monotonic():
        """After two steps: so late that 3 + rank steps fit into an hour."""
        here.looked = getattr(here, "looked", -1) + 1
        return here.looked * 2 * 3600 / (3 + here.rank + 1e-6)

    monkeypatch.setattr(training.time, "monotonic", monotonic)
    network = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 10}
    config = TrainConfig(num_steps=9, minutes=60.0, batch_size=9, warmup=2, seed=5)

    def program(comm):
        ranks = ALONE if comm is None else MPIRanks(comm)
        here.rank, here.looked = ranks.rank, -1
        with ranks.workers(partial(build_unet, network, 5), ranks.size) as workers:
            state = small_run(config, workers=workers)
            for _ in steps(state, ranks, config.minutes):
                pass
            return state.num_steps, np.array(state.metrics()), arrays_of(state)

    alone = program(None)
    for size in (3, 4):  # even parts and uneven ones; test_mpiexec.py has two
        first, *others = on_ranks(size, program)
        assert first[0] == alone[0] == 3
        np.testing.assert_allclose(first[1], alone[1], rtol=1e-4)
        for other in others:
            np.testing.assert_array_equal(other[1], first[1])
            assert same_bits(other[2], first[2])


def test_a_step_is_one_allreduce(rng):
    """Of the gradient, and of the losses behind it; the check of the parameters comes every CHECK_EVERY steps."""
    batch = make_batch(rng, 8)

    def program(workers):
        workers.gradients(squared_error, batch)
        before = len(workers.ranks.comm.calls)
        for _ in range(mpi.CHECK_EVERY):
            workers.gradients(squared_error, batch)
        return workers.ranks.comm.calls[before:], len(workers.flat.data)

    for calls, size in on_workers(2, program):
        assert calls.count(f"Allreduce {size + 8}") == mpi.CHECK_EVERY
        assert len(calls) == mpi.CHECK_EVERY + 1 and calls[-2] == "allgather"


def test_a_batch_of_another_size_gets_its_own_room(rng):
    """Losses of an earlier, larger batch do not stay behind; the parameters are the model's throughout."""

    def program(workers):
        sizes = [len(workers.gradients(squared_error, make_batch(default_rng(1), n))) for n in (9, 4, 12)]
        assert all(p.grad is not None and xp.shares_memory(p.grad, workers.flat.grad) for p in workers.flat.parameters)
        return sizes

    if backend_name() == "numpy":
        assert on_workers(2, program) == [[9, 4, 12]] * 2


def test_all_ranks_begin_with_the_parameters_of_rank_0():
    """However their networks were built: what rank 0 has is broadcast."""
    mine = on_workers(3, lambda workers: to_numpy(workers.flat.data).copy(), seeds=lambda rank: rank)
    expected = to_numpy(Workers(partial(build, 0)).flat.data)
    assert all((theta == expected).all() for theta in mine)


def test_make_is_called_on_rank_0_alone():
    """broadcast gives every rank what rank 0 made of it; one process alone is its own rank 0."""
    made = []

    def program(comm):
        return MPIRanks(comm).broadcast(lambda: made.append(comm.rank) or {"a": np.arange(3)})

    for value in on_ranks(3, program):
        assert value["a"].tolist() == [0, 1, 2]
    assert made == [0] and ALONE.broadcast(lambda: 7) == 7


def test_allreduce_mean_is_the_mean_in_place():
    """Of arrays of the backend and of the host; for one process alone the array itself."""

    def program(comm):
        here, host = xp.full(3, comm.rank + 1, "float32"), np.float32([comm.rank])
        assert MPIRanks(comm).allreduce_mean(here) is here
        return to_numpy(here).tolist(), MPIRanks(comm).allreduce_mean(host).tolist()

    for size in (1, 3, 4):
        assert on_ranks(size, program) == [([(size + 1) / 2] * 3, [(size - 1) / 2])] * size
    assert ALONE.allreduce_mean(made := np.ones(2)) is made


@pytest.mark.skipif(backend_name() == "numpy", reason="for a GPU's arrays, or their stand-in")
def test_an_mpi_that_reads_the_gpu_gets_its_array_once_it_is_computed(monkeypatch):
    """Such an MPI is handed the device's own array, after a wait; any other a copy on the host."""
    seen = []
    monkeypatch.setattr(mpi, "synchronize", lambda: seen.append("wait"))
    for reads_gpu in (True, False):
        comm = Comm(0, 1, None, None)
        comm.Allreduce = lambda there, here: seen.append(type(here))
        MPIRanks(comm, reads_gpu=reads_gpu).allreduce_mean(asarray(np.ones(3, "float32")))
    assert seen == ["wait", xp.ndarray, np.ndarray]


def test_map_gives_every_rank_every_result_in_order():
    """Each job is done by one rank, and rank r does jobs r, r + size, ...: the same results whatever the number."""

    def program(workers):
        return list(workers.map(lambda model, job: (job, threading.get_ident()), range(7)))

    for size in (1, 2, 3):
        results = on_workers(size, program)
        assert all(result == results[0] for result in results)
        assert [job for job, _ in results[0]] == list(range(7))
        doers = [ident for _, ident in results[0]]
        assert doers == (doers[:size] * 7)[:7] and len(set(doers)) == size


@pytest.mark.parametrize("num", range(5))
def test_ranks_may_have_less_to_do_than_there_are_of_them(num):
    """No job, fewer than three ranks, as many, one more: every rank has every result, and none waits."""
    results = on_workers(3, lambda workers: list(workers.map(lambda model, job: -job, range(num))))
    assert results == [[-job for job in range(num)]] * 3


@pytest.mark.skipif(backend_name() != "numpy", reason="a recording belongs to one thread")
def test_ranks_draw_the_images_of_one_process():
    """Three ranks in slices of 2, the last of them short, and one process in slices of 2: the same bits, on every rank.

    In one slice of 7 the products round differently, up to 1e-4 after four steps.
    """
    network = {"base_channels": 8, "channel_mults": [1], "num_heads": 2, "num_groups": 4, "num_classes": 3}
    recipe = Recipe(Schedule.linear(50), (8, 8, 1), num_steps=4, at_once=2)

    def drawn(workers, recipe):
        with workers:
            for p in workers.model.parameters():
                p.data[...] = 0.2 * default_rng("weights", p.size).standard_normal(p.shape, "float32")
            return np.concatenate(list(generate(workers, recipe, [0, 1, 2, 0, 1, 2, 0], 5)), 1)

    build = partial(build_unet, network, 0)
    alone = drawn(Workers(build), recipe)
    for found in on_ranks(3, lambda comm: drawn(MPIRanks(comm).workers(build, 3), recipe)):
        np.testing.assert_array_equal(found, alone)
    np.testing.assert_allclose(drawn(Workers(build), replace(recipe, at_once=7)), alone, rtol=0, atol=1e-4)


def test_a_rank_with_other_parameters_stops_the_job_at_the_next_check(rng):
    """Rank 0 says whose they are, alone; until then the steps go on.  Averages that are lent are checked at once."""
    batch, steps = make_batch(rng, 4), []

    def program(workers):
        workers.gradients(squared_error, batch)
        if workers.ranks.rank == 2:
            workers.flat.data[1] += 1e-6
        while True:
            workers.gradients(squared_error, batch)
            if workers.ranks.rank == 0:
                steps.append(1)

    with pytest.raises(WorkerError, match=r"rank 2: the parameters' checksum is \d+, on rank 0 \d+") as raised:
        on_workers(3, program)
    assert len(steps) == mpi.CHECK_EVERY - 1 and raised.value.said_by == [0]

    def lend(workers):
        with workers.weights([workers.flat.data + np.float32(workers.ranks.rank)]):
            return list(workers.map(lambda model, job: job, range(2)))

    with pytest.raises(WorkerError, match="rank 1: the parameters' checksum"):
        on_workers(2, lend)


def test_what_is_not_the_same_is_named_with_both_values():
    """By rank 0, and nobody goes on, neither those that differ nor those that do not."""
    went_on = []

    def program(comm):
        MPIRanks(comm).check_same({"NumPy": "2.4" if comm.rank == 1 else "2.5", "Python": "3.11"})
        went_on.append(comm.rank)

    with pytest.raises(WorkerError, match=re.escape("do not agree: rank 1: NumPy is '2.4', on rank 0 '2.5'")) as raised:
        on_ranks(3, program)
    assert raised.value.said_by == [0] and went_on == []
    on_ranks(1, program)
    assert went_on == [0]


def test_the_first_three_differences_are_named():
    """By rank and then by setting; more would fill a terminal."""

    def program(comm):
        MPIRanks(comm).check_same({"a": comm.rank % 3, "b": comm.rank > 3})

    with pytest.raises(WorkerError) as error:
        on_ranks(5, program)
    assert str(error.value) == (
        "the ranks do not agree: rank 1: a is 1, on rank 0 0; rank 2: a is 2, on rank 0 0; rank 4: a is 1, on rank 0 0"
    )


def test_ranks_whose_products_are_of_another_precision_are_refused(monkeypatch):
    """At the start, as those whose backend or its version is another."""
    found = iter(["float32", "tf32"])
    monkeypatch.setattr(mpi, "precision", lambda: next(found))
    with pytest.raises(WorkerError, match=r"rank 1: what computes is .*, products in (float32|tf32)"):
        on_workers(2, lambda workers: None)


class Exit(BaseException):
    """os._exit was called."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("child", [False, True])
def test_a_rescue_is_a_process_of_rank_0_that_leaves_the_group_saves_and_ends(monkeypatch, child, fails):
    """Whatever the save does it ends there; the parent waits for it before it makes what is broadcast next."""
    calls = []

    def note(name, result=None, error=None):
        def call(*arguments):
            calls.append((name, *arguments))
            if error:
                raise error
            return result

        return call

    monkeypatch.setattr(mpi, "backend_name", lambda: "numpy")
    monkeypatch.setattr(mpi.os, "fork", note("fork", 0 if child else 77))
    monkeypatch.setattr(mpi.os, "setsid", note("setsid"))
    monkeypatch.setattr(mpi.os, "waitpid", note("waitpid"))
    monkeypatch.setattr(mpi.os, "_exit", note("exit", error=Exit()))
    save = note("save", error=OSError() if fails else None)
    ranks = MPIRanks(Comm(0, 1, None, None))
    ranks.comm.bcast = lambda value, root: value
    if child:
        with pytest.raises(Exit):
            ranks.rescue(save)
        assert calls == [("fork",), ("setsid",), ("save",), ("exit", 0)]
        return
    ranks.rescue(save)
    for _ in range(2):
        assert ranks.broadcast(note("make", 5)) == 5
    assert calls == [("fork",), ("waitpid", 77, 0), ("make",), ("make",)]


@pytest.mark.parametrize(("rank", "backend"), [(1, "numpy"), (2, "numpy"), (0, "cupy"), (1, "cupy")])
def test_nobody_else_rescues(monkeypatch, rank, backend):
    """Not the other ranks, and not from a GPU, whose arrays another process cannot read."""
    monkeypatch.setattr(mpi, "backend_name", lambda: backend)
    monkeypatch.setattr(mpi.os, "fork", None)
    MPIRanks(Comm(rank, 3, None, None)).rescue(None)


@pytest.mark.parametrize("code", [*(128 + number for number in STOPPING), 1, 2, 0, None, 128])
def test_a_program_that_a_signal_stopped_has_done_its_work(monkeypatch, code):
    """All ranks stop after the same step, so none waits for another; any other exit within the work ends them all."""
    slept = []
    monkeypatch.setattr(mpi.time, "sleep", slept.append)
    monkeypatch.delattr(sys, "last_value", raising=False)

    def program(comm):
        ranks = MPIRanks(comm)
        try:
            with ranks.workers(partial(build, 0), 3):
                raise SystemExit(code)
        except SystemExit:
            pass
        return ranks.ended_well

    stopped = code in [128 + number for number in STOPPING]
    assert on_ranks(3, program) == [stopped] * 3 and slept == ([] if stopped else [1, 1])


@pytest.mark.parametrize(
    ("library", "reads", "expected"),
    [("libmpi.so.40", 1, True), ("libmpi.so.12", 1, True), ("libmpi.so.40", 0, False), ("other", 1, False)],
)
def test_the_loaded_library_is_asked_whether_it_reads_a_gpu(monkeypatch, library, reads, expected):
    """Open MPI by its name, or MPICH by its own; one that is not loaded, or lacks the function, does not."""

    def CDLL(name, mode):
        assert mode == mpi.os.RTLD_NOLOAD
        if name != library:
            raise OSError
        return SimpleNamespace(MPIX_Query_cuda_support=lambda: reads)

    monkeypatch.setattr(mpi.ctypes, "CDLL", CDLL)
    assert mpi._reads_gpu() is expected
    monkeypatch.setattr(mpi.ctypes, "CDLL", lambda name, mode: SimpleNamespace())
    assert mpi._reads_gpu() is False


def test_processors_that_sum_otherwise_are_refused_at_the_start(monkeypatch):
    """Their norms of a gradient would differ in the last bits, and the parameters drift apart."""
    vdot, differences = xp.vdot, iter([0.0, 1e-3])
    monkeypatch.setitem(xp.__dict__, "vdot", lambda a, b: vdot(a, b) + next(differences))
    with pytest.raises(WorkerError, match="the parameters' sum of squares is"):
        on_workers(2, lambda workers: None)


def test_a_program_that_ends_before_its_work_ends_all_ranks(monkeypatch, capsys):
    """At exit: code 2, or 1 after a traceback; silent where the work was done.  What all raise, rank 0 says first."""
    slept = []
    monkeypatch.setattr(mpi.time, "sleep", slept.append)
    monkeypatch.delattr(sys, "last_value", raising=False)

    def program(comm, error):
        ranks = MPIRanks(comm)
        try:
            with ranks.workers(partial(build, 0), 2):
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        ranks.end()
        return [call for call in comm.calls if "Abort" in call]

    assert on_ranks(2, partial(program, error=None)) == [[], []] and slept == [] and capsys.readouterr().err == ""
    assert on_ranks(2, partial(program, error=ZeroDivisionError())) == [["Abort 2"], ["Abort 2"]] and slept == [1]
    assert "rank 1 of 2 on " in capsys.readouterr().err
    monkeypatch.setattr(sys, "last_value", ZeroDivisionError(), raising=False)
    assert on_ranks(2, partial(program, error=ZeroDivisionError())) == [["Abort 1"], ["Abort 1"]]


def test_the_digest_of_the_source_is_that_of_every_file_of_it(monkeypatch, tmp_path):
    """Python and CUDA, in every folder; one letter more in any of them is another source, and other files are none."""
    for name in ("tinydiff/fast/mpi.py", "tinydiff/train.py", "tinydiff/fast/kernels.cu", "tinydiff/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(mpi, "__file__", str(tmp_path / "tinydiff/fast/mpi.py"))
    found = [mpi.source_digest()]
    for name in ("tinydiff/README.md", "tinydiff/fast/mpi.py", "tinydiff/train.py", "tinydiff/fast/kernels.cu"):
        (tmp_path / name).write_text(name + "a")
        found.append(mpi.source_digest())
    assert found[0] == found[1] and len(set(found)) == 4 and {len(digest) for digest in found} == {12}


@pytest.mark.parametrize("differs", ["tinydiff's source", "Python", "NumPy", "the command line", None])
def test_ranks_that_run_something_else_are_refused_at_the_start(monkeypatch, differs):
    """world() compares the command line, the versions and the source of three ranks, and names the one that differs."""
    comms, here = {}, threading.current_thread

    def own(name, value):
        return "another" if name == differs and comms[here()].rank == 2 else value

    class MPI:
        COMM_TYPE_SHARED = 0
        COMM_WORLD = property(lambda self: comms[here()])

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(Comm, "Split_type", lambda comm, kind: SimpleNamespace(rank=comm.rank // 2), raising=False)
    monkeypatch.setattr(mpi, "_reads_gpu", lambda: "asked")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=MPI()))
    monkeypatch.setattr(mpi.atexit, "register", lambda end: None)
    monkeypatch.setattr(mpi, "open", lambda *_: sys.stdout, raising=False)  # what other ranks print is for nobody
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(mpi, "source_digest", lambda: own("tinydiff's source", "same"))
    monkeypatch.setattr(mpi.platform, "python_version", lambda: own("Python", "same"))
    check = MPIRanks.check_same  # NumPy's version and the command line are one for all threads

    def check_same(ranks, values):
        check(ranks, values | {name: own(name, values[name]) for name in ("NumPy", "the command line")})

    monkeypatch.setattr(MPIRanks, "check_same", check_same)

    def program(comm):
        comms[here()] = comm
        ranks = mpi.world()
        return ranks.rank, ranks.size, ranks.local_rank, ranks.reads_gpu

    if differs is None:
        assert on_ranks(3, program) == [(0, 3, 0, "asked"), (1, 3, 0, "asked"), (2, 3, 1, "asked")]
    else:
        with pytest.raises(WorkerError, match=f"rank 2: {differs} is 'another'"):
            on_ranks(3, program)


def test_each_rank_is_one_worker():
    """Worker processes beside MPI are refused by name."""
    for number in (1, 3):
        with pytest.raises(TinydiffError, match=f"--workers {number}: under MPI each rank is one worker, here 2"):
            on_ranks(2, lambda comm: MPIRanks(comm).workers(partial(build, 0), number))  # noqa: B023
    ranks = MPIRanks(Comm(1, 100, None, None))
    assert ranks.default_workers() == ranks.default_workers(2) == 100


def test_without_mpi4py_the_way_to_it_is_said(monkeypatch):
    """And where its import finds no MPI library."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(TinydiffError, match=r"MPI does not work here .*pip install 'tinydiff\[mpi\]'"):
        mpi.world()


def test_each_rank_computes_on_one_thread():
    """NumPy has been loaded by then, so the program begins again, with the same arguments; a setting is respected."""
    program = "import os, sys; from tinydiff.fast import mpi; sys.modules['mpi4py'] = None\n"
    program += "try: mpi.world()\nexcept RuntimeError: print(os.environ.get('OPENBLAS_NUM_THREADS'), sys.argv[1:])"
    for setting, found in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3"), ({"OMP_NUM_THREADS": "2"}, "None")):
        environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), **setting}
        out = subprocess.run([sys.executable, "-c", program, "a b"], env=environment, capture_output=True, text=True)
        assert out.stdout == f"{found} ['a b']\n", out.stderr
