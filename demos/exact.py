"""Exact denoisers: data whose ideal eps_hat is known in closed form, so no network has to be trained.

    q(x_t) is the data's density, shrunk by sqrt(alpha_bar_t) and blurred by N(0, (1 - alpha_bar_t) I), and
    E[eps | x_t] = -sqrt(1 - alpha_bar_t) grad log q(x_t)                      Ho et al. 2020, eq. 4; Tweedie's formula

For a Gaussian it is affine in x_t, and for a mixture a softmax over the components.  A finite set of points, such as
5,000 digits, is a mixture of components without width.  A network that is trained without error on the same data
predicts these means.  The samplers and the guidance of the package take them in place of a network: ideal.py shows
that, and the tests of the samplers use nothing else.

The table schedule.alpha_bar is all that this file takes from tinydiff/diffusion.  Read next: ideal.py.
"""

import numpy as np

from tinydiff.backend import asarray, xp


def gaussian_eps_fn(schedule, mean, cov):
    """E[eps | x_t] for data N(mean, cov).

        eps = sqrt(1 - alpha_bar_t) S_t^-1 (x_t - sqrt(alpha_bar_t) mean),   S_t = alpha_bar_t cov + (1 - alpha_bar_t) I

    mean: (D,).  cov: (D, D), symmetric.  Returns eps_fn(x_t, t): x_t (N, D), t in 1..T, one or (N,); float64 within,
    x_t's dtype outside.
    """
    eigenvalues, axes = np.linalg.eigh(np.asarray(cov, "float64"))  # S_t is diagonal along the axes of cov at every t
    mean, eigenvalues, axes = (asarray(a, "float64") for a in (mean, eigenvalues, axes))

    def eps_fn(x_t, t):
        a, x = _alpha_bar(schedule, t), x_t.astype("float64")
        along = (x - a**0.5 * mean) @ axes
        return ((1 - a) ** 0.5 * (along / (a * eigenvalues + 1 - a)) @ axes.T).astype(x_t.dtype)

    return eps_fn


def mixture_probs_fn(schedule, weights, means, var):
    """p(k | x_t) for data that are N(means[k], var I) with probability weights[k], by Bayes' rule.

        p(k | x_t) proportional to weights_k exp(-|x_t - sqrt(alpha_bar_t) means_k|^2 / (2 S_t)),   sum_k p(k | x_t) = 1
        S_t = alpha_bar_t var + 1 - alpha_bar_t

    weights: (K,), positive.  means: (K, D).  var = 0 is a finite set of points.
    Returns probs_fn(x_t, t) -> (N, K) float64; arguments as those of the eps_fn of gaussian_eps_fn.
    """
    log_weights, means = xp.log(asarray(weights, "float64")), asarray(means, "float64")
    half_squares = (means**2).sum(1) / 2

    def probs_fn(x_t, t):
        a, x = _alpha_bar(schedule, t), x_t.astype("float64")
        S = a * var + 1 - a
        logits = log_weights + (a**0.5 * (x @ means.T) - a * half_squares) / S  # without |x_t|^2, which all k share
        p = xp.exp(logits - logits.max(1, keepdims=True))  # the largest is exp(0): no underflow to 0/0 far out
        return p / p.sum(1, keepdims=True)

    return probs_fn


def mixture_eps_fn(schedule, weights, means, var):
    """E[eps | x_t] for the mixture of mixture_probs_fn.

        eps = sqrt(1 - alpha_bar_t)/S_t (x_t - sqrt(alpha_bar_t) sum_k p(k | x_t) means_k)

    Arguments as those of mixture_probs_fn.  Returns eps_fn as gaussian_eps_fn.
    """
    probs_fn, means = mixture_probs_fn(schedule, weights, means, var), asarray(means, "float64")

    def eps_fn(x_t, t):
        a, x = _alpha_bar(schedule, t), x_t.astype("float64")
        S = a * var + 1 - a
        return ((1 - a) ** 0.5 / S * (x - a**0.5 * (probs_fn(x_t, t) @ means))).astype(x_t.dtype)

    return eps_fn


def mixture_score_fn(schedule, weights, means, var, labels):
    """grad_{x_t} log p(y | x_t) for row n's component y = labels[n] of the mixture of mixture_probs_fn.

        grad = sqrt(alpha_bar_t)/S_t (means_y - sum_k p(k | x_t) means_k)

    labels: (N,) host integers.  Returns score_fn(x_t, t), in the form that classifier_guided takes.
    """
    probs_fn, means = mixture_probs_fn(schedule, weights, means, var), np.asarray(means, "float64")

    def score_fn(x_t, t):
        a = _alpha_bar(schedule, t)
        S = a * var + 1 - a
        return (a**0.5 / S * (asarray(means[labels]) - probs_fn(x_t, t) @ asarray(means))).astype(x_t.dtype)

    return score_fn


def mixture_log_density(x, weights, means, var):
    """log sum_k weights_k N(x; means_k, var I) at each row of x (N, D), host float64: (N,).  var must be above 0."""
    x, means = np.asarray(x, "float64"), np.asarray(means, "float64")
    logits = np.log(weights) - ((x[:, None] - means) ** 2).sum(2) / (2 * var)
    return np.logaddexp.reduce(logits, 1) - x.shape[1] / 2 * np.log(2 * np.pi * var)


def ideal_x_0_fn(schedule, points):
    """E[x_0 | x_t] if x_0 is one of K points, all equally likely: the mean of all points that x_t may come from.

        x_0_hat = sum_k w_k points_k
        w_k proportional to exp(-|x_t - sqrt(alpha_bar_t) points_k|^2 / (2 (1 - alpha_bar_t))),   sum_k w_k = 1

    points: (K, ...), such as images (K, H, W, C).  Returns x_0_fn(x_t, t) -> (x_0_hat, w): x_t and x_0_hat are (N, ...)
    of one dtype, t in 1..T, one or (N,), and w is (N, K) float64.
    """
    flat = asarray(points, "float64").reshape(len(points), -1)
    probs_fn = mixture_probs_fn(schedule, np.full(len(points), 1 / len(points)), flat, 0.0)

    def x_0_fn(x_t, t):
        w = probs_fn(x_t.reshape(len(x_t), -1), t)
        return (w @ flat).reshape(x_t.shape).astype(x_t.dtype), w

    return x_0_fn


def still_matter(w):
    """How many points matter in a mean with the weights w (N, K): 1/sum_k w_k^2, (N,), between 1 and K.

    It is K if all weights are equal, and 1 if one point has all the weight.
    """
    return 1 / (w**2).sum(1)


class ExactModel:
    """eps_hat = model(x_t, t, labels), called as a network: for points (N, D), from an exact denoiser for each label.

    eps_fns: one for each class, and the last one for "no label".  labels: one integer or (N,) host integers.
    """

    def __init__(self, eps_fns):
        self.eps_fns, self.num_classes = eps_fns, len(eps_fns) - 1

    def __call__(self, x_t, t, labels):
        labels, eps_hat = np.broadcast_to(labels, len(x_t)), xp.zeros_like(x_t)
        for k in sorted(set(labels.tolist())):
            eps_hat = xp.where(asarray(labels == k)[:, None], self.eps_fns[k](x_t, t), eps_hat)
        return eps_hat


def guided_stds(scale, v_u, v_c):
    """What guidance makes of a class N(m, v_c I) among data N(m, v_u I): {what: standard deviation}, in closed form.

    In the limit of many steps the differential equations of guided sampling can be solved.  With y = x/sqrt(alpha_bar),
    u = (1 - alpha_bar)/alpha_bar and P(u) = (1 - scale)/(v_u + u) + scale/(v_c + u):

        DDIM     dy/du = P y/2,      std = v_u^((1 - scale)/2) v_c^(scale/2), the geometric mean of the two widths
        DDPM     dV/du = 2 P V - 1,  std^2 = v_c (1 - r^(2 scale - 1))/((1 - r) (2 scale - 1)),   r = v_c/v_u
        tilted   the density p(x)^(1 - scale) p(x | c)^scale, whose precision is P(0); nan if it has no integral

    So guided chains do not sample the tilted density.  For v_c < v_u and a scale above 1 they are narrower.
    scale: a number other than 1/2.  v_u and v_c differ.
    """
    r, k = v_c / v_u, 2 * scale - 1
    precision = (1 - scale) / v_u + scale / v_c
    return {
        "DDIM": v_u ** ((1 - scale) / 2) * v_c ** (scale / 2),
        "DDPM": (v_c * (1 - r**k) / ((1 - r) * k)) ** 0.5,
        "tilted": precision**-0.5 if precision > 0 else float("nan"),
    }


def told_of_last_noise(schedule, t, s=None):
    """The share of the noise of the step s -> t that x_t tells, if x_0 is known: R^2 of the regression of it on x_t.

        x_t = sqrt(alpha_{t|s}) x_s + sqrt(beta_{t|s}) z,   E[z | x_t, x_0] = R eps,   Var[z | x_t, x_0] = 1 - R^2
        R^2 = beta_{t|s}/(1 - alpha_bar_t)

    eps is all the noise in x_t.  t: one or (N,) host integers in 1..T.  s: t - 1 if it is None.
    """
    s = np.asarray(t) - 1 if s is None else s
    return schedule.beta_t_given_s(t, s) / schedule.one_minus_alpha_bar[t]


def _alpha_bar(schedule, t):
    """alpha_bar_t as (1,) or (N, 1), to stand beside rows."""
    return asarray(schedule.alpha_bar[t])[..., None]
