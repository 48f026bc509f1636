"""The GPU's table: first calls, rounds, failures and ratios by a clock that only known costs move, a rehearsal of it
on the CPU, and PyTorch's side with a stand-in for torch."""

import importlib.machinery
import json
import re
import sys
import types
from contextlib import contextmanager

import pytest

from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

TRAIN, FORWARD = ("train",), ("forward",)
SETTINGS = {"device": "cuda", "channels": 8, "batch_size": 2, "layout": "channels_last", "mode": None, "tf32": True}
COLOUR = {"size": 12, "network": {"in_channels": 3, "channel_mults": [1, 2, 2], "attention_levels": []}}


@pytest.fixture
def on_gpu(module):
    return module("on_gpu")


@pytest.fixture
def rehearse(module):
    def main(**options):
        return module("benchmark").main(backend="numpy", device="cpu", channels=16, rounds=1, **options)

    return main


# ------------------------------------------------------------------------------------------------ the rehearsal


def test_without_torch_it_times_ours_for_each_batch(on_gpu, rehearse, monkeypatch, capsys, tmp_path):
    """A time for each job, no ratio, and the file holds what is printed."""
    monkeypatch.setattr(on_gpu, "torch_works", lambda device: False)
    report = rehearse(batch_sizes=(2, 3), json_path=tmp_path / "figures.json")
    assert list(report["batches"]) == [2, 3] and "ours alone" in capsys.readouterr().out
    for batch in report["batches"].values():
        assert list(batch["seconds"]) == ["train", "forward"]
        assert all(list(by) == ["tinydiff"] and by["tinydiff"] > 0 for by in batch["seconds"].values())
        assert batch["ratios"] == {"train": None, "forward": None, "memory": None}
        assert batch["fastest"] == {"train": None, "forward": None} and batch["failed"] == {}
        step, forward = batch["first"]["tinydiff"]
        assert step > forward > 0  # the first step counts from the start of the process
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(report))


def test_every_contestant_gets_the_shape_and_its_default_network(on_gpu, rehearse, monkeypatch, capsys):
    """Ours and each way of PyTorch, at every batch size; the line above the tables and the report name the shape."""
    made, plain = [], on_gpu.Contestant

    def contestant(name, cores, make):
        made.append({key: make.keywords[key] for key in ("size", "network", "batch_size")})
        return plain("tinydiff", cores, make)

    monkeypatch.setattr(on_gpu, "torch_works", lambda device: False)
    monkeypatch.setattr(on_gpu, "Contestant", contestant)
    report = rehearse(batch_sizes=(2,), data_shape=(12, 12, 3))
    assert made == [{"batch_size": 2} | COLOUR] and report["data_shape"] == (12, 12, 3)
    assert "images 12x12x3, levels of 16, 32, 32 channels\n" in capsys.readouterr().out


def test_the_plain_functions_take_part_where_asked_for(on_gpu, rehearse, monkeypatch, capsys):
    """They are timed beside ours and enter no ratio to PyTorch's."""
    monkeypatch.setattr(on_gpu, "torch_works", lambda device: False)
    batch = rehearse(batch_sizes=(2,), plain=True)["batches"][2]
    assert all(list(by) == ["tinydiff", "plain"] and by["plain"] > 0 for by in batch["seconds"].values())
    assert batch["ratios"] == {"train": None, "forward": None, "memory": None}
    assert "plain / fast" in capsys.readouterr().out


def test_with_torch_each_of_its_ways_is_timed(on_gpu, rehearse, monkeypatch):
    """Eager in both layouts; compiling takes a CPU minutes, and graphs need a GPU."""
    pytest.importorskip("torch")
    eager = {name: way for name, way in on_gpu.WAYS.items() if way.mode is None and not way.graphed}
    monkeypatch.setattr(on_gpu, "WAYS", eager)
    batch = rehearse(batch_sizes=(2,))["batches"][2]
    for job, by in batch["seconds"].items():
        assert list(by) == ["tinydiff", "eager", "eager, channels last"]
        assert batch["ratios"][job] == min(by["eager"], by["eager, channels last"]) / by["tinydiff"]


def test_every_way_of_pytorch_is_there(on_gpu):
    """Eager, compiled and graphs in both layouts, and reduce-overhead; no two ways are the same."""
    ways = set(on_gpu.WAYS.values())
    assert len(ways) == len(on_gpu.WAYS) == 7
    layouts = {(mode, graphed): [] for _, mode, graphed in ways}
    for layout, mode, graphed in ways:
        layouts[mode, graphed].append(layout)
    both = ["channels_last", "contiguous_format"]
    assert {key: sorted(names) for key, names in layouts.items()} == {
        (None, False): both, ("default", False): both, (None, True): both,
        ("reduce-overhead", False): ["channels_last"],
    }  # fmt: skip


# --------------------------------------------------------------------------------- known costs, and a clock for them


class Entrant:
    """Stands in for a Contestant.  costs: of its start, and of the first and each later call of every job.

    An error in the place of a cost is raised, None is never answered.
    """

    def __init__(self, name, clock, costs, mb=100.0, notes=()):
        self.name, self.cores, self.clock, self.costs, self.mb, self.notes = name, 1, clock, costs, mb, notes
        self.pipe, self.killed, self.asked = self, False, []
        self._due("start")

    def _due(self, key):
        cost = self.costs[key].pop(0) if isinstance(self.costs[key], list) else self.costs[key]
        self.value = cost
        self.due = self.clock.now + (0 if isinstance(cost, Exception) else 1e9 if cost is None else cost)

    def tell(self, *question):
        self.asked.append(question)
        self._due(question[1])

    def answer(self):
        if isinstance(self.value, Exception):
            raise self.value
        return [self.value]

    def ask(self, what, *rest):
        if what in ("peak_mb", "notes"):
            return {"peak_mb": self.mb, "notes": list(self.notes)}[what]
        self.tell(what, *rest)
        return self.answer()

    def kill(self):
        self.killed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def race(on_gpu, clock, monkeypatch):
    """race({name: costs}, limit) is the report of a batch size with these entrants; entrants by name beside it."""
    clock.monotonic = clock.perf_counter
    monkeypatch.setattr(on_gpu, "time", clock)

    def wait(pipes, left):
        soonest = min(pipes, key=lambda pipe: pipe.due)
        if soonest.due > clock.now + left:
            clock.now += left
            return []
        clock.now = max(clock.now, soonest.due)
        return [soonest]

    monkeypatch.setattr(on_gpu, "wait", wait)

    def run(costs, limit=60, rounds=3, **more):
        entrants = {}

        def entrant(name, cores, make):
            entrants[name] = Entrant(name, clock, costs[name], **more.get(name, {}))
            return entrants[name]

        monkeypatch.setattr(on_gpu, "Contestant", entrant)
        return on_gpu.compete(list(costs), {}, rounds, limit), entrants

    return run


def costs(start=1.0, train=(9.0, 0.5), forward=(4.0, 0.25)):
    """Of an entrant: first calls and later ones.  2 warm-up rounds and 3 that count follow the first call."""
    return {"start": start, TRAIN: [train[0], *5 * [train[1]]], FORWARD: [forward[0], *5 * [forward[1]]]}


def test_the_numbers_of_a_race_follow_from_its_costs(race):
    """First calls hold start and compilation, medians do not; a ratio is the fastest way's time over ours."""
    batch, _ = race(
        {
            "tinydiff": costs(2.0, (1.0, 0.2), (0.5, 0.1)),
            "eager": costs(3.0, (1.0, 0.5), (1.0, 0.05)),
            "compiled": costs(4.0, (30.0, 0.3), (20.0, 0.08)),
        },
        tinydiff={"mb": 50.0, "notes": ["recorded"]},
        eager={"mb": 200.0},
    )
    assert batch["seconds"] == {
        "train": {"tinydiff": 0.2, "eager": 0.5, "compiled": 0.3},
        "forward": {"tinydiff": 0.1, "eager": 0.05, "compiled": 0.08},
    }
    assert batch["first"] == {"tinydiff": [3.0, 0.5], "eager": [4.0, 1.0], "compiled": [34.0, 20.0]}
    assert batch["fastest"] == {"train": "compiled", "forward": "eager"}
    assert batch["ratios"] == {
        "train": pytest.approx(1.5),
        "forward": 0.5,
        "memory": 0.5,
    }  # 50 MB of ours, 100 of theirs
    assert batch["peak_mb"] == {"tinydiff": 50.0, "eager": 200.0, "compiled": 100.0}
    assert batch["failed"] == {} and batch["notes"] == {"tinydiff": ["recorded"]}


@pytest.mark.parametrize("when", ["start", "first step", "first forward", "a round", "a round of forward"])
def test_a_way_that_fails_says_why_and_the_others_go_on(race, when):
    """Wherever it fails, its numbers are left out, and the ratio is that of the next fastest way."""
    error, bad = RuntimeError("Traceback\n  File x\nRuntimeError: out of memory"), costs(train=(9.0, 0.1))
    if when == "start":
        bad["start"] = error
    else:
        bad[FORWARD if "forward" in when else TRAIN][0 if "first" in when else 3] = error
    batch, entrants = race({"tinydiff": costs(), "eager": costs(train=(9.0, 1.0)), "compiled": bad})
    assert batch["failed"] == {"compiled": "RuntimeError: out of memory"}
    assert batch["seconds"]["train"] == {"tinydiff": 0.5, "eager": 1.0}
    assert batch["ratios"] == {"train": 2.0, "forward": 1.0, "memory": 1.0}
    assert "compiled" not in batch["first"] and "compiled" not in batch["peak_mb"]
    asked = {"start": 0, "first step": 1, "first forward": 2, "a round": 5, "a round of forward": 10}  # 3 and 5 rounds
    assert len(entrants["compiled"].asked) == asked[when]


@pytest.mark.parametrize("limit, late", [(30.0, False), (29.0, True)])
def test_a_slow_compilation_ends_at_the_limit(race, clock, limit, late):
    """30 s are within a limit of 30 s; with 29 s the process is ended, and the race goes on at once."""
    batch, entrants = race({"tinydiff": costs(), "eager": costs(), "compiled": costs(train=(30.0, 0.1))}, limit)
    assert entrants["compiled"].killed == late == (batch["failed"] == {"compiled": "no answer within 29 s"})
    assert batch["fastest"]["train"] == ("eager" if late else "compiled")


def test_a_way_that_never_answers_is_ended(race, clock):
    """The wait is the limit, once; ours is never given up silently."""
    began = clock.now
    batch, _ = race({"tinydiff": costs(), "eager": costs(train=(None, 0.1))}, limit=50.0)
    # 1 s of start, 50 of waiting, 4 of the first forward; rounds cost the clock nothing here
    assert clock.now - began == 1 + 50 + 4 and list(batch["failed"]) == ["eager"]
    with pytest.raises(TimeoutError, match="no answer within 5 s"):
        race({"tinydiff": costs(train=(6.0, 0.1)), "eager": costs()}, limit=5.0)


def test_when_every_way_fails_ours_is_alone(race):
    """No ratio, no fastest way, and both reasons."""
    bad = [costs() | {"start": RuntimeError(text)} for text in ("no CUDA", "x" * 200)]
    batch, _ = race({"tinydiff": costs(), "eager": bad[0], "compiled": bad[1]})
    assert batch["failed"] == {"eager": "no CUDA", "compiled": "x" * 77 + "..."}
    assert set(batch["ratios"].values()) | set(batch["fastest"].values()) == {None}


def test_the_table_shows_what_the_report_holds(on_gpu):
    """Images a second, MB, seconds of the first calls, reasons, ratios and the ways to which they refer."""
    batch = {
        "seconds": {"train": {"tinydiff": 0.064, "eager": 0.128}, "forward": {"tinydiff": 0.016, "eager": 0.008}},
        "first": {"tinydiff": [3.04, 0.5], "eager": [7.0, 1.25]},
        "peak_mb": {"tinydiff": 512.0, "eager": 1024.5},
        "failed": {"compiled": "RuntimeError: no compiler"},
        "notes": {"tinydiff": ["the training step is recorded"]},
        "fastest": {"train": "eager", "forward": "eager"},
        "ratios": {"train": 2.0, "forward": 0.5, "memory": 0.4998},
    }
    lines = [re.split(r"\s{2,}", line) for line in on_gpu.table_lines(64, batch)[1:]]
    assert lines == [
        ["batch 64", "train step", "forward", "memory", "first step", "first forward"],
        ["tinydiff", "1000 img/s", "4000 img/s", "512.00 MB", "3.0 s", "0.5 s"],
        ["eager", "500 img/s", "8000 img/s", "1024.50 MB", "7.0 s", "1.2 s"],
        ["compiled", "RuntimeError: no compiler"],
        ["ratio", "2.00", "0.50", "0.50"],
        ["fastest of PyTorch, train: eager"],
        ["fastest of PyTorch, forward: eager"],
        ["tinydiff: the training step is recorded"],
    ]


# ------------------------------------------------------------------------------------ PyTorch's side, with a stand-in


@pytest.fixture
def peer(monkeypatch, module):
    """(torch_peer with a stand-in for torch, the list of what is asked of torch)."""
    events = []

    def noted(name, answer=None):
        return lambda *args, **kwargs: (events.append((name, *args, *kwargs.items())), answer)[1]

    @contextmanager
    def block(name):
        events.append(f"{name} begins")
        yield
        events.append(f"{name} ends")

    class Stream:
        wait_stream = noted("wait_stream")

    class CUDAGraph:
        replay = noted("replay")

    current = Stream()
    cuda = types.SimpleNamespace(
        Stream=Stream, CUDAGraph=CUDAGraph, current_stream=lambda: current, synchronize=noted("synchronize"),
        stream=lambda s: block("stream"), graph=lambda g: block("graph"), max_memory_reserved=lambda: 3 * 2**20,
    )  # fmt: skip
    torch, nn, functional = (types.ModuleType(name) for name in ("torch", "torch.nn", "torch.nn.functional"))
    for one in (torch, nn, functional):
        one.__spec__ = importlib.machinery.ModuleSpec(one.__name__, None)
    flags = types.SimpleNamespace
    torch.cuda, torch.nn, nn.functional, nn.Module = cuda, nn, functional, object
    torch.backends = flags(cuda=flags(matmul=flags()), cudnn=flags())
    torch.set_default_device = noted("device")
    for name in ("torch", "torch.nn", "torch.nn.functional"):
        monkeypatch.setitem(sys.modules, name, {"torch": torch, "torch.nn": nn}.get(name, functional))
    monkeypatch.delitem(sys.modules, "torch_peer", raising=False)
    found = module("torch_peer")

    def made(self, *, channels, batch_size, cores, layout, size, network):
        self.model = types.SimpleNamespace(compile=noted("compile"))
        events.append(("network", channels, batch_size, cores, layout, {"size": size, "network": network}))

    monkeypatch.setattr(found.Peer, "__init__", made)
    for job in ("train", "forward"):
        monkeypatch.setattr(found.Peer, job, lambda self, job=job: [lambda _: events.append(job)])
    monkeypatch.setattr(found, "_updater", noted("updater"))
    yield found, events
    sys.modules.pop("torch_peer", None)


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", True)])
@pytest.mark.parametrize("number", range(7))
def test_each_way_is_what_its_name_says(on_gpu, peer, number, precision, tf32):
    """Layout, mode and graphs of the name reach PyTorch; TF32 is on or off for products and convolutions alike."""
    peer, events = peer
    name = list(on_gpu.WAYS)[number]
    settings = {"backend": "cupy", "precision": precision, "channels": 32, "batch_size": 64, "device": "cuda"} | COLOUR
    one = on_gpu.contestant(name, **settings)
    layout = "channels_last" if "last" in name or "reduce" in name else "contiguous_format"
    mode = {"compiled": "default", "compiled, channels last": "default", "compiled, reduce-overhead": "reduce-overhead"}
    extra = [("updater", one.model, ("capturable", True))] if "graphs" in name else []
    extra += [("compile", ("mode", mode[name]))] if name in mode else []
    assert events == [("device", "cuda"), ("network", 32, 64, 1, layout, COLOUR), *extra]
    flags = peer.torch.backends
    assert flags.cuda.matmul.allow_tf32 == flags.cudnn.allow_tf32 == tf32 and one.peak_mb() == 3.0


@pytest.mark.parametrize("job", ["train", "forward"])
def test_a_graph_is_recorded_once_and_then_replayed(on_gpu, peer, job):
    """Three calls beside the main stream, each side waiting for the other, then one in the recording; a launch is a
    replay and a wait, and calls nothing."""
    peer, events = peer
    one = peer.OnDevice(
        device="cuda", channels=8, batch_size=2, layout="channels_last", mode=None, graphed=True, tf32=True, **COLOUR
    )
    events.clear()
    stages = getattr(one, job)()
    side, main = events[0][1], events[0][2]
    assert main is peer.torch.cuda.current_stream() is not side
    expected = [("wait_stream", side, main), "stream begins", *3 * [job], "stream ends", ("wait_stream", main, side)]
    assert events == [*expected, "graph begins", job, "graph ends"]
    events.clear()
    for stage in stages:
        stage(None)
    assert [event[0] for event in events] == ["replay", "synchronize"]


def test_eager_is_neither_compiled_nor_recorded(peer):
    """A call is a call, and then a wait."""
    peer, events = peer
    one = peer.OnDevice(
        device="cuda", channels=8, batch_size=2, layout="channels_last", mode=None, graphed=False, tf32=True, **COLOUR
    )
    for stage in one.train():
        stage(None)
    assert events[2:] == ["train", ("synchronize",)]
