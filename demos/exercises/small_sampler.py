"""Small cases of the exercises about a reverse step and guidance: one number, one step.  Read next: small_engine.py."""

import math

import numpy as np
from small_process import ALPHA_BAR, ONE_MINUS, T_3, small_schedule
from verdicts import Small, Wrong, two


def ddpm_step(book):
    samplers, schedule = book("diffusion/samplers"), small_schedule(book)
    t, s = 3, 2
    x_0_coef = ALPHA_BAR[s] ** 0.5 * 0.3 / ONE_MINUS[t]
    x_t_coef = 0.7**0.5 * ONE_MINUS[s] / ONE_MINUS[t]
    tilde = ONE_MINUS[s] / ONE_MINUS[t] * 0.3

    def step(x_t, eps_hat, t, s, noise, **options):
        arrays = [None if a is None else np.full(1, a) for a in (x_t, eps_hat, noise)]
        return two(samplers.ddpm_step(schedule, *arrays[:2], t, s, arrays[2], **options), "x_s", "x_0_hat")

    x_t, eps_hat = 0.2, -0.4
    x_0_hat = (x_t - ONE_MINUS[t] ** 0.5 * eps_hat) / ALPHA_BAR[t] ** 0.5
    mean = x_0_coef * x_0_hat + x_t_coef * x_t
    case = f"{T_3}; t = 3, s = 2, x_t = 0.2, eps_hat = -0.4, noise = 0"
    x_s, guess = step(x_t, eps_hat, t, s, 0.0)
    yield Small(
        *("x_s", case, x_s, [mean]),
        {
            "this is the posterior with eps_hat in place of x_0. It takes x_0_hat, the guess at x_0.": [
                x_0_coef * eps_hat + x_t_coef * x_t
            ],
            "this is x_0_hat. The first of the two results is x_s, which is drawn around the mean of the posterior.": [
                x_0_hat
            ],
            "this is the posterior with x_t and x_0_hat in each other's place.": [x_0_coef * x_t + x_t_coef * x_0_hat],
        },
        exact=1e-12,
    )
    yield Small("x_0_hat", case, guess, [x_0_hat], {"this is x_s: return x_s first.": [mean]}, exact=1e-12)
    case = f"{T_3}; t = 3, s = 2, x_t = 0, eps_hat = 0, noise = 1"
    usual = {
        "this is the variance. Noise enters with its square root.": [tilde],
        "this is the square root of beta_{t|s}. The default variance is beta_tilde.": [0.3**0.5],
        "no noise enters.": [0.0],
        "the noise is subtracted.": [-(tilde**0.5)],
    }
    yield Small("x_s", case, step(0.0, 0.0, t, s, 1.0)[0], [tilde**0.5], usual, exact=1e-12)
    got = step(0.0, 0.0, t, s, 1.0, variance=book("diffusion/schedule").Schedule.beta_t_given_s)[0]
    usual = {"the variance is beta_tilde, whatever the caller asks for. Call variance(schedule, t, s).": [tilde**0.5]}
    yield Small("x_s", f"{case}, variance = beta_t_given_s", got, [0.3**0.5], usual, exact=1e-12)
    case = f"{T_3}; t = 2, s = 0, x_t = 0.2, eps_hat = -0.4, noise = NaN"
    right = (0.2 + ONE_MINUS[2] ** 0.5 * 0.4) / ALPHA_BAR[2] ** 0.5
    usual = {"noise enters the data. At s = 0 return the mean, before you touch the noise: 0 NaN is NaN.": [math.nan]}
    yield Small("x_s", case, step(0.2, -0.4, 2, 0, math.nan)[0], [right], usual, exact=1e-12)
    beta = book("diffusion/schedule").Schedule.beta_t_given_s  # not 0 at s = 0
    got = step(0.2, -0.4, 2, 0, 1.0, variance=beta)[0]
    usual = {
        "noise enters the data. At s = 0 the mean is the data, whatever the variance is.": [right + ONE_MINUS[2] ** 0.5]
    }
    yield Small("x_s", case.replace("NaN", "1, variance = beta_t_given_s"), got, [right], usual, exact=1e-12)
    rows = np.zeros((2, 1))
    got = samplers.ddpm_step(schedule, rows, rows, np.array([3, 1]), np.array([2, 0]), rows + 1)
    case = f"{T_3}; two rows, t = 3 and 1, s = 2 and 0, x_t = 0, eps_hat = 0, noise = 1"
    usual = {"noise enters the row whose s is 0.": [[tilde**0.5], [tilde**0.5]], "no noise enters.": [[0.0], [0.0]]}
    yield Small("x_s", case, two(got, "x_s", "x_0_hat")[0], [[tilde**0.5], [0.0]], usual, exact=1e-12)
    case = f"{T_3}; t = 3, s = 2, x_t = 2, eps_hat = 0, noise = 0, clip"
    far = 2 / ALPHA_BAR[3] ** 0.5
    x_s, guess = step(2.0, 0.0, t, s, 0.0, clip=True)
    usual = {"x_0_hat is not clipped, although the caller asks for it.": [x_0_coef * far + x_t_coef * 2]}
    usual["x_s is clipped. Only x_0_hat lies in [-1, 1], and x_s contains noise."] = [1.0]
    yield Small("x_s", case, x_s, [x_0_coef + x_t_coef * 2], usual, exact=1e-12)
    yield Small("x_0_hat", case, guess, [1.0], {"x_0_hat is not clipped.": [far]}, exact=1e-12)


def ddim_step(book):
    samplers, schedule = book("diffusion/samplers"), small_schedule(book)
    t, s = 3, 2
    tilde = ONE_MINUS[s] / ONE_MINUS[t] * 0.3

    def step(x_t, eps_hat, noise, t=t, s=s, **options):
        arrays = [np.full(1, a) for a in (x_t, eps_hat, noise)]
        return two(samplers.ddim_step(schedule, *arrays[:2], t, s, arrays[2], **options), "x_s", "x_0_hat")[0]

    signal = ALPHA_BAR[s] ** 0.5 / ALPHA_BAR[t] ** 0.5
    yield Small(
        *("x_s", f"{T_3}; t = 3, s = 2, x_t = 1, eps_hat = 0, eta = 0", step(1.0, 0.0, 0.0), [signal]),
        {
            "this has sqrt(alpha_bar_t). The step ends at s, so x_0_hat gets sqrt(alpha_bar_s).": [1.0],
            "this has alpha_bar_s without its square root.": [ALPHA_BAR[s] / ALPHA_BAR[t] ** 0.5],
            "this is x_0_hat itself: sqrt(alpha_bar_s) is missing.": [1 / ALPHA_BAR[t] ** 0.5],
            "the term of x_0_hat is missing.": [0.0],
        },
        exact=1e-12,
    )
    taken = -signal * ONE_MINUS[t] ** 0.5  # what eps_hat = 1 takes away through x_0_hat
    eps_std = ONE_MINUS[s] ** 0.5
    yield Small(
        *("x_s", f"{T_3}; t = 3, s = 2, x_t = 0, eps_hat = 1, eta = 0", step(0.0, 1.0, 0.0), [taken + eps_std]),
        {
            "the sign of eps_hat's term is wrong: eq. 12 adds it.": [taken - eps_std],
            "this has 1 - alpha_bar_t. The step ends at s, so eps_hat gets sqrt(1 - alpha_bar_s - var).": [
                taken + ONE_MINUS[t] ** 0.5
            ],
            "the root of 1 - alpha_bar_s - var is missing.": [taken + ONE_MINUS[s]],
            "the term of eps_hat is missing.": [taken],
        },
        exact=1e-12,
    )
    eta = 0.5
    var = eta**2 * tilde
    case = f"{T_3}; t = 3, s = 2, x_t = 0, eps_hat = 0, noise = 1, eta = 0.5"
    yield Small(
        *("x_s", case, step(0.0, 0.0, 1.0, eta=eta), [var**0.5]),
        {
            "var is eta beta_tilde. Noise enters with eta sqrt(beta_tilde), so the variance has eta^2.": [
                (eta * tilde) ** 0.5
            ],
            "var is eta^2 beta_{t|s}. It is made of beta_tilde (eq. 16).": [eta * 0.3**0.5],
            "no noise enters.": [0.0],
            "this is var. _add_noise takes the variance, and takes its root by itself.": [var],
        },
        exact=1e-12,
    )
    right = taken + (ONE_MINUS[s] - var) ** 0.5
    case = f"{T_3}; t = 3, s = 2, x_t = 0, eps_hat = 1, noise = 0, eta = 0.5"
    usual = {
        "eps_hat brings too much. The fresh noise has the variance var, so eps_hat brings that much less.": [
            taken + eps_std
        ]
    }
    usual["the standard deviation of the noise is subtracted. Variances add up, so subtract var under the root."] = [
        taken + eps_std - var**0.5
    ]
    yield Small("x_s", case, step(0.0, 1.0, 0.0, eta=eta), [right], usual, exact=1e-12)
    case = f"{T_3}; t = 3, s = 2, x_t = 2, eps_hat = 0, eta = 0, clip"
    right = ALPHA_BAR[s] ** 0.5 + eps_std * (2 - ALPHA_BAR[t] ** 0.5) / ONE_MINUS[t] ** 0.5
    usual = {
        "eps_hat does not belong to the clipped x_0_hat. With clip compute it again, by eps_from_x_0.": [
            ALPHA_BAR[s] ** 0.5
        ]
    }
    yield Small("x_s", case, step(2.0, 0.0, 0.0, clip=True), [right], usual, exact=1e-12)
    usual = {
        "this is the root of a rounding error: 1 - alpha_bar_s - var may be -1e-17, and its root is NaN. Clip it at "
        "0.": [math.nan]
    }
    for beta in (0.05 + 0.015 * k for k in range(60)):
        schedule = small_schedule(book, (3e-18, beta))
        got = step(1.0, 0.0, 0.0, t=2, s=1, eta=1.0)
        yield Small(
            "x_s", f"beta = 3e-18, {beta:.3g}; t = 2, s = 1, eta = 1", got, [1 / (1 - beta) ** 0.5], usual, exact=1e-5
        )


def guidance(book):
    answers, calls = np.array([1.0, 2.0, 5.0, 10.0]), []

    def model(x_t, t, labels):
        calls.append(len(x_t))
        return x_t + answers[np.asarray(labels)][:, None]

    model.num_classes = 3
    x_t, labels, scale = np.array([[0.1], [0.2]]), np.array([1, 2]), 3.0
    got = book("diffusion/guidance").classifier_free(model, labels, scale)(x_t, 5)
    if len(calls) > 1:
        raise Wrong(f"the model is called {len(calls)} times. One call on 2N rows gives both predictions.")
    u, c, zero = (x_t + a for a in (10.0, answers[labels][:, None], answers[0]))
    yield Small(
        "eps_hat",
        "2 images, labels 1 and 2 of 3; eps_c = 2.1 and 5.2, eps_u = 10.1 and 10.2, scale = 3",
        got,
        u + scale * (c - u),
        {
            "this is eps_c + scale (eps_c - eps_u), in which scale is w. Here scale is 1 + w: begin with eps_u.": c
            + scale * (c - u),
            "this leads away from the label. The difference is eps_c - eps_u.": u + scale * (u - c),
            "eps_u and eps_c have changed places: the rows without a label come first.": c + scale * (u - c),
            "both halves have the label, so their difference is 0. The first N rows get no_label.": c,
            "no half has the label, so their difference is 0. The last N rows get row_labels.": u,
            "the first half has class 0. No label is the label no_label, not 0.": zero + scale * (c - zero),
            "eps_u is missing: this is scale (eps_c - eps_u).": scale * (c - u),
            "scale multiplies eps_c alone.": u + scale * c - u,
        },
        exact=1e-12,
    )
    got = book("diffusion/guidance").classifier_free(model, 3, 1.7)(x_t, 5)
    digits = "eps_u + scale (eps_c - eps_u) is eps_u itself where the two agree: begin with it, and add the difference."
    case = "2 images without a label, so eps_c = eps_u = 10.1 and 10.2, scale = 1.7"
    yield Small("eps_hat", case, got, u, digits=digits, exact=0.0)
