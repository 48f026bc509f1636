"""The demo of one start: eta = 0 ends in one place whatever the noise, a larger eta in many."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread
from stand_ins import SCHEDULE, SIZE, Leaning
from tiny_runs import save_checkpoint

from tinydiff.app.row_rng import row_rng
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy, xp
from tinydiff.data import load
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    sample,
    timestep_pairs,
    unconditional,
)
from tinydiff.nn import Module

pytestmark = pytest.mark.program


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A checkpoint after one step of a tiny network."""
    path, data = tmp_path_factory.mktemp("trained") / "checkpoint.npz", load("glyphs", num=10)
    save_checkpoint(path, data)
    return path


@pytest.mark.parametrize("label", [None, 3])
def test_columns_agree_at_eta_0_and_part_as_eta_grows(load_demo, path, tmp_path, capsys, label):
    """The printed spread is 0 at eta = 0, and grows with it; the picture has a row an eta."""
    demo = load_demo("same_start")
    spreads = demo.main(path, backend=backend_name(), label=label, num=3, steps=4, out=tmp_path / "new", workers=1)
    values = list(spreads.values())
    assert list(spreads) == list(demo.ETAS) and values[0] < 1e-6  # equal rows of one float32 batch
    assert all(b > a + 1e-3 for a, b in pairwise(values))
    assert f"pixels differ by {values[-1]:.2%} of the range" in capsys.readouterr().out
    assert 0.1 < imread(tmp_path / "new" / "same_start.png")[..., :3].std() < 0.6


class Zero(Module):
    """A network that sees no noise anywhere."""

    num_classes = None

    def forward(self, x_t, t, labels=None):
        return 0 * x_t


def test_the_start_is_one_and_the_seed_names_it(load_demo):
    """With eps_hat = 0 and eta = 0 the end is the start, scaled: one for all columns, another for another seed."""
    demo, schedule = load_demo("same_start"), Schedule.linear(100)
    ends = [demo.ends(schedule, (3, 4, 4, 1), None, 100, 1.0, seed, Zero(), 0.0) for seed in (0, 0, 1)]
    assert (ends[0] == ends[0][:1]).all() and (ends[0] == ends[1]).all() and (ends[0] != ends[2]).any()
    x_T = to_numpy(demo.standard_normal(demo.default_rng("start", 0), (1, 4, 4, 1)))
    assert (np.sign(ends[0][:1]) == np.sign(x_T)).all()
    noisy = demo.ends(schedule, (3, 4, 4, 1), None, 100, 1.0, 0, Zero(), 1.0)
    assert (noisy[0] != noisy[1]).any() and asarray(noisy).dtype == "float32"
    more = demo.ends(schedule, (5, 4, 4, 1), None, 100, 1.0, 0, Zero(), 1.0)
    assert (more[:3] == noisy).all()  # a column is the same however many there are


@pytest.mark.parametrize("label", [None, 0, 3])
def test_every_picture_is_ddim_with_x_0_hat_clipped(load_demo, label):
    """Drawn again by the package's own call, bit for bit, for a network whose x_0_hat leaves -1..1 at many times."""
    demo, network, shape, eta = load_demo("same_start"), Leaning(var=4.0), (3, SIZE, SIZE, 1), 0.5
    eps_fn = unconditional(network) if label is None else classifier_free(network, label, 2.0)
    x_T = xp.repeat(standard_normal(default_rng("start", 5), (1, *shape[1:])), 3, 0)
    clipped, free = (
        [*sample(partial(ddim_step, SCHEDULE, eta=eta, clip=clip), eps_fn, timestep_pairs(100, 7), x_T, rng)][-1][1]
        for clip, rng in ((True, row_rng("way", 5, rows=range(3))), (False, row_rng("way", 5, rows=range(3))))
    )
    ends = demo.ends(SCHEDULE, shape, label, 7, 2.0, 5, network, eta)
    np.testing.assert_array_equal(ends, to_numpy(clipped))
    assert abs(ends).max() == 1 < abs(to_numpy(free)).max()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"steps": 101}, "--steps 101: the schedule has T = 100"),
        ({"label": 10}, "--label 10: must be at most 9"),
        ({"num": 1}, "--num 1: must be at least 2"),
        ({"num": 10**15}, "--num 4000000000000000: that needs"),
        ({"scale": 3.0}, "--scale 3: guidance needs --label"),
    ],
)
def test_what_does_not_fit_is_refused(load_demo, path, tmp_path, options, said):
    """More steps than T, a label that the network does not have, a single picture, guidance without a label."""
    with pytest.raises(TinydiffError, match=said):
        load_demo("same_start").main(path, backend=backend_name(), out=tmp_path, workers=1, **options)
