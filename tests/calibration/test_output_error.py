"""Steps by the error of convolutions' outputs, against brute force in float64."""

import numpy as np
import pytest

from repq_tf.calibration.output_error import feature_step, kernel_step
from repq_tf.quantizers import LSQ


def grid_of(bits, signed, channels=None):
    grid = LSQ(bits, signed, channels=channels)
    grid.build(None)
    return grid


def quantize(values, step, grid):
    return np.clip(np.rint(values / step), grid.low, grid.high) * step


def square(errors, corrected):
    """`(groups, outputs)` of `(groups, patches, outputs)`."""
    return errors.var(axis=1) if corrected else np.mean(errors**2, axis=1)


def parts(patches, matrix):
    """The variance of each output; of a constant one, no error counts."""
    variance = (patches @ matrix).var(axis=1)
    return np.where(variance > 1e-6 * variance.max(), variance, np.inf)


def least(error, peak, grid, count=1500):
    """The least error over a logarithmic grid of steps."""
    return min(error(step) for step in np.geomspace(0.004, 1, count) * peak / grid.high)


def reader(rng, groups, inputs, outputs, patches=300):
    """Patches with a long tail, and a kernel of which one output is dead and one is huge."""
    scale = rng.uniform(0.1, 2, (groups, 1, inputs))
    x = np.maximum(rng.standard_t(3, size=(groups, patches, inputs)) + 0.3, 0) * scale
    matrix = rng.normal(size=(groups, inputs, outputs))
    matrix[0, :, 0] *= 1e-20
    matrix[-1, :, -1] *= 1e3
    return x.astype("float32"), matrix.astype("float32")


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (4, False), (3, True)])
def test_a_tensor_gets_the_step_of_the_least_error_of_its_readers(bits, signed, corrected, rng):
    """Of two: one with more outputs than inputs, and a depthwise one."""
    grid = grid_of(bits, signed)
    readers = [reader(rng, 1, 12, 40), reader(rng, 6, 9, 1)]
    readers = [(x - 0.5 if signed else x, matrix) for x, matrix in readers]
    wide = [(x.astype("float64"), matrix.astype("float64")) for x, matrix in readers]

    def error(step):
        total = 0
        for x, matrix in wide:
            part, variance = (
                square((quantize(x, step, grid) - x) @ matrix, corrected),
                parts(x, matrix),
            )
            total += np.sum(part / variance) / np.isfinite(variance).sum()
        return total

    step = float(feature_step(readers, grid, corrected))
    peak = max(np.abs(x).max() for x, _ in readers)
    assert error(step) <= 1.03 * least(error, peak, grid)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(1, 20, 8), (2, 12, 5), (10, 9, 1)])
def test_a_kernel_gets_the_steps_of_the_least_error_of_its_outputs(
    shape, shared, corrected, rng
):
    """Dense, grouped and depthwise, with fewer and with more patches than inputs."""
    groups, inputs, outputs = shape
    grid = grid_of(4, True, None if shared else groups * outputs)
    for patches in (15, 400):
        x, matrix = reader(rng, *shape, patches)
        steps = np.asarray(kernel_step(x, matrix, grid, corrected))
        wide, kernel = x.astype("float64"), matrix.astype("float64")
        variance = parts(wide, kernel)

        def errors(step, wide=wide, kernel=kernel):
            return square(wide @ (quantize(kernel, step, grid) - kernel), corrected)

        def mean(step, errors=errors, variance=variance):
            return np.sum(errors(step) / variance)

        if shared:
            assert steps.shape == ()
            assert mean(steps) <= 1.03 * least(mean, np.abs(kernel).max(), grid)
            continue
        found = errors(steps.reshape(groups, 1, outputs)).ravel()
        for output, value in enumerate(found):
            g, m = divmod(output, outputs)
            peak = np.abs(kernel[g, :, m]).max()
            # A dozen weights have many minima; the search begins with 24 steps.
            best = least(lambda s: errors(s)[g, m], peak, grid, 24)  # noqa: B023
            assert value <= 1.001 * best


def test_correlated_inputs_move_the_step_of_a_kernel(rng):
    """Inputs that are never read alone: of two weights only the sum counts."""
    x = rng.normal(size=(1, 200, 1)).repeat(2, axis=2).astype("float32")
    grid = grid_of(2, True, 1)
    matrix = np.float32([[[1.0], [0.4]]])
    step = kernel_step(x, matrix, grid, corrected=True)
    assert quantize(matrix, step, grid).sum() == pytest.approx(1.4, rel=0.01)


def test_kernels_of_zeros_and_constant_features_have_usable_steps(rng):
    x, matrix = reader(rng, 1, 9, 4)
    matrix[..., 2] = 0
    steps = kernel_step(x, matrix, grid_of(8, True, 4), corrected=True)
    assert steps[2] == pytest.approx(np.mean(steps[[0, 1, 3]]), rel=1e-5)
    zeros = np.zeros_like(matrix)
    assert kernel_step(x, zeros, grid_of(8, True), True) == 1
    for constant in (np.ones_like(x), np.zeros_like(x)):
        assert (kernel_step(constant, matrix, grid_of(8, True, 4), True) > 0).all()
        assert feature_step([(constant, zeros)], grid_of(8, False), True) > 0
