"""Batch-norm statistics from images."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, RepVGGBlock
from tests.quantization.networks import (
    SHAPE,
    array,
    block_of,
    images,
    network,
    quantize,
    relative,
    residual,
    settle,
    stock,
    values,
)

X = images()


@pytest.fixture(scope="module")
def model():
    return network(residual)


def numpy_moments(y):
    y = array(y).astype("float64").reshape(-1, y.shape[-1])
    return y.mean(0), y.var(0)


def test_reestimated_stock_batch_norm_has_the_moments_of_its_input():
    model = network(stock, seed=4)
    for name in ("c_bn", "d1_bn", "p_bn"):
        norm = model.get_layer(name)
        norm.moving_mean.assign(np.full(norm.moving_mean.shape, 7.0))
        norm.moving_variance.assign(np.full(norm.moving_mean.shape, 9.0))
    kept = {v.path: array(v) for v in model.trainable_variables}
    repq_tf.reestimate_batch_norm(model, X, batch_size=20)  # 20, 20 and 8 images
    for name in ("c_bn", "d1_bn", "p_bn"):
        norm = model.get_layer(name)
        mean, variance = numpy_moments(keras.Model(model.input, norm.input)(X))
        np.testing.assert_allclose(array(norm.moving_mean), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(array(norm.moving_variance), variance, rtol=1e-4)
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(array(variable), kept[variable.path])


def test_moments_of_half_precision_features_are_found_in_float32():
    """A variance above 65504 is none that float16 holds."""
    image = keras.Input((4, 4, 2))
    half = keras.layers.Activation("linear", dtype="mixed_float16")(image)
    norm = keras.layers.BatchNormalization(dtype="mixed_float16")
    model = keras.Model(image, norm(half))
    data = np.random.default_rng(0).normal(0, 1000, (64, 4, 4, 2)).astype("float16")
    repq_tf.reestimate_batch_norm(model, data)
    mean, variance = numpy_moments(data.astype("float64"))
    assert (variance > 65504).all()
    np.testing.assert_allclose(array(norm.moving_mean), mean, rtol=1e-3)
    np.testing.assert_allclose(array(norm.moving_variance), variance, rtol=1e-3)


def assert_moments(norm, mean, variance):
    moving = norm.statistics
    np.testing.assert_allclose(array(moving.moving_mean), mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(moving.moving_variance), variance, rtol=1e-4)


def branch_moments(block, x):
    """Moments of what each batch norm of a sum normalizes, run branch by branch."""
    from tests.reference import convolution

    found = []
    for norm in block.merged_batch_norms:
        affine = norm.child.merge()
        offset = [(o - i) // 2 for o, i in zip(block.kernel_size, affine.size, strict=True)]
        window = [(1 - o, 1 - o) for o in offset]
        groups = affine.groups
        y = convolution(array(x), array(affine.kernel), None, groups, block.strides, window)
        found.append(numpy_moments(y))
    return found


@pytest.mark.parametrize("kind", ["float", "merged", "quantized 8", "quantized 3"])
@pytest.mark.parametrize("strides", [1, 2])
def test_reestimated_blocks_have_the_moments_of_their_branches(kind, strides):
    keras.utils.set_random_seed(5)
    options = {"padding": 1, "strides": strides, "activation": "relu", "name": "b"}
    if kind == "merged":
        options["merged"] = True
    for block_class in (ACBlock, RepVGGBlock):
        inputs = keras.Input(SHAPE, name="image")
        model = settle(keras.Model(inputs, block_class(3, **options)(inputs)))
        x = X
        if kind.startswith("quantized"):
            model = quantize(
                model, bits=int(kind[-1]), rules={"b": {"weight_bits": int(kind[-1])}}
            )
            x = model.get_layer("image_quantize")(X)[0]
        block = block_of(model, "b")
        for variable in block.non_trainable_variables:
            if "moving" in variable.path:
                variable.assign(np.full(variable.shape, 3.0))
        repq_tf.reestimate_batch_norm(model, X, batch_size=20)
        for norm, found in zip(block.merged_batch_norms, branch_moments(block, x), strict=True):
            if kind.startswith("quantized"):  # what its kernel was trained with stays
                found = np.full((2, 3), 3.0)
            assert_moments(norm, *found)
        if block.restored is not None:
            # It normalizes the output of the kernel as it is: quantized, if it is.
            from tests.reference import convolution

            affine = block.inner.merge()
            kernel = affine.kernel
            if block.weight_quantizer is not None:
                kernel = block.weight_quantizer(kernel)
            y = convolution(
                array(x), array(kernel), array(affine.bias), 1, block.strides, [(1, 1)] * 2
            )
            mean, variance = numpy_moments(y)
            statistics = block.restored.statistics
            np.testing.assert_allclose(
                array(statistics.moving_mean), mean, rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(array(statistics.moving_variance), variance, rtol=1e-4)


def test_the_float_branches_of_an_estimate_model_get_true_moments():
    """Run branch by branch, they were trained with batch moments, whatever the mode."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(SHAPE, name="image")
    block = ACBlock(3, padding=1, bn_statistics="estimate", name="b")
    model = settle(keras.Model(inputs, block(inputs)))
    for norm, found in zip(block.merged_batch_norms, branch_moments(block, X), strict=True):
        assert_moments(norm, *found)
    assert model.built


def test_reestimation_after_training_brings_inference_to_training():
    """With momentum 0.9 a few steps leave the moving statistics far behind."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input(SHAPE, name="image")
    model = keras.Model(inputs, residual(inputs))
    target = array(model(X, training=True))
    for variable in model.non_trainable_variables:
        variable.assign(np.full(variable.shape, 2.0))
    assert relative(model(X), target) > 0.3
    repq_tf.reestimate_batch_norm(model, X)
    assert relative(model(X), target) < 1e-3


def test_reestimation_of_a_quantized_model_is_idempotent(model):
    qat = quantize(model, bits=4)
    repq_tf.reestimate_batch_norm(qat, X)
    before = values(qat)
    repq_tf.reestimate_batch_norm(qat, X)
    for variable, value in zip(qat.weights, before, strict=True):
        np.testing.assert_allclose(
            array(variable), value, rtol=1e-4, atol=1e-5, err_msg=variable.path
        )
