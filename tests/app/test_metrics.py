"""The Frechet distance against its closed forms, for any rank; what few samples add to it; coverage; shares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.metrics import (
    coverage,
    frechet_distance,
    frechet_with_floor,
    interval,
    percent,
    relative,
    share,
    spread,
    wilson_interval,
)

pytestmark = pytest.mark.program

seeds = st.integers(0, 99)
sizes = st.integers(1, 12)


def rows_with(rng, mean, root, n):
    """n rows whose mean is `mean` and whose covariance is root root^T, both exactly: white rows, coloured."""
    z = rng.normal(size=(n, len(mean)))
    white, _ = np.linalg.qr(z - z.mean(0))  # orthonormal columns of mean 0, for n > D
    return mean + (n - 1) ** 0.5 * white @ root.T


def orthogonal(rng, D):
    return np.linalg.qr(rng.normal(size=(D, D)))[0]


def draw(seed, n, m, D):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(n, D)) @ rng.normal(size=(D, D)), rng.normal(1, 2, (m, D))


def newton_distance(a, b):
    """The definition, its matrix roots by Newton's iteration (Denman & Beavers 1976): no eigenvalue, no singular value.

    For covariances of full rank that are not too ill-conditioned.
    """

    def root(S):
        Y, Z = S, np.eye(len(S))
        for _ in range(60):
            Y, Z = (Y + np.linalg.inv(Z)) / 2, (Z + np.linalg.inv(Y)) / 2
        return Y

    S_a, S_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    R = root(S_a)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S_a + S_b - 2 * root(R @ S_b @ R))


@given(seeds, sizes, st.integers(2, 20))
def test_a_set_is_at_no_distance_from_itself(seed, D, n):
    """0 for equal sets, in any order, with fewer rows than features too: to rounding of the covariance's trace."""
    rng, a, _ = draw(seed, n, 2, D)
    assert abs(frechet_distance(a, rng.permutation(a))) < 1e-12 * (1 + (a**2).sum())


@given(seeds, sizes, st.integers(2, 20), st.integers(2, 20))
def test_it_is_symmetric_and_not_negative(seed, D, n, m):
    """d(a, b) = d(b, a) >= 0 for sets of any two sizes."""
    _, a, b = draw(seed, n, m, D)
    there = frechet_distance(a, b)
    assert there == pytest.approx(frechet_distance(b, a), rel=1e-10) and there > 0


@given(seeds, sizes)
def test_it_is_the_closed_form_where_covariances_commute(seed, D):
    """With the same axes for both: |mu_a - mu_b|^2 + sum (sqrt(l_i) - sqrt(m_i))^2, some of them 0."""
    rng = np.random.default_rng(seed)
    axes, mean_a, mean_b = orthogonal(rng, D), rng.normal(size=D), rng.normal(size=D)
    std_a, std_b = rng.uniform(0, 3, (2, D)) * (rng.random((2, D)) < 0.7)
    a = rows_with(rng, mean_a, axes * std_a, D + 5)
    b = rows_with(rng, mean_b, axes * std_b, D + 9)
    expected = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(seeds)
def test_in_one_dimension_it_is_means_and_standard_deviations(seed):
    """(mu_a - mu_b)^2 + (sigma_a - sigma_b)^2, both with n - 1."""
    _, a, b = draw(seed, 7, 4, 1)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@given(seeds, st.integers(1, 6))
def test_it_is_the_definition_with_newtons_roots(seed, D):
    """Covariances that do not commute, against another algorithm for the roots."""
    _, a, b = draw(seed, 40, 30, D)
    # Newton's iteration loses the square of the condition number, up to 1e6 for these draws, of 1e-16.
    assert frechet_distance(a, b) == pytest.approx(newton_distance(a, b), rel=1e-6)


@given(seeds, st.integers(2, 12), st.integers(2, 8), st.integers(2, 8))
def test_fewer_rows_than_features_lose_nothing(seed, D, n, m):
    """Sets that fill only some dimensions: the distance is that of the same sets where those dimensions are all there
    are, to 1e-12; a root of S would be off by 1e-8."""
    rng, a, b = draw(seed, n, m, D)
    basis = orthogonal(rng, 60)[:, :D]  # D dimensions somewhere in 60
    assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@given(seeds, sizes, st.floats(0.01, 100))
def test_turning_moving_and_scaling_do_what_they_do_to_a_squared_length(seed, D, scale):
    """The same under one orthogonal map and one shift of both; scaling the features by c scales it by c^2."""
    rng, a, b = draw(seed, 9, 11, D)
    turn, shift = orthogonal(rng, D), rng.normal(size=D)
    distance = frechet_distance(a, b)
    assert frechet_distance(a @ turn + shift, b @ turn + shift) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(scale * a, scale * b) == pytest.approx(scale**2 * distance, rel=1e-10)


def test_a_shift_alone_adds_its_square():
    """d(a, a + c) = |c|^2: the covariances are the same."""
    _, a, _ = draw(0, 30, 2, 5)
    assert frechet_distance(a, a + 0.3) == pytest.approx(5 * 0.3**2, rel=1e-10)


def test_float32_features_are_compared_in_float64():
    """The answer is that of the same numbers in float64, far from 0 too."""
    rng = np.random.default_rng(0)
    a, b = (1000 + rng.normal(size=(50, 4)).astype(np.float32) for _ in range(2))
    assert frechet_distance(a, b) == frechet_distance(a.astype("float64"), b.astype("float64"))


@pytest.mark.parametrize("n, m", [(400, 400), (300, 1200)])
def test_few_rows_add_what_the_docstring_says(n, m):
    """Two sets of one Gaussian: the mean of 200 distances is the formula's, for unequal eigenvalues.

    To 4 standard errors of that mean, and the next order, which is D/n of the first.
    """
    D, rng = 12, np.random.default_rng(0)
    values = rng.uniform(0.1, 3, D)
    pair_sum = sum((1 + (i == j)) / 2 * x * y / (x + y) for i, x in enumerate(values) for j, y in enumerate(values))
    expected = (1 / n + 1 / m) * (values.sum() + pair_sum)
    std = values**0.5
    found = [frechet_distance(std * rng.normal(size=(n, D)), std * rng.normal(size=(m, D))) for _ in range(200)]
    error = np.std(found) / 200**0.5
    assert error < 0.02 * expected
    assert abs(np.mean(found) - expected) < 4 * error + D / n * expected


def test_the_floor_is_of_the_same_sizes():
    """samples and as many real rows, each against the other real rows; real rows have no more than the floor."""
    rng = np.random.default_rng(0)
    samples, real = rng.normal(0.5, 1, (20, 3)), rng.normal(size=(50, 3))
    distance, floor = frechet_with_floor(samples, real)
    assert distance == frechet_distance(samples, real[20:])
    assert floor == frechet_distance(real[:20], real[20:])
    assert frechet_with_floor(real[:20], real) == (floor, floor)
    with pytest.raises(ValueError, match="at least twice the 20 rows of samples, got 39"):
        frechet_with_floor(samples, real[:39])
    assert frechet_with_floor(samples, real[:40])[1] == frechet_distance(real[:20], real[20:40])  # as many are enough


BAD = [np.zeros((1, 3)), np.zeros(3), np.full((4, 3), np.nan), np.full((4, 3), np.inf), np.diag([0, 0, -np.inf])]


@pytest.mark.parametrize("bad", BAD)
def test_what_has_no_covariance_is_refused(bad):
    """One row, no rows of features, a NaN or an infinity in one row: named by argument."""
    good = np.eye(3)
    with pytest.raises(ValueError, match="a must be finite"):
        frechet_distance(bad, good)
    with pytest.raises(ValueError, match="b must be finite"):
        frechet_distance(good, bad)
    with pytest.raises(ValueError, match="same features, got 3 and 4"):
        frechet_distance(good, np.eye(4))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_intervals_ends_are_the_shares_that_the_count_just_contradicts(count):
    """Each end q solves |right/n - q| = z sqrt(q (1 - q)/n), and the share itself lies between them."""
    right, n = count
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1  # rounding of float64
    assert high - low > 0.5 / n  # never a certainty
    for q in (low, high):
        assert (right / n - q) ** 2 == pytest.approx(1.96**2 * q * (1 - q) / n, abs=1e-12)


def test_a_share_is_said_with_its_interval():
    """Wilson's interval of 90 in 100 is 82.6% to 94.5%; of all, it still ends below certainty at its lower end."""
    assert share(np.arange(100) < 90) == "90 of 100, 90.0% (95% interval 82.6% to 94.5%)"
    assert share(np.ones(100, bool)) == "100 of 100, 100.0% (95% interval 96.3% to 100.0%)"


@given(st.integers(1, 10**6))
def test_none_and_all_have_exact_ends(n):
    """None right: the interval begins at 0, and its text at 0.0%, not at -0.0%.  All right: it ends at 1."""
    low, high = wilson_interval(0, n)
    assert (low, math.copysign(1, low)) == (0, 1) and interval(0, n).startswith("0.0% to ")
    assert wilson_interval(n, n)[1] == 1 and interval(n, n).endswith(" to 100.0%")
    assert 1 - wilson_interval(n, n)[0] == pytest.approx(high)


@pytest.mark.parametrize("right, n", [(0, 0), (-1, 5), (6, 5), (1, -1), (float("nan"), 5)])
def test_a_share_of_nothing_or_more_than_all_has_no_interval(right, n):
    """The error has both numbers."""
    with pytest.raises(ValueError, match=f"right={right}, n={n}"):
        wilson_interval(right, n)
    with pytest.raises(ValueError, match="right=0, n=0"):
        share(np.zeros(0, bool))


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 3))
def test_only_all_is_100_and_only_none_is_0(right, n, digits):
    """A share is written with its digits; rounding never makes it all or none."""
    right = min(right, n)
    text = percent(right / n, digits)
    assert (text == f"{1:.{digits}%}") == (right == n) and (text == f"{0:.{digits}%}") == (right == 0)
    bound = float(text.strip("<>%")) / 100
    if text[0] == ">":
        assert right / n > bound - 1e-12
    elif text[0] == "<":
        assert right / n < bound + 1e-12
    else:
        assert abs(right / n - bound) <= 0.5 * 10 ** -(digits + 2) + 1e-12


@pytest.mark.parametrize("share, text", [(0.0001, "<0.1%"), (0.9999, ">99.9%"), (0.5, "50.0%"), (0.99951, ">99.9%")])
def test_next_to_none_and_next_to_all(share, text):
    """Below a half rounding hides that there are some, above it that some are missing."""
    assert percent(share) == text


def test_spread_is_the_root_of_the_mean_of_the_classes_squares():
    """Class 0: rows (0, 0), (4, 0): 8 with n - 1.  Class 1: (0, 1), (0, 3), (0, 5): 4.  One of class 2 tells nothing.

    The squares of all features are added and those of all classes averaged: sqrt((8 + 4)/2).
    """
    features = np.array([[0.0, 0], [0, 1], [4, 0], [0, 3], [0, 5], [100, 100]])
    assert spread(features, np.array([0, 1, 0, 1, 1, 2])) == pytest.approx(6**0.5)
    assert spread(features[[0, 2]], np.array([7, 7])) == pytest.approx(8**0.5)  # two rows are enough
    assert math.isnan(spread(features, np.arange(6)))
    assert spread(features[:3:2], np.array([999, 999])) == spread(features[:3:2], np.array([-1, -1])) == 8**0.5


def test_a_ratio_that_is_none_is_a_dash():
    """nan, and anything relative to 0; a ratio above 1 is written as it is."""
    assert [percent(x) for x in (float("nan"), relative(1.0, 0.0), relative(3, 2))] == ["-", "-", "150.0%"]
    assert percent(relative(1.0001, 1.0)) == "100.0%"  # a little above is no ">99.9%"
    assert percent(relative(0.0, 2.0)) == "0.0%" and percent(relative(float("nan"), 2.0)) == "-"


@given(seeds, st.integers(2, 6), st.integers(1, 40))
def test_equal_sets_are_never_at_a_negative_distance(seed, n, D):
    """Rounding can put the sum below 0, most easily with fewer rows than features."""
    rows = np.random.default_rng(seed).normal(size=(n, D))
    assert 0 <= frechet_distance(rows, rows) <= 1e-11


def loop_coverage(samples, real, k):
    """Row by row, by sorting."""
    covered = 0
    for i, row in enumerate(real):
        others = sorted(np.linalg.norm(row - other) for j, other in enumerate(real) if j != i)
        covered += min(np.linalg.norm(row - s) for s in samples) <= others[k - 1]
    return covered / len(real)


@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_coverage_is_its_definition(seed, D, m, k):
    """The share of real rows with a sample no farther than their k-th nearest other real row, by a plain loop."""
    _, samples, real = draw(seed, m, 8, D)
    assert coverage(samples, real, k) == loop_coverage(samples, real, k)


def test_coverage_of_cases_made_by_hand():
    """On a line, k = 1: a heap of samples at one real row covers it and those whose ball reaches it, and no others."""
    real = np.array([[0.0], [1.0], [3.0], [10.0], [12.0]])  # radii 1, 1, 2, 2, 2
    for samples, covered in (
        (real, 1.0),
        ([[0.0]] * 7, 2 / 5),  # itself, and 1, whose ball ends at 0
        ([[-1.0]], 1 / 5),  # at the very end of a ball is in it
        ([[-1.001]], 0.0),
        ([[5.0]], 1 / 5),
        ([[11.0], [2.0]], 4 / 5),
    ):
        assert coverage(np.array(samples), real, 1) == covered
    with pytest.raises(ValueError, match="real must have more than k = 5 rows, got 5"):
        coverage(real, real)


@pytest.mark.parametrize("n, m", [(30, 30), (40, 20)])
def test_coverage_of_one_law_by_itself_is_what_the_docstring_says(n, m):
    """1 - C(n-1, k)/C(n+m-1, k), in few dimensions or many: the mean of 100, to 4 standard errors."""
    rng = np.random.default_rng(0)
    expected = 1 - math.comb(n - 1, 5) / math.comb(n + m - 1, 5)
    for D in (1, 20):
        found = [coverage(rng.normal(size=(m, D)), rng.normal(size=(n, D))) for _ in range(100)]
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / 10
        assert np.std(found) / 10 < 0.02


def test_coverage_tells_near_rows_apart_far_from_0():
    """A distance is of the difference: rows 1/1024 apart at 1e6 have it right, where squares of 1e12 would cancel."""
    real = 1e6 + np.arange(8.0)[:, None] / 1024
    assert coverage(real[:1], real, 1) == 2 / 8


def test_coverage_of_float32_rows_is_that_of_the_same_numbers_in_float64():
    """Squares of differences that float32 would round to 0, or make infinite, and round to the same number."""
    rng = np.random.default_rng(0)
    for scale in (1e-25, 1.0, 1e25):
        samples, real = (scale * rng.normal(size=(n, 2)).astype(np.float32) for n in (6, 40))
        exact = coverage(samples.astype("float64"), real.astype("float64"))
        assert samples.dtype == "float32" and coverage(samples, real) == exact < 1
