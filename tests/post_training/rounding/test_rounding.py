"""What all ways to round a kernel promise, on layers of every kind."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.calibration import reconstruction
from repq_tf.post_training.rounding import ROUNDINGS, find_rounding
from repq_tf.post_training.rounding.covariance import robust_targets
from repq_tf.quantizers import LSQ, levels
from tests.quantization.networks import array, block_of, layers, network, quantize

SHAPE = (8, 8, 3)


def every_kind(x):
    """A padded, a strided depthwise, a grouped, a normalized and a dense layer."""
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="padded")(x)
    x = layers.DepthwiseConv2D(3, 2, depth_multiplier=2, use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(8, 1, groups=4, activation="relu6", name="grouped")(x)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="normalized")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    return layers.Dense(5, name="dense")(layers.GlobalAveragePooling2D(name="mean")(x))


NAMES = ("padded", "depthwise", "grouped", "normalized", "dense")


def smooth_images(count, seed):
    x = np.random.default_rng(seed).normal(0.3, 1, (count, *SHAPE))
    for axis in (1, 2):
        x = (x + np.roll(x, 1, axis)) / 2**0.5
    return x.astype("float32")


X = smooth_images(48, 0)
LOW = {"rules": {"*": {"weight_bits": 3}}}


@pytest.fixture(scope="module")
def model():
    return network(every_kind, SHAPE)


def rows_of(fit):
    """All that `pairs` yields, in float64; as many pixels of each image."""
    x, y, images = zip(*fit.pairs(), strict=True)
    images = np.concatenate(images)
    np.testing.assert_array_equal(images, np.arange(len(images)) * len(X) // len(images))
    return [np.concatenate(part, 1).astype(np.float64) for part in (x, y)]


def errors(fit, kernel):
    """Of each output before the activation, by what `pairs` yields, in float64."""
    x, y = rows_of(fit)
    y = robust_targets(x, y, fit.matrix)
    away = y - x @ kernel
    return away.var(axis=1) if fit.corrected else np.square(away).mean(axis=1)


@pytest.mark.slow(4)
@pytest.mark.parametrize(
    ("name", "per_channel", "correct"),
    [
        ("descent", True, "moments"),
        ("descent", False, None),
        ("adaround", True, None),
        ("adaquant", False, "moments"),
    ],
)
def test_levels_and_errors_of_each_layer(model, name, per_channel, correct, monkeypatch):
    """Levels are whole and on the grid; descent never raises the squared error of a layer.

    And the features and targets that they were fitted to are those of the networks.
    """
    function, seen, lowered = find_rounding(name, 30), {}, []

    def rounding(fit):
        rounded = function(fit)
        seen[fit.name] = fit.low, fit.high, fit.shared, rounded
        assert rounded.levels.shape == fit.matrix.shape
        assert (rounded.levels == np.rint(rounded.levels)).all()
        assert fit.corrected == (correct is not None and fit.name != "depthwise")
        assert rounded.levels.min() >= fit.low and rounded.levels.max() <= fit.high
        assert np.isfinite(rounded.step).all() and np.min(rounded.step) > 0
        assert np.ptp(rounded.step) == 0 or not fit.shared
        if name == "descent":
            before = errors(fit, fit.nearest().kernel)
            after = errors(fit, rounded.levels * rounded.step)
            raised = after.sum() > before.sum() if fit.shared else after > before * (1 + 1e-5)
            assert not np.any(raised)
            lowered.append(after.sum() < before.sum())
        return rounded

    monkeypatch.setitem(ROUNDINGS, "descent", rounding)
    quantized = repq_tf.post_training_quantize(
        model,
        rounding="descent",
        per_channel=per_channel,
        equalize=False,
        correct=correct,
        calibration_data=X,
        verbose=False,
        **LOW,
    )
    assert len(seen) == len(NAMES) and (name != "descent" or sum(lowered) > 2)
    for low, high, shared, _ in seen.values():
        assert (low, high, shared) == (-4, 3, not per_channel)
    for layer in NAMES:
        block = block_of(quantized, layer)
        grid, kernel = block.weight_quantizer, array(block.inner.merge().kernel)
        rounded = seen[block.name][3]
        step = np.broadcast_to(array(grid.step), rounded.step.size)
        np.testing.assert_allclose(step, rounded.step.ravel(), rtol=1e-6)
        expected = reconstruction.kernel_of(rounded.levels, block.kernel_size)
        found = np.rint(kernel / array(grid.step))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(array(grid(kernel) / grid.step).round(), expected)


@pytest.mark.slow(4)
def test_float_targets_and_quantized_inputs(model):
    """Of the first layer, whose input is the rounded image, written out."""
    found = {}

    def rounding(fit):
        found[fit.name] = rows_of(fit)
        return fit.nearest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROUNDINGS, "descent", rounding)
        quantized = repq_tf.post_training_quantize(
            model, rounding="descent", calibration_data=X, verbose=False
        )
    x, y = found["padded"]
    step = array(quantized.get_layer("image_quantize").step)
    image = np.clip(np.rint(X / step), -128, 127) * step
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    np.testing.assert_allclose(x[0], views.reshape(-1, 27), atol=1e-5)
    first = model.get_layer("padded")
    expected = keras.ops.conv(X, first.kernel, padding="same")
    np.testing.assert_allclose(y[0], array(expected).reshape(-1, 8), rtol=1e-4, atol=1e-5)
    # Strides, groups and a depth multiplier: y of a layer is its kernel times its own inputs.
    twin = quantize(model, calibration_data=X)
    for name in NAMES[1:]:
        x, y = found[block_of(quantized, name).name]
        kernel = block_of(twin, name).inner.merge()
        matrix = reconstruction.kernel_matrix(kernel)
        near = x @ array(matrix)
        assert np.corrcoef(near.ravel(), y.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_times_steps_round_to_the_levels(bits, dtype, rng):
    """Every level of every grid, with many steps, trained and in inference."""
    low, high = levels(bits, True, narrow=bits == 8)
    n = np.arange(low, high + 1)
    steps = np.exp(rng.uniform(np.log(1e-9), np.log(1e6), 2000)).astype("float32")
    grid = LSQ(bits, channels=len(steps), dtype=dtype)
    grid.build(None)
    grid.set_step(steps)
    step = array(grid.step)
    kernel = (n[:, None] * step.astype(np.float64)).astype(dtype)
    found = np.rint(np.clip(kernel / step, low, high))
    np.testing.assert_array_equal(found, np.broadcast_to(n[:, None], found.shape))
    np.testing.assert_allclose(array(grid(kernel)), kernel, rtol=1e-6)
    wide = np.rint(np.clip(kernel.astype(np.float64) / step.astype(np.float64), low, high))
    np.testing.assert_array_equal(wide, found)
