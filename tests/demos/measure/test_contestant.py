"""A contestant is a process that times what it is told to; several take turns, and what one raises is raised here."""

import multiprocessing
import os
from functools import partial
from types import SimpleNamespace

import pytest

from tinydiff.backend import BackendError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

CONV = ("conv", 2, 28, 8, 8, 1, True)


@pytest.fixture
def contestant(module):
    return module("contestant")


class Known:
    """Stands in for a contestant whose every job takes these seconds, in two stages, round by round."""

    def __init__(self, name, cores, log, *rounds):
        self.name, self.cores, self.log, self.rounds = name, cores, log, rounds
        self.asked = {}

    def ask(self, what, job, repeats):
        assert what == "seconds"
        self.log.append((self.name, job, repeats))
        i = self.asked[job] = self.asked.get(job, -1) + 1
        took = self.rounds[min(i, len(self.rounds) - 1)]
        return [took, took]


class Bar:
    """Stands in for a progress bar."""

    def __init__(self):
        self.n, self.texts = 0, []

    def set_description(self, text, refresh):
        self.texts.append(text)

    def update(self, n=1):
        self.n += n


def test_rounds_go_over_all_contestants_and_warm_up_is_left_out(contestant):
    """In each round every contestant runs a job as often as the others, before anybody runs the next job."""
    log, bar = [], Bar()
    ours = Known("tinydiff", 1, log, contestant.SAMPLE_SECONDS / 20)
    theirs = Known("torch", 1, log, 1.0)
    jobs = [contestant.TRAIN, CONV]
    seconds = contestant.take_turns([ours, theirs], jobs, 3, bar)
    took = ours.rounds[0]
    assert seconds == {(1, job): {"tinydiff": [[took] * 2] * 3, "torch": [[1.0, 1.0]] * 3} for job in jobs}
    repeats = [1] + [10] * (contestant.WARM_UP + 3 - 1)  # the faster one fills its time, two stages at 1/20 of it
    assert log == [(who.name, job, r) for r in repeats for job in jobs for who in (ours, theirs)]
    assert bar.n == len(log) and bar.texts == [job[0] for _ in repeats for job in jobs for _ in (ours, theirs)]


def test_the_fastest_warm_up_round_decides_how_often_a_job_is_repeated(contestant):
    """A stall in the second warm-up round makes nothing rarer; each job has a number of its own; at least once."""
    log, s = [], contestant.SAMPLE_SECONDS
    both = [Known("tinydiff", 2, log, s / 8, s / 4, s), Known("torch", 1, log, s, s / 2, s)]
    seconds = contestant.take_turns(both, [CONV], 1, Bar())
    assert [repeats for *_, repeats in log] == [1, 1, 4, 4, 4, 4]
    assert seconds == {(2, CONV): {"tinydiff": [[s, s]]}, (1, CONV): {"torch": [[s, s]]}}
    log.clear()
    contestant.take_turns([Known("tinydiff", 1, log, s / 4, s / 8, s)], [CONV], 1, Bar())
    assert [repeats for *_, repeats in log] == [1, 2, 4]
    log.clear()
    contestant.take_turns([Known("tinydiff", 1, log, 50 * s)], [CONV], 1, Bar())
    assert [repeats for *_, repeats in log] == [1, 1, 1]
    assert contestant.WARM_UP == 2 and contestant.SAMPLE_SECONDS == 0.03


def test_stages_run_in_turn_and_are_timed_apart(contestant, monkeypatch, clock):
    """Each stage gets what the one before returned; the mean of each over the repeats, by a clock of ours."""
    monkeypatch.setattr(contestant, "time", clock)

    def stage(seconds, value):
        def run(before):
            seen.append(before)
            return clock.spend(seconds.pop(0), value)

        return run

    seen = []
    stages = [stage([1.0, 3.0], "y"), stage([10.0, 20.0], "dx")]
    assert contestant.mean_seconds(stages, 2) == [2.0, 15.0]
    assert seen == [None, "y", None, "y"]


@pytest.mark.parametrize("cores, threads", [(1, "1"), (2, "None")])
def test_on_one_core_a_contestant_has_one_blas_thread(contestant, monkeypatch, cores, threads):
    """Its process reads that in its environment; on several cores it decides for itself, and so does this process."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    tell = "import os; raise RuntimeError('threads: ' + str(os.environ.get('OPENBLAS_NUM_THREADS')))"
    with contestant.Contestant("tinydiff", cores, partial(exec, tell)) as one:
        with pytest.raises(RuntimeError, match=f"threads: {threads}\n"):
            one.answer()
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_what_a_contestant_raises_is_raised_here(contestant, module):
    """A user's mistake as it is, another error with its traceback; after one it still works; a dead one is an error."""

    def start(**settings):
        defaults = {"batch_size": 1, "cores": 1, "backend": "numpy"}
        return contestant.Contestant(
            "tinydiff", 1, partial(module("on_cpu").contestant, "tinydiff", **defaults | settings)
        )

    # Two workers on a GPU: refused with and without one.
    with start(backend="cupy", channels=8, cores=2) as bad, start(channels=7) as odd, start(channels=8) as good:
        with pytest.raises(BackendError, match="cupy"):
            bad.answer()
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*base_channels must be even"):
            odd.answer()
        assert good.answer() == "ready"
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*no attribute 'gemm'"):
            good.ask("seconds", ("gemm",), 1)
        assert len(good.ask("seconds", CONV, 2)) == 2
        good.process.kill()
        with pytest.raises(RuntimeError, match=r"tinydiff on 1 core\(s\) died, exit code"):
            good.ask("peak_mb")


def test_memory_is_the_sum_of_the_peaks_of_all_processes(contestant, monkeypatch):
    """A process with 2,048 kB and its two children with 1,024 and 512 have 3.5 MB; it is the peak that counts.

    Where there is no /proc the memory is not known.
    """
    files = {os.getpid(): 2048, 11: 1024, 12: 512}

    class Proc:
        def __init__(self, path):
            _, folder, pid, name = path.split("/")
            assert (folder, name) == ("proc", "status")
            self.peak = files.get(int(pid))

        def exists(self):
            return self.peak is not None

        def read_text(self):
            return f"Name:\tpython\nVmPeak:\t  99999 kB\nVmHWM:\t    {self.peak} kB\nVmRSS:\t    7 kB\n"

    monkeypatch.setattr(contestant, "Path", Proc)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [SimpleNamespace(pid=11), SimpleNamespace(pid=12)])
    assert contestant.peak_mb() == 3.5
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [])
    assert contestant.peak_mb() == 2.0
    files.clear()
    assert contestant.peak_mb() is None


class Pipe:
    """Stands in for a pipe: the questions of a parent, which then closes it."""

    def __init__(self, *questions):
        self.questions, self.answers = list(questions), []

    def recv(self):
        if not self.questions:
            raise EOFError
        return self.questions.pop(0)

    def send(self, answer):
        self.answers.append(answer)


@pytest.fixture
def serve(contestant, clock, monkeypatch):
    """The program of a contestant's process, here, with a clock that only known costs move."""
    monkeypatch.setattr(contestant, "time", clock)
    monkeypatch.setattr(contestant.signal, "signal", lambda *_: None)
    monkeypatch.setattr(contestant, "peak_mb", lambda: 7.0)
    return contestant._serve


def test_a_job_is_made_once_and_closed_at_the_end(serve, clock):
    """The stages of a job are made at its first question, outside the time; each question runs them again."""
    log = []

    class Work:
        def job(self, *arguments):
            log.append(("made", *arguments))
            clock.spend(100.0)
            return [clock.costing(1.0, 3.0), clock.costing(0.5)]

        def close(self):
            log.append("closed")

    pipe = Pipe(("seconds", ("job", 5), 1), ("peak_mb",), ("seconds", ("job", 5), 2), ("seconds", ("job", 6), 4))
    serve(pipe, Work)
    assert pipe.answers == ["ready", [1.0, 0.5], 7.0, [2.0, 0.5], [2.0, 0.5]]
    assert log == [("made", 5), ("made", 6), "closed"]


def test_an_object_that_measures_its_own_memory_is_asked(serve):
    """The memory of a device, where the object knows it, in place of the processes'."""
    pipe = Pipe(("peak_mb",))
    serve(pipe, lambda: SimpleNamespace(close=lambda: None, peak_mb=lambda: 3.0))
    assert pipe.answers == ["ready", 3.0]
