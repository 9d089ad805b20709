"""Coordinate descent against brute force, and what it must never do."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from repq_tf.post_training.rounding.covariance import Covariance, best_kernel, robust_targets
from repq_tf.post_training.rounding.descent import _DAMPING, descend

DRAWS = [(seed, shared) for seed in range(8) for shared in (False, True)]


def problem(seed, shared, bits=2, inputs=6, outputs=3, groups=2):
    """A covariance, a kernel, the nearest levels and steps, and the grid."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 50, inputs)) @ rng.normal(size=(groups, inputs, inputs))
    covariance = x.transpose(0, 2, 1) @ x / 50
    kernel = rng.normal(size=(groups, inputs, outputs))
    step = np.abs(kernel).max(axis=1, keepdims=True) / 2 ** (bits - 1)
    step = np.full_like(step, step.mean()) if shared else step
    grid = SimpleNamespace(low=-(2 ** (bits - 1)), high=2 ** (bits - 1) - 1, shared=shared)
    nearest = np.clip(np.rint(kernel / step), grid.low, grid.high)
    return covariance, kernel, nearest, step, grid


def damped(covariance):
    scale = np.einsum("gii->g", covariance) / covariance.shape[1]
    return covariance + _DAMPING * scale[:, None, None] * np.eye(covariance.shape[1])


def error(covariance, away):
    """Written out, of each output of each group."""
    return np.einsum("gio,gij,gjo->go", away, covariance, away)


@pytest.mark.parametrize(("seed", "shared"), DRAWS)
def test_no_other_level_of_a_weight_is_better(seed, shared):
    covariance, kernel, nearest, step, grid = problem(seed, shared)
    levels, fitted = descend(covariance, kernel, nearest, step, grid)
    assert (fitted > 0).all() and (np.ptp(fitted) == 0 or not shared)
    assert (levels == np.rint(levels)).all()
    assert levels.min() >= grid.low and levels.max() <= grid.high
    h = damped(covariance)
    found = error(h, levels * fitted - kernel)
    for j, level in itertools.product(range(kernel.shape[1]), range(grid.low, grid.high + 1)):
        other = levels.copy()
        other[:, j] = level
        assert (error(h, other * fitted - kernel) >= found - 1e-9).all()


@pytest.mark.parametrize(("shared", "met", "above"), [(False, 0.8, 1.05), (True, 0.65, 1.15)])
def test_against_all_levels_there_are(shared, met, above):
    """With the same steps: how often the best of 4^6 kernels is met, and the mean error."""
    ratios = []
    for seed in range(12):
        covariance, kernel, nearest, step, grid = problem(seed, shared)
        levels, fitted = descend(covariance, kernel, nearest, step, grid)
        h = damped(covariance)
        every = list(itertools.product(range(grid.low, grid.high + 1), repeat=6))
        found = error(h, levels * fitted - kernel)
        for g, o in np.ndindex(found.shape):
            away = np.array(every, float) * fitted[g, 0, o] - kernel[g, :, o]
            ratios.append(found[g, o] / np.einsum("ki,ij,kj->k", away, h[g], away).min())
        before = error(h, nearest * step - kernel)
        assert found.sum() < before.sum()
        assert shared or (found <= before + 1e-9).all()
    assert min(ratios) > 1 - 1e-9
    assert np.mean(np.array(ratios) < 1 + 1e-9) > met and np.mean(ratios) < above


def test_inputs_that_do_not_vary_together_leave_the_nearest_levels():
    """Of the fitted steps, whose error no levels undercut."""
    for seed in range(4):
        covariance, kernel, nearest, step, grid = problem(seed, False, bits=3)
        covariance = covariance * np.eye(6)
        levels, fitted = descend(covariance, kernel, nearest, step, grid)
        expected = np.clip(np.rint(kernel / fitted), grid.low, grid.high)
        np.testing.assert_array_equal(levels, expected)


def test_inputs_that_are_zero_keep_their_weights():
    covariance, kernel, nearest, step, grid = problem(0, False, bits=4)
    covariance[:, 2] = covariance[:, :, 2] = 0
    covariance[1] = 0
    levels, fitted = descend(covariance, kernel, nearest, step, grid)
    assert np.isfinite(fitted).all()
    dead = np.clip(np.rint(kernel / fitted), grid.low, grid.high)[0, 2]
    np.testing.assert_array_equal(levels[0, 2], dead)
    np.testing.assert_array_equal(levels[1], nearest[1])


def test_blocks_of_coordinates_change_nothing(monkeypatch):
    """As many at once as there are, or one by one."""
    arguments = problem(3, False, bits=4, inputs=40, groups=1)
    several = [descend(*arguments)]
    for size in (1, 7):
        monkeypatch.setitem(descend.__globals__, "_BLOCK", size)
        several.append(descend(*arguments))
    for levels, step in several[1:]:
        np.testing.assert_array_equal(levels, several[0][0])
        np.testing.assert_allclose(step, several[0][1], rtol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_covariances_tell_the_error_of_any_kernel(centred, rng):
    x, y = rng.normal(1, 2, (2, 60, 5)), rng.normal(-1, 1, (2, 60, 3))
    one, other = Covariance(), Covariance()
    one.add(x[:, :10].astype("float32"), y[:, :10].astype("float32"))
    other.add(x[:, 10:40], y[:, 10:40])
    other.add(x[:, 40:], y[:, 40:])
    kernel = rng.normal(size=(2, 5, 3))
    away = y - x @ kernel
    expected = away.var(axis=1) if centred else np.square(away).mean(axis=1)
    found = (one + other).finish(centred).error(kernel)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_few_clipped_inputs_move_no_target_far(rng):
    x, kernel = rng.normal(size=(2, 4000, 5)), rng.normal(size=(2, 5, 3))
    noise = rng.normal(0.2, 0.1, (2, 4000, 3))
    usual = x @ kernel + noise
    y = usual.copy()
    y[:, ::50] += 30
    found = robust_targets(x, y, kernel)
    assert (np.abs(found - usual) < 1.1).all()
    inside = (np.abs(noise - 0.2) < 0.25) & (y == usual)
    np.testing.assert_allclose(found[inside], y[inside], rtol=1e-9)
    alone = robust_targets(x[:, :1], y[:, :1], kernel)
    np.testing.assert_allclose(alone, y[:, :1], rtol=1e-9)


def test_the_best_kernel_is_fitted_as_far_as_data_carry(rng):
    """What many pixels tell is learned; what few tell by chance is not."""

    def found(pixels, noise):
        halves = Covariance(), Covariance()
        for half in halves:
            x = rng.normal(size=(1, pixels, 8))
            half.add(x, x @ better + noise * rng.normal(size=(1, pixels, 4)))
        whole = halves[0] + halves[1]
        for covariance in (*halves, whole):
            covariance.finish(centred=True)
        return best_kernel(halves, whole, kernel)

    kernel = rng.normal(size=(1, 8, 4))
    better = kernel + 0.1 * rng.normal(size=kernel.shape)
    assert np.abs(found(4000, 0.1) - better).max() < 0.02
    assert np.abs(found(6, 20.0) - kernel).max() < 2
