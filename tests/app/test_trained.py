"""A checkpoint's averaged weights predict the noise, whatever they were trained to predict."""

from functools import partial

import numpy as np
import pytest

from tinydiff.app import checkpoint, kinds
from tinydiff.app.alone import Alone, one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import build_unet
from tinydiff.app.trained import as_eps, load_trained
from tinydiff.app.training import diffusion_training, save
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule, classifier_free, q_sample
from tinydiff.diffusion.targets import EPS, TARGETS, V
from tinydiff.nn import Module
from tinydiff.train import TrainConfig, train

pytestmark = pytest.mark.sampler

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}


@pytest.fixture
def data():
    return Dataset("blank", np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.uint8), "blank", ("a", "b", "c"))


@pytest.fixture
def run(data):
    """A run to be saved: its state, and the workers that it trains."""

    def run(config):
        workers = one_process().workers(partial(build_unet, NETWORK, 0), 1)
        return workers, diffusion_training(workers, Schedule.linear(60), config, data)

    return run


def flat(arrays):
    """All numbers of some arrays, or of some parameters."""
    return np.concatenate([to_numpy(a).reshape(-1) for a in arrays])


def test_a_checkpoint_draws_with_its_averaged_weights(tmp_path, data, run):
    """load_trained gives the EMA weights, not the last ones, and the schedule that was trained on."""
    workers, state = run(TrainConfig(num_steps=3, minutes=None, batch_size=2, warmup=1))
    assert len(list(train(state))) == 3
    save(state, tmp_path / "c.npz", data, Schedule.linear(60), 1)
    loaded, schedule, meta = load_trained(tmp_path / "c.npz", 1)
    assert (flat(loaded.model.parameters()) == flat(state.ema.average)).all()
    assert (flat(loaded.model.parameters()) != flat(workers.model.parameters())).any()
    assert (schedule.beta == Schedule.linear(60).beta).all()
    assert meta["step"] == 3 and meta["data"] == {
        "name": "blank",
        "source": "blank",
        "num": 4,
        "image_shape": [8, 8, 1],
        "classes": ["a", "b", "c"],
    }


def test_the_file_is_read_on_rank_0_for_as_many_workers_as_asked(tmp_path, data, run):
    """Other ranks get what it holds from `broadcast`, where they need no file; the schedule is that of the file."""
    _, state = run(TrainConfig(num_steps=1, minutes=None))
    save(state, tmp_path / "c.npz", data, Schedule.cosine(60), 1)
    held, asked = kinds.load(tmp_path / "c.npz", "diffusion"), []

    class Other(Alone):
        rank, size = 1, 3

        def broadcast(self, make):
            return held

        def workers(self, build, num_workers):
            asked.append(num_workers)
            return one_process().workers(build, 1)

    loaded, schedule, meta = load_trained(tmp_path / "none.npz", 3, Other())
    assert asked == [3] and meta is held[1]
    np.testing.assert_array_equal(schedule.beta, Schedule.cosine(60).beta)
    np.testing.assert_array_equal(flat(loaded.model.parameters()), flat(state.ema.average))


@pytest.mark.parametrize("target", ["eps", "x_0", "v", None])
def test_a_loaded_network_predicts_eps_whatever_it_was_trained_to_predict(tmp_path, data, run, target):
    """load_trained's model is to_eps of what the averaged weights predict; a file that names no target means eps."""
    schedule, path = Schedule.linear(60), tmp_path / "c.npz"
    config = TrainConfig(num_steps=1, minutes=None, target=target or "eps")
    workers, state = run(config)
    rng = default_rng(7)
    for average in state.ema.average:
        average += 0.05 * standard_normal(rng, average.shape)
    save(state, path, data, schedule, 1)
    if target is None:  # as before there was a choice
        arrays, meta = checkpoint.load(path)
        del meta["train"]["target"], meta["train"]["min_snr"]
        checkpoint.save(path, arrays, meta)
    loaded, _, _ = load_trained(path, 1)
    x_t, t, labels = standard_normal(default_rng(1), (4, 8, 8, 1)), np.array([1, 7, 30, 60]), [0, 1, 2, 3]
    with workers.weights(state.ema.average), no_grad():
        prediction = workers.model(x_t, t, labels)
        expected = TARGETS[config.target].to_eps(schedule, x_t, t, asarray(prediction))
        np.testing.assert_array_equal(to_numpy(loaded.model(x_t, t, labels)), to_numpy(expected))
        assert abs(to_numpy(loaded.model(x_t, t, labels))).max() > 0.1  # it does predict something
        # Guidance mixes before or after the conversion, which is affine: the same to float32's rounding of
        # x_t/sqrt(1 - alpha_bar_t) <= 25 and guided numbers of that size.
        guided = classifier_free(loaded.model, labels, 3.0)(x_t, 7)
        mixed = classifier_free(workers.model, labels, 3.0)(x_t, 7)
        expected = TARGETS[config.target].to_eps(schedule, x_t, 7, mixed)
        np.testing.assert_allclose(to_numpy(guided), to_numpy(expected), rtol=0, atol=1e-4)


def test_a_model_of_eps_is_the_network_with_its_names():
    """as_eps is the network itself where that predicts the noise; else its parameters, names and settings are the
    network's, so that a checkpoint of the one fits the other."""
    network = build_unet(NETWORK, 0)
    assert as_eps(network, EPS, Schedule.linear(50)) is network
    model = as_eps(network, V, Schedule.linear(50))
    assert list(model.named_parameters()) == list(network.named_parameters()) != []
    assert (model.config, model.num_classes) == (network.config, 3)


@pytest.mark.parametrize("name", TARGETS)
def test_a_model_of_eps_gives_the_noise_if_the_network_is_right(name):
    """x_t is made of a known x_0 and eps: a network that predicts its target exactly gives that eps, row by row."""
    schedule, t, labels, rng = Schedule.linear(60), np.array([1, 7, 30, 60]), [0, 1, 2, 3], default_rng(3)
    x_0, eps = (standard_normal(rng, (4, 3, 3, 1), "float64") for _ in range(2))
    calls = []

    class Right(Module):
        config, num_classes = {}, 3

        def forward(self, *arguments):
            calls.append(arguments)
            return Tensor(TARGETS[name].of(schedule, x_0, t, eps))

    x_t = q_sample(schedule, x_0, t, eps)
    eps_hat = as_eps(Right(), TARGETS[name], schedule)(x_t, t, labels)
    assert len(calls) == 1 and all(a is b for a, b in zip(calls[0], (x_t, t, labels), strict=True))
    # 1e-12: float64, divided by sqrt(1 - alpha_bar_1) = 0.04
    np.testing.assert_allclose(to_numpy(eps_hat), to_numpy(eps), rtol=0, atol=1e-12)


def test_options_of_earlier_versions_are_no_matter_where_they_were_not_used(tmp_path, data, run):
    """A U-Net once had dropout and text_features: a checkpoint with them off loads, one with either on is refused."""
    _, state = run(TrainConfig(num_steps=1, minutes=None))
    path = tmp_path / "c.npz"
    for options, fits in (
        ({"dropout": 0.0, "text_features": None}, True),
        ({"dropout": 0.1, "text_features": None}, False),
        ({"dropout": 0.0, "text_features": 64}, False),
    ):
        save(state, path, data, Schedule.linear(60), 1, model=state.model.config | options)
        if fits:
            assert load_trained(path, 1)[0].model.config == state.model.config
        else:
            with pytest.raises(CheckpointError, match="dropout=0.1" if options["dropout"] else "text_features=64"):
                load_trained(path, 1)


def test_other_checkpoints_are_refused(tmp_path, data, run):
    """A classifier's checkpoint, and one whose weights do not fit its own configuration, are named and refused."""
    checkpoint.save(tmp_path / "a.npz", {"x": np.zeros(3)}, {"kind": "classifier"})
    with pytest.raises(CheckpointError, match=r"a\.npz holds a network of kind 'classifier', not 'diffusion'"):
        load_trained(tmp_path / "a.npz", 1)
    _, state = run(TrainConfig(num_steps=1, minutes=None))
    path = tmp_path / "b.npz"
    save(state, path, data, Schedule.linear(60), 1)
    arrays, meta = checkpoint.load(path)
    arrays["ema/x"] = arrays.pop("ema/conv_in.b")
    checkpoint.save(path, arrays, meta)
    with pytest.raises(CheckpointError, match=r"b\.npz contains no ema/conv_in\.b; this network's has shape \(8,\)"):
        load_trained(path, 1)
