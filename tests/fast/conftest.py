"""What stands in this folder tests the faster forms, under pytest --plain too."""

import pytest
from plain import fast


@pytest.fixture(autouse=True)
def installed():
    with fast():
        yield
