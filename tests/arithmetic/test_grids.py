"""Levels of grids, and where containers hold them."""

import numpy as np

from repq_tf.arithmetic import container_top, input_levels, levels, zero_point


def test_levels():
    """Weights: narrow at 8 bits, as TFLite wants, the paper's full range below."""
    assert levels(8, True, True) == (-127, 127)
    assert levels(4, True, False) == (-8, 7)
    assert levels(2, True, False) == (-2, 1)
    assert levels(2, True, False, mirrored=True) == (-1, 2)
    assert levels(8, False, False) == (0, 255)
    assert levels(16, True, False) == (-(2**15), 2**15 - 1)
    assert levels(16, False, False) == (0, 2**15 - 1)


def test_the_highest_level_is_the_containers():
    assert (container_top(3), container_top(8), container_top(16)) == (127, 127, 32767)
    for bits in (2, 5, 8, 16):
        for signed in (True, False):
            high = levels(bits, signed, narrow=False)[1]
            assert high + zero_point(bits, signed) == container_top(bits)
    assert zero_point(2, True, mirrored=True) == zero_point(2, True) - 1 == 125
    assert [zero_point(16, signed) for signed in (True, False)] == [0, 0]
    assert (zero_point(8, False), zero_point(8, True), zero_point(4, True)) == (-128, 0, 120)


def test_an_input_is_multiplied_by_the_reciprocal():
    """Whose rounding decides where a value lies half way between two levels."""
    step = np.float32(0.3)
    values = (np.arange(-8, 8, dtype=np.float32) + np.float32(0.5)) * step
    expected = np.rint(np.clip(values * (np.float32(1) / step), -8, 7)).astype(int)
    np.testing.assert_array_equal(input_levels(values, step, -8, 7), expected)
    assert (expected != np.rint(np.clip(values / step, -8, 7))).any()
