"""The range rules of `quantize`: what each tensor's and kernel's first step is."""

import numpy as np
import pytest

from repq_tf.arithmetic import levels
from repq_tf.quantization.quantize import check_quantizable
from repq_tf.quantizers import VALUE_RULES
from tests.quantization.networks import (
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
    quantizer_of,
)
from tests.reference import convolution

X = images(8)


def concatenated(x):
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(x)
    a = layers.Conv2D(4, 1, activation="relu", name="a")(x)
    b = layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Concatenate(name="join")([a, b])
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.fixture(scope="module")
def model():
    return network(concatenated)


def qat(model, **options):
    return quantize(model, calibration_data=X, **options)


@pytest.mark.parametrize("rule", VALUE_RULES)
def test_steps_are_those_of_the_rule(model, rule):
    """The input is known; the stem's kernel, of the float model; the last ones, near."""
    quantized = qat(model, weight_range=rule, activation_range=rule)
    low, high = levels(8, True, narrow=False)
    step = array(quantizer_of(quantized, "image").step)
    assert step == pytest.approx(float(VALUE_RULES[rule](X, low, high)), rel=1e-6)
    kernel = array(model.get_layer("stem").kernel)
    steps = array(block_of(quantized, "stem").weight_quantizer.step)
    np.testing.assert_allclose(steps, VALUE_RULES[rule](kernel, -127, 127, True), rtol=1e-6)
    logits = array(model(X))
    step = float(VALUE_RULES[rule](logits, low, high))
    assert float(quantizer_of(quantized, "logits").step) == pytest.approx(step, rel=0.1)


def test_rules_are_of_single_layers(model):
    """And of the last one of those that share a step."""
    rules = {
        "stem": {"weight_range": "max", "activation_range": "max"},
        "a": {"activation_range": "max"},
    }
    quantized = qat(model, bits=4, weight_range="mae", rules=rules)
    plain = qat(model, bits=4)
    last = qat(model, bits=4, rules={**rules, "b": {"activation_range": "mae"}})

    def kernel_steps(model, name):
        return array(block_of(model, name).weight_quantizer.step)

    kernel = array(model.get_layer("stem").kernel)
    largest = np.abs(kernel).max(axis=(0, 1, 2)) / 127  # a first layer has 8 bits
    np.testing.assert_allclose(kernel_steps(quantized, "stem"), largest, rtol=1e-6)
    kernel = array(model.get_layer("b").kernel)
    expected = VALUE_RULES["mae"](kernel, -8, 7, True)
    np.testing.assert_allclose(kernel_steps(quantized, "b"), expected, rtol=1e-6)
    # Of positive values the largest is on the grid, which nothing else demands.
    for name in ("stem", "a"):
        step, other = (float(quantizer_of(m, name).step) for m in (quantized, plain))
        assert step > 1.02 * other
    assert float(quantizer_of(last, "a").step) < float(quantizer_of(quantized, "a").step)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_range": "mse"}, "^weight_range must be one of .*'min_error'.*'mse'"),
        ({"activation_range": None}, "^activation_range must be one of .*Received: None"),
        ({"rules": {"a": {"weight_range": 3}}}, "^rule 'a': weight_range must be one of"),
        ({"rules": {"join": {"weight_range": "max"}}}, "^rule 'join' matches no layer"),
        ({"rules": {"mean": {"weight_range": "max"}}}, "'mean': weight_range must be for l"),
        (
            {"bits": 4, "activation_range": "kl"},
            "^layer '(a|b|stem)': activation_range \"kl\" is for 8 bits. Received: a.*=4",
        ),
        (
            {"rules": {"b": {"weight_bits": 3, "weight_range": "kl"}}},
            "^layer 'b': weight_range \"kl\" is for 8 bits. Received: weight_bits=3",
        ),
    ],
)
def test_bad_ranges_are_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        qat(model, **options)


def test_kl_is_taken_where_there_are_8_bits(model):
    """Ends have, and so may have what a rule names; a float layer has nothing to refuse."""
    qat(model, bits=4, rules={"stem": {"weight_range": "kl"}})
    qat(model, bits=4, rules={"b": {"weight_bits": None, "weight_range": "kl"}})
    check_quantizable(model)


@pytest.mark.parametrize("correct", ["moments", None])
def test_output_error_is_that_of_the_readers(model, correct):
    """Of the input, over all pixels that the stem makes of it."""
    rules = {"image": {"activation_bits": 3, "activation_range": "output_error"}}
    quantized = qat(model, rules=rules, correct=correct)
    kernel = array(model.get_layer("stem").kernel).astype("float64")
    wide = X.astype("float64")

    def error(x, w):
        """Of the stem's output, in parts of each channel's variance."""
        y, real = convolution(x, w), convolution(wide, kernel)
        difference = y - real
        if correct:
            difference = difference - difference.mean(axis=(0, 1, 2))
        return np.mean(np.mean(difference**2, axis=(0, 1, 2)) / real.var(axis=(0, 1, 2)))

    def rounded(values, step, low, high):
        return np.clip(np.rint(values / step), low, high) * step

    tensor = quantizer_of(quantized, "image").activation_quantizer
    found = error(rounded(wide, float(tensor.step), -4, 3), kernel)
    tried = np.abs(X).max() / 3 * np.geomspace(0.2, 1, 60)
    best = min(error(rounded(wide, step, -4, 3), kernel) for step in tried)
    assert found <= 1.05 * best


def test_output_error_is_min_error_where_no_convolution_reads(model):
    """Of outputs, and of tensors that share a step; not of what convolutions read."""
    names = ("stem", "a", "logits")
    options = {"bits": 4, "activation_range": "output_error"}
    chosen = qat(model, **options)
    for name in names:
        other = qat(model, **options, rules={name: {"activation_range": "min_error"}})
        steps = [float(quantizer_of(m, name).step) for m in (chosen, other)]
        assert (steps[0] == steps[1]) == (name != "stem")
