"""Small cases of the exercises about the forward process: three steps, and arrays of one number or three.

What is right is computed from T = 3 betas by hand.  Read next: small_sampler.py.
"""

import math

import numpy as np
from verdicts import Small, two

BETA, T_3 = (0.1, 0.2, 0.3), "T = 3, beta = 0.1, 0.2, 0.3"
ALPHA_BAR = (1.0, 0.9, 0.72, 0.504)
ONE_MINUS = (0.0, 0.1, 0.28, 0.496)
SMALL_BETA, SMALL = (1e-4, 0.2, 0.3), "T = 3, beta = 0.0001, 0.2, 0.3"  # 1 - alpha_bar_1 loses four digits
SUBTRACTED = (
    "1 - alpha_bar_t subtracts two numbers that are nearly equal, and loses the digits in which they agree. "
    "schedule.one_minus_alpha_bar[t] has all of them. beta_t_given_s(t, s) has those of 1 - alpha_{t|s}."
)


def small_schedule(book, beta=BETA):
    """The schedule of three steps in most of these cases."""
    return book("diffusion/schedule").Schedule(beta)


def closed_form(book):
    q_sample, schedule = book("diffusion/gaussian").q_sample, small_schedule(book)
    case = f"{T_3}; t = 2, x_0 = 1, eps = 0"
    signal, noise = (ALPHA_BAR[2] ** 0.5, ONE_MINUS[2] ** 0.5)
    yield Small(
        *("x_t", case, q_sample(schedule, np.ones(1), 2, np.zeros(1)), [signal]),
        {
            "this is alpha_bar_t, a variance. The factor of x_0 is its square root.": [ALPHA_BAR[2]],
            "this is made with alpha_t, the share that one step leaves. alpha_bar_t is what is left after t steps.": [
                0.8**0.5
            ],
            "this is the factor of eps. The two factors have changed places.": [noise],
            "this is the entry for t - 1. The tables begin with t = 0, so t itself is the index.": [
                ALPHA_BAR[1] ** 0.5
            ],
            "this is the entry for t + 1. The tables begin with t = 0, so t itself is the index.": [
                ALPHA_BAR[3] ** 0.5
            ],
            "the term of x_0 is missing.": [0.0],
        },
        exact=1e-13,
    )
    case = f"{T_3}; t = 2, x_0 = 0, eps = 1"
    yield Small(
        *("x_t", case, q_sample(schedule, np.zeros(1), 2, np.ones(1)), [noise]),
        {
            "eps is subtracted. The two terms of eq. 4 are added.": [-noise],
            "this is 1 - alpha_bar_t, a variance. The factor of eps is its square root.": [ONE_MINUS[2]],
            "this is made with beta_t, the noise of the last step alone. 1 - alpha_bar_t is that of all t steps.": [
                0.2**0.5
            ],
            "this is 1 - sqrt(alpha_bar_t). The variances add up to 1, not the factors.": [1 - signal],
            "this is the entry for t - 1. The tables begin with t = 0, so t itself is the index.": [
                ONE_MINUS[1] ** 0.5
            ],
            "the term of eps is missing.": [0.0],
        },
        SUBTRACTED,
        1e-13,
    )
    schedule = small_schedule(book, SMALL_BETA)
    case, eps = f"{SMALL}; t = 1, 2, 3, x_0 = 0, eps = 1", np.ones((3, 2))
    right = np.sqrt([1e-4, 1 - 0.9999 * 0.8, 1 - 0.9999 * 0.56])[:, None] * eps
    yield Small("x_t", case, q_sample(schedule, 0 * eps, np.array([1, 2, 3]), eps), right, digits=SUBTRACTED)
    one = np.ones(1, "float32")
    got = q_sample(schedule, 0 * one, 1, one)
    yield Small("x_t", f"{SMALL}; t = 1, x_0 = 0, eps = 1 in float32", got, one / 100, digits=SUBTRACTED, exact=2e-7)
    got, right = q_sample(small_schedule(book, (0.932,)), one, 1, 0 * one), (one.astype(float) * 0.068**0.5)
    digits = "Take the root of the table's float64 number: per_row casts the factor last."
    case = "T = 1, beta = 0.932; t = 1, x_0 = 1 in float32, eps = 0"
    yield Small("x_t", case, got, right.astype("float32"), digits=digits, exact=6e-8)


def posterior(book):
    gaussian, schedule = book("diffusion/gaussian"), small_schedule(book)
    case = f"{T_3}; t = 3, s = 1"
    beta, alpha, below = 1 - 0.56, 0.56, ONE_MINUS[3]
    var = ONE_MINUS[1] / below * beta
    yield Small(
        *("beta_tilde", case, schedule.beta_tilde(3, 1), var),
        {
            "this is beta_{t|s}, the variance of the jump from s to t. The posterior also knows x_0, so its variance "
            "is smaller.": beta,
            "the ratio is upside down. It is (1 - alpha_bar_s)/(1 - alpha_bar_t).": below / ONE_MINUS[1] * beta,
            "this is made with beta_t, the noise of one step. The jump from s to t adds beta_{t|s}.": var / beta * 0.3,
            "this is a standard deviation, the square root of beta_tilde.": var**0.5,
            "this is made with alpha_bar in place of 1 - alpha_bar.": ALPHA_BAR[1] / ALPHA_BAR[3] * beta,
            "beta_{t|s} is missing: this is the ratio alone.": var / beta,
        },
        SUBTRACTED,
        1e-13,
    )

    def q(x_t, x_0, t, s):  # with the schedule of the moment
        return two(gaussian.q_x_s_given_x_t_x_0(schedule, np.full(1, x_t), np.full(1, x_0), t, s), "mean", "var")

    mean, var_got = q(0.0, 1.0, 3, 2)
    s, t, alpha, beta = 2, 3, 0.7, 0.3
    signal, of_x_0, of_x_t = ALPHA_BAR[s] ** 0.5, beta / ONE_MINUS[t], ONE_MINUS[s] / ONE_MINUS[t]
    x_0_coef, x_t_coef = signal * of_x_0, alpha**0.5 * of_x_t
    yield Small(
        *("mean", f"{T_3}; t = 3, s = 2, x_t = 0, x_0 = 1", mean, [x_0_coef]),
        {
            "this is the factor of x_t. x_0 and x_t have changed places.": [x_t_coef],
            "this has sqrt(alpha_bar_t). The posterior is about x_s, so it is sqrt(alpha_bar_s).": [
                ALPHA_BAR[t] ** 0.5 * of_x_0
            ],
            "this has alpha_bar_s without its square root.": [ALPHA_BAR[s] * of_x_0],
            "sqrt(alpha_bar_s) is missing.": [of_x_0],
            "beta_{t|s} belongs to x_0, and 1 - alpha_bar_s to x_t. They have changed places.": [signal * of_x_t],
            "the division by 1 - alpha_bar_t is missing.": [signal * beta],
            "the sign is wrong: the two terms of eq. 7 are added.": [-x_0_coef],
            "the term of x_0 is missing.": [0.0],
        },
        SUBTRACTED,
        1e-13,
    )
    yield Small(
        *("mean", f"{T_3}; t = 3, s = 2, x_t = 1, x_0 = 0", q(1.0, 0.0, 3, 2)[0], [x_t_coef]),
        {
            "the sign is wrong: the two terms of eq. 7 are added.": [-x_t_coef],
            "this has alpha_{t|s} without its square root.": [alpha * of_x_t],
            "sqrt(alpha_{t|s}) is missing.": [of_x_t],
            "this has sqrt(alpha_bar_t). The jump from s to t leaves the share alpha_{t|s}.": [
                ALPHA_BAR[t] ** 0.5 * of_x_t
            ],
            "the division by 1 - alpha_bar_t is missing.": [alpha**0.5 * ONE_MINUS[s]],
            "the term of x_t is missing.": [0.0],
        },
        SUBTRACTED,
        1e-13,
    )
    yield Small(
        *("var", f"{T_3}; t = 3, s = 2", var_got, of_x_t * beta),
        {"this is beta_{t|s}. The variance of the posterior is beta_tilde(t, s).": beta},
        SUBTRACTED,
        1e-13,
    )
    for name, got, right in zip(("mean", "var"), q(7.0, 1.0, 2, 0), ([1.0], 0.0)):
        yield Small(name, f"{T_3}; t = 2, s = 0, x_t = 7, x_0 = 1", got, right, digits=SUBTRACTED)
    schedule = small_schedule(book, SMALL_BETA)
    below, case = 1 - 0.9999 * 0.8, f"{SMALL}; t = 2, s = 1"
    mean, var = q(1.0, 0.0, 2, 1)
    right = 0.8**0.5 * 1e-4 / below
    yield Small("mean", f"{case}, x_t = 1, x_0 = 0", mean, [right], digits=SUBTRACTED)
    yield Small("var", case, var, 1e-4 / below * 0.2, digits=SUBTRACTED, exact=3e-14)


def schedules(book):
    Schedule = book("diffusion/schedule").Schedule

    def beta_of(make, T):
        made = make.__func__(np.asarray, T)  # beta itself: a table that no Schedule accepts is explained too
        beta = None if made is None else np.asarray(getattr(made, "beta", made))
        return beta[1:] if beta is not None and beta.shape == (T + 1,) and beta[0] == 0 else beta

    T = 25
    u = np.arange(T) / (T - 1)
    beta = 1e-4 + u * (0.02 - 1e-4)
    yield Small(
        *(f"linear: (beta_1, ..., beta_{T})", f"T = {T}", beta_of(Schedule.linear, T), 1000 / T * beta),
        {
            "beta is not scaled. With fewer steps each adds more noise, by the factor 1000/T.": beta,
            "the scale is upside down: it is 1000/T.": T / 1000 * beta,
            "u is t/T. It is (t - 1)/(T - 1), which is 0 at t = 1: _ramp(T) returns it.": 1000
            / T
            * (1e-4 + np.arange(1, T + 1) / T * (0.02 - 1e-4)),
            "u is (t - 1)/T. It is (t - 1)/(T - 1), which is 1 at t = T: _ramp(T) returns it.": 1000
            / T
            * (1e-4 + np.arange(T) / T * (0.02 - 1e-4)),
            "u multiplies 0.02 alone. beta ends at 1000/T 0.02, so u multiplies 0.02 - 1e-4.": 1000
            / T
            * (1e-4 + u * 0.02),
            "beta runs backwards.": (1000 / T * beta)[::-1],
        },
        exact=1e-12,
    )
    T = 4
    f = np.array([math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)])
    no_offset = np.array([math.cos(t / T * math.pi / 2) ** 2 for t in range(T + 1)])
    right = np.minimum(1 - f[1:] / f[:-1], 0.999)
    yield Small(
        *(f"cosine: (beta_1, ..., beta_{T})", f"T = {T}", beta_of(Schedule.cosine, T), right),
        {
            "the cap is missing: beta_t is at most 0.999.": 1 - f[1:] / f[:-1],
            "the cosine is not squared.": np.minimum(1 - np.sqrt(f[1:] / f[:-1]), 0.999),
            "the offset 0.008 is missing. Without it the first beta is too small.": np.minimum(
                1 - no_offset[1:] / no_offset[:-1], 0.999
            ),
            "this is 1 - alpha_bar_t. beta_t is 1 - alpha_bar_t/alpha_bar_{t-1}, and cls takes beta.": np.minimum(
                1 - f[1:] / f[0], 0.999
            ),
            "this is alpha_bar_t. cls takes beta.": f[1:] / f[0],
            "this is alpha_t. beta_t is 1 - alpha_t.": f[1:] / f[:-1],
        },
        exact=1e-12,
    )
