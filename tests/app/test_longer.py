"""A run that is made longer has the rates of two runs; a run from another's weights has its average."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, small_run, small_workers

from tinydiff.app import checkpoint, longer
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.longer import continued, lengthen, network_from, start_from
from tinydiff.app.run import UNLIMITED
from tinydiff.app.training import restore, save, steps
from tinydiff.data import Dataset
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.training

SMALLER = {**NETWORK, "channel_mults": [1]}
TINY = replace(CONFIG, batch_size=2)  # 6 steps, 2 of them the warm-up


def config(num_steps, minutes=None):
    return TrainConfig(num_steps=num_steps, minutes=minutes, batch_size=4)


@pytest.mark.parametrize(
    ("before", "step", "planned", "wanted", "after"),
    [  # after: (steps, minutes) of a longer run, None for one that stays as it is, or what is refused
        (config(2000), 2000, 2000, {}, None),
        (config(2000), 2000, 2000, {"num_steps": 2000, "minutes": None}, None),
        (config(2000), 2000, 2000, {"num_steps": 4000, "minutes": None}, (4000, None)),
        (config(2000), 700, 2000, {"num_steps": 4000, "minutes": None}, (4000, None)),
        (config(2000), 700, 2000, {"num_steps": 1999, "minutes": None}, "--steps 1999: the run has 2,000 steps"),
        (config(2000, 8.0), 1551, 1551, {"num_steps": 1551, "minutes": None}, None),  # which the clock had set
        (config(2000, 8.0), 1551, 1551, {"num_steps": 2000, "minutes": None}, (2000, None)),
        (config(2000, 8.0), 1551, 1551, {"num_steps": 1550, "minutes": None}, "--steps 1550: the run has 1,551 steps"),
        (config(UNLIMITED, 60.0), 50, UNLIMITED, {"num_steps": 51, "minutes": None}, (51, None)),
        (config(UNLIMITED, 60.0), 50, UNLIMITED, {"num_steps": 50, "minutes": None}, "--steps 50: the run has"),
        (config(UNLIMITED, 60.0), 700, 9000, {"minutes": 60.0}, None),  # the command that began it, and --resume
        (config(UNLIMITED, 60.0), 700, 9000, {"minutes": 61.0}, "minutes is 60.0 in the checkpoint, 61.0 is wanted"),
        (config(2000), 700, 2000, {"minutes": 60.0}, "minutes is None in the checkpoint, 60.0 is wanted"),
        (config(UNLIMITED, 60.0), 9000, 9000, {"minutes": 60.0}, (UNLIMITED, 60.0)),
        (config(2000), 2000, 2000, {"minutes": 5.0, "batch_size": 4}, (UNLIMITED, 5.0)),
        (config(2000), 2000, 2000, {"minutes": 5.0, "batch_size": 5}, "batch_size is 4 in the checkpoint, 5 is wanted"),
        (config(2000), 2000, 2000, {"num_steps": 4000, "minutes": None, "seed": 1}, "seed is 0 in the checkpoint"),
    ],
)
def test_a_run_may_be_made_longer_and_nothing_else(before, step, planned, wanted, after):
    """More steps at any time, minutes at the end; every other setting stays, or is refused with both values."""
    meta = {"step": step, "num_steps": planned}
    if isinstance(after, str):
        with pytest.raises(CheckpointError) as error:
            continued(before, meta, wanted)
        assert after in str(error.value)
    elif after is None:
        assert continued(before, meta, wanted) == (before, False)
    else:
        assert continued(before, meta, wanted) == (replace(before, num_steps=after[0], minutes=after[1]), True)


def trained(state):
    for _ in steps(state, one_process()):
        pass
    return state


def resumed(state, path, **longer):
    """The run that goes on from a checkpoint of this one, with a longer length."""
    save(state, path, DATASET, SCHEDULE, 1)
    new = small_run(replace(state.config, **longer), SMALLER)
    restore(new, path, *checkpoint.load(path))
    lengthen(new, one_process())
    return new


def rate(k, num_steps):
    """Half a cosine from the peak at step 2 down to 0 at num_steps, written out; before step 2 the warm-up."""
    if k < 2:
        return CONFIG.peak_lr * (k + 1) / 2
    return CONFIG.peak_lr * (1 + math.cos(math.pi * (k - 2) / (num_steps - 2))) / 2


def test_the_rates_are_those_of_the_short_run_and_then_those_of_the_long_one(tmp_path, capsys):
    """Steps 1 to 6 have the rates of a run of 6, steps 7 to 9 those of a run of 9; the line says the first of them."""
    state = trained(resumed(trained(small_run(TINY, SMALLER)), tmp_path / "c.npz", num_steps=9))
    expected = [rate(k, 6) for k in range(6)] + [rate(k, 9) for k in range(6, 9)]
    np.testing.assert_allclose([row[2] for row in state.metrics()], expected, rtol=1e-12)  # float64
    course = f"the learning rate of step 7 is {rate(6, 9):.3g} in place of 0, and falls to 0 at the end"
    assert capsys.readouterr().out.count(f"longer: 6 steps before, 9 now; {course}\n") == 1


def test_minutes_add_the_steps_that_fit(tmp_path, capsys, monkeypatch):
    """At half a second a step a tenth of a minute has 12 more; less than a step's time has one."""
    monkeypatch.setattr(longer, "gradient_seconds", lambda *_: [9.0, 0.5, 0.25])
    short = trained(small_run(TINY, SMALLER))
    for minutes, more in ((0.1, 12), (1e-6, 1)):
        new = resumed(short, tmp_path / "c.npz", num_steps=UNLIMITED, minutes=minutes)
        assert (new.step, new.num_steps) == (6, 6 + more)
        assert f"longer: 6 steps before, {6 + more} now" in capsys.readouterr().out


def test_a_run_in_its_warm_up_leaves_the_number_to_the_clock(tmp_path, capsys, monkeypatch):
    """No gradient is measured, and nothing is said of a rate that is not known yet."""
    monkeypatch.setattr(longer, "gradient_seconds", None)
    short = trained(small_run(replace(TINY, num_steps=1), SMALLER))
    assert resumed(short, tmp_path / "c.npz", num_steps=UNLIMITED, minutes=1.0).num_steps == UNLIMITED
    assert "longer" not in capsys.readouterr().out


# Another's weights.


def pictures(classes, shape=(8, 8, 1)):
    labels = np.arange(6) % len(classes) if classes else None
    return Dataset("other", np.zeros((6, *shape), np.uint8), labels, "black", tuple(classes))


def saved(path, dataset=DATASET, network=SMALLER):
    """A checkpoint whose average is not its weights."""
    state = small_run(TINY, network, dataset=dataset)
    for average in state.ema.average:
        average += 0.5
    save(state, path, dataset, SCHEDULE, 1)
    return checkpoint.load(path)


def test_the_network_is_the_checkpoints_with_the_classes_of_the_data(tmp_path):
    """Other pictures of as many channels, whose sides its levels divide; the rest is refused by name."""
    _, meta = saved(tmp_path / "c.npz", network=NETWORK)
    network = network_from(meta, pictures("abc"), None)
    assert network == meta["model"] | {"num_classes": 3}
    assert network_from(meta, pictures(""), 8)["num_classes"] is None
    for data, channels, said in (
        (pictures("abc", (8, 8, 3)), None, "in_channels is 1 in the checkpoint, 3 is wanted"),
        (pictures("abc"), 16, "base_channels is 8 in the checkpoint, 16 is wanted"),
        (pictures("abc", (8, 9, 1)), None, "pictures of 8 x 9 pixels: .* multiples of 2; use --size"),
    ):
        with pytest.raises(CheckpointError, match=said):
            network_from(meta, data, channels)


@pytest.mark.parametrize(
    ("classes", "same"), [("0123456789", True), ("0123456798", False), ("abc", False), ("", False)]
)
def test_a_run_starts_from_the_average_and_learns_other_classes_anew(tmp_path, capsys, classes, same):
    """Each array is the checkpoint's average; the embedding is so for classes of the same names only."""
    arrays, meta = saved(tmp_path / "c.npz")
    model = small_workers(network_from(meta, pictures(classes), None), 7).model
    before = model.state_dict()
    start_from(model, arrays, meta, tuple(classes))
    for name, a in model.state_dict().items():
        taken = same or not name.startswith("label.")
        np.testing.assert_array_equal(a, arrays[f"ema/{name}"] if taken else before[name])
    line = "weights: the average of 0 steps on noise"
    new = f"; new: label.w, for {len(classes)} other classes" if classes and not same else ""
    assert capsys.readouterr().out == f"{line}{new}\n"


def test_an_old_checkpoint_has_numbers_for_its_classes(tmp_path):
    """It names no classes: digits of the same number are the same classes."""
    arrays, meta = saved(tmp_path / "c.npz")
    del meta["data"]["classes"]
    model = small_workers(meta["model"], 7).model
    start_from(model, arrays, meta, tuple("0123456789"))
    np.testing.assert_array_equal(model.state_dict()["label.w"], arrays["ema/label.w"])
