"""A contestant is a process that times what it is told to; several take turns, and what one raises is raised here."""

import os
import time
from functools import partial

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


def test_rounds_go_over_all_contestants_and_warm_up_is_left_out(contestant):
    """In each round every contestant runs a job as often as the others, before anybody runs the next job."""
    log = []

    class Fake:
        def __init__(self, name, cores, seconds):
            self.name, self.cores, self.took = name, cores, seconds

        def ask(self, what, job, repeats):
            log.append((self.name, job, repeats))
            return [self.took, self.took]

    class Bar:
        set_description = update = lambda self, *args, **kwargs: None

    ours, theirs = Fake("tinydiff", 1, contestant.SAMPLE_SECONDS / 20), Fake("torch", 1, 1.0)
    jobs = [contestant.TRAIN, CONV]
    seconds = contestant.take_turns([ours, theirs], jobs, 3, Bar())
    assert seconds == {(1, job): {"tinydiff": [[ours.took] * 2] * 3, "torch": [[1.0, 1.0]] * 3} for job in jobs}
    repeats = [1] + [10] * (contestant.WARM_UP + 3 - 1)  # the faster one fills its time, two stages at 1/20 of it
    assert log == [(who.name, job, r) for r in repeats for job in jobs for who in (ours, theirs)]


def test_stages_run_in_turn_and_are_timed_apart(contestant, monkeypatch):
    """Each stage gets what the one before returned; the mean of each over the repeats, by a clock of ours."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def stage(seconds, value):
        def run(before):
            seen.append(before)
            now[0] += seconds.pop(0)
            return value

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
