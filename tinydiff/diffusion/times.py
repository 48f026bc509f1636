"""Which times a sampler visits: pairs (t, s) of reverse steps that join up, from t = T down to s = 0.

    timestep_pairs    evenly in t            t_i = floor(i T/n)            Song et al. 2021, DDIM, D.2, linear
    quadratic_pairs   evenly in sqrt(t)      t_i = floor((i/n)^2 T)        the same, quadratic
    log_snr_pairs     evenly in log SNR      log_snr(t_i) evenly spaced    Lu et al. 2022, DPM-Solver

With few steps their places matter.  The last two functions put more of them at small t, where log SNR falls fastest.
Read next: solver.py.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from tinydiff.backend import host_integers
from tinydiff.diffusion.schedule import Schedule

Pairs = list[tuple[int, int]]


def timestep_pairs(T: int, num_steps: int) -> Pairs:
    """The pairs (t, s) of num_steps evenly spread reverse steps, from t = T down to s = 0.

        (t_n, t_{n-1}), ..., (t_1, t_0),   t_i = floor(i T / n),   n = num_steps

    The first t is T for every n: x_T is what the sampler is given.  num_steps outside 1..T raises ValueError.
    """
    T, n = _check(T, num_steps)
    return _pairs([i * T // n for i in range(n + 1)])


def quadratic_pairs(T: int, num_steps: int) -> Pairs:
    """Steps that shrink towards the data: times evenly spread in sqrt(t) (Song et al. 2021, DDIM, D.2, quadratic).

        t_i = max(i, floor(T (i/n)^2)),   n = num_steps

    The maximum with i keeps the times apart where several squares fall below 1.  num_steps and the rest as in
    timestep_pairs.
    """
    T, n = _check(T, num_steps)
    return _pairs([max(i, T * i * i // n**2) for i in range(n + 1)])


def log_snr_pairs(schedule: Schedule, num_steps: int) -> Pairs:
    """Steps of one size in log SNR, from t = T to t = 1, and then to x_0 (Lu et al. 2022, DPM-Solver).

        log_snr(t_i) = log_snr(T) + (log_snr(1) - log_snr(T)) (n - i)/(n - 1),   i = 1..n,   n = num_steps

    t_0 = 0: log SNR is infinite at the data, so the step from t = 1 to 0 is a step of its own.  Times and errors as in
    even_pairs.
    """
    return even_pairs(schedule.log_snr[1:], num_steps)


def even_pairs(places: Any, num_steps: int) -> Pairs:
    """Steps of one size in a table that rises, or falls, with t, from t = T to t = 1; then one to x_0.

        places(t_i) = places(T) + (places(1) - places(T)) (n - i)/(n - 1),   i = 1..n,   n = num_steps

    places: of t = 1..T, shape (T,), on the host.  t_0 = 0.  Each t_i is the nearest time, moved as little as keeps all
    of them apart.  num_steps outside 1..T raises ValueError.
    """
    T, n = _check(len(places), num_steps)
    times = [0]
    for i in range(1, n):
        place = places[-1] + (places[0] - places[-1]) * (n - i) / (n - 1)
        nearest = 1 + int(abs(places - place).argmin())
        times.append(min(max(nearest, times[-1] + 1), T - n + i))
    return _pairs([*times, T])


def joined(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs one by one; ValueError unless 0 <= s < t, and each pair begins where the one before ended."""
    end = None
    for t, s in pairs:
        if not 0 <= s < t or end not in (None, t):
            before = "" if end is None else f" after a step to {end}"
            raise ValueError(f"pairs must be steps (t, s) down that join, 0 <= s < t, got ({t}, {s}){before}")
        yield t, s
        end = s


def _check(T: int, num_steps: int) -> tuple[int, int]:
    T = int(host_integers("T", T, 1, 1_000_000))
    return T, int(host_integers("num_steps", num_steps, 1, T))


def _pairs(times: list[int]) -> Pairs:
    return list(pairwise(reversed(times)))
