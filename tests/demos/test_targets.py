"""What holds for every program that writes: its targets are checked before its inputs are opened and its work."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stand_ins import META, SCHEDULE, Leaning, StampReader, data, pool_of

from tinydiff.app import cli, outputs
from tinydiff.backend import TinydiffError, backend_name, default_rng
from tinydiff.data import load

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[2]
# Of each program: its positional arguments, and what it writes to the folder of --out.
FOLDERS = {
    "train_mnist": ([], "checkpoint.npz metrics.csv samples.png denoising.png denoising.gif loss.png"),
    "train_images": (["sprites"], "checkpoint.npz metrics.csv samples.png denoising.png denoising.gif loss.png"),
    "train_classifier": ([], "checkpoint.npz misread.png"),
    "forward_process": ([], "noising.png schedules.png chain_and_closed_form.png chain_statistics.png"),
    "ideal": (
        [],
        "ideal.csv ideal.png which_noise.png guidance_in_the_plane.csv guidance_in_the_plane.png",
    ),
    "network": ([], "network.png time_code.png skips.png average.png network.csv time_code.csv losses.csv"),
    "points_2d": ([], "points_2d_moons.png points_2d_spiral.png points_2d_mixture.png points_2d.gif results.csv"),
    "overfit": ([], "overfit.csv overfit.png"),
    "waves_1d": ([], "waves_1d.png waves_1d.wav results.csv"),
    "sampler_showdown": (["gone.npz"], "sampler_showdown.csv sampler_showdown.png"),
    "same_start": (["gone.npz"], "same_start.png"),
    "guidance": (["gone.npz"], "guidance.csv guidance.png"),
    "pitfalls": (["gone.npz", "gone.npz"], "pitfalls.png pitfalls.md"),
    "edit": (["gone.npz"], "edit.png edit.md"),
    "one_shot_vs_gradual": (["gone.npz"], "one_shot_vs_gradual.md one_shot_vs_gradual.png loss.png"),
    "latent": ([], "checkpoint.npz latent.md latent.png"),
    "prompts/train_prompts": ([], "checkpoint.npz metrics.csv samples.png loss.png"),
    "prompts/evaluate_prompts": (["gone.npz"], "prompts.md held_out.png"),
    "measure/scaling": ([], "scaling.png"),
    "precision/precision": ([], "precision.png samples.png table.csv"),
    "measure/ranks": ([], "ranks.md ranks.png"),
    "measure/gpu_session": ([], "report.json report.txt"),
    "measure/compare_settings": ([["default"]], "settings.csv settings.png"),
    "measure/frontier": (["gone.npz"], "frontier.csv frontier.png"),
}
# Of each program: its positional arguments, and the kind of file behind each argument of main.
FILES = {
    "sample": (["gone.npz"], {"out": ".png", "save_npz": ".npz"}),
    "evaluate": (["gone.npz"], {"out": ".png"}),
    "classify": (["gone.npz"], {"out": ".png"}),
    "prompts/prompt": (["gone.npz", "two"], {"out": ".png", "steering": ".png"}),
    "explorer/explorer": (["gone.npz"], {"out": ".html"}),
    "measure/benchmark": ([], {"json_path": ".json"}),
}
OPTIONS = {"save_npz": "--save-npz", "json_path": "--json"}


class Idle:
    """The ranks of a program that must not begin its work."""

    rank, size = 0, 1

    def default_workers(self, most=64):
        return 1

    def broadcast(self, make):
        return make()

    def workers(self, *_):
        raise AssertionError("the work has begun")


@pytest.fixture(autouse=True)
def idle(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "start", lambda *_, **__: Idle())


def refused(load_demo, name, said, **options):
    """main ends with a TinydiffError that says so, before a data set or a checkpoint is opened."""
    with pytest.MonkeyPatch.context() as patch:
        demo = load_demo(name)
        for opener in ("load", "load_trained", "load_guided", "load_classifier", "load_kind"):
            if hasattr(demo, opener):
                patch.setattr(demo, opener, None)
        with pytest.raises(TinydiffError) as error:
            demo.main(*(FOLDERS | FILES)[name][0], **options)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_every_program_that_writes_is_here():
    """Each program with an argument for a target; the exercises' working copies are another matter."""
    programs = {}
    for path in (ROOT / "demos").rglob("*.py"):
        source = path.read_text("utf-8")
        if '__name__ == "__main__"' in source and any(f"--{word}" in source for word in ("out", "json", "save-npz")):
            programs[path.relative_to(ROOT / "demos").with_suffix("").as_posix()] = source
    assert programs.keys() == FOLDERS.keys() | FILES.keys()
    for name, source in programs.items():
        assert ("own_folder" in source or "file_to_write" in source) and ".mkdir(" not in source, name


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_written_stops_a_program_at_once(load_demo, tmp_path, name):
    """A file in its place or above it, and a folder in the place of each file that would be written at the end."""
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "out", ""):
        refused(load_demo, name, f"--out {out}: the folder cannot be made", out=out)
    for i, written in enumerate(FOLDERS[name][1].split()):
        out = tmp_path / f"out{i}"
        (out / written).mkdir(parents=True)
        refused(load_demo, name, f"--out {out / written}: the file cannot be written (Is a directory)", out=out)


_OWNER = "import sys; from tinydiff.app.outputs import own_folder; own_folder('out'); print(); sys.stdin.read()"


@pytest.fixture
def owner(tmp_path):
    """A process that writes to the folder `out`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _OWNER], cwd=tmp_path, env=environment, **pipes) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def test_two_runs_do_not_share_a_folder(load_demo, owner):
    """Each program refuses the folder in which another one writes, also one of another kind."""
    for name in FOLDERS:
        refused(load_demo, name, "--out out: another run writes there; let it end", out="out")
    assert os.listdir("out") == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_written_stops_a_program_at_once(load_demo, tmp_path, name):
    """Each argument for a file: a file above it, a folder in its place, and a name that promises another kind."""
    (tmp_path / "file").write_text("in the way")
    good = {argument: tmp_path / f"{argument}{suffix}" for argument, suffix in FILES[name][1].items()}
    for argument, suffix in FILES[name][1].items():
        option = OPTIONS.get(argument, f"--{argument}")
        for wrong in (tmp_path / "a.jpeg", tmp_path / "a.xyz", tmp_path / "a", tmp_path):
            said = f"{option} {wrong}: the name must end in {suffix}"
            refused(load_demo, name, said, **good | {argument: wrong})
        for path, reason in ((f"file/a{suffix}", "not a folder"), (f"folder{suffix}", "Is a directory")):
            (tmp_path / f"folder{suffix}").mkdir(exist_ok=True)
            refused(load_demo, name, reason, **good | {argument: tmp_path / path})
    assert not any(path.exists() for path in good.values())


@pytest.mark.parametrize(
    ("name", "option", "number"),
    [
        ("points_2d", "num", 10**6),
        ("waves_1d", "num", 10**9),
        ("forward_process", "chains", 10**12),
        ("points_2d", "batch_size", 10**12),
        ("waves_1d", "batch_size", 10**12),
        ("overfit", "num", 10**9),
    ],
)
def test_what_no_memory_holds_is_refused_at_once(load_demo, name, option, number):
    """The two-sample test of a million points, say, needs 96 TB: that is said before minutes of training."""
    said = f"--{option.replace('_', '-')} {number}: that needs about "
    refused(load_demo, name, said, **{option: number})


ROOM, STEPS = ({"num": 10**12}, f"--num {10**12}: that needs about "), ({"steps": 101}, "--steps 101: .* T = 100")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        *((name, *ROOM) for name in ("prompts/prompt", "prompts/evaluate_prompts", "explorer/explorer", "guidance")),
        ("prompts/evaluate_prompts", {"num_held_out": 10**12}, ROOM[1]),
        *((name, *STEPS) for name in ("prompts/prompt", "prompts/evaluate_prompts", "guidance", "sample")),
        ("explorer/explorer", {"sample_steps": (101, 5)}, "--sample-steps 101: .* T = 100"),
    ],
)
def test_what_does_not_fit_a_checkpoint_is_refused_before_the_first_drawing(
    load_demo, monkeypatch, name, options, said
):
    """A checkpoint tells how large an image is, and how many steps its schedule has."""
    demo, pool = load_demo(name), pool_of(Leaning())
    words = {"vocabulary": load_demo("prompts/captions").VOCABULARY, "held_out": []} if "prompts" in name else {}
    opener = "load_guided" if name == "sample" else "load_trained"
    monkeypatch.setattr(demo, opener, lambda *_: (pool, SCHEDULE, META | words))
    monkeypatch.setattr(demo, "load_classifier", lambda *_: (pool_of(StampReader()), {}), raising=False)
    monkeypatch.setattr(demo, "load", lambda *_, **__: data(np.arange(20) % 10, default_rng(0)), raising=False)
    with pytest.raises(TinydiffError, match=said):
        demo.main(*(FOLDERS | FILES)[name][0], **options)


@pytest.mark.parametrize("name", ["train_mnist", "train_images", "train_classifier", "prompts/train_prompts", "latent"])
def test_a_batch_that_no_memory_holds_is_refused_before_training(load_demo, monkeypatch, name):
    """Not after a search, gradient by gradient, for the largest batch that fits."""
    demo, glyphs = load_demo(name), load("glyphs", num=200)
    for module in (demo, getattr(demo, "run", demo)):
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", lambda *_, **__: glyphs)
    if name == "latent":
        monkeypatch.setattr(demo, "load_kind", lambda *_: ({}, {}))
    with pytest.raises(TinydiffError, match="--batch-size 1000000000000: "):
        demo.main(*FOLDERS[name][0], batch_size=10**12, out="out")
    if name in ("train_mnist", "prompts/train_prompts") and backend_name() == "numpy":
        monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 40 * 100 * 784 * 32)
        with pytest.raises(AssertionError, match="the work has begun"):
            demo.main(batch_size=100, out="out")
        with pytest.raises(TinydiffError, match="--batch-size 101: that needs"):
            demo.main(batch_size=101, out="out")


def test_pictures_go_to_runs_unless_a_name_is_given(load_demo):
    """No program writes to the current folder by default."""
    for name in FOLDERS | FILES:
        parameters = inspect.signature(load_demo(name).main).parameters
        defaults = [
            parameters[word].default for word in ("out", "save_npz", "steering", "json_path") if word in parameters
        ]
        assert all(default is None or default.startswith("runs/") for default in defaults), name


def test_an_output_is_no_input_and_no_other_output(load_demo, tmp_path):
    """The arrays would replace the checkpoint that they are drawn from, and one picture the other."""
    refused(load_demo, "sample", "--save-npz gone.npz: this is the checkpoint", save_npz="gone.npz")
    for steering in ("a.png", "./a.png"):
        said = f"--steering {steering}: this is the picture of --out too"
        refused(load_demo, "prompts/prompt", said, out="a.png", steering=steering)
    demo = load_demo("latent")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.npz").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_kind", lambda *_: ({}, {}))
        for option in ("pixel", "classifier"):
            with pytest.raises(TinydiffError, match=r"out/checkpoint\.npz is read, and would be replaced there"):
                demo.main(out="out", **{option: tmp_path / "out" / "checkpoint.npz"})
    assert outputs._owned
