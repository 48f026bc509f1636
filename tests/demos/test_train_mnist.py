"""The main job in its smallest form: what it writes, how it stops and resumes, and what bad input gets."""

import csv
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from same_bytes import same_bytes

from tinydiff.app import checkpoint
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

DEMOS = Path(__file__).parents[2] / "demos"
SMALL = {"data": "glyphs", "num_images": 20, "channels": 8, "batch_size": 4, "workers": 1, "sample_steps": 2}
OPTIONS = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]


def train(out, *options, **kwargs):
    """Start the demo as a user does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(DEMOS.parent), *sys.path])}
    command = [sys.executable, DEMOS / "train_mnist.py", *OPTIONS, f"--out={out}", *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


@pytest.fixture
def main(load_demo, monkeypatch):
    """The demo's main as it is, but that it draws no pictures at the end: they take longer than the training here."""
    demo = load_demo("train_mnist")
    monkeypatch.setattr(demo.job, "final_pictures", lambda *_: None)
    return demo.main


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def weights(out):
    arrays, meta = checkpoint.load(out / "checkpoint.npz")
    return {name: a.tobytes() for name, a in arrays.items()}, meta


def wait_for_step(out, step):
    """Until the checkpoint in `out` has reached `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "checkpoint.npz").exists() and checkpoint.load(out / "checkpoint.npz")[1]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step} within two minutes")


def test_a_run_leaves_pictures_metrics_and_a_checkpoint(load_demo, tmp_path, capsys):
    """Everything promised is there: pictures with something on them, one line of metrics a step, a checkpoint."""
    options = {**SMALL, "steps": 3, "sample_every": 2, "save_every": 2, "sample_steps": 3}
    load_demo("train_mnist").main(backend=backend_name(), out=tmp_path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.npz", "denoising.gif", "denoising.png", "loss.png", "metrics.csv", "progress", "samples.png",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "progress").iterdir()] == ["step_000002.png"]
    for picture in tmp_path.rglob("*.png"):
        pixels = np.asarray(Image.open(picture).convert("L"), float)
        assert min(pixels.shape) > 100 and pixels.std() > 10
    with Image.open(tmp_path / "denoising.gif") as film:
        assert film.n_frames == 2
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3"] and all(0 < float(row["loss"]) < 5 for row in rows)
    _, meta = checkpoint.load(tmp_path / "checkpoint.npz")
    assert meta["step"] == meta["num_steps"] == 3 and meta["data"]["name"] == "glyphs"
    printed = capsys.readouterr().out
    assert "parameters" in printed and meta["data"]["source"] in printed


@pytest.mark.parametrize("workers", [1, 2] if backend_name() == "numpy" else [1])
def test_resume_continues_bit_for_bit_with_the_checkpoints_settings(main, tmp_path, workers, monkeypatch):
    """Stopped after 2 of 4 steps and resumed without repeating a setting, the run ends in the same bits."""
    options = {**SMALL, "backend": backend_name(), "steps": 4, "seed": 3, "save_every": 1, "workers": workers}
    main(out=tmp_path / "whole", **options)

    job = main.__globals__["job"]
    save, saved = job._save, []

    def save_then_stop(state, *what):
        save(state, *what)
        saved.append(state.step)
        if state.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "_save", save_then_stop)
        main(out=tmp_path / "cut", **options)
    assert saved == [0, 1, 2]
    main(backend=backend_name(), out=tmp_path / "cut", resume=True, sample_steps=2)
    assert same_bytes((tmp_path / "cut/checkpoint.npz").read_bytes(), (tmp_path / "whole/checkpoint.npz").read_bytes())
    assert same_bytes((tmp_path / "cut/metrics.csv").read_bytes(), (tmp_path / "whole/metrics.csv").read_bytes())


def test_resume_refuses_other_settings(main, tmp_path):
    """An option that contradicts the checkpoint is named with both values, and the checkpoint stays as it was."""
    main(backend=backend_name(), out=tmp_path, steps=1, **SMALL)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    for option, message in (
        ({"batch_size": 8}, "batch_size is 4 in the checkpoint, 8 is wanted"),
        ({"lr": 0.01}, r"peak_lr is 0\.003 in the checkpoint, 0\.01 is wanted"),
        ({"ema_decay": 0.9}, r"ema_decay is 0\.995 in the checkpoint, 0\.9 is wanted"),
        ({"schedule": "cosine"}, "schedule is 'linear' in the checkpoint, 'cosine' is wanted"),
        ({"T": 50}, "T is 1000 in the checkpoint, 50 is wanted"),
        ({"num_images": 30}, "num is 20 in the checkpoint, 30 is wanted"),
        ({"channels": 16}, "base_channels is 8 in the checkpoint, 16 is wanted"),
        ({"target": "v"}, "target is 'eps' in the checkpoint, 'v' is wanted"),
        ({"min_snr": 5.0}, r"min_snr is None in the checkpoint, 5\.0 is wanted"),
        ({"data": "mnist"}, "name is 'glyphs' in the checkpoint, 'mnist' is wanted"),
    ):
        with pytest.raises(CheckpointError, match=message):
            main(backend=backend_name(), out=tmp_path, resume=True, **{**SMALL, **option})
    assert same_bytes((tmp_path / "checkpoint.npz").read_bytes(), before)


@pytest.mark.parametrize("target", [pytest.param("x_0", marks=pytest.mark.slow), "v"])
def test_another_target_is_trained_resumed_and_drawn(load_demo, tmp_path, target):
    """--target and --min-snr are the checkpoint's from then on: --resume needs neither, pictures see eps_hat."""
    main = load_demo("train_mnist").main
    main(backend=backend_name(), out=tmp_path, steps=2, sample_every=1, target=target, min_snr=5.0, **SMALL)
    _, meta = weights(tmp_path)
    assert (meta["train"]["target"], meta["train"]["min_snr"], meta["step"]) == (target, 5.0, 2)
    before = {name: (tmp_path / name).read_bytes() for name in ("samples.png", "checkpoint.npz")}
    main(backend=backend_name(), out=tmp_path, resume=True, **SMALL)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    sampled = load_demo("sample").main
    sampled(tmp_path / "checkpoint.npz", backend=backend_name(), num=2, steps=2, workers=1, out=tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 0


def test_plain_runs_train_resume_and_sample_without_the_engine_room(tmp_path):
    """With --plain a whole run, its continuation and sample.py import no module of tinydiff.fast."""
    path, options = tmp_path / "checkpoint.npz", [*OPTIONS, f"--out={tmp_path}", "--plain"]
    commands = (
        [DEMOS / "train_mnist.py", "--steps=1", "--sample-every=1", *options],
        [DEMOS / "train_mnist.py", "--resume", *options],
        [DEMOS / "sample.py", path, "--num=2", "--steps=2", f"--out={tmp_path / 's.png'}", "--plain"],
    )
    program = f"""
import runpy, sys
for sys.argv in {[[*map(str, command)] for command in commands]}:
    runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit(", ".join(name for name in sys.modules if name.startswith("tinydiff.fast")) or 0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(DEMOS.parent), str(DEMOS)])}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr
    assert weights(tmp_path)[1]["step"] == 1 and (tmp_path / "s.png").stat().st_size > 0


def test_a_plain_run_computes_what_the_fast_one_does(main, tmp_path):
    """From one start, the same losses: to float32's rounding, for the two add in another order."""
    for name, plain in (("fast", False), ("plain", True)):
        main(backend=backend_name(), precision="float32", out=tmp_path / name, plain=plain, steps=3, **SMALL)
    fast, plain = (checkpoint.load(tmp_path / name / "checkpoint.npz")[0]["metrics"] for name in ("fast", "plain"))
    np.testing.assert_allclose(plain, fast, rtol=1e-4)
    assert len(plain) == 3


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes need the numpy backend")
def test_a_run_of_two_workers_can_go_on_plain_with_one(main, tmp_path, capsys):
    """--resume --plain takes one process, whatever the checkpoint had, and the note names both numbers."""
    main(backend=backend_name(), out=tmp_path, steps=1, **{**SMALL, "workers": 2})
    main(backend=backend_name(), out=tmp_path, resume=True, plain=True, sample_steps=2)
    assert "note: 2 worker(s) before, 1 now" in capsys.readouterr().out
    with pytest.raises(TinydiffError, match="--workers 2: with --plain one process"):
        main(backend=backend_name(), out=tmp_path, resume=True, plain=True, workers=2)


def test_an_earlier_versions_checkpoint_resumes_and_can_be_sampled(load_demo, main, tmp_path):
    """Its settings had weight_decay, its network dropout: where neither was used, both programs take the file."""
    path = tmp_path / "checkpoint.npz"
    main(backend=backend_name(), out=tmp_path, steps=1, **SMALL)
    arrays, meta = checkpoint.load(path)
    del meta["train"]["betas"], meta["train"]["clip_norm"], meta["train"]["ema_decay"]
    older = {"train": meta["train"] | {"weight_decay": 0.0}, "model": meta["model"] | {"dropout": 0.0}}
    checkpoint.save(path, arrays, meta | older)
    main(backend=backend_name(), out=tmp_path, resume=True, sample_steps=2)
    load_demo("sample").main(path, backend=backend_name(), num=2, steps=2, workers=1, out=tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 0
    checkpoint.save(path, arrays, meta | older | {"train": meta["train"] | {"weight_decay": 0.01}})
    with pytest.raises(CheckpointError, match="weight_decay, which this version does not have"):
        main(backend=backend_name(), out=tmp_path, resume=True, sample_steps=2)


def test_a_new_run_keeps_all_files_of_the_earlier_one_together(load_demo, tmp_path, capsys):
    """Without --resume they are in earlier.1/, byte by byte, and none of them is left beside the new run's."""
    main, options = load_demo("train_mnist").main, {**SMALL, "backend": backend_name(), "out": tmp_path}
    main(steps=2, sample_every=1, **options)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(before) == 7
    main(steps=1, seed=9, **options)
    after = {path.relative_to(tmp_path / "earlier.1"): path.read_bytes() for path in tmp_path.glob("earlier.1/**/*.*")}
    assert (
        after == before and f"the files of an earlier run are now in {tmp_path}/earlier.1/" in capsys.readouterr().out
    )
    assert list((tmp_path / "progress").iterdir()) == [] and len((tmp_path / "metrics.csv").read_text().split()) == 2
    main(resume=True, **options)
    assert not (tmp_path / "earlier.2").exists()


SETTINGS = {"schedule": "cosine", "T": 40, "lr": 0.01, "ema_decay": 0.5}


def test_schedule_rate_and_average_are_in_the_checkpoint_and_used(main, load_demo, tmp_path):
    """The rates and the table are those of the options; a resumed run and sample.py need no option."""
    main(backend=backend_name(), out=tmp_path, steps=2, **SETTINGS, **SMALL)
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.npz")
    np.testing.assert_array_equal(arrays["schedule/beta"], Schedule.cosine(40).beta)
    assert meta["schedule_name"] == "cosine" and meta["train"]["ema_decay"] == 0.5
    np.testing.assert_allclose(arrays["metrics"][:, 2], [0.01 / 100, 0.02 / 100])  # the warm-up of 100 steps
    main(backend=backend_name(), out=tmp_path, resume=True, sample_steps=2)
    main(backend=backend_name(), out=tmp_path, resume=True, **{**SMALL, **SETTINGS})
    with pytest.raises(TinydiffError, match="--steps 50: the schedule has T = 40 steps"):
        load_demo("sample").main(tmp_path / "checkpoint.npz", backend=backend_name(), num=1, steps=50, workers=1)


def test_a_finished_run_is_made_longer(main, tmp_path, capsys):
    """The steps that were done stay, bit for bit; the rates before are those of 2 steps, and after those of 4."""
    options = {"backend": backend_name(), "out": tmp_path}
    main(steps=2, **SMALL, **options)
    before, _ = checkpoint.load(tmp_path / "checkpoint.npz")
    main(resume=True, steps=4, sample_steps=2, **options)
    assert "longer: 2 steps before, 4 now; the learning rate of step 3 is" in capsys.readouterr().out
    after, meta = checkpoint.load(tmp_path / "checkpoint.npz")
    np.testing.assert_array_equal(after["metrics"][:2], before["metrics"])
    assert (meta["step"], meta["num_steps"], meta["train"]["num_steps"]) == (4, 4, 4) and len(after["metrics"]) == 4
    with pytest.raises(CheckpointError, match="--steps 3: the run has 4 steps, and can only be made longer"):
        main(resume=True, steps=3, **options)


def test_a_run_starts_from_the_weights_of_another(main, tmp_path, capsys):
    """Before its first step its average is the checkpoint's, except for the classes of other data."""
    options = {**SMALL, "backend": backend_name()}
    main(out=tmp_path / "a", steps=3, target="v", schedule="cosine", T=50, **options)
    main(out=tmp_path / "b", steps=1, lr=1e-9, start=tmp_path / "a/checkpoint.npz", seed=8, **options)
    (a, before), (b, after) = (checkpoint.load(tmp_path / name / "checkpoint.npz") for name in "ab")
    for name in (name for name in a if name.startswith("ema/")):
        np.testing.assert_allclose(b[name], a[name], atol=1e-10)  # float32; a step of rate 1e-11 moves them by as much
    assert after["step"] == 1 and after["model"] == before["model"]
    assert (after["train"]["target"], after["schedule_name"], len(b["schedule/beta"])) == ("v", "cosine", 51)
    assert "weights: the average of 3 steps on glyphs\n" in capsys.readouterr().out
    for option, said in (
        ({"channels": 16}, "base_channels is 8 in the checkpoint, 16 is wanted"),
        ({"target": "eps"}, "target is 'v' in the checkpoint, 'eps' is wanted"),
    ):
        with pytest.raises(CheckpointError, match=said):
            main(out=tmp_path / "c", steps=1, start=tmp_path / "a/checkpoint.npz", **{**options, **option})


def test_resume_in_another_precision_says_so_and_an_older_checkpoint_loads(main, tmp_path, capsys):
    """One note where the checkpoint says another precision; none where it says the same, or nothing as older ones."""
    path = tmp_path / "checkpoint.npz"
    main(backend=backend_name(), precision="float32", out=tmp_path, steps=1, **SMALL)
    arrays, meta = checkpoint.load(path)
    assert (meta["precision"], meta["noise"]) == ("float32", "host")
    older = {key: value for key, value in meta.items() if key not in ("precision", "noise")}
    for saved, notes in ((meta, 0), (older, 0), (meta | {"precision": "tf32"}, 1)):
        checkpoint.save(path, arrays, saved)
        capsys.readouterr()
        main(backend=backend_name(), precision="float32", out=tmp_path, resume=True, sample_steps=2)
        assert capsys.readouterr().out.count("in tf32 before, in float32 now") == notes


def test_resume_without_a_checkpoint_starts_from_the_beginning(main, tmp_path, capsys):
    """A run that was killed before its first save is simply run."""
    main(backend=backend_name(), out=tmp_path, steps=1, resume=True, **SMALL)
    assert "no checkpoint" in capsys.readouterr().out and weights(tmp_path)[1]["step"] == 1


def children(pid):
    """The process ids of the children of a process, in the order of their start."""
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def born_with(number):
    """The signal acts in the new process as it usually does: a shell's background job is born with SIGINT ignored."""
    return {"start_new_session": True, "preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}


processes = pytest.mark.skipif(backend_name() != "numpy", reason="the process started here uses the numpy backend")
# Ctrl-C is an exception of Python's own; the other two are one handler's (tests/app/test_signals.py).
SIGNALS = [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]


@processes
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_ends_with_its_exit_code(tmp_path, number):
    """Sent to the workers too: the step is finished and saved, and `train && sample` stops, as the code is not 0."""
    process = train(tmp_path, "--steps=100000", "--save-every=5", "--workers=2", **born_with(number))
    wait_for_step(tmp_path, 5)
    os.killpg(process.pid, number)  # as a terminal and as systemd do
    code, out, err = finish(process)
    assert code == 128 + number and "Traceback" not in err and "Warning" not in err
    step = weights(tmp_path)[1]["step"]
    assert step >= 5 and f"{number.name}: saved at step {step}; continue with\n    python " in out
    assert f"--out={tmp_path} --steps=100000 --save-every=5 --workers=2 --resume\n" in out
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == step + 1


@processes
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_the_start_is_no_traceback(tmp_path, number):
    """Workers are being started: nothing is left, no worker says a word, and the code is that of the signal."""
    process = train(tmp_path / "run", "--steps=9", "--workers=2", **born_with(number))
    while not children(process.pid):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    code, out, err = finish(process)
    assert (code, out) == (128 + number, "")
    assert err.split("\n")[-2] == ("interrupted" if number == signal.SIGINT else f"ended by {number.name}")
    assert "Traceback" not in err and "Warning" not in err and not (tmp_path / "run").exists()


@processes
def test_a_stopped_worker_does_not_keep_a_signal_waiting(tmp_path):
    """SIGSTOP holds a worker and so the step; SIGTERM to the program wakes it, and the run is saved as ever."""
    process = train(tmp_path, "--steps=100000", "--save-every=1", "--workers=2", **born_with(signal.SIGTERM))
    wait_for_step(tmp_path, 1)
    worker = children(process.pid)[-1]
    os.kill(worker, signal.SIGSTOP)
    while Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 143 and "SIGTERM: saved at step" in out and "Traceback" not in err


@processes
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_loses_nothing_but_time(tmp_path, kills):
    """Killed with signal 9 again and again and resumed each time, a run ends in the bits of an uninterrupted one."""
    steps = 20 * kills
    settings = [f"--steps={steps}", "--save-every=2", "--sample-every=100", "--seed=1"]
    code, _, err = finish(train(tmp_path / "whole", *settings))
    assert code == 0, err
    cut, done, moments = tmp_path / "cut", 0, random.Random(4)
    for _ in range(kills):
        process = train(cut, *settings, "--resume", start_new_session=True)
        wait_for_step(cut, done + 1)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was killed, not finished
        done = weights(cut)[1]["step"]
    code, _, err = finish(train(cut, *settings, "--resume"))
    assert code == 0, err
    assert weights(cut) == weights(tmp_path / "whole")
    assert [p.name for p in cut.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend=nonsense"], "choose from"),
        (["--data=nonsense"], "choose from"),
        (["--target=noise"], "choose from"),
        (["--min-snr=0"], "above 0"),
        (["--steps=0"], "from 1 to"),
        (["--steps=2", "--minutes=1"], "not allowed with"),
        (["--sample-steps=2000", "--steps=1"], "T = 1000 steps"),
        (["--T=20", "--steps=1"], "--schedule linear --T 20: beta must lie strictly between 0 and 1"),
        (["--T=0"], "from 1 to"),
        (["--schedule=nonsense"], "choose from"),
        (["--lr=0"], "above 0"),
        (["--lr=50", "--steps=1"], "--lr 50.0: must be a number from 1e-30 to 10"),
        (["--ema-decay=1"], "less than 1"),
        (["--from=/nowhere.npz", "--steps=1"], "/nowhere.npz does not exist"),
        (["--channels=12", "--steps=1"], "--channels 12: must be a multiple of 8"),
        (["--out=/proc/nowhere", "--steps=1"], "/proc/nowhere"),
    ],
)
def test_bad_options_exit_2_without_a_traceback(monkeypatch, capsys, tmp_path, options, message):
    """A user's mistake on the command line is one message and exit code 2."""
    monkeypatch.setattr(sys, "argv", [str(DEMOS / "train_mnist.py"), *OPTIONS, f"--out={tmp_path}", *options])
    monkeypatch.syspath_prepend(DEMOS)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(sys.argv[0], run_name="__main__")
    err = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and message in err and "Traceback" not in err
