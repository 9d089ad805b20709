"""How fast the steps of weights learn: LSQ's published gradient scale, and the bounded one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf
from repq_tf.branches import NumpyReading
from repq_tf.layers import ACBlock, ReparamConv
from repq_tf.quantizers import LSQ
from tests.quantization.networks import array, images, network, quantize, residual


def step_gradients(block, x, upstream):
    """The gradients of a block's weight steps: as trained, and as the paper defines them.

    The paper's is `sum_w dL/dw^ (round(w/s) - w/s)`, or `-Q_N` and `Q_P` outside, before
    it is scaled; `dL/dw^` is the convolution's.
    """
    quantizer = block.weight_quantizer
    with tf.GradientTape() as tape:
        y = block(tf.constant(x), training=True)
    to_change = array(tape.gradient(y, quantizer.change.value, tf.constant(upstream)))
    # The variable's gradient is the step's over ds / dchange.
    step, initial = array(quantizer.step), array(quantizer.initial_step)
    trained = to_change * np.minimum(step, initial)

    kernel = block.inner.merge(NumpyReading()).kernel
    height, width = upstream.shape[1:3]
    to_kernel = np.empty(kernel.shape)
    for h, w in np.ndindex(*kernel.shape[:2]):
        patch = x[:, h : h + height, w : w + width]
        to_kernel[h, w] = np.einsum("bhwi,bhwo->io", patch, upstream)
    v = kernel / step
    error = np.where(v <= quantizer.low, quantizer.low, np.rint(v) - v)
    error = np.where(v >= quantizer.high, quantizer.high, error)
    return trained, (to_kernel * error).sum((0, 1, 2))


@pytest.mark.parametrize("bits", [3, 8])
def test_a_block_learns_its_steps_as_published(bits, rng):
    """With "lsq" the scale is 1 / sqrt(N Q_P); "bounded" never enlarges it."""
    x = rng.normal(size=(2, 7, 7, 4)).astype("float32")
    upstream = rng.normal(size=(2, 5, 5, 6)).astype("float32")
    trained, weights = {}, None
    for step_gradient in ("lsq", "bounded"):
        block = ACBlock(
            6,
            padding="valid",
            bn_statistics="running",
            weight_bits=bits,
            step_gradient=step_gradient,
        )
        block.build(x.shape)
        if weights is None:
            block.weight_quantizer.initialize(block.inner.merge().kernel)
            block.weight_quantizer.change.assign(np.linspace(-0.3, 0.3, 6))
            weights = block.get_weights()
        block.set_weights(weights)
        trained[step_gradient], paper = step_gradients(block, x, upstream)
    scale = 1 / np.sqrt(3 * 3 * 4 * (2 ** (bits - 1) - 1))
    np.testing.assert_allclose(trained["lsq"], paper * scale, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(np.sign(trained["lsq"]), np.sign(trained["bounded"]))
    ratio = trained["bounded"] / trained["lsq"]
    assert (ratio <= 1 + 1e-5).all()
    assert bits == 3 or (ratio < 0.5).any()


@pytest.fixture(scope="module")
def model():
    return network(residual)


def settings(model):
    """Each block's argument, and whether the quantizer of its weights is bounded."""
    blocks = [layer for layer in model.layers if isinstance(layer, ReparamConv)]
    return {(b.step_gradient, b.weight_quantizer.bounded) for b in blocks}


@pytest.mark.slow
def test_quantize_sets_it_for_all_weights_and_copies_keep_it(model, tmp_path):
    assert settings(quantize(model)) == {("bounded", True)}
    qat = quantize(model, bits=4, step_gradient="lsq")
    qat.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for copy in (qat, loaded, repq_tf.with_container(qat, "int4")):
        assert settings(copy) == {("lsq", False)}
    np.testing.assert_array_equal(array(loaded(images())), array(qat(images())))


def test_files_from_before_there_was_a_choice_are_bounded():
    config = ACBlock(4, weight_bits=8).get_config()
    del config["step_gradient"]
    block = ACBlock.from_config(config)
    assert block.step_gradient == "bounded"
    assert block.weight_quantizer.bounded == LSQ().bounded
