"""What a step asks of a GPU, counted by real CuPy without one: the budget is exact, so a change of it is seen here."""

import contextlib
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def why_no_dry_run():
    """None where dry_run.py works: it replaces private parts of one CuPy, and dies beside a real driver (seen)."""
    version = None
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = version or metadata.version(name)
    if version != "14.2.0":
        return f"the dry run needs CuPy 14.2.0, found {version}: pip install cupy-cuda13x==14.2.0"
    return "the dry run is for machines without an NVIDIA driver" if shutil.which("nvidia-smi") else None


@pytest.fixture(scope="module")
def answer():
    if reason := why_no_dry_run():
        pytest.skip(reason)
    script = Path(__file__).with_name("dry_run.py")
    command = [sys.executable, str(script), "--blas"]  # without it cuBLAS is refused in a recording
    out = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.fixture(scope="module")
def counts(answer):
    return answer["counts"]


def launches(counts):
    """Kernels and matrix products."""
    return counts["launch"] + sum(n for name, n in counts.items() if name.startswith("cublas"))


def test_launches_of_a_training_step_and_of_a_sampling_step(counts):
    """The reference U-Net at batch 64: forward, backward, clipping, Adam and average; one DDIM step.

    demo: the same with ten classes and Muon, by train(state) from a data set.  3 more for the vector of each label, and
    2 for Muon: a copy of the weights, and one launch for all matrices.  No launch is cuBLAS's.
    """
    assert launches(counts["train"]) == 258
    assert launches(counts["demo"]) == 263
    assert counts["demo"]["kernel muon"] == 1
    assert launches(counts["sample"]) == 99
    assert not [name for step in ("train", "demo", "sample") for name in counts[step] if name.startswith("cublas")]


def test_nothing_computes_in_float64(counts):
    """No kernel has float64 arguments; a Python float among the arguments takes the arrays' dtype."""
    assert "float64 kernel" not in counts["train"] | counts["demo"] | counts["sample"]


def test_what_goes_to_and_from_the_device(counts):
    """To it: the time code, and the numbers of Adam and of the average; in the demo also x_t, eps and the
    labels.  From it nothing."""
    assert [counts[name]["host to device"] for name in ("train", "demo", "sample")] == [3, 6, 1]
    for name in ("train", "demo", "sample"):
        assert "device to host" not in counts[name] and "synchronise" not in counts[name]


def test_what_a_period_of_steps_asks_for_besides(counts):
    """Its losses and its norms, each put together by one kernel, with a table of addresses, and copied: two waits."""
    step, period = counts["demo"], counts["period"]
    assert (period["device to host"], period["synchronise"]) == (2, 2)
    assert launches(period) == 50 * launches(step) + 2
    assert period["host to device"] == 50 * step["host to device"] + 2


def test_what_a_recorded_step_asks_for(answer):
    """One launch of the graph.  To the device: the batch in one piece, and the time codes with the numbers of Adam and
    of the average in another.  On the device: a copy of each to its fixed address, and one of the losses with the norm.
    """
    assert answer["lines"] == ["the training step is recorded: from now on one launch replays it"]
    assert answer["counts"]["replay"] == {"graph launch": 1, "host to device": 2, "copy": 3}


def test_what_a_period_of_recorded_steps_asks_for_besides(counts):
    """What a period of ordered steps does: two kernels, two tables of addresses, two copies to the host."""
    expected = {name: 50 * n for name, n in counts["replay"].items()}
    expected["host to device"] += 2
    expected |= {"launch": 2, "kernel cupy_concatenate_same_size": 2, "device to host": 2, "synchronise": 2}
    assert counts["replayed period"] == expected


def test_what_a_recording_asks_for_once(counts):
    """Of four steps the first two and the last are ordered; the third is ordered into the graph, and then replayed, as
    is the fourth for its test.  That test reads both results."""
    once = counts["recording"]
    assert (once["capture"], once["graph launch"], once["device to host"]) == (1, 2, 2)
    assert launches(once) == 4 * (launches(counts["demo"]) + 1)  # + 1: the losses and the norm as one array
    assert once["memset"] == 4 * counts["demo"].get("memset", 0) + 2  # the two buffers of the inputs


def test_what_a_recorded_evaluation_in_drawing_asks_for(counts):
    """One launch of the graph; the time codes come over, x_t goes to its fixed address, and eps_hat is copied.  The
    arithmetic of the sampler is 10 launches, as in the ordered step."""
    step = counts["replayed sample"]
    assert (step["graph launch"], step["host to device"], step["copy"], launches(step)) == (1, 1, 2, 11)


def test_the_host_is_soon_done_with_a_recorded_step(answer):
    """0.2 to 0.5 ms; the limit leaves room for a busy machine."""
    assert answer["host ms"] < 5
