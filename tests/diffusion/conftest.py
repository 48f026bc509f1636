"""Random schedules for hypothesis: `st.from_type(Schedule)` draws any valid beta table of 1 to 4,000 steps.

A beta is drawn by its log-odds log(beta/(1 - beta)), which treats both ends alike and shrinks to 0, beta = 1/2.
"""

import warnings

import numpy as np
import pytest
from hypothesis import note
from hypothesis import strategies as st

from tinydiff.diffusion import Schedule, ScheduleWarning

# 6e-6..0.95, as schedules in use have it, or 1e-26..1 - 2e-16, as far as a float64 goes on the side of 1.
log_odds = st.one_of(st.floats(-12, 3), st.floats(-60, 36))
short_tables = st.lists(log_odds, min_size=1, max_size=8)


@st.composite
def long_tables(draw):
    """Constant, rising or falling, or scattered between two bounds; then up to three entries are set to anything."""
    T = draw(st.one_of(st.integers(1, 4000), st.just(4000)))
    low, high = draw(log_odds), draw(log_odds)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    table = low + (high - low) * draw(st.sampled_from([np.zeros(T), np.linspace(0, 1, T), rng.random(T)]))
    for at, z in draw(st.lists(st.tuples(st.integers(0, T - 1), log_odds), max_size=3)):
        table[at] = z
    return table


@st.composite
def schedules(draw):
    """The schedule of such a table; long brutal ones underflow alpha_bar to 0, and gentle ones end far from noise."""
    beta = 1 / (1 + np.exp(-np.array(draw(st.one_of(short_tables, long_tables())))))
    note(f"T = {len(beta)}, beta = {np.array2string(beta, threshold=20)}")  # in the report of a failure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(beta)


st.register_type_strategy(Schedule, schedules())


@pytest.fixture(scope="session")
def linear():
    return Schedule.linear()
