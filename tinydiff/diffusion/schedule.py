"""The tables of the noise schedule: how much noise there is at each time.  All other formulas use them.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)                          Ho et al. 2020, eq. 2
    alpha_t = 1 - beta_t,   alpha_bar_t = alpha_1 alpha_2 ... alpha_t                  Ho et al. 2020, eq. 4

t runs from 1 to T, as in the paper.  Time 0 is the data, which contains no noise to predict, so training starts
at t = 1.  A table has T+1 entries: beta_0 = 0 and alpha_bar_0 = 1.  Therefore the last reverse step, from t = 1 to
s = 0, uses the same formulas as any other.

The tables are float64 on the host (in the CPU's memory, also when a GPU computes the rest).  The variance of the
noise at t = 1, 1 - alpha_bar_1, is 1e-4: a subtraction in float32 would keep only three of seven digits.  The table
computes it as -expm1(log(alpha_bar_1)), without a subtraction.  Values are rounded only when they are used.

Read next: gaussian.py.
"""

import warnings
from typing import Any

import numpy as np

from tinydiff.backend import host_integers, require

# Ho et al. 2020, section 4: beta runs from 1e-4 to 0.02 in 1,000 steps.
_T_REF, _BETA_FIRST, _BETA_LAST = 1000, 1e-4, 0.02

# Sampling starts from N(0, I), but training ends at x_T = sqrt(alpha_bar_T) x_0 + ..., which contains a part of x_0.
# The mean of 28 x 28 pixels of noise has the standard deviation 1/28 = 0.036.  A tenth of a mostly black digit (mean
# -0.74) moves the mean of x_T by two standard deviations.  The network sees the difference, and every sample comes out
# too grey.
_MAX_SIGNAL_AT_T = 0.1


class ScheduleWarning(UserWarning):
    """x_T still contains a visible part of x_0, so sampling from pure noise starts where the model was not trained."""


class Schedule:
    """The tables of one forward process, float64, read-only, T+1 entries each, indexed by t = 0..T.

    beta: beta_1..beta_T, shape (T,), each strictly between 0 and 1; else a ValueError that names t and the value.  A
    table that begins with beta_0 = 0, shape (T+1,), is accepted too, so Schedule(schedule.beta) equals schedule.
    Warns (ScheduleWarning) if sqrt(alpha_bar_T), the share of x_0 left in x_T, is above 0.1.
    """

    def __init__(self, beta: Any) -> None:
        table = np.array(beta, dtype=np.float64)
        require(table.ndim == 1 and table.size > 0, "beta must hold beta_1..beta_T, shape (T,)", f"shape {table.shape}")
        if table[0] != 0 or table.size == 1:
            table = np.concatenate([[0.0], table])
        self.T = len(table) - 1
        outside = ~((table > 0) & (table < 1))[1:]  # NaN compares False, so it is outside
        if outside.any():
            t = 1 + int(outside.argmax())
            raise ValueError(f"beta must lie strictly between 0 and 1, got {table[t]:.6g} at t = {t} of T = {self.T}")
        self.beta = _read_only(table)
        self.alpha = _read_only(1 - table)
        self.alpha_bar = _read_only(np.cumprod(self.alpha))
        self.log_alpha_bar = _read_only(np.cumsum(np.log1p(-table)))
        self.one_minus_alpha_bar = _read_only(-np.expm1(self.log_alpha_bar))
        if (signal := float(self.alpha_bar[-1]) ** 0.5) > _MAX_SIGNAL_AT_T:
            cause = f"x_T is not pure noise: sqrt(alpha_bar_T) = {signal:.3f} of x_0 is left at T = {self.T}"
            advice = "sampling starts from N(0, I), so samples will be off: use larger beta or more steps"
            warnings.warn(f"{cause}; {advice}", ScheduleWarning, stacklevel=2)

    @classmethod
    def linear(cls, T: int = _T_REF) -> "Schedule":
        """beta grows evenly (Ho et al. 2020, section 4).  The factor 1000/T lets every T end in nearly the same noise.
        T >= 21, because beta_T = 20/T must stay below 1.

        beta_t = 1000/T (1e-4 + u (0.02 - 1e-4)),  u = (t - 1)/(T - 1)
        """
        u = _ramp(T)
        return cls(_T_REF / T * (_BETA_FIRST + u * (_BETA_LAST - _BETA_FIRST)))

    @classmethod
    def cosine(cls, T: int = _T_REF) -> "Schedule":
        """alpha_bar follows a squared cosine, so it changes slowly near t = 0 and near t = T (Nichol & Dhariwal 2021,
        eq. 17); T >= 1.

        alpha_bar_t = f(t)/f(0),  f(t) = cos((t/T + 0.008)/1.008 pi/2)^2,
        beta_t = min(1 - alpha_bar_t/alpha_bar_{t-1}, 0.999)
        """
        T = _check_T(T)
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls(np.minimum(1 - f[1:] / f[:-1], 0.999))

    @classmethod
    def quadratic(cls, T: int = _T_REF) -> "Schedule":
        """sqrt(beta) grows evenly, so the data fades later than under linear (Song et al. 2021, DDIM code); T >= 21.

        beta_t = 1000/T (sqrt(1e-4) + u (sqrt(0.02) - sqrt(1e-4)))^2,  u = (t - 1)/(T - 1)
        """
        u = _ramp(T)
        return cls(_T_REF / T * (_BETA_FIRST**0.5 + u * (_BETA_LAST**0.5 - _BETA_FIRST**0.5)) ** 2)

    @classmethod
    def sigmoid(cls, T: int = _T_REF) -> "Schedule":
        """beta climbs from low to high along an S (GeoDiff, Xu et al. 2022, code); T >= 20.

        beta_t = 1000/T (1e-4 + (0.02 - 1e-4) / (1 + exp(6 - 12 u))),  u = (t - 1)/(T - 1)
        """
        u = _ramp(T)
        return cls(_T_REF / T * (_BETA_FIRST + (_BETA_LAST - _BETA_FIRST) / (1 + np.exp(6 - 12 * u))))

    @classmethod
    def constant(cls, T: int = _T_REF) -> "Schedule":
        """The same beta at every step; T >= 11.  It is here for comparison only: its first beta is 100 times that of
        linear, so fine detail is lost at once and most steps work on almost pure noise.

        beta_t = 1000/T (1e-4 + 0.02)/2
        """
        return cls(np.full(_check_T(T), _T_REF / T * (_BETA_FIRST + _BETA_LAST) / 2))

    @property
    def log_snr(self) -> np.ndarray:
        """log(alpha_bar_t / (1 - alpha_bar_t)), the log signal-to-noise ratio, shape (T+1,); +inf at t = 0."""
        with np.errstate(divide="ignore"):
            return self.log_alpha_bar - np.log(self.one_minus_alpha_bar)

    def alpha_t_given_s(self, t: Any, s: Any) -> np.ndarray:
        """The share of the variance of x_s that is left after a jump from s to any later t; alpha_t where s = t - 1.

            alpha_{t|s} = alpha_bar_t/alpha_bar_s

        t, s: one integer or (N,) host integers, 0 <= s < t <= T, else ValueError.  Returns float64 of their shape.
        """
        t, s = self.check_times(t, s)
        return np.exp(self.log_alpha_bar[t] - self.log_alpha_bar[s])

    def beta_t_given_s(self, t: Any, s: Any) -> np.ndarray:
        """The variance of the noise that a jump from s to any later t adds; beta_t where s = t - 1.

            beta_{t|s} = 1 - alpha_bar_t/alpha_bar_s

        t, s and the result are as in alpha_t_given_s.  Of the two variances of a reverse step in Ho et al. 2020,
        section 3.2, this is the larger.
        """
        t, s = self.check_times(t, s)
        return -np.expm1(self.log_alpha_bar[t] - self.log_alpha_bar[s])

    def beta_tilde(self, t: Any, s: Any) -> np.ndarray:
        """The variance of the posterior q(x_s | x_t, x_0); 0 where s = 0 (Ho et al. 2020, eq. 7, with s = t - 1).

            beta_tilde_{t|s} = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}

        t, s and the result are as in alpha_t_given_s.  It is the smaller of the two variances of section 3.2.
        """
        t, s = self.check_times(t, s)
        return self.one_minus_alpha_bar[s] / self.one_minus_alpha_bar[t] * self.beta_t_given_s(t, s)

    def check_times(self, t: Any, s: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return t and s as host int64, each () or (N,); ValueError unless 0 <= s < t <= T everywhere."""
        t, s = host_integers("t", t, 1, self.T), host_integers("s", s, 0, self.T)
        if t.ndim and s.ndim and t.shape != s.shape:
            raise ValueError(f"t and s must have one shape, got {t.shape} and {s.shape}")
        if (s >= t).any():
            late_t, late_s = (a[s >= t][0] for a in np.broadcast_arrays(t, s))
            raise ValueError(f"s must be less than t, got s = {late_s} and t = {late_t}")
        return t, s


def _check_T(T: int) -> int:
    """T as an int; ValueError outside 1..1,000,000."""
    return int(host_integers("T", T, 1, 1_000_000))


def _ramp(T: int) -> np.ndarray:
    """u = (t - 1)/(T - 1) for t = 1..T: 0 at the first step, 1 at the last, and 1 for the only step of T = 1."""
    return np.linspace(1, 0, _check_T(T))[::-1]


def _read_only(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table
