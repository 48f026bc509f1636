"""benchmark.py in its smallest form: it times what it says, its ratios are what their names say, the file is whole."""

import importlib
import json
import math
import os
import time
from functools import partial
from pathlib import Path

import pytest

from tinydiff.backend import BackendError, TinydiffError, backend_name
from tinydiff.generate import build_unet

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

RATIOS = ("train_step_ratio", "train_step_ratio_1core", "sampling_ratio", "conv_ratio", "memory_ratio")
CONV = ("conv", 2, 28, 8, 8, 1, True)


@pytest.fixture
def benchmark(monkeypatch):
    """The module, by a name under which the processes that it starts find it too."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "demos")
    return importlib.import_module("benchmark")


@pytest.fixture
def alone(benchmark, monkeypatch):
    """The module where torch is not installed."""
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    return benchmark


def test_without_torch_it_times_ours(alone, capsys, monkeypatch, tmp_path):
    """Two workers and one: a positive time for every job, memory, scaling; no ratio has a peer; variables are named."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, {"OPENBLAS_CORETYPE": "Haswell"}.get(name, "512"))
    path = tmp_path / "figures.json"
    report = alone.main(batch_size=2, channels=8, rounds=1, workers=2, json_path=path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(report)) and list(tmp_path.iterdir()) == [path]

    jobs = [(entry["cores"], entry["job"]) for entry in report["medians"]]
    layers = list(alone.layer_jobs(8, 1))
    assert jobs == [
        *((cores, job) for job in (alone.TRAIN, alone.FORWARD) for cores in (2, 1)),
        *((1, job) for job in [*layers, alone.OPTIMIZER]),
    ]
    for entry in report["medians"]:
        assert list(entry["seconds"]) == ["tinydiff"] and 0 < entry["seconds"]["tinydiff"] < math.inf
        assert len(entry["stages"]["tinydiff"]) == (2 if entry["job"] in layers else 1), entry["what"]
    assert [report[name] for name in RATIOS] == [None] * 5
    assert report["worker_scaling"] > 0
    assert report["peak_mb"]["tinydiff"] is None or report["peak_mb"]["tinydiff"] > 40  # two processes with NumPy
    assert report["machine"].keys() == {"cpu", "cores", "python", "numpy", "blas", "blas_core", "torch"}
    settings = report["settings"]
    assert (settings["batch_size"], settings["channels"], settings["rounds"], settings["workers"]) == (2, 8, 1, 2)
    assert settings["environment"]["OPENBLAS_CORETYPE"] == "Haswell"

    printed = capsys.readouterr().out
    for name in ("OPENBLAS_CORETYPE=Haswell", "OPENBLAS_L2_SIZE=512", "MALLOC_ARENA_MAX=512"):
        assert f"warning: {name}" in printed
    assert (
        "not installed" in printed
        and "each op at 1 image(s)" in printed
        and "conv 28x28 1->8" in printed
        and "train step, 2 core(s)" in printed
    )


def test_with_torch_every_ratio_is_there(benchmark):
    """Both layouts pass the check of equality, and are timed in every job; with one worker both cores are the same."""
    pytest.importorskip("torch")
    report = benchmark.main(batch_size=2, channels=16, rounds=1, workers=1)
    for entry in report["medians"]:
        assert list(entry["seconds"]) == ["tinydiff", "contiguous_format", "channels_last"], entry["what"]
    assert all(report[name] > 0 for name in RATIOS)
    assert report["train_step_ratio"] == report["train_step_ratio_1core"] and report["worker_scaling"] == 1


def test_another_network_is_refused(benchmark, monkeypatch):
    """Other numbers of parameters, or one wrong gradient, are an error that says so."""
    pytest.importorskip("torch")
    torch_peer = importlib.import_module("torch_peer")
    plain = torch_peer.Reference
    with monkeypatch.context() as patch:
        patch.setattr(torch_peer, "Reference", lambda c: plain(2 * c))
        with pytest.raises(RuntimeError, match="parameters"):
            benchmark.check_same_network(8, "channels_last")
    monkeypatch.setattr(torch_peer.F, "silu", torch_peer.F.relu)
    with pytest.raises(RuntimeError, match=r"with the same weights .* differs by"):
        benchmark.check_same_network(8, "channels_last")


def test_the_ratios_are_to_the_faster_layout(benchmark):
    """Made-up times: each ratio takes its own row, its own cores, and the better of PyTorch's figures for each job."""

    def by(ours, contiguous, last):
        return {"tinydiff": [ours, 9.0], "contiguous_format": [contiguous, 9.0], "channels_last": [last, 9.0]}

    medians = {
        (4, benchmark.TRAIN): by(2.0, 6.0, 5.0),
        (1, benchmark.TRAIN): by(7.0, 14.0, 28.0),
        (4, benchmark.FORWARD): by(1.0, 0.5, 0.75),
        (1, benchmark.FORWARD): by(1.0, 99.0, 99.0),
        (1, CONV): by(1.0, 2.0, 3.0),
        (1, ("conv", 2, 14, 8, 8, 2, True)): by(2.0, 17.0, 16.0),
        (1, benchmark.OPTIMIZER): by(1.0, 99.0, 99.0),
    }
    memory = {"tinydiff": 200.0, "contiguous_format": 1000.0, "channels_last": 800.0}
    assert benchmark.ratios(medians, memory, 4) == pytest.approx(
        {
            "train_step_ratio": 2.5,
            "train_step_ratio_1core": 2.0,
            "sampling_ratio": 0.5,
            "conv_ratio": 4.0,  # of 2 and 8, the geometric mean
            "memory_ratio": 0.25,
            "worker_scaling": 3.5,
        }
    )
    assert benchmark.ratios(medians, dict.fromkeys(memory), 4)["memory_ratio"] is None


def test_a_figure_is_the_median_over_the_rounds(benchmark):
    """Of the whole and of each stage: one slow round does not count."""
    assert benchmark._medians([[1.0, 5.0], [100.0, 2.0], [3.0, 4.0]]) == [7.0, 3.0, 4.0]


def test_rounds_go_over_all_contestants_and_warm_up_is_left_out(benchmark):
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

    ours, theirs = Fake("tinydiff", 1, benchmark.SAMPLE_SECONDS / 20), Fake("torch", 1, 1.0)
    seconds = benchmark.measure([ours, theirs], [benchmark.TRAIN, CONV], 3, Bar())
    assert seconds == {
        (1, job): {"tinydiff": [[ours.took] * 2] * 3, "torch": [[1.0, 1.0]] * 3} for job in (benchmark.TRAIN, CONV)
    }
    repeats = [1] + [10] * (benchmark.WARM_UP + 3 - 1)  # the faster one fills its time, two stages at 1/20 of it
    assert log == [(who.name, job, r) for r in repeats for job in (benchmark.TRAIN, CONV) for who in (ours, theirs)]


def test_the_jobs_are_the_networks_layers(benchmark):
    """Every 3x3 filter, every norm but attention's, and attention, each at the resolution where it works."""
    jobs = benchmark.layer_jobs(8, 3)
    shapes = [p.shape for p in build_unet({"base_channels": 8}, 0).parameters() if p.ndim == 4]
    assert all(shape[:2] == (3, 3) for shape in shapes)
    convs = {job: count for job, count in jobs.items() if job[0] == "conv"}
    for channels in {shape[2:] for shape in shapes}:
        found = sum(count for job, count in convs.items() if job[3:5] == channels)
        assert found == sum(shape[2:] == channels for shape in shapes), channels
    # Two levels of 16 channels below one of 8: what is known of the reference without counting.
    assert convs["conv", 3, 28, 1, 8, 1, False] == convs["conv", 3, 28, 8, 1, 1, True] == 1
    assert convs["conv", 3, 28, 8, 8, 2, True] == convs["conv", 3, 14, 16, 16, 2, True] == 1
    assert convs["conv", 3, 28, 16, 16, 1, True] == 1 and convs["conv", 3, 7, 32, 16, 1, True] == 2
    assert jobs["attention", 3, 4, 49, 4] == 1
    norms = {job: count for job, count in jobs.items() if job[0] == "group_norm_silu"}
    assert sum(norms.values()) == sum(convs.values()) - 5  # each before a convolution, but conv_in and resamplings


def test_stages_run_in_turn_and_are_timed_apart(benchmark, monkeypatch):
    """Each stage gets what the one before returned; the mean of each over the repeats, by a clock of ours."""
    contestant = importlib.import_module("contestant")
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
def test_on_one_core_a_contestant_has_one_blas_thread(benchmark, monkeypatch, cores, threads):
    """Its process is told so in its environment; on several cores it decides for itself, and so does this process."""
    contestant = importlib.import_module("contestant")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    tell = "import os; raise RuntimeError('threads: ' + str(os.environ.get('OPENBLAS_NUM_THREADS')))"
    with contestant.Contestant("tinydiff", cores, partial(exec, tell)) as one:
        with pytest.raises(RuntimeError, match=f"threads: {threads}\n"):
            one.answer()
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_what_a_contestant_raises_is_raised_here(benchmark):
    """A user's mistake as it is, another error with its traceback, and after one it still works; a dead one is said."""
    contestant = importlib.import_module("contestant")

    def start(**settings):
        make = partial(
            benchmark._contestant, "tinydiff", **{"batch_size": 1, "cores": 1, "backend": "numpy"} | settings
        )
        return contestant.Contestant("tinydiff", 1, make)

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


def test_a_report_is_written_whole_or_not_at_all(benchmark, tmp_path):
    """What cannot be written leaves the old file alone; a folder that is not there is said before anything is timed."""
    path = tmp_path / "figures.json"
    benchmark.write_json(path, {"conv_ratio": None})
    with pytest.raises(ValueError, match="JSON"):
        benchmark.write_json(path, {"conv_ratio": 1.5, "worker_scaling": math.nan})
    assert json.loads(path.read_text()) == {"conv_ratio": None} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TinydiffError, match=r"--json .*missing"):
        benchmark.main(json_path=tmp_path / "missing" / "figures.json")
