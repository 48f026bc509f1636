"""The CPU's table: its ratios are what their names say, its jobs are the network's layers, both networks are one."""

import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from tinydiff.app.generate import build_unet
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

CONV = ("conv", 2, 28, 8, 8, 1, True)


@pytest.fixture
def on_cpu(module):
    return module("on_cpu")


def test_another_network_is_refused(on_cpu, module, monkeypatch):
    """Other numbers of parameters, or one wrong gradient, are an error that says so."""
    pytest.importorskip("torch")
    torch_peer = module("torch_peer")
    plain = torch_peer.Reference
    with monkeypatch.context() as patch:
        patch.setattr(torch_peer, "Reference", lambda c, *others: plain(2 * c, *others))
        with pytest.raises(RuntimeError, match="parameters"):
            on_cpu.check_same_network(8, 28, {}, "channels_last")
    monkeypatch.setattr(torch_peer.F, "silu", torch_peer.F.relu)
    with pytest.raises(RuntimeError, match=r"with the same weights .* differs by"):
        on_cpu.check_same_network(8, 28, {}, "channels_last")


@pytest.mark.parametrize("side", [12, 32, 64])
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_in_colour_and_with_four_levels_it_is_the_same_network(on_cpu, side, layout):
    """PyTorch's network has the parameters, the output and every gradient of the default network for this shape."""
    pytest.importorskip("torch")
    network = on_cpu.levels((side, side, 3), 8)
    assert "parameters too" in on_cpu.check_same_network(8, side, network, layout)


def test_the_ratios_are_to_the_faster_layout(on_cpu):
    """Made-up times: each ratio takes its own row, its own cores, and the better of PyTorch's figures for each job.

    The plain functions, far ahead here, count in their own ratios only.
    """

    def by(ours, contiguous, last, **plain):
        peers = {"contiguous_format": [contiguous, 9.0], "channels_last": [last, 9.0]}
        return {"tinydiff": [ours, 9.0], **{name: [seconds, 9.0] for name, seconds in plain.items()}, **peers}

    seconds = {
        (4, on_cpu.TRAIN): by(2.0, 6.0, 5.0, plain=0.01),
        (1, on_cpu.TRAIN): by(7.0, 14.0, 28.0, plain=0.7),
        (4, on_cpu.FORWARD): by(1.0, 0.5, 0.75, plain=0.01),
        (1, on_cpu.FORWARD): by(1.0, 99.0, 99.0, plain=0.2),
        (1, CONV): by(1.0, 2.0, 3.0, plain=0.01),
        (1, ("conv", 2, 14, 8, 8, 2, True)): by(2.0, 17.0, 16.0, plain=0.01),
        (1, on_cpu.OPTIMIZER): by(1.0, 99.0, 99.0, plain=0.01),
    }
    memory = {"tinydiff": 200.0, "plain": 1.0, "contiguous_format": 1000.0, "channels_last": 800.0}
    assert on_cpu.ratios(seconds, memory, 4) == pytest.approx(
        {
            "train_step_ratio": 2.5,
            "train_step_ratio_1core": 2.0,
            "sampling_ratio": 0.5,
            "conv_ratio": 4.0,  # of 2 and 8, the geometric mean
            "memory_ratio": 0.25,
            "worker_scaling": 3.5,
            "plain_step_ratio_1core": 0.1,
            "plain_sampling_ratio_1core": 0.2,
        }
    )
    assert on_cpu.ratios(seconds, dict.fromkeys(memory), 4)["memory_ratio"] is None


def test_the_jobs_are_the_networks_layers(on_cpu):
    """Every 3x3 filter, every norm but attention's, and attention, each at the resolution where it works."""
    jobs = on_cpu.layer_jobs(8, 3, 28, {})
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
    assert norms["group_norm_silu", 3, 28, 8, 8] == 5 and norms["group_norm_silu", 3, 7, 16, 8] == 8
    kinds = [job[0] for job in jobs]
    assert kinds == sorted(kinds, key=["conv", "group_norm_silu", "attention"].index)


def test_the_jobs_of_a_network_in_colour_with_four_levels(on_cpu):
    """Only the first and the last convolution see the image.  Attention ends each block at 16 x 16 and 8 x 8 pixels:
    one on the way down, two on the way up, and the first of the middle."""
    jobs = on_cpu.layer_jobs(8, 2, 64, on_cpu.levels((64, 64, 3), 8))
    coloured = {job: count for job, count in jobs.items() if job[0] == "conv" and 3 in job[3:5]}
    assert coloured == {("conv", 2, 64, 3, 8, 1, False): 1, ("conv", 2, 64, 8, 3, 1, True): 1}
    attention = {job: count for job, count in jobs.items() if job[0] == "attention"}
    assert attention == {("attention", 2, 4, 256, 4): 3, ("attention", 2, 4, 64, 4): 4}
    assert {job[2] for job in jobs if job[0] == "conv"} == {64, 32, 16, 8}


LAYERS = {
    CONV: 3,
    ("conv", 2, 14, 8, 16, 2, True): 1,
    ("group_norm_silu", 2, 28, 8, 4): 5,
    ("attention", 2, 4, 49, 2): 1,
}


class Known:
    """Stands in for a contestant.  A job takes a whole number of seconds that follows from the name and the cores."""

    log, factor = [], {"tinydiff": 1.0, "plain": 8.0, "contiguous_format": 2.0, "channels_last": 4.0}

    def __init__(self, name, cores, make):
        self.name, self.cores, self.make = name, cores, make

    def __enter__(self):
        self.log.append(("start", self.name, self.cores))
        return self

    def __exit__(self, *_):
        self.log.append(("end", self.name, self.cores))

    def answer(self):
        self.log.append(("ready", self.name, self.cores))

    def ask(self, what, *arguments):
        self.log.append((what, self.name, self.cores, *arguments[:1]))
        if what == "peak_mb":
            return 100 * self.factor[self.name]
        return [self.factor[self.name] / self.cores, 2 * self.factor[self.name] / self.cores]


@pytest.fixture
def known(on_cpu, monkeypatch):
    monkeypatch.setattr(on_cpu, "Contestant", Known)
    monkeypatch.setattr(Known, "log", [])
    return on_cpu


SETTINGS = {"backend": "numpy", "precision": None, "channels": 8, "batch_size": 6}
COLOUR = {"in_channels": 3, "channel_mults": [1, 2, 2], "attention_levels": []}
DRAWN = {"size": 12, "network": COLOUR}  # what images of 12 x 12 x 3 add to the settings of a contestant


@pytest.mark.parametrize("workers", [1, 3])
def test_each_contestant_runs_on_all_workers_and_on_one_core(known, monkeypatch, workers):
    """Training and sampling on both, the ops and the optimizer on one core only; with one worker both are one.

    Memory is that on all workers, read after training and before anything else has run.
    """
    bars, names = [], ["tinydiff", "channels_last"]
    monkeypatch.setattr(known, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    seconds, memory = known.compete(names, SETTINGS, workers, list(LAYERS), 3)
    every = [(name, cores) for cores in dict.fromkeys((workers, 1)) for name in names]
    alone = [(name, 1) for name in names]
    log = [entry for entry in Known.log if entry[0] in ("seconds", "peak_mb")]
    trained = [("seconds", *one, known.TRAIN) for _ in range(5) for one in every]
    asked = [("peak_mb", name, workers) for name in names]
    drawn = [("seconds", *one, known.FORWARD) for _ in range(5) for one in every]
    jobs = [*LAYERS, known.OPTIMIZER]
    assert log == trained + asked + drawn + [("seconds", *one, job) for _ in range(5) for job in jobs for one in alone]
    begun = [(what, *one) for what in ("start", "ready") for one in every]
    assert Known.log[: len(begun)] == begun and Known.log[-len(every) :] == [("end", *one) for one in every[::-1]]
    assert memory == {"tinydiff": 100.0, "channels_last": 400.0} and bars[0].n == bars[0].total
    assert not bars[0].leave
    expected = {(cores, job): None for job in (known.TRAIN, known.FORWARD) for cores in dict.fromkeys((workers, 1))}
    assert list(seconds) == [*expected, *((1, job) for job in jobs)]
    for (cores, _), by in seconds.items():
        assert by == {name: [3 * f / cores, f / cores, 2 * f / cores] for name, f in Known.factor.items() if name in by}
        assert list(by) == names


def test_a_contestant_is_made_with_its_cores_and_the_settings(known, monkeypatch):
    """Ours with fast functions, the plain one with those of the book; PyTorch's with the layout of its name only."""
    made = []

    @contextmanager
    def noted(name, cores, make):
        made.append((name, cores, make()))
        yield Known(name, cores, make)

    monkeypatch.setattr(known, "Contestant", noted)
    monkeypatch.setattr(known, "Ours", lambda **settings: ("ours", settings))
    monkeypatch.setitem(sys.modules, "torch_peer", SimpleNamespace(Peer=lambda **s: ("peer", s)))
    known.compete(["tinydiff", "plain", "channels_last"], SETTINGS | DRAWN, 3, [], 1)
    ours, peer = SETTINGS | DRAWN, {"channels": 8, "batch_size": 6, "layout": "channels_last"} | DRAWN
    assert made == [
        entry
        for cores in (3, 1)
        for entry in (
            ("tinydiff", cores, ("ours", ours | {"plain": False, "cores": cores})),
            ("plain", cores, ("ours", ours | {"plain": True, "cores": cores})),
            ("channels_last", cores, ("peer", peer | {"cores": cores})),
        )
    ]


@pytest.fixture
def compared(known, monkeypatch):
    """compare with stand-ins for the measurements: compared(names of PyTorch's layouts) -> compare, the checks."""

    def prepare(torch):
        checks = []

        @contextmanager
        def executor(workers, context):
            assert (workers, context.get_start_method()) == (1, "spawn")
            yield SimpleNamespace(
                submit=lambda f, *a: checks.append((f, *a)) or SimpleNamespace(result=lambda: f"check of {a[-1]}")
            )

        monkeypatch.setattr(known.importlib.util, "find_spec", lambda name: torch if name == "torch" else None)
        monkeypatch.setattr(known, "ProcessPoolExecutor", executor)
        machine = {"cpu": "a processor", "cores": 3, "torch": "2.0"}
        monkeypatch.setattr(known, "describe_cpu", lambda found: machine | {"torch": "2.0" if found else None})
        monkeypatch.setattr(known, "speed_variables", lambda: {"MALLOC_X": "1"})
        compete = known.compete
        monkeypatch.setattr(
            known, "compete", lambda names, drawn, *more: checks.append(drawn) or compete(names, drawn, *more)
        )
        monkeypatch.setattr(
            known,
            "layer_jobs",
            lambda channels, images, size, network: (
                {("conv", images, size, 8, 8, 1, True): channels} if network == COLOUR else {}
            ),
        )
        return partial(known.compare, data_shape=(12, 12, 3)), checks

    return prepare


def test_the_report_is_what_was_measured(compared, known, capsys):
    """Two of PyTorch's layouts, each checked in a process of its own; ratios, medians, memory, machine, settings."""
    compare, checks = compared(True)
    report = compare(workers=4, rounds=2, plain=True, **SETTINGS | {"batch_size": 64})
    same = [(known.check_same_network, 8, 12, COLOUR, layout) for layout in ("contiguous_format", "channels_last")]
    assert checks == [*same, SETTINGS | {"batch_size": 64} | DRAWN]
    settings = SETTINGS | {"data_shape": (12, 12, 3), "batch_size": 64, "workers": 4, "rounds": 2, "op_images": 16}
    assert report["settings"] == settings | {"environment": {"MALLOC_X": "1"}}
    assert report["machine"] == {"cpu": "a processor", "cores": 3, "torch": "2.0"}
    assert report["peak_mb"] == {name: 100 * f for name, f in Known.factor.items()}
    whats = ["train step, 4 core(s)", "train step, 1 core(s)", "forward, 4 core(s)", "forward, 1 core(s)"]
    assert [m["what"] for m in report["medians"]] == [*whats, "conv 12x12 8->8 (x8)", "optimizer"]
    first = report["medians"][0]
    assert first["job"] == known.TRAIN and first["cores"] == 4
    assert first["seconds"] == {"tinydiff": 0.75, "plain": 6.0, "contiguous_format": 1.5, "channels_last": 3.0}
    assert first["stages"]["plain"] == [2.0, 4.0] and first["stages"]["channels_last"] == [1.0, 2.0]
    ratios = {"train_step_ratio": 2, "conv_ratio": 2, "memory_ratio": 0.5, "worker_scaling": 4}
    assert {name: report[name] for name in ratios} == ratios and report["plain_sampling_ratio_1core"] == 8
    printed = capsys.readouterr().out.splitlines()
    assert printed[:5] == [
        "cpu a processor, cores 3, torch 2.0",
        "warning: MALLOC_X=1 is set, which changes the speed; these are not a user's figures",
        "images 12x12x3, levels of 8, 16, 16 channels",
        "check of contiguous_format",
        "check of channels_last",
    ]
    assert printed[5:] == known.table_lines(report)


def test_ours_alone_is_said_and_an_op_has_the_images_of_a_worker(compared, known, capsys):
    """Without PyTorch nobody is checked, and only ours runs; 5 images on 8 workers are 1 for each op, never 0."""
    compare, checks = compared(False)
    report = compare(workers=8, rounds=1, plain=False, **SETTINGS | {"batch_size": 5})
    assert (
        checks == [SETTINGS | {"batch_size": 5} | DRAWN]
        and list(report["peak_mb"]) == ["tinydiff"]
        and report["settings"]["op_images"] == 1
    )
    first, _, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "cpu a processor, cores 3" and third == "PyTorch is not installed: ours alone"


def test_a_cell_of_the_table_by_hand(known):
    """Images a second of the whole batch, ms of each stage, MB, and the ratio of the faster layout; a dash for none."""
    names = ["tinydiff", "plain", "contiguous_format", "channels_last"]
    by = {name: [0.06, 0.02, 0.04] for name in names}
    report = {
        "medians": [
            known.entry(2, known.TRAIN, None, by | {"plain": [0.5, 0.5], "channels_last": [0.03, 0.03]}),
            known.entry(1, known.FORWARD, None, by | {"tinydiff": [0.003, 0.003]}),
            known.entry(1, CONV, 3, by | {"channels_last": [0.6, 0.1, 0.5]}),
            known.entry(1, known.OPTIMIZER, None, {name: [0.0009, 0.0009] for name in names}),
        ],
        "peak_mb": dict(zip(names, (200.0, None, 800.123, 1.0))),
        "settings": {"batch_size": 6, "op_images": 3},
        "conv_ratio": 1.5,
        "memory_ratio": None,
        "worker_scaling": 1.75,
        "plain_step_ratio_1core": 2.5,
        "plain_sampling_ratio_1core": 3.5,
    }
    nothing = [""] * 4
    rows = [
        ("batch 6, each op at 3 image(s)", ["tinydiff", "plain", "contiguous", "channels_last"], "ratio"),
        ("train step, 2 core(s)", ["100.0 img/s", "12.0 img/s", "100.0 img/s", "200.0 img/s"], "0.50"),
        ("steps, 2 core(s)", ["16.67 step/s", "2.00 step/s", "16.67 step/s", "33.33 step/s"], ""),
        ("forward, 1 core(s)", ["2000 img/s", "100.0 img/s", "100.0 img/s", "100.0 img/s"], "20.00"),
        ("conv 28x28 8->8 (x3)", ["20.0+40.0 ms"] * 3 + ["100+500 ms"], "1.00"),
        ("optimizer", ["0.90 ms"] * 4, "1.00"),
        ("convolutions, geometric mean", nothing, "1.50"),
        ("peak memory, low is good", ["200.00 MB", "- MB", "800.12 MB", "1.00 MB"], "-"),
        ("training, all workers / 1 worker", nothing, "1.75"),
        ("train step, 1 core: time plain / fast", nothing, "2.50"),
        ("forward, 1 core: time plain / fast", nothing, "3.50"),
    ]
    assert known.table(report) == rows
    lines = known.table_lines(report)
    assert " ".join(lines[1].split()) == "train step, 2 core(s) 100.0 img/s 12.0 img/s 100.0 img/s 200.0 img/s 0.50"
    assert {len(line) for line in lines} == {37 + 4 * 14 + 7}
    del report["peak_mb"]["plain"]
    assert len(known.table(report)) == 9


def test_a_row_names_its_job(known):
    """Resolution, channels, stride, pixels, heads, and how often the job occurs in the network."""
    labels = [known.entry(1, job, count, {})["what"] for job, count in LAYERS.items()]
    assert labels == [
        "conv 28x28 8->8 (x3)",
        "conv 14x14 8->16, stride 2 (x1)",
        "group norm + SiLU 28x28x8 (x5)",
        "attention, 49 pixels, 4 heads (x1)",
    ]
    entry = known.entry(3, CONV, 2, {"a": [3.0, 1.0, 2.0], "b": [7.0, 7.0]})
    assert entry["seconds"] == {"a": 3.0, "b": 7.0} and entry["stages"] == {"a": [1.0, 2.0], "b": [7.0]}
    assert (entry["job"], entry["cores"]) == (CONV, 3)


def test_a_network_that_differs_by_more_than_rounding_is_refused(on_cpu, monkeypatch):
    """By a stand-in for PyTorch's side: 9.9e-5 passes, 1e-4 and nan do not, and 56 x 56 pixels have
    four times the limit; the line names parameters and layout."""
    found, differences = [], [9.9e-5, 3.9e-4, 1e-4, 4e-4, 0.5, float("nan")]

    def largest_difference(model, size, layout):
        found.append((model.config["base_channels"], model.config["in_channels"], size, layout))
        return "down.0.conv1.weight", differences.pop(0)

    stand_in = SimpleNamespace(largest_difference=largest_difference)
    monkeypatch.setitem(sys.modules, "torch_peer", stand_in)
    parameters = build_unet({"base_channels": 8, **COLOUR}, 0).num_parameters()
    line = f"PyTorch, channels_last: {parameters:,} parameters too; output, gradients within 1e-04"
    assert on_cpu.check_same_network(8, 12, COLOUR, "channels_last") == line
    assert found == [(8, 3, 12, "channels_last")]
    assert "within 4e-04" in on_cpu.check_same_network(8, 56, COLOUR, "channels_last")
    for side in (28, 56, 28, 28):
        with pytest.raises(RuntimeError, match=r"down\.0\.conv1\.weight differs by .* from PyTorch's, channels_last"):
            on_cpu.check_same_network(8, side, COLOUR, "channels_last")
    assert not differences
