import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.check import SETTINGS, check
from tests.fuzz.models import network


@pytest.mark.slow
@settings(max_examples=10)
@given(st.data())
def test_random_networks_are_exact_or_refused(data):
    """A few of what `python -m tests.fuzz` does."""
    check(network(data.draw), data.draw(SETTINGS))
