"""Small cases of the exercises about training: a batch of tiny images, one weight, the code of one time."""

import math
from types import SimpleNamespace

import numpy as np
from small_process import ALPHA_BAR, ONE_MINUS, small_schedule
from verdicts import Small, Wrong


def training_loss(book):
    train, schedule = book("train"), small_schedule(book)
    dataset = book("data").Dataset.from_arrays(np.full((8, 2, 2, 3), 0.5), value_range=(-1, 1))
    n = 64
    config = train.TrainConfig(batch_size=n)
    batch, other = (train.draw_batch(dataset, schedule, None, config, step) for step in (0, 1))
    for key in ("t", "x_t", "target"):
        if key not in batch:
            raise Wrong(f'the batch has no "{key}".')
    t, x_t, target = (np.asarray(batch[key]) for key in ("t", "x_t", "target"))
    if t.shape != (n,):
        raise Wrong(f"t has the shape {t.shape}, and should have ({n},): each example has its own t.")
    if len(set(t.tolist())) == 1:
        raise Wrong("t is the same for the whole batch. Each example draws its own t (algorithm 1, line 3).")
    drawn = set(t.tolist())
    if 0 in drawn:
        never = "" if 3 in drawn else " t = T is never drawn."
        raise Wrong(f"t = 0 is drawn, where there is no noise to predict.{never}")
    if not drawn <= {1, 2, 3}:
        raise Wrong(f"t = {max(drawn)} is drawn, and T is 3.")
    if 3 not in drawn:
        raise Wrong("t = T is never drawn: rng.integers(low, high, n) never returns high.")
    if target.shape != x_t.shape or x_t.shape != (n, 2, 2, 3):
        raise Wrong(f"x_t has the shape {x_t.shape} and the target {target.shape}. Both should have {(n, 2, 2, 3)}.")
    for name, a in (("x_t", x_t), ("the target", target)):
        if a.dtype != np.float32:
            raise Wrong(f"{name} is {a.dtype}, and should be float32: rng.standard_normal takes dtype=.")
    if (target == target[0, 0, 0, 0]).all() or abs(target - 0.5).max() < 0.01:
        raise Wrong("the target is x_0. The network learns to predict the noise eps.")
    if (target == target[:1]).all():
        raise Wrong("one noise serves the whole batch. Each pixel of each example has its own.")
    if (target == np.asarray(other["target"])).all():
        raise Wrong("steps 0 and 1 have the same noise. Draw it from rng, whose stream is named by the step.")
    if abs(target.mean()) > 0.2 or abs(target.std() - 1) > 0.2:  # 768 numbers: seven standard errors
        raise Wrong(f"the target has mean {target.mean():.2f} and std {target.std():.2f}, and eps is N(0, 1).")
    rows = (slice(None), None, None, None)
    x_0 = np.asarray(dataset.batch(np.zeros(n, int))[0])
    right = np.sqrt(ALPHA_BAR)[t][rows] * x_0 + np.sqrt(ONE_MINUS)[t][rows] * target
    if abs(right - x_t).max() > 1e-5:
        raise Wrong("x_t and the target do not belong together. One eps makes x_t, by q_sample, and is the target.")
    Tensor = book("autograd").Tensor
    error = np.array([[2.0, 2.0, 2.0], [1.0, 3.0, 2.0]], "float32")[:, None, None, :] * np.ones((2, 2, 2, 1), "float32")
    batch = {"x_t": x_t[:2], "t": t[:2], "target": target[:2]}
    losses = train.noise_prediction_losses(lambda *_: Tensor(target[:2] + error), batch)
    if losses is not None and not isinstance(losses, Tensor):
        raise Wrong(f"noise_prediction_losses returns a {type(losses).__name__}, and should return a Tensor.")
    square = error.astype(float) ** 2
    yield Small(
        "the array of losses",
        "2 images of 2 x 2 pixels and 3 channels; eps_hat - eps is 2, 2, 2 in each pixel of the first and 1, 3, 2 in "
        "the second",
        None if losses is None else losses.data,
        square.mean((1, 2, 3)).astype("float32"),
        {
            "this is the sum over the pixels. The loss is their mean.": square.sum((1, 2, 3)),
            "the error is not squared.": abs(error).mean((1, 2, 3)),
            "this is the fourth power. The loss is the mean square.": (square**2).mean((1, 2, 3)),
            "this is a root. The loss is the mean square itself.": np.sqrt(square.mean((1, 2, 3))),
            "each channel has a loss of its own. The mean also runs over axis 3, the channels.": square.mean((1, 2)),
            "this is one number for the batch. Each example has its own loss: axis 0 stays.": square.mean(),
            "the mean is that of the error. Square before you take the mean.": error.mean((1, 2, 3)) ** 2,
        },
        exact=1e-5,
    )


def ema(book):
    optim, digits = (
        book("optim"),
        "theta - average is 0 for weights that stand still: average + (1 - d) (theta - average).",
    )

    def adam(g, m, v, k, betas=(0.8, 0.99), eps=1e-8, lr=0.1):
        p = SimpleNamespace(data=np.array([1.0]), grad=g if g is None else np.array([g]))
        held = p.data, np.array([m]), np.array([v])
        optim.adam_update(p, *held[1:], lr=lr, betas=betas, eps=eps, k=k)
        if p.data is not held[0]:
            raise Wrong("p.data is a new array. Others hold the old one, so write into it: p.data[...] = ...")
        return held

    case = "g = 2, m = v = 0, p = 1, step k = 1, lr = 0.1, betas = 0.8, 0.99"
    p, m, v = adam(2.0, 0.0, 0.0, 1)
    usual = {
        "the new value is missing, or m is not written in place: m[...] = ...": [0.0],
        "the two weights have changed places: 1 - beta1 belongs to g.": [0.8 * 2],
        "this has beta2 in place of beta1.": [0.01 * 2],
        "m is the mean of g, not of g^2.": [0.2 * 4],
    }
    yield Small("m", case, m, [0.4], usual)
    usual = {
        "v is the mean of g^2, not of g.": [0.01 * 2],
        "the new value is missing, or v is not written in place: v[...] = ...": [0.0],
        "this has beta1 in place of beta2.": [0.2 * 4],
        "the two weights have changed places: 1 - beta2 belongs to g^2.": [0.99 * 4],
    }
    yield Small("v", case, v, [0.04], usual)
    usual = {
        "the step goes uphill: theta - lr m_hat/..., not +.": [1.1],
        "m and v are not corrected for their start at 0: divide by 1 - beta1^k and 1 - beta2^k.": [1 - 0.1 * 0.4 / 0.2],
        "only m is corrected. v too starts at 0: divide it by 1 - beta2^k.": [1 - 0.1 * 2 / 0.2],
        "only v is corrected. m too starts at 0: divide it by 1 - beta1^k.": [1 - 0.1 * 0.4 / 2],
        "m and v have the same correction. Each is divided by its own: 1 - beta1^k and 1 - beta2^k.": [
            1 - 0.1 * 2 / 0.2**0.5
        ],
        "the root of v_hat is missing.": [1 - 0.1 * 2 / 4],
        "p does not change, or it is not written in place: p.data[...] = ...": [1.0],
    }
    yield Small("p", case, p, [0.9], usual, exact=1e-7)
    case = "g = 3, m = 1, v = 5, p = 1, step k = 3, lr = 0.1, betas = 0.8, 0.99"
    p, m, v = adam(3.0, 1.0, 5.0, 3)
    right_m, right_v = 0.8 + 0.2 * 3, 0.99 * 5 + 0.01 * 9
    m_hat, v_hat = right_m / (1 - 0.8**3), right_v / (1 - 0.99**3)
    yield Small("m", case, m, [right_m])
    yield Small("v", case, v, [right_v])
    usual = {
        "m and v are not corrected for their start at 0: divide by 1 - beta1^k and 1 - beta2^k.": [
            1 - 0.1 * right_m / right_v**0.5
        ],
        "only m is corrected. v too starts at 0: divide it by 1 - beta2^k.": [1 - 0.1 * m_hat / right_v**0.5],
        "m and v have the same correction. Each is divided by its own: 1 - beta1^k and 1 - beta2^k.": [
            1 - 0.1 * m_hat / (right_v / (1 - 0.8**3)) ** 0.5
        ],
        "the correction does not grow with the step: it is 1 - beta^k, not 1 - beta.": [
            1 - 0.1 * (right_m / 0.2) / (right_v / 0.01) ** 0.5
        ],
    }
    yield Small("p", case, p, [1 - 0.1 * m_hat / v_hat**0.5], usual, exact=1e-7)
    usual = {"eps is under the root. It is added to the root.": [1 - 0.1 * 2 / (4 + 1) ** 0.5]}
    usual["eps is missing."] = [1 - 0.1 * 2 / 2]
    yield Small(
        "p",
        "g = 2, m = v = 0, k = 1, eps = 1",
        adam(2.0, 0.0, 0.0, 1, eps=1.0)[0],
        [1 - 0.1 * 2 / 3],
        usual,
        exact=1e-12,
    )
    p, m, v = adam(None, 1.0, 4.0, 3)
    usual = {"without a gradient nothing happened. It counts as the gradient 0, so m decays.": [1.0]}
    yield Small("m", "g is None, m = 1, v = 4, step k = 3", m, [0.8], usual)

    def updated(n, decay):
        weights = SimpleNamespace(data=np.array([0.0]))
        average = optim.EMA([weights], decay)
        average.num_updates, weights.data[...] = n, 1.0
        average.update()
        return average.average[0]

    usual = {"d is above decay: it is the smaller of decay and (1 + n)/(10 + n).": [1 - 1001 / 1010]}
    usual["d and 1 - d have changed places: the average keeps d of itself."] = [0.99]
    case = "average = 0, theta = 1, decay = 0.99, update n = 1000"
    yield Small("the average", case, updated(1000, 0.99), [1 - 0.99], usual, exact=1e-12)
    usual = {
        "d is decay from the start. It warms up: (1 + n)/(10 + n) at update n, as long as that is less.": [1 - 0.99],
        "n is counted one too far: the first update has n = 0.": [1 - 2 / 11],
        "the average did not change: write into it, average[...] = ...": [0.0],
        "d and 1 - d have changed places: the average keeps d of itself.": [0.1],
    }
    case = "average = 0, theta = 1, decay = 0.99, the first update"
    yield Small("the average", case, updated(0, 0.99), [0.9], usual)
    average, weights = np.array([0.1, 0.7]), SimpleNamespace(data=np.array([0.1, 0.7]))
    for d in (0.3, 0.6, 0.9, 0.95):
        optim.ema_update(average, weights, d)
        yield Small(
            "the average", f"average = theta = 0.1, 0.7, d = {d}", average, weights.data, digits=digits, exact=0.0
        )


def time_code(book):
    unet = book("nn/unet")

    def code(k, half):
        made = unet._time_code(k, half)
        return None if made is None else np.asarray(made, dtype=float)

    k, half = 3, 3
    f = [10_000 ** (-i / half) for i in range(half)]
    right = [math.sin(k * x) for x in f] + [math.cos(k * x) for x in f]
    rising, ends = [10_000 ** (i / half) for i in range(half)], [10_000 ** (-i / (half - 1)) for i in range(half)]
    twice = [10_000 ** (-2 * i / half) for i in range(half)]
    digits = "Compute the angle with Python's floats, which are float64. float32 keeps 7 digits of it."
    yield Small(
        *("the code", f"k = {k}, half = {half}, so f = 1, 0.0464, 0.00215", code(k, half), right),
        {
            "the cosines come first. All sines come first, then all cosines.": right[half:] + right[:half],
            "sines and cosines take turns. All sines come first, then all cosines.": [
                wave(k * x) for x in f for wave in (math.sin, math.cos)
            ],
            "the frequencies rise. They fall from 1: f_i = 10,000^(-i/half).": [
                wave(k * x) for wave in (math.sin, math.cos) for x in rising
            ],
            "the last frequency is 1/10,000. With i/half it is not reached, and other code divides by half - 1.": [
                wave(k * x) for wave in (math.sin, math.cos) for x in ends
            ],
            "the frequencies fall twice as fast. Where the paper writes 2i/d, d is 2 half.": [
                wave(k * x) for wave in (math.sin, math.cos) for x in twice
            ],
            "k is missing: these are the waves of the frequencies.": [
                wave(x) for wave in (math.sin, math.cos) for x in f
            ],
        },
        digits,
        1e-13,
    )
    k = 1000
    right = [math.sin(k * x) for x in f] + [math.cos(k * x) for x in f]
    yield Small("the code", f"k = {k}, half = {half}", code(k, half), right, {}, digits, 1e-10)
