"""Real MPI jobs of a few ranks on this machine: the demos under mpiexec, and what becomes of them when a rank fails."""

import csv
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from mpi_jobs import MISSING, ROOT, finish, rank_processes, start, start_each
from same_bytes import same_bytes

from tinydiff.app import checkpoint
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.skipif(backend_name() != "numpy", reason="the processes started here use the numpy backend"),
]

TRAIN, SAMPLE, EVALUATE = (ROOT / "demos" / f"{name}.py" for name in ("train_mnist", "sample", "evaluate"))
FAULTY = ROOT / "tests" / "mpi_jobs.py"
SMALL = ("--data=glyphs", "--num-images=20", "--channels=8", "--batch-size=8", "--sample-steps=2", "--save-every=1")
MPI = "--parallel=mpi"


def step_of(out):
    return checkpoint.load(out / "checkpoint.npz")[1]["step"]


def wait_for_step(out, step):
    deadline = time.monotonic() + 200
    while not (out / "checkpoint.npz").exists() or step_of(out) < step:
        assert time.monotonic() < deadline, f"no checkpoint of step {step} within 200 seconds"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two ranks leave after four steps, and what they print."""
    out = tmp_path_factory.mktemp("mpi") / "run"
    code, printed, err = finish(start(2, TRAIN, *SMALL, MPI, "--steps=4", "--sample-every=3", f"--out={out}"))
    assert code == 0, err
    return out, printed


def test_two_ranks_leave_what_two_local_workers_leave(trained, tmp_path, load_demo):
    """The same bits in the checkpoint, the same pictures; one rank prints."""
    out, printed = trained
    options = {"data": "glyphs", "num_images": 20, "channels": 8, "batch_size": 8, "sample_steps": 2, "save_every": 1}
    load_demo("train_mnist").main(out=tmp_path, steps=4, sample_every=3, workers=2, **options)
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(names) == 7 and names == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    for name in names - {Path("loss.png")}:  # of metrics.csv; conftest.py draws it with fewer pixels here
        assert same_bytes((out / name).read_bytes(), (tmp_path / name).read_bytes()), name
    assert printed.count("2 worker(s)") == printed.count("done: ") == 1


def test_sampling_does_not_depend_on_the_ranks(trained, tmp_path, load_demo):
    """Slices come in order: three ranks write what one process writes."""
    out, _ = trained
    path = out / "checkpoint.npz"
    options = ("--num=50", "--steps=2", f"--out={tmp_path / 'm.png'}", f"--save-npz={tmp_path / 'm.npz'}")
    code, printed, err = finish(start(3, SAMPLE, path, MPI, *options))
    assert (code, printed.count("50 images")) == (0, 1), err
    alone = {"num": 50, "steps": 2, "workers": 1}
    load_demo("sample").main(path, out=tmp_path / "1.png", save_npz=tmp_path / "1.npz", **alone)
    for kind in ("npz", "png"):
        assert same_bytes((tmp_path / f"m.{kind}").read_bytes(), (tmp_path / f"1.{kind}").read_bytes())


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_ranks(trained, tmp_path, load_demo, capsys):
    """The bound's terms come in order: three ranks print what one process prints, once."""
    out, _ = trained
    options = ("--num=120", "--draws=1", f"--out={tmp_path / 'm.png'}")
    code, printed, err = finish(start(3, EVALUATE, out / "checkpoint.npz", MPI, *options))
    assert code == 0, err
    load_demo("evaluate").main(out / "checkpoint.npz", num=120, draws=1, workers=1, out=tmp_path / "1.png")
    assert printed.replace("m.png", "1.png") == capsys.readouterr().out and "total" in printed
    assert same_bytes((tmp_path / "m.png").read_bytes(), (tmp_path / "1.png").read_bytes())


@pytest.mark.parametrize("fault", ["raise", "die", *(pytest.param(f, marks=pytest.mark.slow) for f in
                                                     ("refuse", "memory", "exit", "drift", "nan"))])  # fmt: skip
def test_a_rank_that_fails_ends_the_job_with_its_message(tmp_path, load_demo, fault):
    """Within seconds, exit code 2 for what a user can put right; the last checkpoint is whole, and one is resumed."""
    job = start(2, FAULTY, fault, 1, 2, TRAIN, *SMALL, MPI, "--steps=6", f"--out={tmp_path}")
    wait_for_step(tmp_path, 2)
    began = time.monotonic()
    code, _, err = finish(job, timeout=60)
    assert time.monotonic() - began < 30  # seconds, on a busy machine too
    said, expected = {
        "raise": ("ZeroDivisionError: planted", 1),
        "die": ("signal 9", 137),
        "refuse": ("error: planted", 2),
        "memory": ("error: planted", 2),
        "exit": ("rank 1 of 2 on ", 2),
        "drift": ("rank 1: the parameters' checksum is", 2),
        "nan": ("step 3: loss is nan", 2),
    }[fault]
    assert " ".join(err.split()).count(said) == 1 and code == expected, err
    if fault not in ("die", "drift", "nan"):
        assert err.count("rank 1 of 2 on ") == 1 and "rank 0 of 2" not in err
    assert step_of(tmp_path) == 2
    if fault == "die":
        load_demo("train_mnist").main(out=tmp_path, steps=6, resume=True, workers=1, sample_steps=2)
        assert step_of(tmp_path) == 6


def test_ranks_that_are_started_otherwise_are_refused(tmp_path):
    """Another option on one of them: named with both values, and nothing is written."""
    ranks = [(tmp_path, (TRAIN, *SMALL, MPI, "--steps=6", "--out=run", f"--seed={seed}")) for seed in (1, 2)]
    code, _, err = finish(start_each(*ranks))
    said = " ".join(err.split())
    assert code == 2 and "rank 1: the command line is" in said and "'--seed=2'" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_sigterm_to_the_launcher_saves_and_ends(tmp_path):
    """Steps here take longer than the quarter of a second that Open MPI leaves its ranks; nothing keeps running.

    The run goes on from there in one process: a checkpoint fits any number of ranks.
    """
    long = ("--data=glyphs", "--num-images=20", "--batch-size=64", "--sample-steps=2", "--save-every=1000000")
    job = start(2, TRAIN, *long, MPI, "--steps=1000", f"--out={tmp_path}", stderr=None)
    wait_for_step(tmp_path, 0)
    ranks = rank_processes(job)
    assert len(ranks) == 2
    time.sleep(8)
    job.send_signal(signal.SIGTERM)
    code, _, _ = finish(job)
    assert code != 0  # Open MPI's own; `mpiexec train && mpiexec sample` stops
    deadline = time.monotonic() + 60
    while not (saved := step_of(tmp_path)):
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.1)
    while any(map(runs, ranks)):  # killed, they still have their memory to give back
        assert time.monotonic() < deadline, "a rank keeps running"
        time.sleep(0.1)
    arrays, _ = checkpoint.load(tmp_path / "checkpoint.npz")
    assert len(arrays["metrics"]) == saved > 0


def test_one_ranks_signal_stops_all_and_any_number_resumes(tmp_path, load_demo):
    """The step is finished and saved, exit code 143.  Three ranks go on, two of them without any of the run's files.

    From weights to averages they have it all from rank 0: losses and pictures are those of one process, but that the
    sums round differently; nobody else writes.
    """
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    out, options = folders[0] / "run", (*SMALL, MPI, "--out=run")
    command = (FAULTY, "stop", 1, 2, TRAIN, *options, "--steps=5")
    code, printed, err = finish(start_each(*((folder, command) for folder in folders[:2])))
    assert code == 143 and "saved at step 3; continue with" in printed and "has ended the job" not in err, err
    code, printed, err = finish(start_each(*((folder, (TRAIN, *options, "--resume")) for folder in folders)))
    assert code == 0 and "note: 2 worker(s) before, 3 now" in printed and step_of(out) == 5, err
    assert [list(folder.iterdir()) for folder in folders[1:]] == [[], []]
    whole = tmp_path / "whole"
    options = {"data": "glyphs", "num_images": 20, "channels": 8, "batch_size": 8, "sample_steps": 2}
    load_demo("train_mnist").main(out=whole, steps=5, workers=1, **options)
    for row, same in zip(read(out), read(whole), strict=True):
        np.testing.assert_allclose(row, same, rtol=1e-3)
    ours, theirs = (checkpoint.load(folder / "checkpoint.npz")[0] for folder in (out, whole))
    for name in theirs:  # Adam's first steps are as long whatever the gradient, of a number that is near 0 too
        if name.startswith(("weights", "ema")):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_the_loss_curves_of_1_2_and_4_ranks_agree(tmp_path):
    """Only the order of summation differs.  It moves a gradient by some 1e-7 of itself, and training magnifies that.

    The bound: 1e-3 of the loss, at each of 200 steps, of which 7e-5 was seen; another noise or a lost gradient moves a
    loss by tenths.  The first losses, of equal weights, agree to float32 rounding.
    """
    curves = {}
    for size in (1, 2, 4):
        out = tmp_path / str(size)
        options = ("--data=glyphs", "--num-images=500", "--channels=16", "--batch-size=16", "--sample-steps=2")
        code, _, err = finish(start(size, TRAIN, *options, MPI, "--steps=200", f"--out={out}"), timeout=1800)
        assert code == 0, err
        curves[size] = checkpoint.load(out / "checkpoint.npz")[0]["metrics"][:, 0]
    for size in (2, 4):
        difference = np.abs(curves[size] / curves[1] - 1)
        print(size, "ranks: the largest relative difference of a loss", difference.max(), "the first", difference[0])
        assert difference[0] < 1e-6 and difference.max() < 1e-3
    assert curves[1][-50:].mean() < curves[1][:50].mean() / 2  # it does learn


@pytest.mark.slow
def test_20_kills_of_a_random_rank_at_random_moments(tmp_path):
    """Each ends the job, and each is followed by a resume, with 1 to 4 ranks: it always continues, and ends."""
    moments = random.Random(6)
    settings = (TRAIN, *SMALL, MPI, "--steps=200", f"--out={tmp_path}", "--resume")
    done = 0
    for _ in range(20):
        job = start(moments.choice([2, 3, 4]), *settings, start_new_session=True)
        wait_for_step(tmp_path, done + 1)
        time.sleep(moments.uniform(0, 1))
        os.kill(moments.choice(rank_processes(job)), signal.SIGKILL)
        code, _, err = finish(job, timeout=60)
        assert code == 137, err
        done = step_of(tmp_path)
    code, _, err = finish(start(2, *settings), timeout=600)
    assert code == 0 and step_of(tmp_path) == 200, err
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def runs(pid):
    """Whether there is such a process, other than one that has ended and whose parent has not asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def read(out):
    """The losses, gradient norms and rates of metrics.csv."""
    rows = csv.reader((out / "metrics.csv").read_text().splitlines()[1:])
    return [[float(value) for value in row[:4]] for row in rows]
