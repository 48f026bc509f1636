"""One process without the engine room answers as workers and ranks do."""

from contextlib import contextmanager

import numpy as np
import pytest
from plain import fast, plain
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_run

from tinydiff.app.alone import Alone, OneProcess, one_process
from tinydiff.app.generate import build_unet
from tinydiff.app.training import by_name
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, standard_normal, to_numpy
from tinydiff.fast.workers import ALONE, Ranks, Workers
from tinydiff.optim import EMA
from tinydiff.train import draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.training

BATCH = draw_batch(DATASET, SCHEDULE, 10, CONFIG, 0)
each_kind = pytest.mark.parametrize("kind", [OneProcess, Workers])


def build():
    """A small network none of whose parameters is 0."""
    model, rng = build_unet(NETWORK, 0), default_rng(7)
    for p in model.parameters():
        p.data += 0.05 * standard_normal(rng, p.shape)
    return model


def predict(model, job):
    """eps_hat of the first images of the batch at t = job; a mean over them, and the job."""
    with no_grad():
        return to_numpy(model(BATCH["x_t"][:2], job)), job


@contextmanager
def both():
    with OneProcess(build) as one, Workers(build) as workers:
        yield one, workers


def test_the_only_process_is_found_by_whether_the_engine_room_is_open():
    """Alone with nothing installed, the engine room's own with the faster forms."""
    with plain():
        assert type(one_process()) is Alone
        assert type(one_process().workers(build, 1)) is OneProcess
    with fast():
        assert one_process() is ALONE
        assert type(one_process().workers(build, 1)) is Workers


def test_they_have_the_same_names():
    """Whatever a program may ask of ranks or workers, but for the GPU's number and the one buffer."""

    def names(*objects):
        return {name for thing in objects for name in dir(thing) if not name.startswith("_")}

    assert names(Alone()) == names(Ranks()) - {"local_rank"}
    with both() as (one, workers):
        assert names(one) == names(workers) - {"flat"}
        assert (one.num_workers, one.ranks.rank, one.ranks.size) == (1, 0, 1)
        assert (workers.num_workers, workers.ranks.rank, workers.ranks.size) == (1, 0, 1)


@pytest.mark.parametrize("ranks", [Alone(), ALONE], ids=["plain", "installed"])
def test_one_process_alone_is_its_own_rank_0(ranks):
    """All rows are its own, what is made for all is made here, and a mean over the ranks is the array itself."""
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.part(7) == slice(0, 7) and ranks.part(0) == slice(0, 0)
    made = []
    assert ranks.broadcast(lambda: made.append(1) or "made") == "made" and made == [1]
    assert ranks.allreduce_mean(a := np.ones(3, "float32")) is a and a.tolist() == [1, 1, 1]
    assert ranks.rescue(lambda: made.append(2)) is None and made == [1]  # there is time to end the step
    with plain():
        assert ranks.default_workers() == ranks.default_workers(64) == 1


def test_more_workers_are_refused_by_the_option_that_forbids_them():
    """--plain has one process."""
    with pytest.raises(TinydiffError, match="--workers 2: with --plain one process does all the work"):
        Alone().workers(build, 2)
    with pytest.raises(TinydiffError, match="--workers 0: "):
        Alone().workers(build, 0)


@pytest.mark.parametrize("forms", [plain, fast])
def test_they_have_the_same_losses_and_gradients(forms):
    """Bit for bit, with either forms of the functions; a second call does not add to the first."""
    with forms(), both() as (one, workers):
        for _ in range(2):
            losses, expected = (w.gradients(noise_prediction_losses, BATCH) for w in (one, workers))
            np.testing.assert_array_equal(to_numpy(losses), to_numpy(expected))
            assert losses.shape == (CONFIG.batch_size,)
            found, wanted = (by_name(w.model, [p.grad for p in w.parameters]) for w in (one, workers))
            assert found.keys() == wanted.keys()
            for name, a in wanted.items():
                np.testing.assert_array_equal(found[name], a)
                assert a.any() or name == "label.w"


@pytest.mark.parametrize("forms", [plain, fast])
def test_they_do_the_same_jobs(forms):
    """f(model, job) for each job, in order, each when it is asked for."""
    with forms(), both() as (one, workers):
        found, expected = (list(w.map(predict, [3, 1, 50])) for w in (one, workers))
        assert [job for _, job in found] == [job for _, job in expected] == [3, 1, 50]
        for (a, _), (b, _) in zip(found, expected):
            np.testing.assert_array_equal(a, b)
        for w in (one, workers):
            done = []
            results = w.map(lambda model, job: done.append(job) or job, [1, 2])  # noqa: B023
            assert done == [] and next(results) == 1 and done == [1]
            assert list(results) == [2] and list(w.map(predict, [])) == []


@each_kind
def test_borrowed_weights_are_computed_with_and_given_back(kind):
    """Within the block the network is the one of the average; after it, also after an error, it is its own again."""
    with kind(build) as workers:
        ema = EMA(workers.parameters)
        for average in ema.average:
            average *= 0.5
        own, half = workers.model.state_dict(), build()
        for p in half.parameters():
            p.data *= 0.5
        before = predict(workers.model, 5)[0]
        with workers.weights(ema.average):
            np.testing.assert_array_equal(predict(workers.model, 5)[0], predict(half, 5)[0])
            for name, a in workers.model.state_dict().items():
                np.testing.assert_array_equal(a, own[name] * np.float32(0.5))
        np.testing.assert_array_equal(predict(workers.model, 5)[0], before)
        with pytest.raises(KeyError), workers.weights(ema.average):
            raise KeyError
        for name, a in workers.model.state_dict().items():
            np.testing.assert_array_equal(a, own[name])
        for p, average in zip(workers.parameters, ema.average):
            np.testing.assert_array_equal(to_numpy(average), to_numpy(p.data) * np.float32(0.5))  # as it was lent


@each_kind
def test_a_run_goes_on_where_it_was_after_its_average_was_lent(kind):
    """Drawing pictures on the way changes no bit of a run: optimizer and network still share the same arrays."""
    workers = kind(build)
    shown, unseen = small_run(workers=workers), small_run(workers=kind(build))
    for _ in train(unseen):
        pass
    for _ in train(shown):
        with workers.weights(shown.ema.average):
            list(workers.map(predict, [3]))
    assert same_bits(arrays_of(shown), arrays_of(unseen))


@each_kind
def test_the_network_may_be_used_after_the_workers_are_closed(kind):
    """Its parameters outlive them, bit for bit."""
    with kind(build) as workers:
        model, before = workers.model, workers.model.state_dict()
    workers.close()
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])
    assert np.isfinite(predict(model, 3)[0]).all()
