"""Transposed convolutions: Keras's own layer is the reference."""

import keras
import numpy as np
import pytest

from repq_tf.branches import NumpyReading
from repq_tf.layers import ConvTransposeBlock, ConvTransposeBNBlock
from repq_tf.layers.stock import copy_stock, stock_block
from tests.quantization.networks import array

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 4, 3)).astype("float32")
# Sizes of kernels and strides.
CASES = [(2, 2), (3, 2), (4, 2), (5, 2), (1, 2), (4, 4), (8, 4), (2, 4), (3, 3), (3, 1)]


def stock(size, strides, padding, **options):
    layer = keras.layers.Conv2DTranspose(6, size, strides=strides, padding=padding, **options)
    layer.build(X.shape)
    layer.set_weights([RNG.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


def block_of(layer, **changes):
    kind, config = stock_block(layer)
    block = kind.from_config({**config, **changes})
    block.build(X.shape)
    copy_stock(layer, None, block)
    return block


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), CASES)
def test_it_is_keras_layer(size, strides, padding):
    layer = stock((size, size + 1) if size == 3 else size, strides, padding)
    want = array(layer(X))
    block = block_of(layer)
    assert block.compute_output_spec(keras.KerasTensor(X.shape)).shape == want.shape
    np.testing.assert_allclose(array(block(X)), want, rtol=1e-4, atol=1e-4)
    merged = block_of(layer, merged=True)  # by the phases of its output
    np.testing.assert_allclose(array(merged(X)), want, rtol=1e-4, atol=1e-4)
    kernel, _ = merged.phases(merged.merge(NumpyReading()).kernel.astype("float32"))
    assert kernel.shape[2:] == (3, 6 * strides**2)


def test_batch_norm_and_config():
    keras.utils.set_random_seed(0)
    block = ConvTransposeBNBlock(4, 3, upsampling=2, padding="valid", activation="relu")
    y = block(X, training=True)
    moments = array(keras.ops.mean(block(X), axis=(0, 1, 2)))
    assert y.shape == (2, 11, 9, 4) and moments.shape == (4,)
    twin = ConvTransposeBNBlock.from_config(block.get_config())
    twin.build(X.shape)
    twin.set_weights(block.get_weights())
    np.testing.assert_array_equal(array(twin(X)), array(block(X)))


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"strides": 2}, {"groups": 3}, {"dilation_rate": 2}, {"upsampling": 0}],
)
def test_refused_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be .*Received"):
        ConvTransposeBlock(6, 3, **options)
