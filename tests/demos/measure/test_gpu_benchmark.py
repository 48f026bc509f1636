"""gpu_benchmark.py, rehearsed on the CPU: it times both sides and says so where there is only one."""

import importlib
import json
from pathlib import Path

import pytest

from tinydiff.backend import BackendError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]


@pytest.fixture
def benchmark(monkeypatch):
    """The module, by a name under which the processes that it starts find it too."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "demos")
    return importlib.import_module("gpu_benchmark")


def rehearse(benchmark, **options):
    return benchmark.main(backend="numpy", device="cpu", channels=16, rounds=1, **options)


def test_without_torch_it_times_ours_for_each_batch(benchmark, monkeypatch, capsys, tmp_path):
    """A time for each job, no ratio, and the file holds what is printed."""
    monkeypatch.setattr(benchmark, "_torch_works", lambda device: False)
    report = rehearse(benchmark, batch_sizes=(2, 3), json_path=tmp_path / "figures.json")
    assert list(report["batches"]) == [2, 3] and "ours alone" in capsys.readouterr().out
    for batch in report["batches"].values():
        assert list(batch["seconds"]) == ["train", "forward"]
        assert all(list(by) == ["tinydiff"] and by["tinydiff"] > 0 for by in batch["seconds"].values())
        assert batch["ratios"] == {"train": None, "forward": None, "memory": None}
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(report))


def test_with_torch_each_of_its_ways_is_timed(benchmark, monkeypatch):
    """Eager in both layouts; compiling takes a CPU minutes."""
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark, "WAYS", {name: way for name, way in benchmark.WAYS.items() if not way[1]})
    batch = rehearse(benchmark, batch_sizes=(2,))["batches"][2]
    for job, by in batch["seconds"].items():
        assert list(by) == ["tinydiff", "eager", "eager, channels last"]
        assert batch["ratios"][job] == min(by["eager"], by["eager, channels last"]) / by["tinydiff"]


def test_without_a_gpu_it_says_so(benchmark, monkeypatch):
    """And so does benchmark.py --backend cupy, which hands on to it."""
    monkeypatch.setattr("tinydiff.backend._load_cupy", lambda *_: (_ for _ in ()).throw(BackendError("no GPU")))
    for main in (benchmark.main, lambda: importlib.import_module("benchmark").main(backend="cupy")):
        with pytest.raises(BackendError, match="no GPU"):
            main()
