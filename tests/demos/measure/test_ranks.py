"""The cost model of many ranks: its formula, by hand and by its limits, and that it is fed with what was measured."""

import pytest

from tinydiff.backend import TinydiffError, backend_name

pytestmark = pytest.mark.program

COSTS = {"c": 0.008, "d": 1e-5, "e": 1e-7, "u": 0.003, "numbers": 1_000_000}


@pytest.fixture
def demo(load_demo):
    return load_demo("measure/ranks")


def test_the_ring_by_hand(demo):
    """4 ranks, 4 MB, 10 Gbit/s: 3/2 of 3.2 ms and 6 messages of 30 us; one rank sends nothing."""
    assert demo.allreduce(4, 4_000_000, 10) == pytest.approx(1.5 * 3.2e-3 + 6 * 30e-6)
    assert demo.allreduce(1, 4_000_000, 10) == 0


def test_the_efficiency_by_hand(demo):
    """Alone 64 images take 512 ms, 0.64 ms of drawing and 3 ms; each of 4 ranks draws all of theirs and waits for the
    ring; each of 128 draws at most two blocks beside its own, and the times and labels of all."""
    assert demo.efficiency(COSTS, 1) == 1
    alone, four = 0.64 + 0.0064, 2.56 + 0.0256
    assert demo.efficiency(COSTS, 4) == pytest.approx((515 + alone) / (515 + four + 4.98))
    assert demo.efficiency(COSTS, 4, speed=100) == pytest.approx((5.15 + alone) / (5.15 + four + 4.98))
    large = (515 * 50 + alone) / (515 * 50 + four + 50 * 4.8 + 0.18)
    assert demo.efficiency(COSTS, 4, scale=50) == pytest.approx(large)
    many = 515 + (64 + 1024) * 0.01 + 128 * 64 * 1e-4 + 2 * 127 * (3.2 / 128 + 0.03)
    assert demo.efficiency(COSTS, 128) == pytest.approx((515 + alone) / many)


def test_the_batch_is_the_smallest_that_is_good(demo):
    """One image less is not; where drawing alone costs too much, there is none."""
    for n, gigabits in ((2, 10), (16, 1), (64, 100)):
        each = demo.batch_for(COSTS, n, gigabits=gigabits)
        assert demo.efficiency(COSTS, n, gigabits=gigabits, batch=each) >= demo.GOOD
        assert each == 1 or demo.efficiency(COSTS, n, gigabits=gigabits, batch=each - 1) < demo.GOOD
    assert demo.batch_for(COSTS | {"e": 1e-5}, 1024) is None  # 1,024 x 10 us beside 8 ms


@pytest.mark.skipif(backend_name() != "numpy", reason="the demo measures the CPU")
def test_one_worker_measures_and_predicts(demo, tmp_path, monkeypatch, capsys):
    """A table row for each network, link and speed, and a picture; the step's parts are not longer than the step."""
    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(
        demo, "build_unet", lambda config, seed, build=demo.build_unet: build(config | {"base_channels": 8}, seed)
    )
    demo.main(workers=1, rounds=1, out=tmp_path)
    printed = capsys.readouterr().out
    assert "1 local worker(s): " in printed and " img/s" in printed and "Allreduce" not in printed
    assert len((tmp_path / "ranks.md").read_text().splitlines()) == 2 + 8
    assert (tmp_path / "ranks.png").stat().st_size > 5000
    with pytest.raises(TinydiffError, match="files are written with one worker only; leave it out, or add --workers 1"):
        demo.main(workers=2, out=tmp_path)
