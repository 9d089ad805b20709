"""Operations that are no layers, read as layers."""

import keras
import numpy as np
import pytest
from keras import ops

import repq_tf
from repq_tf.graphs import OperationLayer, read_graph

layers = keras.layers
SHAPE = (6, 8, 4)
C = np.array([1.0, -2.0, 0.5, 3.0], "float32")
X = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")

KNOWN = {
    "add a number": (lambda x: x + 1.5, "Rescaling"),
    "subtract from a number": (lambda x: 2 - x, "Rescaling"),
    "multiply channels": (lambda x: ops.multiply(C, x), "Rescaling"),
    "multiply channels of a tensor": (lambda x: x * C.reshape(1, 1, 1, 4), "Rescaling"),
    "divide by channels": (lambda x: x / C, "Rescaling"),
    "negative": (lambda x: -x, "Rescaling"),
    "add": (lambda x: x + ops.relu(x), "Add"),
    "subtract": (lambda x: x - ops.relu(x), "Subtract"),
    "multiply": (lambda x: x * ops.relu(x), "Multiply"),
    "maximum": (lambda x: ops.maximum(x, ops.mean(x, (1, 2), keepdims=True)), "Maximum"),
    "positive part": (lambda x: ops.maximum(x, 0.0), "ReLU"),
    "relu": (ops.relu, "ReLU"),
    "relu6": (lambda x: ops.relu6(5 * x), "ReLU"),
    "clip": (lambda x: ops.clip(5 * x, 0, 6), "ReLU"),
    "leaky relu": (lambda x: ops.leaky_relu(x, 0.2), "LeakyReLU"),
    "elu": (lambda x: ops.elu(x, 1.0), "ELU"),
    "silu": (ops.silu, "Activation"),
    "tanh": (ops.tanh, "Activation"),
    "hard sigmoid": (ops.hard_sigmoid, "Activation"),
    "gelu by tanh": (ops.gelu, "Activation"),
    "normalize": (ops.normalize, "UnitNormalization"),
    "exponential": (ops.exp, "Activation"),
    "squareplus": (ops.squareplus, "Activation"),
    "soft shrink": (ops.soft_shrink, "Activation"),
    "softmax": (lambda x: ops.softmax(x, axis=-1), "Softmax"),
    "mean": (lambda x: ops.mean(x, axis=(1, 2)), "GlobalAveragePooling2D"),
    "mean, negative axes": (
        lambda x: ops.mean(x, axis=(-2, -3), keepdims=True),
        "GlobalAveragePooling2D",
    ),
    "max": (lambda x: ops.max(x, axis=(1, 2)), "GlobalMaxPooling2D"),
    "concatenate": (lambda x: ops.concatenate([x, 2 * x], axis=2), "Concatenate"),
    "reshape": (lambda x: ops.reshape(x, (-1, 12, 16)), "Reshape"),
    "reshape to what is left": (lambda x: ops.reshape(x, (-1, 4, 48)), "Reshape"),
    "expand": (lambda x: ops.expand_dims(x, 1), "Reshape"),
    "squeeze": (lambda x: ops.squeeze(ops.mean(x, (1, 2), keepdims=True), (1, 2)), "Reshape"),
    "transpose": (lambda x: ops.transpose(x, (0, 2, 1, 3)), "Permute"),
    "slice": (lambda x: x[:, 1:, ::2, :-1], "Slice"),
    "slice of the last axis": (lambda x: x[..., 1:3], "Slice"),
    "reversal": (lambda x: x[..., ::-1], "Slice"),
    "flip": (lambda x: ops.flip(x, axis=1), "Slice"),
    "pad": (lambda x: ops.pad(x, ((0, 0), (1, 0), (2, 1), (0, 0))), "ZeroPadding2D"),
    "max pool": (lambda x: ops.max_pool(x, 2), "MaxPooling2D"),
    "average pool": (lambda x: ops.average_pool(x, 3, 1, "same"), "AveragePooling2D"),
    "resize": (lambda x: ops.image.resize(x, (12, 24)), "UpSampling2D"),
}
PASSED_ON = {
    "sum over channels": lambda x: ops.sum(x, axis=-1, keepdims=True),
    "sine": ops.sin,
    "normalize by the sum": lambda x: ops.normalize(x, order=1),
    "normalize rows": lambda x: ops.normalize(x, axis=1),
    "normalize but for short vectors": lambda x: ops.normalize(x, epsilon=0.5),
    "another option": lambda x: ops.squareplus(x, b=3),
    "constants of pixels": lambda x: x + np.ones((6, 8, 1), "float32"),
    "a number over x": lambda x: 1 / (x + 10.0),
    "resize to a third": lambda x: ops.image.resize(x, (2, 4)),
    "split": lambda x: ops.split(x, 2, axis=-1)[1],
    "one channel": lambda x: x[..., 1],
    "one image": lambda x: x[:1, :],
    "symmetric pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric"),
    "reshape with the batch": lambda x: ops.reshape(x, (-1, 4)),
}


def model_of(function):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, function(inputs))


def check_merge(model):
    merged = repq_tf.merge(model)
    want, got = (ops.convert_to_numpy(m(X)) for m in (model, merged))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_operations_are_read_as_layers_of_the_same_meaning(name):
    function, kind = KNOWN[name]
    model = model_of(function)
    graph = read_graph(model)
    assert type(list(graph.nodes.values())[-1].layer).__name__ == kind
    assert not any(isinstance(n.layer, OperationLayer) for n in graph.nodes.values())
    check_merge(model)


@pytest.mark.parametrize("name", PASSED_ON)
def test_others_are_passed_on_as_they_are(name):
    model = model_of(PASSED_ON[name])
    layer = list(read_graph(model).nodes.values())[-1].layer
    assert isinstance(layer, OperationLayer)
    check_merge(model)


def test_a_merged_model_with_operations_is_saved(tmp_path):
    merged = repq_tf.merge(model_of(lambda x: ops.sin(x[..., ::-1] * C)))
    merged.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(X), merged(X))


def test_reparameterize_passes_them_on():
    def function(x):
        y = layers.Conv2D(4, 3, padding="same", name="c")(x)
        return ops.exp(-layers.BatchNormalization()(y)) + x

    model = model_of(function)
    wide = repq_tf.reparameterize(model, "acnet")
    assert isinstance(wide.get_layer("c"), repq_tf.layers.ACBlock)
    np.testing.assert_allclose(wide(X), model(X), rtol=1e-4, atol=1e-5)
