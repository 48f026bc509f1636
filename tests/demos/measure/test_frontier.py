"""The frontier of guidance: each point's figures are those of the digits that its guidance draws.

Exact denoisers of stamps stand in for the trained network and for the early one, whose stamps are wider.
"""

import csv

import numpy as np
import pytest
from stand_ins import META, SCHEDULE, Leaning, StampReader, data, pool_of, series, stand_in

from tinydiff.app.choices import guidance
from tinydiff.app.generate import Recipe, by_label, generate
from tinydiff.app.metrics import wilson_interval
from tinydiff.app.reading import Judge
from tinydiff.app.trained import Pair
from tinydiff.backend import TinydiffError, default_rng

pytestmark = pytest.mark.program


@pytest.fixture(scope="module")
def test_set():
    return data(np.arange(140) % 10, default_rng(3), 0.2)


@pytest.fixture
def demo(load_demo, monkeypatch, test_set):
    """The program; `drawn` counts the points that are drawn."""
    demo = load_demo("measure/frontier")
    stand_in(monkeypatch, demo, Leaning(), test_set)
    network, early = Leaning([1, 0, *range(2, 11)], var=0.3), Leaning(var=0.6)
    network.config = {}
    pair, demo.drawn = Pair(network, early), []
    monkeypatch.setattr(demo, "load_guided", lambda *_: (pool_of(pair), SCHEDULE, META))
    measure = demo.measure
    monkeypatch.setattr(demo, "measure", lambda *given: demo.drawn.append(1) or measure(*given))
    demo.pair = pair
    return demo


def run(demo, out, **options):
    options = {"scales": [1.0, 3.0], "autos": [1.0, 2.0], "num": 20, "steps": 12, **options}
    return demo.main("unet.npz", workers=1, out=out, **options)


def test_the_figures_are_those_of_what_each_point_draws(demo, tmp_path, test_set):
    """All pairs, then the same at sigma in (0.28, 2.9] only; from one noise; the first one is without guidance."""
    rows, real = run(demo, tmp_path, interval=True, seed=4)
    pairs = [(1, 1), (3, 1), (1, 2), (3, 2)]
    assert [*rows] == [(*pair, False) for pair in pairs] + [(*pair, True) for pair in pairs[1:]]
    judge, labels, seen = Judge(pool_of(StampReader()), test_set, 20), np.arange(20) % 10, set()
    assert real == judge.real
    for (scale, auto, middle), figures in rows.items():
        settings, _ = guidance(demo.pair, scale, auto)

        def guide(model, labels, scale, inside=settings["guide"], middle=middle):
            full, none = inside(model, labels, scale), by_label(model, labels, 1)
            sigma = (1 / SCHEDULE.alpha_bar - 1) ** 0.5
            return lambda x_t, t: (full if not middle or 0.28 < sigma[t] <= 2.9 else none)(x_t, t)

        recipe = Recipe(SCHEDULE, (12, 12, 1), num_steps=12, **settings | {"guide": guide})
        frames = generate(pool_of(demo.pair), recipe, labels.tolist(), 4)
        images = np.clip(np.concatenate([part[-1] for part in frames]), -1, 1)
        assert {name: figures[name] for name in judge.real} == judge(images, labels)
        seen.add(images.tobytes())
    assert len(seen) == 7
    with open(tmp_path / "frontier.csv", newline="") as file:
        names = [row["point"] for row in csv.DictReader(file)]
    assert names[1:3] == ["scale 3, auto 1", "scale 1, auto 2"] and names[-2:] == ["scale 3, auto 2, interval", "real"]
    assert (tmp_path / "frontier.png").stat().st_size > 5000


def test_what_is_measured_is_not_measured_again(demo, tmp_path):
    """The same command draws nothing and returns the same numbers; another network, seed or number is another one."""
    first = run(demo, tmp_path)
    assert run(demo, tmp_path) == first and len(demo.drawn) == 4
    run(demo, tmp_path, scales=[1.0, 2.0, 3.0])
    assert len(demo.drawn) == 6
    run(demo, tmp_path, seed=1)
    assert len(demo.drawn) == 10
    demo.pair.weak.w.data[...] = 1.0
    run(demo, tmp_path, seed=1)
    assert len(demo.drawn) == 14


def row(right, frechet, coverage=0.9):
    return {"right": right, "frechet": frechet, "coverage": coverage, "spread": 1.0, "seconds": 1.0}


ROWS = {
    (1.0, 1.0, False): row(94, 19.0, 0.8),
    (1.5, 1.0, False): row(99, 26.0, 0.7),
    (1.0, 2.0, False): row(98, 11.0, 0.95),
    (1.5, 2.0, False): row(99, 14.0, 0.9),
    (1.5, 2.0, True): row(100, 15.0, 0.85),
}
REAL = row(100, 9.0, 0.97)


def test_the_best_point_is_the_nearest_of_those_that_are_right(demo):
    """99 of 100 are enough; a nearer point with 98 is not taken; if there is none the answer is None."""
    assert demo.best(ROWS, 100) == (1.5, 2.0, False)
    assert demo.best({point: row(98, 1.0) for point in ROWS}, 100) is None


def test_the_picture_is_the_table(demo):
    """Both panels have a line for each weight of autoguidance, by growing scale; the interval's points are open."""
    share, coverage = demo.picture(ROWS, REAL, 100).axes
    for axes, heights in ((share, [94, 99, 98, 99, 100, 100]), (coverage, [80, 70, 95, 90, 85, 97])):
        none, open_ = "no autoguidance", "autoguidance 2, interval"
        a, b, c, d, e, real = heights
        expected = {none: [(19, a), (26, b)], "autoguidance 2": [(11, c), (14, d)], open_: [(15, e)]}
        expected |= {"as many real digits": [(9, real)]}
        found = series(axes)
        assert found.keys() == expected.keys()
        for name, points in expected.items():
            np.testing.assert_allclose(found[name], points)
        assert [text.get_text() for text in axes.texts] == ["1", "1.5", "1", "1.5", "1.5"]
        (ring,) = [line for line in axes.lines if line.get_markersize() == 15]
        assert (*ring.get_xdata(), *ring.get_ydata()) == pytest.approx((14, d))
    low, high = share.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(tuple(100 * end for end in wilson_interval(94, 100)))
    assert len(coverage.collections) == 0


def test_without_an_early_average_there_is_no_autoguidance_to_measure(demo, monkeypatch, tmp_path):
    """The sentence comes before anything is drawn; classifier-free guidance alone can be measured."""
    monkeypatch.setattr(demo, "load_guided", lambda *_: (pool_of(Leaning()), SCHEDULE, META))
    with pytest.raises(TinydiffError, match="--auto 2: autoguidance needs an early average of the weights"):
        run(demo, tmp_path)
    assert not demo.drawn
    rows, _ = run(demo, tmp_path, autos=[1.0])
    assert [*rows] == [(1, 1, False), (3, 1, False)]
