"""What differs on a GPU changes no number: rows of metrics come later, and batches are drawn ahead."""

import copy
import math
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import emulate
import numpy as np
import pytest
import strict
from small_run import CONFIG, DATASET, SCHEDULE, arrays_of, same_bits, small_run

from tinydiff.app import checkpoint, training
from tinydiff.app.alone import one_process
from tinydiff.app.training import restore, save, steps, whole
from tinydiff.backend import backend_name, to_numpy
from tinydiff.fast import gpu as fast_gpu
from tinydiff.fast.gpu import Ahead, Packed
from tinydiff.train import TrainingError, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.training


@pytest.fixture
def gpu():
    """The GPU's way of everything; without a GPU on the stand-in, its kernels run on the host."""
    if emulate.COMPILER is None:
        pytest.skip(emulate.REASON)
    on_device = strict.backend("cupy") if backend_name() == "numpy" else nullcontext()
    with pytest.MonkeyPatch.context() as patch, on_device:
        yield patch


def advance(state, num_steps):
    for _, _ in zip(range(num_steps), train(state)):
        pass
    return state


draw = partial(draw_batch, DATASET, SCHEDULE, 10)


# Rows.


@pytest.mark.parametrize("period", [1, 2, 5])
def test_when_rows_are_made_changes_nothing(gpu, period):
    """Rows made every step or every few are the same rows in the same order, and so are the weights."""
    at_once = advance(small_run(), 6)
    gpu.setattr(fast_gpu, "PERIOD", period)
    state = small_run()
    counts = [len(state.rows) for _ in train(state)]
    assert counts == [(k - 1) // period * period for k in range(1, 7)]  # a step's own losses may not be there yet
    assert len(state.metrics()) == 6
    np.testing.assert_array_equal(state.metrics(), at_once.metrics())  # nan, of an empty quarter, is nan
    assert same_bits(arrays_of(at_once), arrays_of(state))


def test_the_state_that_a_run_yields_last_has_every_row(gpu):
    """Rows are complete at the end of a run; on the way the state is whole all the same, and may be saved."""
    state = small_run()
    seen = [(s.step, len(s.rows), whole(s)) for s in steps(state, one_process())]
    assert seen == [(1, 0, True), (2, 0, True), (3, 0, True), (4, 0, True), (5, 0, True), (6, 6, True)]


def failing(factor, add=0.0):
    """The loss, spoiled."""
    return lambda model, batch: noise_prediction_losses(model, batch) * factor + add


def test_what_follows_a_bad_step_is_never_saved(gpu, tmp_path):
    """A step of nan among good ones updates nothing; the first bad step is named, again and again, and no file made."""
    state = advance(small_run(), 2)
    before = arrays_of(state)
    state.losses_of = failing(math.nan)
    advance(state, 1)
    assert same_bits(before, arrays_of(state))
    state.losses_of = noise_prediction_losses
    advance(state, 2)
    assert not same_bits(before, arrays_of(state)) and all(np.isfinite(a).all() for a in arrays_of(state).values())
    for read in (lambda: save(state, tmp_path / "a.npz", DATASET, SCHEDULE, 1), state.metrics):
        with pytest.raises(TrainingError, match=r"step 3: loss is nan, gradient norm nan; .* the last checkpoint is"):
            read()
        assert len(state.rows) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_loss_of_a_finite_gradient_is_never_saved(gpu, tmp_path):
    """The device lets such a step pass, but the host sees it before it writes."""
    state = small_run()
    state.losses_of = failing(1.0, math.inf)
    advance(state, 1)
    with pytest.raises(TrainingError, match=r"step 1: loss is inf, gradient norm \d"):
        save(state, tmp_path / "a.npz", DATASET, SCHEDULE, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_restored_state_forgets_the_steps_that_had_no_row_yet(gpu, tmp_path):
    """Rows are those of the checkpoint, also where the state went on after it."""
    state, path = advance(small_run(), 2), tmp_path / "a.npz"
    save(state, path, DATASET, SCHEDULE, 1)
    advance(state, 3)
    restore(state, path, *checkpoint.load(path))
    assert state.step == len(state.metrics()) == 2
    at_once = advance(small_run(), 3)
    assert same_bits(arrays_of(advance(state, 1)), arrays_of(at_once)) and len(state.metrics()) == 3


def test_the_speed_is_that_of_finished_steps(gpu):
    """Where the minutes decide, the host waits for each step of the warm-up before it looks at the clock again."""
    state, looked = small_run(replace(CONFIG, warmup=3)), []
    gpu.setattr(training.time, "monotonic", lambda: looked.append(len(state.rows)) or 1e9 * len(looked))
    for _, _ in zip(range(3), steps(state, one_process(), 1.0)):
        pass
    assert looked[:6] == [0, 1, 1, 2, 2, 3] and set(looked[6:]) <= {3}  # before and after each step


def test_a_late_row_keeps_no_picture_of_its_step(gpu):
    """What waits for its row is the losses, the norm and the times: pictures would fill the device."""
    state = advance(small_run(), 3)
    kept = [a for entry in state.late for a in (*entry[:2], *entry[3].values())]
    assert len(state.late) == 3 and all(a.size <= CONFIG.batch_size for a in kept)


# Batches.


def test_a_run_on_a_gpu_draws_ahead(gpu):
    assert isinstance(small_run().draw, Ahead)


def test_a_run_without_a_gpu_does_not_draw_ahead():
    """The cores are the workers': no thread is started."""
    with strict.backend("numpy"):
        assert not isinstance(small_run().draw, Ahead)


def test_batches_drawn_ahead_are_those_of_their_steps():
    """Bit for bit draw's own, also when step or settings change between two steps; each is drawn once, four ahead."""
    drawn = []
    ahead = Ahead(lambda config, step: drawn.append(step) or draw(config, step))
    other = replace(CONFIG, seed=6)
    for step, config in [*((k, CONFIG) for k in (0, 1, 2, 7, 8)), *((k, other) for k in (9, 10, 3))]:
        batch, expected = ahead(config, step), draw(config, step)
        assert batch.keys() == expected.keys()
        assert all((batch[name] == expected[name]).all() for name in batch)
    ahead._threads.shutdown()
    assert sorted(drawn) == sorted([*range(7), *range(7, 13), *range(9, 15), *range(3, 8)])  # some of them in vain


def test_four_batches_are_drawn_at_the_same_time():
    """While a step is under way the batches of the next four are drawn side by side: none waits for another."""
    together = threading.Barrier(5)  # the four threads, and the test in the middle of a step

    def wait(config, step):
        if step:
            together.wait(60)
        return {"step": np.array([step])}

    ahead = Ahead(wait)
    assert ahead(CONFIG, 0)["step"] == 0
    together.wait(60)
    assert ahead(CONFIG, 1)["step"] == 1 and ahead._batches.keys() == {2, 3, 4, 5}
    together.abort()  # frees the thread of step 5, which is alone
    ahead._threads.shutdown()


def test_what_drawing_ahead_raises_comes_out_in_its_own_step(gpu):
    """An error in the thread is raised by the step that needed the batch, the state as it was; the run can go on."""
    at_once = advance(small_run(), 3)

    def fail(config, step):
        if step == 2:
            raise ZeroDivisionError("planted")
        return draw(config, step)

    state = advance(small_run(draw=fail), 2)
    with pytest.raises(ZeroDivisionError, match="planted"):
        next(train(state))
    assert state.step == 2 == len(state.metrics())
    state.draw = draw
    assert same_bits(arrays_of(at_once), arrays_of(advance(state, 1)))


def test_the_threads_give_the_device_no_work(gpu):
    """A batch stays on the host: only the thread that trains sends it."""
    assert {type(a) for a in Ahead(draw)(CONFIG, 0).values()} == {np.ndarray}


def test_a_packed_batch_is_the_batch_in_one_buffer():
    """The same names, numbers and dtypes, each array at a multiple of 256 bytes; a packed batch is not packed again."""
    batch = draw(CONFIG, 0)
    packed = Packed(batch)
    assert list(packed) == list(batch) and Packed.of(packed) is packed
    start = packed.buffer.ctypes.data
    for name, a in batch.items():
        np.testing.assert_array_equal(packed[name], a)
        assert packed[name].dtype == a.dtype and (packed[name].ctypes.data - start) % 256 == 0
        assert np.shares_memory(packed[name], packed.buffer)
    assert packed.buffer.size == sum(-(-a.nbytes // 256) * 256 for a in batch.values())
    assert isinstance(Ahead(draw)(CONFIG, 0), Packed)


def test_batches_drawn_ahead_are_drawn_anew_by_a_copy():
    """deepcopy of a run copies what draws, not the thread: the copy draws the same batches."""
    ahead = Ahead(partial(draw_batch, DATASET, SCHEDULE, 10))
    first, twin = ahead(CONFIG, 0), copy.deepcopy(ahead)
    for batch in (twin(CONFIG, 0), twin(CONFIG, 1)):
        assert batch.keys() == first.keys()
    np.testing.assert_array_equal(to_numpy(twin(CONFIG, 0)["x_t"]), to_numpy(first["x_t"]))
