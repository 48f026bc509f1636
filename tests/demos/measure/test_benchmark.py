"""benchmark.py in its smallest form: every job is timed, the table names what it shows, the file is whole."""

import json
import math

import pytest

from tinydiff.backend import BackendError, TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

RATIOS = ("train_step_ratio", "train_step_ratio_1core", "sampling_ratio", "conv_ratio", "memory_ratio")
PLAIN_RATIOS = ("plain_step_ratio_1core", "plain_sampling_ratio_1core")


@pytest.fixture
def program(module):
    return module("benchmark")


@pytest.fixture
def alone(program, monkeypatch):
    """The module where torch is not installed."""
    monkeypatch.setattr(program.on_cpu.importlib.util, "find_spec", lambda name: None)
    return program


def test_without_torch_it_times_ours(alone, capsys, monkeypatch, tmp_path):
    """Two workers and one: a positive time for every job, memory, scaling; no ratio has a peer; variables are named."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, {"OPENBLAS_CORETYPE": "Haswell"}.get(name, "512"))
    path = tmp_path / "figures.json"
    report = alone.main(batch_sizes=[2], channels=8, rounds=1, workers=2, json_path=path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(report)) and list(tmp_path.iterdir()) == [path]

    jobs = [(entry["cores"], entry["job"]) for entry in report["medians"]]
    on_cpu = alone.on_cpu
    layers = list(on_cpu.layer_jobs(8, 1, 28, {}))
    assert jobs == [
        *((cores, job) for job in (on_cpu.TRAIN, on_cpu.FORWARD) for cores in (2, 1)),
        *((1, job) for job in [*layers, on_cpu.OPTIMIZER]),
    ]
    for entry in report["medians"]:
        assert list(entry["seconds"]) == ["tinydiff"] and 0 < entry["seconds"]["tinydiff"] < math.inf
        assert len(entry["stages"]["tinydiff"]) == (2 if entry["job"] in layers else 1), entry["what"]
    assert [report[name] for name in (*RATIOS, *PLAIN_RATIOS)] == [None] * 7
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


def test_the_plain_functions_take_part_where_asked_for(alone, capsys, monkeypatch):
    """They run every job beside ours, enter no ratio to PyTorch's, and have ratios of their own to ours.

    The images are in colour: the report and the printed lines name their shape, and the convolutions have it.
    """
    layers = alone.on_cpu.layer_jobs
    monkeypatch.setattr(alone.on_cpu, "layer_jobs", lambda *shape: dict(list(layers(*shape).items())[::6]))  # some
    report = alone.main(batch_sizes=[2], channels=8, rounds=1, workers=1, plain=True, data_shape=(12, 12, 3))
    printed = capsys.readouterr().out
    assert report["settings"]["data_shape"] == (12, 12, 3)
    assert "\nimages 12x12x3, levels of 8, 16, 16 channels\n" in printed and "conv 12x12 3->8 (x1)" in printed
    for entry in report["medians"]:
        assert list(entry["seconds"]) == ["tinydiff", "plain"] and entry["seconds"]["plain"] > 0
    assert [report[name] for name in RATIOS] == [None] * 5
    step, forward = (entry["seconds"] for entry in report["medians"][:2])
    assert report["plain_step_ratio_1core"] == step["plain"] / step["tinydiff"]
    assert report["plain_sampling_ratio_1core"] == forward["plain"] / forward["tinydiff"]
    assert "plain / fast" in printed


def test_with_torch_every_ratio_is_there(program):
    """Both layouts pass the check of equality, and are timed in every job; with one worker both cores are the same."""
    pytest.importorskip("torch")
    report = program.main(batch_sizes=[2], channels=16, rounds=1, workers=1)
    for entry in report["medians"]:
        assert list(entry["seconds"]) == ["tinydiff", "contiguous_format", "channels_last"], entry["what"]
    assert all(report[name] > 0 for name in RATIOS)
    assert report["train_step_ratio"] == report["train_step_ratio_1core"] and report["worker_scaling"] == 1


def test_a_report_is_written_whole_or_not_at_all(program, tmp_path):
    """What cannot be written leaves the old file alone; a folder that cannot be made is named before anything
    is timed."""
    path = tmp_path / "figures.json"
    program.write_json(path, {"conv_ratio": None})
    with pytest.raises(ValueError, match="JSON"):
        program.write_json(path, {"conv_ratio": 1.5, "worker_scaling": math.nan})
    assert json.loads(path.read_text()) == {"conv_ratio": None} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(
        TinydiffError, match=r"--json .*figures\.json: the folder cannot be made \(it is not a folder\)"
    ):
        program.main(json_path=path / "new.json")


def test_what_a_backend_does_not_have_is_refused(program):
    """Workers on a GPU, several batch sizes on the CPU: one line that names the option and its value."""
    with pytest.raises(TinydiffError, match="--workers 2"):
        program.main(backend="cupy", workers=2)
    with pytest.raises(TinydiffError, match="--batch-size 64,128: must be one number"):
        program.main(batch_sizes=[64, 128])
    with pytest.raises(TinydiffError, match="--channels 12: must be a multiple of 8"):
        program.main(channels=12)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((30, 30, 3), "H and W must be multiples of 4; choose 28,28,3 or 32,32,3"),
        ((2, 2, 1), "H and W must be multiples of 4; choose 8,8,1 or 12,12,1"),
        ((32, 28, 3), "H and W must be equal"),
        ((32, 32, 4), "C must be 1 (grey) or 3 (colour)"),
        ((32, 32), "must be three numbers, H,W,C, such as 32,32,3"),
        ((32, 32, 3, 1), "must be three numbers, H,W,C, such as 32,32,3"),
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_a_shape_that_no_default_network_fits_is_refused(program, backend, shape, why):
    """Before a backend is chosen or anything is timed, with the option as it was typed and the sides that fit."""
    with pytest.raises(TinydiffError) as error:
        program.main(backend=backend, data_shape=shape)
    assert str(error.value) == f"--data-shape {','.join(map(str, shape))}: {why}"


def test_images_that_no_memory_holds_are_refused(program):
    """4,000,000 x 4,000,000 pixels: a line about memory in place of a process that is killed."""
    with pytest.raises(TinydiffError, match=r"--batch-size 64: .*GB"):
        program.main(data_shape=(4_000_000, 4_000_000, 1))


def test_without_a_gpu_it_ends_with_that(program, monkeypatch):
    """--backend cupy is an error of the backend's own, before anything is timed."""
    monkeypatch.setattr("tinydiff.backend._load_cupy", lambda *_: (_ for _ in ()).throw(BackendError("no GPU")))
    with pytest.raises(BackendError, match="no GPU"):
        program.main(backend="cupy")
