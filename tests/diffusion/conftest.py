"""Random schedules for hypothesis: `st.from_type(Schedule)` draws chains of 1 to 3,000 steps, gentle or brutal."""

import warnings

import numpy as np
import pytest
from hypothesis import strategies as st

from tinydiff.diffusion import Schedule, ScheduleWarning


@st.composite
def schedules(draw):
    """T betas, log-uniform between two random bounds in 1e-6..0.9; long brutal chains underflow alpha_bar to 0."""
    T = draw(st.one_of(st.integers(1, 5), st.integers(1, 3000)))
    low, high = sorted(draw(st.tuples(st.floats(-6, -0.05), st.floats(-6, -0.05))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(10 ** rng.uniform(low, high, T))


st.register_type_strategy(Schedule, schedules())


@pytest.fixture(scope="session")
def linear():
    return Schedule.linear()
