"""Range rules against NumPy, by brute force where they search."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.quantizers import (
    RANGES,
    VALUE_RULES,
    check_range,
    kl_step,
    levels,
    mae_step,
    max_step,
    percentile_step,
)

array = keras.ops.convert_to_numpy
GRIDS = [(8, True), (8, False), (4, True), (3, False)]


def magnitudes(values, low):
    return np.abs(values) if low < 0 else np.maximum(values, 0)


@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_max_clips_nothing_and_percentile_one_of_ten_thousand(bits, signed, rng):
    low, high = levels(bits, signed, narrow=bits == 8)
    values = rng.standard_t(4, size=50_000).astype("float32")
    sizes = magnitudes(values, low)
    assert float(max_step(values, low, high)) == pytest.approx(sizes.max() / high, rel=1e-6)
    end = float(percentile_step(values, low, high)) * high
    assert np.sum(sizes > end * (1 + 1e-6)) == 5
    # Few values are not clipped, and rare ones do not vanish.
    few = values[:900]
    expected = float(max_step(few, low, high))
    assert float(percentile_step(few, low, high)) == pytest.approx(expected, rel=1e-6)
    rare = np.append(np.zeros(50_000, "float32"), 3.0).astype("float32")
    assert float(percentile_step(rare, low, high)) == pytest.approx(3 / high, rel=1e-6)


@pytest.mark.parametrize("values", [[-1.0, 3.0], [-2.0, 3.0]])
def test_max_clips_nothing_of_more_levels_above_zero_than_below(values):
    """Levels -1 to 2 reach twice as far above 0 as below."""
    low, high = levels(2, True, narrow=False, mirrored=True)
    assert (low, high) == (-1, 2)
    expected = max(values[1] / 2, -values[0])
    for rule in (max_step, percentile_step):
        assert float(rule(np.array(values, "float32"), low, high)) == pytest.approx(expected)


@given(bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_mae_finds_the_least_absolute_error(bits, signed, seed):
    low, high = levels(bits, signed, narrow=bits == 8)
    values = np.random.default_rng(seed).laplace(size=2000)

    def error(step):
        return np.abs(np.rint(np.clip(values / step, low, high)) * step - values).sum()

    peak = np.abs(values).max()
    least = min(error(step) for step in np.geomspace(peak / high / 400, 2 * peak, 2000))
    assert error(float(mae_step(values.astype("float32"), low, high))) <= 1.02 * least


def brute_force(counts, count):
    """The bins that TensorRT's calibration keeps, as its paper words it: distributions."""
    best, least = None, np.inf
    for i in range(len(counts), count - 1, -max(1, count // 8)):
        p = counts[:i].astype(float)
        p[-1] += counts[i:].sum()
        q, edges = np.zeros(i), np.arange(count + 1) * i // count
        for level in range(count):
            part = counts[edges[level] : edges[level + 1]]
            spread = q[edges[level] : edges[level + 1]]
            spread[part > 0] = part.sum() / max(np.sum(part > 0), 1)
        p, q = p / p.sum(), q / q.sum()
        if (q[p > 0] == 0).any():
            continue
        divergence = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
        if divergence < least - 1e-12:
            best, least = i, divergence
    return best


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True)])
@pytest.mark.parametrize("freedom", [3, 30])
def test_kl_keeps_the_bins_of_least_divergence(bits, signed, freedom, rng):
    low, high = levels(bits, signed, narrow=bits == 8)
    values = rng.standard_t(freedom, size=20_000).astype("float32")
    sizes = magnitudes(values, low)
    sizes = sizes[sizes > 0] if low == 0 else sizes
    bins = 16 * (high + 1)
    counts = np.histogram(sizes, bins, (0, sizes.max()))[0]
    expected = brute_force(counts, high + 1) / bins * sizes.max() / high
    assert float(kl_step(values, low, high)) == pytest.approx(expected, rel=1e-6)


def test_zeros_of_a_relu_do_not_count_for_kl(rng):
    values = np.maximum(rng.normal(size=20_000), 0).astype("float32")
    more = np.append(values, np.zeros(200_000, "float32"))
    assert float(kl_step(more, 0, 255)) == float(kl_step(values, 0, 255))


@pytest.mark.parametrize("rule", VALUE_RULES)
def test_channels_are_apart_and_zeros_take_the_mean_of_the_others(rule, rng):
    step = VALUE_RULES[rule]
    values = rng.normal(size=(3, 3, 40, 5)).astype("float32") * np.float32([1, 9, 0, 0.1, 2])
    steps = array(step(values, -127, 127, True))
    alive = [0, 1, 3, 4]
    single = [float(step(values[..., c], -127, 127)) for c in alive]
    np.testing.assert_allclose(steps[alive], single, rtol=1e-6)
    assert steps[2] == pytest.approx(np.mean(single), rel=1e-6)
    assert float(step(np.zeros(5, "float32"), -127, 127)) == 1


@pytest.mark.parametrize("size", [1e-30, 1e12])
@pytest.mark.parametrize("rule", VALUE_RULES)
def test_extreme_magnitudes_give_a_usable_step(rule, size, rng):
    values = (rng.normal(size=(50, 2)) * size).astype("float32")
    steps = array(VALUE_RULES[rule](values, -127, 127, True))
    assert np.isfinite(steps).all() and (steps > 0).all()


@pytest.mark.parametrize("name", ["mse", None, 8, ["max"]])
def test_unknown_rules_are_refused(name):
    assert [check_range(rule, "weight_range") for rule in RANGES] == list(RANGES)
    with pytest.raises(ValueError, match="^weight_range must be one of .*'percentile'.*Rec"):
        check_range(name, "weight_range")
