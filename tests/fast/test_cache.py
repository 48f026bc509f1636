"""How much work the fast forms take at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.fast.cache import chunks

pytestmark = pytest.mark.engine


@given(st.integers(1, 500), st.integers(0, 3_000_000))
def test_chunks_cover_each_image_once_in_order_and_nearly_equally(n, bytes_each):
    """The slices lie end to end from 0 to n, none is empty, and no two differ by more than one image."""
    parts = chunks(n, bytes_each)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@given(st.integers(2, 500), st.integers(1, 3_000_000))
def test_chunks_are_as_large_as_the_scratch_allows(n, bytes_each):
    """More bytes an image never mean fewer slices; scratch that fits in one image's room needs one slice only."""
    assert len(chunks(n, bytes_each)) <= len(chunks(n, bytes_each + bytes_each // 2 + 1))
    assert len(chunks(n, 1)) == 1  # 500 bytes fit in any cache
    assert len(chunks(n, 1 << 40)) == n  # a terabyte fits in none


def test_an_empty_batch_is_one_empty_slice():
    """chunks(0, ...) is a slice without images, so a loop over the slices still runs."""
    assert [range(0)[part] for part in chunks(0, 100)] == [range(0)]
