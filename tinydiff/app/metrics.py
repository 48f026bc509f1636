"""How far samples are from real data: the Frechet distance of their features, and how much of the data they cover.

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2})       Dowson & Landau 1982

is the squared distance between two Gaussians in the sense of optimal transport.  Here the Gaussians are fitted to the
features of two sets of images.  Features are the inputs of a classifier's last layer.  The distance is small if both
sets contain the same things, equally often and equally varied.  With the Inception network as classifier the distance
is called FID (Heusel et al. 2017).  Our classifier reads digits, so our distances can be compared with each other only.

Two small sets have a larger distance than two large ones.  For N and M rows of one N(mu, S), eigenvalues l_i of S,

    E d^2 = (1/N + 1/M) (tr S + sum_ij (1 + [i = j])/2 l_i l_j/(l_i + l_j)),   to first order in 1/N and 1/M

For D equal eigenvalues, N = M = 1000 and D = 128 this is 6.6% of tr S.  So a distance must be compared with the floor:
the distance of real data from other real data, in sets of the same sizes.  Read next: reading.py.
"""

import math
from typing import Any

import numpy as np

NEAREST = 5  # the neighbour whose distance defines "nearby" in coverage


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """d^2 between the Gaussians fitted to the rows of a (N, D) and b (M, D), for any N, M >= 2, else ValueError.

        S = F^T F,   F = (rows - mu)/sqrt(N - 1),
        tr (S_a^{1/2} S_b S_a^{1/2})^{1/2} = sum of singular values of F_a F_b^T

    The formula needs no square root of a covariance.  With fewer rows than features S has eigenvalues 0, and the square
    root would turn a rounding error of 1e-16 into 1e-8.  All is computed in float64, with an error of about
    1e-15 (tr S_a + tr S_b).
    """
    (mean_a, F_a), (mean_b, F_b) = _fit("a", a), _fit("b", b)
    if len(mean_a) != len(mean_b):
        raise ValueError(f"a and b must have the same features, got {len(mean_a)} and {len(mean_b)}")
    overlap = np.linalg.svd(F_a @ F_b.T, compute_uv=False).sum()
    squared = ((mean_a - mean_b) ** 2).sum() + (F_a**2).sum() + (F_b**2).sum() - 2 * overlap
    return max(0.0, float(squared))  # for equal sets rounding can give -1e-14


def frechet_with_floor(samples: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """(distance, floor): from samples, and from the first N rows of real, to the remaining rows of real.

    samples: (N, D).  real: (M, D) in random order, M >= 2 N, else ValueError.
    Both numbers compare N rows with the same M - N rows, so both have the bias of these sizes.
    """
    n = len(samples)
    if len(real) < 2 * n:
        raise ValueError(f"real must have at least twice the {n} rows of samples, got {len(real)}")
    return frechet_distance(samples, real[n:]), frechet_distance(real[:n], real[n:])


def coverage(samples: np.ndarray, real: np.ndarray, k: int = NEAREST) -> float:
    """The share of real rows that have a sample nearby (Naeem et al. 2020).

    Nearby: at most as far away as the k-th nearest neighbour of the real row among the other real rows.

    samples: (M, D), real: (N, D) with N > k, else ValueError.  If samples and real rows have the same distribution, the
    mean of the share is 1 - C(N-1, k)/C(N+M-1, k), whatever the distribution: 97% for N = M and k = 5.
    """
    samples, real = np.asarray(samples, np.float64), np.asarray(real, np.float64)
    if len(real) <= k:
        raise ValueError(f"real must have more than k = {k} rows, got {len(real)}")
    radius = np.partition(_squared_distances(real, real), k, axis=1)[:, k]  # index 0 is the row itself
    return float((_squared_distances(real, samples).min(1) <= radius).mean())


def spread(features: np.ndarray, labels: np.ndarray) -> float:
    """How varied a class is: the root of the unbiased mean squared distance of the class's features from their mean.

    features: (N, D), labels: (N,).  The mean square is averaged over the classes with two rows or more.  Without
    such a class the result is nan.
    """
    variances = [features[labels == k].var(0, ddof=1).sum() for k in set(labels.tolist()) if (labels == k).sum() > 1]
    return float(np.mean(variances)) ** 0.5 if variances else float("nan")


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that contains the true share with 95% confidence, given `right` of n >= 1, else ValueError (Wilson
    1927).

        (p + z^2/2n  -+  z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),   p = right/n

    Unlike p -+ z sqrt(p (1 - p)/n), this interval stays within 0..1.  If all or none are right, its width is not 0.
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"right must lie in 0..n and n must be at least 1, got right={right}, n={n}")
    p = right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return (low if right > 0 else 0.0), (high if right < n else 1.0)  # without rounding, which gives -2e-17 for 0


def percent(share: float, digits: int = 1) -> str:
    """A share as text, such as "97.5%", or "-" for a nan.

    Only 0 and 1 become "0.0%" and "100.0%".  If rounding would hide the difference, the text is "<0.1%" or ">99.9%".
    """
    if math.isnan(share):
        return "-"
    text, unit = f"{share:.{digits}%}", 0.1 ** (digits + 2)
    if 0 < share < 1 and text in (f"{0:.{digits}%}", f"{1:.{digits}%}"):
        return f"<{unit:.{digits}%}" if share < 0.5 else f">{1 - unit:.{digits}%}"
    return text


def relative(a: float, b: float) -> float:
    """a/b, or nan if b is 0."""
    return a / b if b else float("nan")


def interval(right: int, n: int) -> str:
    """wilson_interval as the text "96.1% to 98.1%"."""
    return " to ".join(f"{end:.1%}" for end in wilson_interval(right, n))


def share(right: np.ndarray) -> str:
    """The text "k of n, p (95% interval low to high)" for booleans (n,), of which k are true; n >= 1."""
    k, n = int(right.sum()), len(right)
    return f"{k} of {n}, {percent(k / max(n, 1))} (95% interval {interval(k, n)})"


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, (N, M).  |a_i|^2 + |b_j|^2 - 2 a_i b_j would lose the digits of a small distance."""
    return np.stack([((b - row) ** 2).sum(1) for row in a])


def _fit(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of rows (N, D), and F (min(N, D), D) such that F^T F is their covariance."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite, of shape (N, D) with N >= 2, got shape {rows.shape}")
    mean = rows.mean(0)
    F: Any = np.linalg.qr((rows - mean) / (len(rows) - 1) ** 0.5, mode="r")
    return mean, F
