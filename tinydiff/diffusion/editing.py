"""Edits of existing images, each a small function around eps_fn and a step: fill in, redraw, encode, blend.

    inpaint           keep some pixels and draw the others to match               Lugmayr et al. 2022, algorithm 1
    with_drawn_labels draw a label for each row at each step                      a mixture over labels
    known_probs       how well each label explains the known pixels               as in Li et al. 2023
    sdedit            add noise up to t_start and sample down from there          Meng et al. 2022, algorithm 1
    ddim_invert       the x_T from which DDIM would draw this image               Song et al. 2021, section 4.3
    slerp             between two such x_T, along the sphere on which noise lies  Shoemake 1985

inpaint, sdedit and ddim_invert are generators of (t, x_t, x_0_hat), like sample().  pairs is timestep_pairs(T, n) or
any other chain (t, s) down to 0.  Steps and eps_fn are those of samplers.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinydiff.backend import asarray, host_integers, require, standard_normal, to_numpy, xp
from tinydiff.diffusion.gaussian import check_alike, check_float, q_sample, q_x_t_given_x_s, x_0_from_eps
from tinydiff.diffusion.samplers import sample
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.times import joined

EpsFn = Callable[[Any, int], Any]
Step = Callable[..., tuple[Any, Any]]
Pairs = Iterable[tuple[int, int]]
States = Iterator[tuple[int, Any, Any]]


def inpaint(
    schedule: Schedule,
    step: Step,
    eps_fn: EpsFn,
    pairs: Pairs,
    x_T: Any,
    x_0: Any,
    known: Any,
    rng: Any,
    resample: int = 1,
) -> States:
    """Sample from x_T, holding x_t to x_0 where known (RePaint; Lugmayr et al. 2022, algorithm 1, eq. 8).

        x_s = known q_sample(x_0, s, fresh noise) + (1 - known) step(x_t)

    At s = 0 the known pixels are x_0's bit for bit.  A step draws the unknown pixels without regard to the known pixels
    that replace its own.  Each step is therefore taken `resample` times, with x_t ~ q(x_t | x_s) in between, and the
    two parts come to agree.  A step to s = 0 is taken once.  Evaluations: resample (num_steps - 1) + 1.

    x_T, x_0: (N, ...) of one dtype.  known: boolean, of a shape that broadcasts to theirs, else ValueError.
    rng: as in sample(); the noise of known pixels and jumps comes from a child of it, so that with resample = 1 and
    nothing known this is sample(), bit for bit.
    """
    check_alike("x_0", x_0, "x_T", x_T)
    known = _mask(known, x_0)
    resample = int(host_integers("resample", resample, 1, 10_000))
    (own_rng,) = rng.spawn(1)
    x_t = x_T
    for t, s in joined(pairs):
        for visit in range(resample if s > 0 else 1):
            if visit:  # back up to t
                mean, var = q_x_t_given_x_s(schedule, x_t, s, t)
                x_t = mean + var**0.5 * standard_normal(own_rng, x_t.shape, x_t.dtype)
            ((_, x_s, x_0_hat),) = sample(step, eps_fn, [(t, s)], x_t, rng)
            x_t = xp.where(known, q_sample(schedule, x_0, s, standard_normal(own_rng, x_0.shape, x_0.dtype)), x_s)
        yield s, x_t, x_0_hat


def with_drawn_labels(class_probs: EpsFn, by_label: Callable[[Any], EpsFn], rng: Any) -> EpsFn:
    """eps_fn of a model with classes where no label is given: every call draws a label for each row from p(y | x_t).

        y ~ p(y | x_t),   eps_hat = by_label(y)(x_t, t)

    A random step keeps its unconditional law, p(x_s | x_t) = sum_y p(y | x_t) p(x_s | x_t, y).  The network predicts
    better with a label: nine tenths of its training had one.  In much noise every label is likely; the labels settle as
    the image does.

    class_probs(x_t, t) -> (N, num_classes) on the host: reading.class_probs of a noisy classifier, or known_probs.
    by_label(labels (N,)) -> eps_fn, such as partial(classifier_free, model, scale=1).
    rng: numpy Generator that draws the labels.
    """

    def eps_fn(x_t: Any, t: int) -> Any:
        up_to = _probabilities(class_probs(x_t, t), len(x_t)).cumsum(1)
        labels = (up_to <= rng.random((len(x_t), 1)) * up_to[:, -1:]).sum(1)
        return by_label(labels)(x_t, t)

    return eps_fn


def known_probs(schedule: Schedule, model: Any, class_probs: EpsFn, x_0: Any, known: Any, pixel_var: float) -> EpsFn:
    """p(y | x_t, x_0 where known), (N, num_classes) on the host: which label explains the known pixels best?

        p(y | x_t, known) ~ p(y | x_t) exp(-|known (x_0 - x_0_hat_y)|^2/(2 v_t))
        v_t = pixel_var (1 - alpha_bar_t)/(alpha_bar_t pixel_var + 1 - alpha_bar_t)

    x_0_hat_y is the model's estimate for label y, so the model itself is the classifier (as in Li et al. 2023, "Your
    Diffusion Model is Secretly a Zero-Shot Classifier").  At the times at which a label is decided, x_t alone has lost
    most of the known pixels.  Exact if a class's pixels are independent and Gaussian with variance pixel_var.

    class_probs(x_t, t) -> p(y | x_t) as in with_drawn_labels.  x_0, known: as in inpaint.  Evaluations: num_classes.
    """
    x_0 = asarray(x_0)
    known = _mask(known, x_0)
    require(0 < pixel_var < math.inf, "pixel_var must be finite and above 0", pixel_var)

    def probs(x_t: Any, t: int) -> Any:
        check_alike("x_0", x_0, "x_t", x_t)
        signal, noise = float(schedule.alpha_bar[t]), float(schedule.one_minus_alpha_bar[t])
        squares = []
        for label in range(model.num_classes):
            x_0_hat = x_0_from_eps(schedule, x_t, t, asarray(model(x_t, t, label)))
            error = xp.where(known, x_0_hat - x_0, 0)
            squares.append((error * error).sum(tuple(range(1, x_t.ndim))))
        v_t = pixel_var * noise / (signal * pixel_var + noise)
        p = _probabilities(class_probs(x_t, t), len(x_t), model.num_classes)
        prior = xp.log(asarray(p).clip(1e-30))  # a 0 may be underflow
        log_p = prior - xp.stack(squares, 1) / (2 * v_t)
        p = xp.exp(log_p - log_p.max(1, keepdims=True))
        return to_numpy(p / p.sum(1, keepdims=True))

    return probs


def sdedit(schedule: Schedule, step: Step, eps_fn: EpsFn, pairs: Pairs, x_0: Any, t_start: int, rng: Any) -> States:
    """Noise x_0 to t_start, then sample down from there (Meng et al. 2022): the sampler redraws what the noise hid.

    t_start: 0 gives x_0 back; at T only sqrt(alpha_bar_T) of x_0 is left.  The first state is (t_start, x_t, x_0); the
    others are those of sample() on pairs_below(pairs, t_start).
    """
    check_float("x_0", x_0)
    x_t = q_sample(schedule, x_0, t_start, standard_normal(rng, x_0.shape, x_0.dtype))
    yield t_start, x_t, x_0
    yield from sample(step, eps_fn, pairs_below(pairs, t_start), x_t, rng)


def pairs_below(pairs: Pairs, t_start: int) -> list[tuple[int, int]]:
    """The part of a chain that lies below t_start, its first pair cut to begin there; none for t_start = 0.

    ValueError for a chain that begins below t_start.
    """
    below = [(min(t, t_start), s) for t, s in joined(pairs) if s < t_start]
    require(all(t == t_start for t, _ in below[:1]), "t_start must lie within the chain of pairs", t_start)
    return below


def ddim_invert(schedule: Schedule, eps_fn: EpsFn, pairs: Pairs, x_0: Any, iterations: int = 2) -> States:
    """Encode x_0: the x_T from which ddim_step, unclipped, comes down to it (Song et al. 2021, section 4.3).

        x_t = sqrt(alpha_bar_t) x_0_hat + sqrt(1 - alpha_bar_t) eps_hat,   x_0_hat from x_s and eps_hat at s
        eps_hat = eps_fn(x_s, t), then eps_fn(x_t, t) of the x_t found so far: `iterations` evaluations a step

    With eps_hat = eps_fn(x_t, t) at its own result x_t, a step undoes ddim_step exactly.  The first evaluation uses x_s
    in place of x_t, so the round trip's error falls as 1/num_steps; each further iteration makes it several times
    smaller.  eps_fn is evaluated at t.  The paper evaluates it at s, but no network was trained at s = 0.
    pairs run down as for sample() and are walked upwards, so the last state is (T, x_T, x_0_hat).
    iterations: at least 1, else ValueError.
    """
    iterations = int(host_integers("iterations", iterations, 1, 10_000))
    x_s = x_0
    for t, s in reversed(list(joined(pairs))):
        x_t = x_s
        for _ in range(iterations):
            eps_hat = eps_fn(x_t, t)
            x_0_hat = x_0_from_eps(schedule, x_s, s, eps_hat)
            x_t = q_sample(schedule, x_0_hat, t, eps_hat)
        x_s = x_t
        yield t, x_s, x_0_hat


def slerp(x: Any, y: Any, u: float) -> Any:
    """The point a share u of the way from x to y along the arc between them, row by row (Shoemake 1985).

        sin((1 - u) theta)/sin(theta) x + sin(u theta)/sin(theta) y,   theta the angle between x and y

    Noise of D pixels has a norm near sqrt(D), and so has every point of this arc.  Halfway along the straight line the
    norm would be 0.7 sqrt(D), which no x_T has.  x, y: (N, ...) of one dtype.  0 gives x and 1 gives y, bit for bit.
    Parallel rows go along the line.  Opposite rows have no one arc between them: ValueError, as for u outside 0..1.
    """
    check_alike("y", y, "x", x)
    require(0 <= u <= 1, "u must lie in 0..1", u)
    scaled_x, scaled_y = _norm(y) * x, _norm(x) * y
    theta = 2 * xp.arctan2(_norm(scaled_x - scaled_y), _norm(scaled_x + scaled_y))  # acos is blind to small angles
    arc = xp.sinc(theta / math.pi)  # sin(theta)/theta, and 1 at 0
    if (arc < 1e-4).any():
        raise ValueError("x and y must not be opposite: no one arc leads from a row of x to that of y")
    return sum(share * xp.sinc(share * theta / math.pi) / arc * z for share, z in ((1 - u, x), (u, y)))


def _mask(known: Any, x_0: Any) -> Any:
    """known as an array; ValueError unless it is boolean and broadcasts to x_0."""
    known = asarray(known)
    fits = known.ndim <= x_0.ndim and all(k in (1, n) for k, n in zip(known.shape[::-1], x_0.shape[::-1]))
    if known.dtype != bool or not fits:
        raise ValueError(f"known must be boolean and broadcast to {x_0.shape}, got {known.dtype} {known.shape}")
    return known


def _probabilities(p: Any, n: int, num_classes: int | None = None) -> Any:
    """What class_probs has returned; ValueError unless it is a host array of n rows of probabilities."""
    shape: tuple[int, ...] = getattr(p, "shape", ())
    if not hasattr(p, "cumsum") or len(shape) != 2 or shape[0] != n or num_classes not in (None, shape[1]):
        raise ValueError(f"class_probs(x_t, t) must return ({n}, num_classes), got {shape or type(p).__name__}")
    inside = (p >= 0).all() and bool((abs(p.sum(1) - 1) < 1e-3).all())  # NaN compares False
    require(inside, "class_probs(x_t, t) must return probabilities, rows >= 0 of sum 1", f"{p.min()}..{p.max()}")
    return p


def _norm(x: Any) -> Any:
    """Of each row of x (N, ...), as (N, 1, ..., 1)."""
    return xp.sqrt((x * x).sum(tuple(range(1, x.ndim)), keepdims=True))
