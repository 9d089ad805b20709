"""Tools on models with several inputs, and with layers that are called twice."""

import pytest

import repq_tf
from tests.deployment.test_several_inputs import STRUCTURES, two_inputs
from tests.deployment.test_shared_layers import X, built, retina


def test_several_inputs():
    model, data = two_inputs("dict"), STRUCTURES["dict"]
    for quantized in (model, repq_tf.quantize(model, calibration_data=data, verbose=False)):
        names = [row.name for row in repq_tf.analyze(quantized, data, verbose=False).rows]
        assert {"picture", "facts", "conv", "years"} <= set(names)
    assert repq_tf.summary(model).totals["deployed"] == repq_tf.merge(model).count_params()
    with pytest.raises(ValueError, match="must have one input, of which images are made"):
        repq_tf.synthesize_images(model)


def test_calls_of_a_layer_are_one_layer():
    model = built(retina)
    found = repq_tf.sensitivity(model, X, bits=8, verbose=False)
    weights = [row.name for row in found.rows if row.kind == "weights"]
    assert weights == ["a", "b", "sub_tower", "scaled", "sub_head"]
    model = repq_tf.quantize(model, calibration_data=X, verbose=False)
    kernels = 27 * 6 + 2 * 54 * 6 + 6 + 54 * 4
    biases = 4 * 6 + 4
    assert repq_tf.summary(model).totals["deployed"] == kernels + biases
