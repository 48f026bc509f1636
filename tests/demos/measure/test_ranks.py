"""The cost model of many ranks: its formula, by hand and by its limits, and that it is fed with what was measured."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.backend import TinydiffError, backend_name
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.program

COSTS = {"c": 0.008, "d": 1e-5, "e": 1e-7, "u": 0.003, "numbers": 1_000_000}
cpu_only = pytest.mark.skipif(backend_name() != "numpy", reason="the demo measures the CPU")


@pytest.fixture
def demo(load_demo):
    return load_demo("measure/ranks")


@pytest.fixture
def timed(demo, clock, monkeypatch):
    """The demo with a clock that only known costs move."""
    monkeypatch.setattr(demo, "time", clock)
    return demo


class Ranks:
    """Stands in for the ranks and for their workers: an Allreduce takes 2 us, and 1 ms for a million numbers."""

    model = SimpleNamespace(num_classes=10)
    flat = SimpleNamespace(data=np.zeros(7, "float32"))

    def __init__(self, size, clock):
        self.size, self.clock, self.asked, self.reduced = size, clock, [], []

    def default_workers(self):
        return max(self.size, 3)

    @contextmanager
    def workers(self, build, num_workers):
        self.asked.append((build, num_workers))
        yield self

    def allreduce_mean(self, a):
        self.reduced.append((len(a), a.dtype))
        self.clock.spend(2e-6 if len(a) == 1 else 1e-3)
        return a


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
    assert demo.efficiency(COSTS, 4, gigabits=100) == pytest.approx((515 + alone) / (515 + four + 0.48 + 0.18))
    large = (515 * 50 + alone) / (515 * 50 + four + 50 * 4.8 + 0.18)
    assert demo.efficiency(COSTS, 4, scale=50) == pytest.approx(large)
    many = 515 + (64 + 1024) * 0.01 + 128 * 64 * 1e-4 + 2 * 127 * (3.2 / 128 + 0.03)
    assert demo.efficiency(COSTS, 128) == pytest.approx((515 + alone) / many)
    assert demo.efficiency(COSTS, 3, batch=1) == pytest.approx((11 + 0.0101) / (11 + 0.0303 + 4 / 3 * 3.2 + 4 * 0.03))


def test_the_batch_is_the_smallest_that_is_good(demo):
    """One image less is not; where drawing alone costs too much, there is none."""
    for n, gigabits in ((2, 10), (16, 1), (64, 100)):
        each = demo.batch_for(COSTS, n, gigabits=gigabits)
        assert demo.efficiency(COSTS, n, gigabits=gigabits, batch=each) >= demo.GOOD
        assert each == 1 or demo.efficiency(COSTS, n, gigabits=gigabits, batch=each - 1) < demo.GOOD
    assert demo.batch_for(COSTS | {"e": 1e-5}, 1024) is None  # 1,024 x 10 us beside 8 ms


@pytest.mark.parametrize("needed", [1, 2, 3, 4, 5, 7, 8, 1000, 2**39, 2**40])
def test_the_search_ends_at_any_batch(demo, monkeypatch, needed):
    """An efficiency that is good from `needed` images on; beyond 10^12 the search gives up.  Settings are passed on."""

    def efficiency(costs, n, *, batch, gigabits):
        assert (costs, n, gigabits) == (COSTS, 5, 7)
        return demo.GOOD if batch >= needed else np.nextafter(demo.GOOD, 0)

    monkeypatch.setattr(demo, "efficiency", efficiency)
    assert demo.batch_for(COSTS, 5, gigabits=7) == (needed if needed <= 2**39 else None)


def test_the_median_time_of_a_call_without_two_warm_ups(timed, clock):
    """The first two calls, slow ones, do not count; of an even number of rounds the two middle ones do."""
    assert timed.seconds(clock.costing(50.0, 60.0, 1.0, 9.0, 2.0), 3) == 2.0
    assert timed.seconds(clock.costing(50.0, 60.0, 1.0, 9.0, 2.0, 4.0), 4) == 3.0
    calls = []
    timed.seconds(lambda: calls.append(1), 5)
    assert len(calls) == 7


def test_the_costs_of_a_step_are_those_of_its_parts(timed, clock, monkeypatch):
    """A step of 100 ms: 64 images of 1.25 ms each, drawn in 0.125 ms each; the other 12 ms are the update.

    The parts belong to the run of the main job: its schedule, its draw, its loss, one batch for all.
    """
    made, drawn, gradients, steps = [], [], [], []

    def draw(config, step):
        drawn.append((config, step))
        return clock.spend(0.008, "a batch")

    def training(pool, schedule, config, dataset):
        made.append((pool, schedule.T, config, dataset))
        return SimpleNamespace(config=config, draw=draw)

    def train(state):
        while True:
            steps.append(state.config)
            yield clock.spend(step_seconds)

    def gradient(losses_of, batch):
        gradients.append((losses_of, batch))
        clock.spend(0.08)

    monkeypatch.setattr(timed, "diffusion_training", training)
    monkeypatch.setattr(timed, "train", train)
    pool, step_seconds = Ranks(1, clock), 0.1
    pool.gradients = gradient
    step, costs = timed.measure_step(pool, "data", 3)
    assert step == pytest.approx(0.1)
    assert costs == pytest.approx({"c": 0.00125, "d": 0.000125, "u": 0.012, "numbers": 7})
    config = TrainConfig(batch_size=timed.BATCH, minutes=None)
    assert made == [(pool, Schedule.linear().T, config, "data")]
    assert set(drawn) == {(config, 0)} and len(drawn) == 1 + 5 and steps == [config] * 5
    assert gradients == [(timed.noise_prediction_losses, "a batch")] * 5
    step_seconds = 0.07  # faster than its parts, as noise can have it: an update takes no negative time
    assert timed.measure_step(pool, "data", 1)[1]["u"] == 0


def test_an_image_of_another_rank_costs_its_time_and_its_place(timed, clock, monkeypatch):
    """Drawing takes 1 ms for an image of the block that holds the rank's rows, and 2 us for one of another block.

    The 2 us are what is measured: the own block is there in both batches.  If the small batch is the slower one, the
    cost is 0.
    """
    sizes = []

    def draw_batch(dataset, schedule, num_classes, config, step):
        assert (schedule.T, num_classes) == (1000, 10)
        n = config.batch_size
        sizes.append(n)
        clock.spend(n * (1e-3 if dataset is images else other))
        return {"t": np.zeros(n)}

    images, other = timed.noise_images(), 2e-6
    monkeypatch.setattr(timed, "draw_batch", draw_batch)
    assert timed.measure_others(images, 2) == pytest.approx(2e-6)
    assert set(sizes) == {timed.BLOCK} and len(sizes) == 4 * (1 + 1 + timed.OTHERS)
    other = -1e-9
    assert timed.measure_others(images, 1) == 0


def test_the_images_are_bytes_of_every_value_and_drawn_as_a_data_set_is(demo):
    """5,000 images of 28 x 28 random pixels, the same in every run."""
    dataset = demo.noise_images()
    assert dataset.images.shape == (5000, 28, 28, 1) and len(dataset.classes) == 10
    assert set(np.unique(dataset.images)) == set(range(256))
    np.testing.assert_array_equal(dataset.images, demo.noise_images().images)


def test_units_of_what_is_printed(demo):
    """Half a second a step of 64 images; 8 ms an image; us and ns for what is drawn; MPI ranks and workers by name."""
    assert demo.step_line(3, "mpi", 0.5) == "3 MPI rank(s): 500.0 ms a step, 128.0 img/s"
    assert demo.step_line(1, "local", 0.016) == "1 local worker(s): 16.0 ms a step, 4000.0 img/s"
    line = "an image: 8.00 ms, drawn in 10.0 us, 100 ns for another rank's; update 3.0 ms"
    assert demo.costs_line(COSTS) == line


@pytest.mark.parametrize("n", [2, 3, 128])
def test_latency_and_rate_of_a_ring_are_found_from_its_times(demo, n):
    """The formula of the prediction, read backwards: 30 us a message, 10 Gbit/s are 1.25 GB/s, for any number of ranks.

    What is not slower than one number has no rate.
    """
    one, whole = 2 * (n - 1) * demo.LATENCY, demo.allreduce(n, 4_000_000, 10)
    first, second = demo.allreduce_lines(n, one, whole, 1_000_000)
    assert first == f"Allreduce: {1e6 * one:.1f} us for 4 bytes, {1e3 * whole:.2f} ms for 4,000,000 bytes"
    assert second == "so 30.0 us a message and 1.25 GB/s each way"
    assert demo.allreduce_lines(n, one, one, 10)[1] == "so 30.0 us a message and too much to measure each way"


def test_a_row_of_the_table_names_what_it_predicts(demo):
    """Every speed, network, link and number of ranks once; each cell is the efficiency and the whole batch needed."""
    rows = demo.table(COSTS)
    assert [tuple(row.values())[:3] for row in rows] == [
        (f"{speed}x", f"{scale}x", gigabits) for speed in (1, 100) for scale in (1, 50) for gigabits in (10, 100)
    ]
    for row in rows:
        assert list(row) == ["rank", "network", "Gbit/s", "n = 2", "n = 16", "n = 128", "n = 1,024"]
        settings = {"scale": int(row["network"][:-1]), "speed": int(row["rank"][:-1]), "gigabits": row["Gbit/s"]}
        for n, cell in zip((2, 16, 128, 1024), list(row.values())[3:]):
            share, batch = cell.split(" ")
            assert share == f"{100 * demo.efficiency(COSTS, n, **settings):.1f}%"
            each = demo.batch_for(COSTS, n, **settings)
            assert batch == ("(never)" if each is None else f"({n * each:,})")
    assert "(never)" in str(rows) and ",0" in str(rows)


def test_the_picture_shows_the_efficiency_of_each_network_and_link(demo):
    """A panel for each speed, named by its images a second; four curves from 1 rank, 100%, to 1,024; labelled ticks."""
    figure = demo.picture(COSTS)
    assert figure.get_suptitle() == "Predicted, 64 images a rank, nothing overlapped"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "ranks of 125 img/s (at 4 MB)",
        "ranks of 12,500 img/s (at 4 MB)",
    ]
    n = 2 ** np.arange(11)
    for axes, speed in zip(figure.axes, (1, 100)):
        expected = {
            f"{4 * scale:,} MB of gradient, {gigabits} Gbit/s": (scale, gigabits)
            for scale in (1, 50)
            for gigabits in (10, 100)
        }
        assert [line.get_label() for line in axes.lines] == list(expected)
        for line, (scale, gigabits) in zip(axes.lines, expected.values()):
            np.testing.assert_array_equal(line.get_xdata(), n)
            y = [100 * demo.efficiency(COSTS, k, scale=scale, gigabits=gigabits, speed=speed) for k in n.tolist()]
            np.testing.assert_array_equal(line.get_ydata(), y)
            assert y[0] == 100 and (line.get_linestyle() == "-") == (scale == 1)
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 4
        assert axes.get_xlabel() == "ranks" and axes.get_xscale() == "log"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16", "64", "256", "1,024"]
        assert axes.get_xticks().tolist() == [1, 4, 16, 64, 256, 1024]
        assert axes.get_ylim() == (0, 103)
    first, second = figure.axes
    assert first.get_ylabel() == "efficiency, %" and first.get_shared_y_axes().joined(first, second)
    assert [text.get_text() for text in first.get_legend().get_texts()] == list(expected) and not second.get_legend()


@pytest.fixture
def quick(timed, clock, monkeypatch):
    """main with stand-ins: a step of 0.5 s with COSTS.  quick(size) has so many ranks; started: what began them."""
    monkeypatch.setattr(timed, "measure_others", lambda dataset, rounds: COSTS["e"])

    def prepare(size):
        ranks = Ranks(size, clock)
        ranks.started, ranks.measured = [], []

        def measure_step(pool, dataset, rounds):
            ranks.measured.append((pool, len(dataset), rounds))
            return 0.5, {name: value for name, value in COSTS.items() if name != "e"}

        monkeypatch.setattr(timed, "measure_step", measure_step)
        monkeypatch.setattr(timed.cli, "start", lambda *choice: ranks.started.append(choice) or ranks)
        return ranks

    timed.prepare = prepare
    return timed


@cpu_only
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_are_measured_together_and_write_nothing(quick, size, capsys, tmp_path, monkeypatch):
    """All ranks work, on the reference network with ten classes.  The Allreduce is timed for 1 and for all numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick, "build_unet", lambda config, seed: (config, seed))
    ranks = quick.prepare(size)
    quick.main(parallel="mpi", rounds=2)
    build, workers = ranks.asked[0]
    assert ranks.started == [("numpy", None, "mpi")] and workers == max(size, 3)
    assert build() == ({"num_classes": 10}, 0)
    assert ranks.measured == [(ranks, 5000, 2)]
    assert ranks.reduced == [(1, np.float32)] * 12 + [(1_000_000, np.float32)] * 12
    lines = quick.allreduce_lines(size, 2e-6, 1e-3, 1_000_000)
    assert capsys.readouterr().out.splitlines() == [quick.step_line(3, "mpi", 0.5), *lines]
    assert list(tmp_path.iterdir()) == []


@cpu_only
def test_one_worker_predicts_and_more_do_not(quick, capsys, tmp_path, monkeypatch):
    """One process with one worker prints its costs, the table and the picture's path; with all cores, the step only."""
    ranks = quick.prepare(1)
    quick.main(rounds=2)
    assert [workers for _, workers in ranks.asked] == [3] and ranks.started == [("numpy", None, "local")]
    assert capsys.readouterr().out == "3 local worker(s): 500.0 ms a step, 128.0 img/s\n"

    drawn = []
    monkeypatch.setattr(quick, "picture", lambda costs, draw=quick.picture: drawn.append(costs) or draw(costs))
    quick.main(workers=1, rounds=2, out=tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [quick.step_line(1, "local", 0.5), quick.costs_line(COSTS)]
    assert drawn == [COSTS] and printed[-1] == f"picture: {tmp_path}/ranks.png"
    heads, _, *written = (tmp_path / "ranks.md").read_text().splitlines()
    expected = [list(map(str, row.values())) for row in quick.table(COSTS)]
    assert [line.strip("| ").split(" | ") for line in written] == expected and "n = 1,024" in heads
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks.md", "ranks.png"]
    with pytest.raises(TinydiffError, match="files are written with one worker only; leave it out, or add --workers 1"):
        quick.main(workers=2, out=tmp_path)
    monkeypatch.chdir(tmp_path)
    quick.main(workers=1, rounds=2)
    assert (tmp_path / quick.OUT / "ranks.png").exists()


@cpu_only
def test_one_worker_measures_and_predicts(demo, tmp_path, monkeypatch, capsys):
    """A real measurement, of one round: the step's parts are not longer than the step."""
    found = []

    def measured(pool, dataset, rounds, measure=demo.measure_step):
        found.append(measure(pool, dataset, rounds))
        return found[0]

    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(demo, "measure_step", measured)
    monkeypatch.setattr(
        demo, "build_unet", lambda config, seed, build=demo.build_unet: build(config | {"base_channels": 8}, seed)
    )
    demo.main(workers=1, rounds=1, out=tmp_path)
    printed = capsys.readouterr().out
    assert "1 local worker(s): " in printed and " img/s" in printed and "Allreduce" not in printed
    ((step, costs),) = found
    assert 0 < costs["d"] < costs["c"] < 10 * step and costs["u"] >= 0 and costs["numbers"] > 10_000
