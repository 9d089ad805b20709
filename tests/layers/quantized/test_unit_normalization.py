"""Unit vectors of stored tensors, against the runtime and in floating point."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from repq_tf.layers import QuantizedUnitNormalization
from repq_tf.tflite import micro
from repq_tf.tflite.interpreter import Interpreter
from tests.deployment.files import operator_file
from tests.layers.quantized.test_gates import grid, layer_of, levels_of


def interpreters(content):
    """The file in every runtime that is here."""
    found = [Interpreter(content), Interpreter(content, kernels="reference")]
    return found + [micro.MicroInterpreter(content)] * micro.is_installed()


def vectors(low, high, channels, rng):
    """Short ones and long ones, of zeros, of a single one, and of the largest levels."""
    sizes = np.geomspace(0.5, 300, 40)[:, None]
    first = np.eye(1, channels, dtype=int)
    rows = [
        np.rint(rng.normal(size=(40, channels)) * sizes),
        rng.integers(low, high + 1, (8, channels)),
        *(0 * first, first, high * first, low * first, low + 0 * first, high + 0 * first),
    ]
    return np.clip(np.concatenate(rows), low, high).astype(int)


# From 8,257 channels on the largest sum of squares needs 30 bits.
@pytest.mark.parametrize("channels", [1, 2, 3, 10, 128, 1280, 9000])
@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (3, True)])
def test_unit_vectors(channels, bits, signed, rng):
    layer = layer_of(QuantizedUnitNormalization)
    low, high, zero = grid(bits, signed)
    levels = vectors(low, high, channels, rng)
    got = levels_of(layer, (levels, 0.03))
    options, shape = schema.L2NormOptionsT(), (1, channels)
    content = operator_file(
        "L2_NORMALIZATION", [(shape, 0.03, zero)], (shape, 1 / 128, 0), options
    )
    for interpreter in interpreters(content):
        for row, wanted in zip(levels, got, strict=True):
            interpreter.run((row + zero).astype(np.int8)[None])
            np.testing.assert_array_equal(interpreter.output()[0], wanted)
    length = np.maximum(np.sqrt((levels.astype(float) ** 2).sum(1, keepdims=True)), 1e-9)
    exact = np.clip(128 * levels / length, -128, 127)
    assert np.abs(got - exact).max() < 1.01  # it is rounded twice


def test_gradients_of_short_vectors_and_of_zeros_are_finite():
    import tensorflow as tf

    layer = layer_of(QuantizedUnitNormalization)
    x = tf.constant([[0.0, 0, 0], [1e-9, 0, 0], [3.0, 4, 0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = layer(x, keras.ops.convert_to_tensor(np.float32(0.1)), training=True)
        loss = tf.reduce_sum(y)
    np.testing.assert_allclose(y[2], [0.6, 0.8, 0], atol=1 / 256)
    assert np.isfinite(tape.gradient(loss, x)).all()
