"""Marks of single values of a parameter."""

import pytest


def slow(*values):
    """Values with which a test is slow: the others see most of what they see."""
    return pytest.param(*values, marks=pytest.mark.slow(1))
