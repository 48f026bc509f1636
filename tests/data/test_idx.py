"""Laws of the IDX format."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydiff.backend import default_rng
from tinydiff.data.idx import parse_idx

pytestmark = pytest.mark.data

KEEP_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@KEEP_FIXTURE
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_an_array_comes_back_as_it_was_written(idx, shape, seed):
    """parse(write(a)) = a for any number of axes."""
    array = default_rng(seed).integers(0, 256, shape, "uint8")
    parsed = parse_idx(idx(array))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@KEEP_FIXTURE
@given(st.data())
def test_a_file_of_another_length_is_refused(idx, data):
    """Any cut or lengthened file is a ValueError."""
    content = idx(default_rng(1).integers(0, 256, (3, 4, 5), "uint8"))
    cut = data.draw(st.integers(0, len(content) - 1))
    for wrong in (content[:cut], content + content[: cut + 1]):
        with pytest.raises(ValueError, match=r"IDX|reshape|size"):
            parse_idx(wrong)


@pytest.mark.parametrize("header", [b"\0\0\x0d\x01", b"\0\0\x07\x01", b"\0\1\x08\x01", b"\1\0\x08\x01", b"<htm"])
def test_another_kind_of_file_is_refused(header):
    """Floats, other magic numbers and web pages are a ValueError that shows the first bytes."""
    with pytest.raises(ValueError, match=f"begins with {header.hex(' ')}$"):
        parse_idx(header + b"\0\0\0\1" * header[3] + b"\0")
