"""`Fixed`: what makes its filters names the arguments that it cannot use."""

import numpy as np
import pytest

from repq_tf.branches import Fixed

FILTER = np.ones((3, 3))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Fixed.average(8, (3, 3)), "channels must be .*Received: \\(3, 3\\)"),
        (lambda: Fixed.average((3, 3, 3), 8), "kernel_size must be .*Received: \\(3, 3, 3\\)"),
        (lambda: Fixed.depthwise(FILTER, 0, "f"), "channels must be .*Received: 0"),
        (
            lambda: Fixed.depthwise(FILTER[0], 8, "f"),
            "filters must be .*Received: shape \\(3,\\)",
        ),
        (lambda: Fixed.depthwise(np.ones((3, 3, 4)), 8, "f"), "shape \\(3, 3, 4\\)"),
        (lambda: Fixed.dirac(6, 8, groups=4), "in_channels must be a multiple of groups, 4"),
        (lambda: Fixed.dirac(8, 6, groups=4), "out_channels must be a multiple of groups, 4"),
        (lambda: Fixed.dirac(8, 8, groups=0), "groups must be"),
    ],
)
def test_bad_arguments_are_named(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_one_number_is_a_square_window():
    kernel = Fixed.average(2, channels=3).array
    assert kernel.shape == (2, 2, 1, 3) and (kernel == 0.25).all()
