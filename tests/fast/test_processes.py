"""A process that cannot start, or cannot load what it is sent, is one sentence in its parent, and leaves nothing."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from parallel_jobs import build, die_at_start, exhaust, open_file, squared_error, weights_and_pid

from tinydiff.backend import backend_name
from tinydiff.fast import processes
from tinydiff.fast.processes import STOPPING, SharedArrays, WorkerError, WorkerMemoryError, available_cores, unheard
from tinydiff.fast.workers import Workers

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory"),
]

PROGRAM = """
import os, sys
from functools import partial
from tinydiff.backend import default_rng
from tinydiff.fast.workers import Workers
from tinydiff.nn import Linear
from tinydiff.ops import mean

def build():
    return Linear(3, 2, rng=default_rng(0))

def losses_of(model, batch):
    return mean(model(batch["x"]), axis=1)

def start(build):
    with Workers(build, 2) as workers:
        print("started")
        workers.gradients(losses_of, {"x": __import__("numpy").ones((4, 3), "float32")})
        print("computed")
"""


def python(*words, stdin=None):
    """(standard output, standard error) of a Python program that fails, as a user starts it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, *words], input=stdin, capture_output=True, text=True, env=environment)
    assert child.returncode == 1, child.stderr
    return child.stdout, child.stderr


def test_a_program_without_a_guard_is_told_of_it(tmp_path):
    """Workers import the program's file and come to its main part: one traceback, the parent's, with what to do."""
    (tmp_path / "program.py").write_text(PROGRAM + "start(build)\n")
    out, err = python(str(tmp_path / "program.py"))
    assert out == "" and err.count("Traceback") == 1
    assert err.splitlines()[-1].endswith('below the line  if __name__ == "__main__":')


@pytest.mark.parametrize("how", ["-c", "a notebook"])
def test_a_function_that_workers_cannot_find_is_named(how, tmp_path):
    """Defined on the command line, or in a notebook: neither is a file that a worker could import."""
    what = PROGRAM + "start(build)\n"
    if how == "-c":
        out, err = python("-c", what)
    else:  # a notebook's cells are run in a __main__ that has no file
        kernel = (
            f"import sys, types\nm = sys.modules['__main__'] = types.ModuleType('__main__')\nexec({what!r}, vars(m))\n"
        )
        (tmp_path / "kernel.py").write_text(kernel)
        out, err = python(str(tmp_path / "kernel.py"))
    assert out == "" and err.count("Traceback") == 1
    last = err.splitlines()[-1]
    assert "Can't get attribute 'build' on <module '__main__'" in last and "not in a notebook" in last


def test_the_loss_of_a_notebook_is_named_too(tmp_path):
    """The network comes from a module and the loss from a cell: the workers start, and say what they cannot load."""
    (tmp_path / "network.py").write_text(PROGRAM)
    what = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom network import *\n{PROGRAM}"
    out, err = python("-c", f"{what}\nimport network\nstart(network.build)\n")
    assert out == "started\n" and err.count("Traceback") == 1
    assert "Can't get attribute 'losses_of'" in err.splitlines()[-1]


def test_a_program_from_standard_input_is_refused():
    """`python < program.py`: there is no file to import."""
    out, err = python("-", stdin=PROGRAM + "if __name__ == '__main__':\n    start(build)\n")
    assert out == "" and err.count("Traceback") == 1
    assert "worker processes import the program's file, and <stdin> is none" in err.splitlines()[-1]


def test_what_cannot_be_pickled_is_refused_before_it_is_sent(rng):
    """A network, a loss or a job that is a local function: named, with the reason; the workers go on."""
    with pytest.raises(WorkerError, match=r"<lambda>.* cannot be sent to worker processes .*top level of a file"):
        Workers(lambda: build(0), 2)
    with Workers(partial(build, 0), 2) as workers:
        batch = {"x": rng.standard_normal((4, 3), dtype="float32"), "y": np.zeros((4, 2), "float32")}
        with pytest.raises(WorkerError, match="cannot be sent to worker processes"):
            workers.gradients(lambda model, batch: None, batch)
        with pytest.raises(WorkerError, match="cannot be sent to worker processes"):
            list(workers.map(lambda model, job: job, [1]))
        with pytest.raises(WorkerError, match=r"(?s)failed:.*(can't|cannot) pickle"):
            list(workers.map(open_file, [0]))
        assert workers.gradients(squared_error, batch).shape == (4,)
        assert [job for job, _, _ in workers.map(weights_and_pid, range(3))] == [0, 1, 2]


def test_a_worker_that_is_killed_at_its_start_is_no_riddle():
    """As by the system when memory is short: the exit code, and what to do."""
    with pytest.raises(WorkerError, match=r"died with exit code -9: was memory too short\?  Use fewer workers"):
        Workers(partial(die_at_start, os.getpid()), 2)


def test_a_worker_without_memory_is_a_lack_of_memory(rng):
    """A MemoryError here too, so that the search for a batch size that fits goes on as in one process."""
    batch = {"x": rng.standard_normal((4, 3), dtype="float32"), "y": np.zeros((4, 2), "float32")}
    with Workers(partial(build, 0), 2) as workers:
        with pytest.raises(WorkerMemoryError, match="worker 0 has too little memory: planted") as error:
            workers.gradients(exhaust, batch)
        assert isinstance(error.value, MemoryError) and isinstance(error.value, WorkerError)
        assert workers.gradients(squared_error, batch).shape == (4,)


def test_far_more_workers_than_cores_are_refused_at_once(monkeypatch):
    """They would take minutes to start: 4 a core, or 8, are enough; before anything is started or allocated."""
    for cores, most in ((1, 8), (2, 8), (3, 12), (16, 64)):
        monkeypatch.setattr(processes, "available_cores", partial(int, cores))
        for number in (most + 1, 10**5):
            with pytest.raises(WorkerError) as error:
                Workers(partial(build, 0), number)
            slow = "would be slow to start and to work"
            assert str(error.value) == f"{number} workers on {cores} core(s) {slow}: use {cores}, at most {most}"
        processes.check_start(most)


class FakePath:
    """Some files of Linux, in place of pathlib.Path."""

    def __init__(self, files, name):
        self.files, self.name = files, name

    def exists(self):
        return self.name in self.files

    def read_text(self):
        return self.files[self.name]


@pytest.mark.parametrize(
    ("cpus", "siblings", "quota", "cores"),
    [
        ({0, 1, 2, 3}, {}, None, 4),  # a system that tells nothing of hyperthreads
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2),
        ({0, 2, 3}, {0: "0,2", 2: "0,2", 3: "1,3"}, "max 100000", 2),  # one of the four is another's
        ({0, 1, 2, 3}, {}, "200000 100000", 2),
        ({0, 1, 2, 3}, {}, "200001 100000", 3),  # a part of a core counts as one
        ({0, 1, 2, 3}, {}, "10000 100000", 1),
        ({0, 1}, {}, "900000 100000", 2),
    ],
)
def test_cores_are_counted_once_and_within_a_containers_limit(monkeypatch, cpus, siblings, quota, cores):
    """Of the CPUs that this process may use, those of one core count once; a quota is a share of the time."""
    files = {f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()}
    files |= {"/sys/fs/cgroup/cpu.max": quota} if quota else {}
    monkeypatch.setattr(processes, "Path", partial(FakePath, files))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cpus, raising=False)
    assert available_cores() == cores


def test_the_environment_is_as_before_after_the_block(monkeypatch):
    """What was set has its value again, and what was not is not, after an error too."""
    monkeypatch.setenv("TINYDIFF_A", "before")
    monkeypatch.delenv("TINYDIFF_B", raising=False)
    with pytest.raises(ZeroDivisionError), processes.environment({"TINYDIFF_A": "1", "TINYDIFF_B": "2"}):
        assert (os.environ["TINYDIFF_A"], os.environ["TINYDIFF_B"]) == ("1", "2")
        raise ZeroDivisionError
    assert os.environ["TINYDIFF_A"] == "before" and "TINYDIFF_B" not in os.environ


def test_each_library_of_matrix_products_is_told_to_use_one_thread():
    """OpenBLAS, OpenMP's, Intel's and Apple's, by the names of their own manuals."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    assert dict.fromkeys(names, "1") == processes.ONE_THREAD


def test_shared_arrays_lie_apart_on_cache_lines():
    """Arrays of any type and shape, empty ones too: each keeps what is written to it, and begins a line of 64 bytes."""
    layout = {"a": ((3,), "float32"), "b": ((0, 3), "float32"), "c": ((2, 5), "int64"), "d": ((17,), "float32")}
    for some in (layout, {"b": layout["b"]}):
        here = SharedArrays(some)
        there = SharedArrays(some, here.memory.name)
        here.memory.unlink()
        for number, a in enumerate(here.arrays.values()):
            a[...] = number
        for number, (name, (shape, dtype)) in enumerate(some.items()):
            a = there.arrays[name]
            assert (a.shape, a.dtype) == (shape, dtype) and (a == number).all()
            assert a.size == 0 or a.ctypes.data % 64 == 0
        del a
        here.close()
        there.close()


def test_too_few_file_numbers_are_named(monkeypatch):
    """Where the system gives no more pipes or processes: one sentence, and no worker is left."""
    started = []

    def no_more(self):
        if started:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        started.append(self)
        start(self)

    process = processes.multiprocessing.get_context("spawn").Process
    start = process.start
    monkeypatch.setattr(process, "start", no_more)
    with pytest.raises(WorkerError, match=r"worker 1 of 2 cannot be started \(Too many open files\): use fewer"):
        Workers(partial(build, 0), 2)
    assert not started[0].is_alive()


def test_shared_memory_that_cannot_be_made_is_named(monkeypatch):
    """A read-only /dev/shm, or none: one sentence; nothing is made where nobody could remove it."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "/psm_1")

    monkeypatch.setattr(processes, "SharedMemory", refuse)
    with pytest.raises(WorkerError, match=r"shared memory, .* \(Read-only file system\): make .* or use 1 worker"):
        Workers(partial(build, 0), 2)
    monkeypatch.undo()
    if os.name == "posix":
        before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
        monkeypatch.setattr(processes.resource_tracker, "ensure_running", refuse)
        with pytest.raises(WorkerError):
            SharedArrays({"a": ((3,), "float32")})
        assert not before or {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= before


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a system whose processes cannot be stopped")
def test_stopped_workers_are_ended_together():
    """One wait for all of them, not one for each: two seconds by default, none after a failure."""
    for seconds, most in (((), 5.5), ((0,), 1.9)):  # a wait of two seconds for each would take six
        workers = Workers(partial(build, 0), 3)
        started = list(workers._processes)
        for process in started:
            os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        workers.close(*seconds)
        assert time.monotonic() - began < most and not any(process.is_alive() for process in started)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="a system without signal masks")
def test_a_signal_waits_for_the_end_of_the_block(monkeypatch):
    """And is not lost; a process that is started in the block never gets it."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with unheard():
            signal.raise_signal(signal.SIGTERM)
            assert seen == []
            asked = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
            out = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {"SIGINT", "SIGTERM", "SIGHUP"} == {signal.Signals(number).name for number in STOPPING}
    assert all(signal.Signals(number).name in out for number in STOPPING)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="a system without signal masks")
def test_a_signal_waits_even_if_another_thread_gets_it():
    """Threads that were started before, such as those of a progress bar, have a mask of their own."""
    seen, done = [], threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with unheard():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # the thread has got it, and the handler would have run here
            assert seen == []
        assert seen == [signal.SIGTERM]
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
