"""The GPU's table, rehearsed on the CPU: both sides are timed, and a side that is alone has no ratio."""

import json

import pytest

from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]


@pytest.fixture
def on_gpu(module):
    return module("on_gpu")


@pytest.fixture
def rehearse(module):
    def main(**options):
        return module("benchmark").main(backend="numpy", device="cpu", channels=16, rounds=1, **options)

    return main


def test_without_torch_it_times_ours_for_each_batch(on_gpu, rehearse, monkeypatch, capsys, tmp_path):
    """A time for each job, no ratio, and the file holds what is printed."""
    monkeypatch.setattr(on_gpu, "torch_works", lambda device: False)
    report = rehearse(batch_sizes=(2, 3), json_path=tmp_path / "figures.json")
    assert list(report["batches"]) == [2, 3] and "ours alone" in capsys.readouterr().out
    for batch in report["batches"].values():
        assert list(batch["seconds"]) == ["train", "forward"]
        assert all(list(by) == ["tinydiff"] and by["tinydiff"] > 0 for by in batch["seconds"].values())
        assert batch["ratios"] == {"train": None, "forward": None, "memory": None}
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(report))


def test_the_plain_functions_take_part_where_asked_for(on_gpu, rehearse, monkeypatch, capsys):
    """They are timed beside ours and enter no ratio to PyTorch's."""
    monkeypatch.setattr(on_gpu, "torch_works", lambda device: False)
    batch = rehearse(batch_sizes=(2,), plain=True)["batches"][2]
    assert all(list(by) == ["tinydiff", "plain"] and by["plain"] > 0 for by in batch["seconds"].values())
    assert batch["ratios"] == {"train": None, "forward": None, "memory": None}
    assert "plain / fast" in capsys.readouterr().out


def test_with_torch_each_of_its_ways_is_timed(on_gpu, rehearse, monkeypatch):
    """Eager in both layouts; compiling takes a CPU minutes."""
    pytest.importorskip("torch")
    monkeypatch.setattr(on_gpu, "WAYS", {name: way for name, way in on_gpu.WAYS.items() if not way[1]})
    batch = rehearse(batch_sizes=(2,))["batches"][2]
    for job, by in batch["seconds"].items():
        assert list(by) == ["tinydiff", "eager", "eager, channels last"]
        assert batch["ratios"][job] == min(by["eager"], by["eager, channels last"]) / by["tinydiff"]
