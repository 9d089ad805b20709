"""What holds for the blocks as a family: names, outlier-aware batch norms."""

from functools import partial

import keras
import numpy as np
import pytest

from repq_tf import layers
from repq_tf.branches import OABN, NumpyReading
from tests.block_case import array
from tests.branches.expressions import randomize
from tests.zoo import BLOCKS

NORMALIZED = [
    name
    for name, options in BLOCKS.items()
    if name not in ("ECB", "ConvBlock") and "oabn_k" not in options
]


def test_the_table_of_blocks_is_complete():
    public = {name: getattr(layers, name) for name in layers.__all__}
    blocks = {name for name, kind in public.items() if issubclass(kind, layers.ReparamConv)}
    stages = {"Dense", "DenseBN", "ConvTranspose", "ConvTransposeBN"}  # with tests of their own
    assert set(BLOCKS) == blocks - {"ReparamConv", *(f"{name}Block" for name in stages)}


@pytest.mark.parametrize("name", NORMALIZED)
def test_outlier_aware_batch_norms_in_every_block(name, float64):
    """No gain above k, whatever gammas and variances are, and the two readings are one."""
    options = {**BLOCKS[name], "oabn_k": 0.5}
    block = getattr(layers, name)(4, name="block", **options)
    block.build((None, 7, 6, 4))
    randomize(block.expression, seed=1, dead=True)
    norms = [node for node in block.expression.walk() if isinstance(node, OABN)]
    gains = np.concatenate([np.abs(array(node.gain_and_shift()[0])) for node in norms])
    assert gains.max() <= 0.5 + 1e-12 and (gains > 0.499).sum() > 0
    # Below the bound gamma is what it was.
    for node in norms:
        bound = 0.5 * np.sqrt(array(node.statistics.moving_variance) + node.epsilon)
        expected = np.clip(array(node.gamma), -bound, bound)
        effective = node.effective_gamma(NumpyReading())
        np.testing.assert_allclose(effective, expected, rtol=1e-12)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4))
    y = array(block(x))
    twin = getattr(layers, name).from_config({**block.get_config(), "merged": True})
    twin.build((None, 7, 6, 4))
    for variable, value in zip(twin.expression.weights, block.expression.weights, strict=True):
        variable.assign(value)
    expected = array(twin.inner.merge().kernel)
    np.testing.assert_allclose(block.inner.merge(NumpyReading()).kernel, expected, atol=1e-10)
    assert np.isfinite(y).all()


def test_a_dead_channel_makes_no_outlier_with_oabn():
    kernels = {}
    for k in (None, 2.0):
        block = layers.RepVGGBlock(8, oabn_k=k, name="block")
        block.build((None, 6, 6, 8))
        identity = block.expression.children[2]
        variance = np.ones(8)
        variance[3] = 0.0
        identity.statistics.moving_variance.assign(variance)
        kernels[k] = array(block.merge().kernel)
    assert np.abs(kernels[None]).max() > 300 > 5 > np.abs(kernels[2.0]).max()


@pytest.mark.parametrize("k", [0, -1.0])
def test_a_bad_bound_is_named(k):
    with pytest.raises(ValueError, match=f"oabn_k must be a number above 0. Received: {k}"):
        layers.ACBlock(4, oabn_k=k)


class TestSqueezeExcite:
    def test_the_formula(self):
        x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype("float32")
        layer = layers.SqueezeExcite(3)
        y = array(layer(x))
        first, first_bias, second, second_bias = layer.get_weights()
        hidden = np.maximum(x.mean(axis=(1, 2)) @ first + first_bias, 0)
        weights = 1 / (1 + np.exp(-(hidden @ second + second_bias)))
        np.testing.assert_allclose(y, x * weights[:, None, None], rtol=1e-5)

    def test_the_file(self, tmp_path):
        inputs = keras.Input((4, 5, 6))
        model = keras.Model(inputs, layers.SqueezeExcite(2, name="se")(inputs))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype("float32")
        np.testing.assert_array_equal(array(loaded(x)), array(model(x)))
        names = [v.path for v in model.weights]
        assert names == [
            f"se/{d}/{w}" for d in ("reduce", "expand") for w in ("kernel", "bias")
        ]

    def test_bad_numbers_are_named(self):
        with pytest.raises(ValueError, match="reduced must be a positive"):
            layers.SqueezeExcite(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_shapes_and_dtypes_are_those_of_a_trace(name, policy):
    """They are arithmetic, so that networks are built sooner; Keras's own way is a trace."""
    trace = keras.layers.Layer.compute_output_spec
    sizes = {"strides": 2, "padding": "same"} if name != "ECB" else {}
    for quantized, spatial in ((False, (9, 8)), (True, (9, 8)), (False, (None, 8))):
        options = {**BLOCKS[name], **(sizes if spatial[0] else {}), "dtype": policy}
        options.pop("identity", None)
        block = getattr(layers, name)(4, weight_bits=8 if quantized else None, **options)
        x = keras.KerasTensor((None, *spatial, 4), "float32")
        args = (x, keras.KerasTensor((), "float32")) if quantized else (x,)
        block.build(x.shape)
        cases = [{}, {"training": True}] + [{"wide": True}] * quantized
        for kwargs in cases:
            specs, traced = (
                block.compute_output_spec(*args, **kwargs),
                trace(block, *args, **kwargs),
            )
            for one, other in zip(*map(keras.tree.flatten, (specs, traced)), strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype), kwargs


def _tensors(*shapes):
    return tuple(keras.KerasTensor(shape) for shape in shapes)


FEATURES, STEP = (None, 5, None, 3), ()
OPERATORS = {
    "Quantize": [_tensors(FEATURES), _tensors(FEATURES, (3,))],
    "QuantizedAdd": [_tensors(FEATURES, FEATURES, STEP, STEP)],
    "QuantizedMultiply": [
        _tensors(FEATURES, (None, 1, 1, 3), STEP, STEP),
        _tensors((2, 1, 1, 3), (2, 4, None, 1), STEP, STEP),
        _tensors((None, 5, 6, 3), (None, 5, None, 3), STEP, STEP),
    ],
    "QuantizedMean": [_tensors(FEATURES, STEP)],
    "QuantizedPReLU": [_tensors(FEATURES, STEP)],
    "QuantizedSigmoid": [_tensors(FEATURES, STEP), _tensors((None, 7), STEP)],
    "QuantizedHardSigmoid": [_tensors(FEATURES, STEP)],
    "QuantizedSoftmax": [_tensors((None, 7), STEP)],
    "QuantizedUnitNormalization": [_tensors((None, 7), STEP), _tensors(FEATURES, STEP)],
    "DenseBlock": [_tensors((None, 7)), _tensors((4, 7), STEP)],
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_shapes_and_dtypes_of_operators_are_those_of_a_trace(name, policy):
    trace = keras.layers.Layer.compute_output_spec
    own = {"DenseBlock": [{"filters": 6, "weight_bits": 8}, {"filters": 6}]}
    own["QuantizedMean"] = [{"keepdims": True}, {}]
    for options in own.get(name, [{}]):
        for tensors in OPERATORS[name]:
            layer = getattr(layers, name)(**options, dtype=policy)
            layer.build(tensors[0].shape)
            for kwargs in ({}, {"training": True}):
                specs, traced = (
                    keras.tree.flatten(specify(*tensors, **kwargs))
                    for specify in (layer.compute_output_spec, partial(trace, layer))
                )
                for one, other in zip(specs, traced, strict=True):
                    assert (one.shape, one.dtype) == (other.shape, other.dtype), kwargs


@pytest.mark.parametrize("shape", [(None, 3), (None, 4, 6, 3), (None, 5, 6, 2)])
def test_shapes_that_are_not_broadcast_are_named(shape):
    with pytest.raises(ValueError, match="QuantizedAdd|quantized_add"):
        layers.QuantizedAdd()(*_tensors((None, 5, 6, 3), shape, STEP, STEP))


def test_a_block_with_a_call_of_its_own_is_traced():
    class Twice(layers.ConvBlock):
        def call(self, inputs, *args, **kwargs):
            return keras.ops.concatenate([super().call(inputs, *args, **kwargs)] * 2, axis=-1)

    assert Twice(3)(keras.Input((5, 5, 2))).shape == (None, 5, 5, 6)


def test_layers_made_of_ours_are_traced_where_their_shape_is_their_own():
    class Half(layers.Quantize):
        def values(self, x, *steps):
            return x[:, ::2]

        def integers(self, x, *steps, **rounding):
            return super().integers(x[:, ::2], *steps, **rounding)

    class TwiceDense(layers.DenseBlock):
        def call(self, inputs, *args, **kwargs):
            return keras.ops.concatenate([super().call(inputs, *args, **kwargs)] * 2, axis=-1)

    assert Half()(keras.Input((8, 3)))[0].shape == (None, 4, 3)
    assert TwiceDense(5)(keras.Input((3,))).shape == (None, 10)
