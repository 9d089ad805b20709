"""Super resolution by plain convolutions: what the network computes, with any blocks."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers, models
from repq_tf.branches import BatchNorm, Sum
from tests.deployment.files import assert_exact
from tests.models.outline import blocks
from tests.zoo import BLOCKS


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 6, 7, 3)).astype("float32")


def correlate(x, kernel, bias):
    """A 3x3 convolution with zeros around, in float64."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = [
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps) + bias


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_it_computes(scale, channels, images):
    model = models.repvgg_sr(2, 4, scale, channels, block="ConvBlock")
    x = images[..., :channels].astype("float64")
    y = x
    for block in blocks(model):
        kernel, bias = block.get_weights()
        bias = np.random.default_rng(1).normal(size=bias.shape)
        block.set_weights([kernel, bias])
        y = correlate(y, kernel.astype("float64"), bias)
        y = y if block.name == "last" else np.maximum(y, 0)
    y = y + np.concatenate([x] * scale**2, axis=-1)
    expected = np.empty((2, scale * 6, scale * 7, channels))
    for i in range(scale):
        for j in range(scale):
            first = (i * scale + j) * channels
            expected[:, i::scale, j::scale] = y[..., first : first + channels]
    np.testing.assert_allclose(model(x.astype("float32")), expected, atol=1e-5)


def test_layers():
    model = models.repvgg_sr_m4c16(scale=2)
    assert model.input.shape == (None, None, None, 1)
    assert [type(block) for block in blocks(model)] == [layers.RepVGGBlock] * 6
    assert [block.filters for block in blocks(model)] == [16] * 5 + [4]
    names = [block.name for block in blocks(model)]
    assert names == ["first", "block1", "block2", "block3", "block4", "last"]
    assert [block.activation.__name__ for block in blocks(model)] == ["relu"] * 5 + ["linear"]
    plain = models.build(models.plain_twin("repvgg_sr_m4c16"), scale=4, input_shape=(5, 6, 1))
    assert [type(block) for block in blocks(plain)] == [layers.ConvBlock] * 6
    assert plain.output.shape == (None, 20, 24, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_of_any_block(name, images):
    model = models.repvgg_sr(1, 4, block=name, channels=3)
    kind = getattr(layers, name)
    assert [type(block) for block in blocks(model)] == [kind] * 3
    inside = [node for block in blocks(model) for node in block.expression.walk()]
    norms = any(isinstance(node, BatchNorm) for node in inside)
    without = "ConvBlock DiracConv ECB ExpandNet RepVGGBlock WeightNormConv".split()
    assert norms == (name not in without)
    output = np.asarray(model(images))
    assert output.shape == (2, 12, 14, 3) and np.isfinite(output).all()
    merged = repq_tf.merge(model)
    assert sum(type(layer) is keras.layers.Conv2D for layer in merged.layers) == 3
    np.testing.assert_allclose(merged(images), output, atol=1e-4 * abs(output).max())


def test_a_block_of_ones_own_and_batch_norms_if_asked():
    @keras.saving.register_keras_serializable()
    class CrossBlock(layers.ReparamConv):
        def make_branches(self, in_channels):
            wide = self.batch_norm(self.convolution((1, 3), name="wide"))
            return Sum([wide, self.batch_norm(self.convolution((3, 1), name="tall"))])

    model = models.repvgg_sr_m4c16(block=CrossBlock)
    assert [type(block) for block in blocks(model)] == [CrossBlock] * 6
    (first, *_) = blocks(models.repvgg_sr_m4c16(use_batch_norm=True))
    assert first.use_batch_norm


def test_training_moves_every_weight(images):
    model = models.repvgg_sr(m=1, c=4, channels=3)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1e-2), "mean_absolute_error")
    large = images.repeat(2, axis=1).repeat(2, axis=2)[..., ::-1]
    assert np.isfinite(model.train_on_batch(images, large))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = np.asarray(variable)
        assert np.isfinite(new).all() and (new != old).any(), variable.path


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_the_integer_file_is_convolutions_and_a_sum(bits, images, tmp_path):
    model = models.repvgg_sr(m=2, c=4, channels=3)
    qat = repq_tf.quantize(model, bits=bits, calibration_data=images, verbose=False)
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    expected = {"CONV_2D": 4, "CONCATENATION": 1, "ADD": 1, "DEPTH_TO_SPACE": 1}
    assert operators == expected
    assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", images))


@pytest.mark.parametrize("m", [4, 16])
def test_features_keep_their_scale_at_any_depth(m, images):
    model = models.repvgg_sr(m, 16, channels=3)
    y = np.asarray(model(images))
    residual = y - images.repeat(2, axis=1).repeat(2, axis=2)
    assert 1e-3 < residual.std() < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m must be a positive whole number. Received: 0"),
        ({"scale": 1}, "scale must be at least 2. Received: 1"),
        ({"block": "ACBlok"}, "block must be .* one of: ACBlock, .* Received: 'ACBlok'"),
        ({"block": "DenseBlock"}, "block must be .* Received: 'DenseBlock'"),
        ({"block": keras.layers.Conv2D}, "block must be a subclass of ReparamConv"),
        ({"input_shape": (8, 8, 3)}, r"end in channels, 1. Received: \(8, 8, 3\)"),
        ({"classes": 10}, "block_options of repvgg_sr_m4c8 .* Received: classes"),
        ({"activation": "tanh"}, "block_options .* Received: activation"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.repvgg_sr(**{"m": 4, "c": 8, **arguments})
