"""`correct`: what calibration undoes of what quantization does to means and deviations."""

import numpy as np
import pytest

from tests.quantization.networks import (
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
)

X = images(16)


def stock(x):
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="biased")(x)
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.fixture(scope="module")
def model():
    return network(stock)


@pytest.fixture(scope="module")
def quantized(model):
    """With coarse kernels, a trained batch norm, a bias and a fresh batch norm."""
    rules = {"*": {"weight_bits": 2}}

    def one(correct, restore):
        return quantize(
            model,
            rules=rules,
            correct=correct,
            restore_batch_norm=restore,
            calibration_data=X,
            activation_range="min_error",
        )

    return {
        (correct, restore): one(correct, restore)
        for correct in ("moments", "bias", None)
        for restore in (None, True)
    }


def affine(model, name):
    """What a block makes of its convolution: gain and offset."""
    block = block_of(model, name)
    bias = array(block.inner.merge().bias)
    if block.root is None:
        return np.ones_like(bias), bias
    gain, shift = map(array, block.root.gain_and_shift())
    return gain, shift + bias * gain


def test_nothing_is_corrected_without(model, quantized):
    """A trained batch norm and a bias stay, and a fresh batch norm is the identity."""
    norm = model.get_layer("bn")
    gain = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    bias = array(model.get_layer("biased").bias)
    for restore in (None, True):
        qat = quantized[None, restore]
        found = affine(qat, "conv")
        np.testing.assert_allclose(found[0], gain, rtol=1e-6)
        shift = array(norm.beta) - gain * array(norm.moving_mean)
        np.testing.assert_allclose(found[1], shift, rtol=1e-4, atol=1e-6)
        found = affine(qat, "biased")
        np.testing.assert_allclose(found[0], 1, rtol=1e-5)
        np.testing.assert_allclose(found[1], bias, rtol=1e-4, atol=1e-5)


def test_a_bias_takes_the_shift_alone(quantized):
    """As batch norms do then, whose deviations only "moments" corrects."""
    for name in ("conv", "biased"):
        none, bias, moments = (
            affine(quantized[correct, True], name) for correct in (None, "bias", "moments")
        )
        np.testing.assert_allclose(bias[0], none[0], rtol=1e-4)
        assert np.abs(bias[1] - none[1]).max() > 0.01 * np.abs(none[1]).max()
        assert np.abs(moments[0] / none[0] - 1).max() > 0.02
    # Without a batch norm, there is nothing that takes a deviation.
    bias, moments = (
        affine(quantized[correct, None], "biased") for correct in ("bias", "moments")
    )
    np.testing.assert_array_equal(bias[0], moments[0])


@pytest.mark.parametrize("correct", ["bias", "moments"])
@pytest.mark.parametrize("restore", [None, True])
def test_means_are_those_of_the_float_network(model, quantized, correct, restore):
    real = array(model(X))
    errors = {
        key: np.abs(array(quantized[key, restore](X)).mean(axis=0) - real.mean(axis=0)).max()
        for key in (correct, None)
    }
    assert errors[correct] < 0.03 * real.std()
    assert errors[correct] < 0.2 * errors[None]


@pytest.mark.parametrize("correct", ["mean", True, 3, ["bias"]])
def test_unknown_corrections_are_refused(model, correct):
    with pytest.raises(
        ValueError, match="^correct must be one of .*'moments', 'bias', 'analytic', None"
    ):
        quantize(model, correct=correct, calibration_data=X)
