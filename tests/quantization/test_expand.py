"""What people build, as nodes that each are one operator: the function stays."""

import keras
import numpy as np
import pytest
from keras import ops

from repq_tf.graphs import copy_call, read_graph, rebuild
from repq_tf.quantization.expand import expand
from tests.quantization.networks import SHAPE, array, images, layers, settle

X = images(5)


def model_of(function, shape=SHAPE):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    return settle(keras.Model(inputs, function(inputs)), x=images(shape=shape))


def conv(name, filters=4, size=3, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def expanded(model):
    """The expanded graph, and the model of it."""
    graph, copies = expand(read_graph(model)), {}
    return graph, rebuild(graph, lambda node, a, k: copy_call(node, a, k, copies))


def hard_sigmoid(x):
    return ops.relu6(x + 3.0) * (1.0 / 6.0)


def hard_swishes(x):
    x = conv("a")(x)
    x = layers.Multiply()([x, hard_sigmoid(x)])
    x = conv("b")(x)
    x = x * ops.relu6(x + 3.0) / 6.0
    x = conv("c")(x)
    return conv("d", 2)(ops.relu6(3.0 + x) * (x / 6.0))


def separables(x):
    x = layers.SeparableConv2D(
        4, 3, depth_multiplier=2, padding="same", activation="relu", name="s"
    )(x)
    x = layers.SeparableConv2D(5, 3, strides=2, use_bias=False, activation="silu", name="t")(x)
    return layers.BatchNormalization(name="n")(x)


def batch_norms(x):
    x = layers.BatchNormalization(name="first")(x)
    x = conv("a", activation="relu")(x)
    x = layers.BatchNormalization(center=False, name="behind_relu")(x)
    y = layers.BatchNormalization(scale=False, name="beside")(x)
    x = layers.BatchNormalization(name="joined")(conv("b", padding="same")(x))
    x = layers.BatchNormalization(name="again")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="sum")(layers.Add()([x, y])))
    x = layers.Dense(6, name="d")(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization(name="dense")(x))
    return layers.BatchNormalization(name="flat")(x)


def constants(x):
    c = np.array([0.5, -2.0, 3.0, 1.0], "float32")
    x = conv("a", use_bias=False)(x) * c + 1.0  # both join the convolution
    x = layers.BatchNormalization(scale=False, name="n")(conv("b")(x)) * c - c
    x = layers.ReLU()(x)
    x = 2.0 - x / c  # one of their own
    y = conv("c", padding="same")(x)
    return layers.Add()([y * 0.1, y]) - ops.relu(-y)


def many(x):
    a, b, c = (conv(name, activation="relu")(x) for name in "abc")
    return conv("d")(layers.Multiply()([layers.Add()([a, b, c]), a, b]))


def lines(x):
    x = layers.Reshape((20, 15), name="lines")(x)
    x = layers.Conv1D(6, 5, padding="same", use_bias=False, name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="n")(x))
    y = layers.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2, name="d")(x)
    x = layers.SeparableConv1D(5, 3, activation="silu", name="s")(layers.MaxPooling1D(2)(x))
    x = layers.Dense(12, name="dense")(layers.ZeroPadding1D((2, 0))(x))
    x = layers.Concatenate(axis=1)([layers.AveragePooling1D(3, 1, "same")(x), y])
    x = layers.Cropping1D((1, 2))(layers.SpatialDropout1D(0.1)(x))
    x = layers.BatchNormalization(name="alone")(layers.Permute((2, 1))(x))
    z = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3, groups=2, name="g")(y))
    f = layers.Flatten()(layers.UpSampling1D(2)(layers.Conv1D(2, 1, name="u")(x)))
    return layers.Dense(3, name="last")(layers.Concatenate()([z, f]))


def causal(x):
    """Causal convolutions, of strides and dilations too, and a vector that is repeated."""
    x = layers.Reshape((20, 15), name="lines")(x)
    x = layers.Conv1D(6, 5, padding="causal", activation="relu", name="a")(x)
    y = layers.Conv1D(4, 3, padding="causal", dilation_rate=2, name="b")(x)
    y = layers.BatchNormalization(name="n")(y)
    y = layers.Conv1D(5, 2, strides=2, padding="causal", activation="silu", name="c")(y)
    z = layers.GlobalAveragePooling1D()(x)
    z = [layers.RepeatVector(10, name="many")(z), layers.RepeatVector(10)(layers.Dense(2)(z))]
    z = layers.Concatenate()([y, *z])
    return layers.Conv1D(3, 2, name="last")(z)


def caffe(x):
    """`preprocess_input` of the "caffe" mode, and reversals that are not folded."""
    y = keras.applications.resnet50.preprocess_input(x)
    a, b = conv("a")(y), conv("b", activation="relu")(y * np.array([0.1, 0.2, 0.3], "float32"))
    return conv("c")(layers.Add()([a * 0.01, b])[..., ::-1])


FUNCTIONS = [hard_swishes, separables, batch_norms, constants, many, lines, causal, caffe]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_function_stays(function):
    model = model_of(function)
    _, same = expanded(model)
    want = array(model(X))
    np.testing.assert_allclose(array(same(X)), want, rtol=2e-4, atol=2e-5)
    assert np.ptp(want) > 0.1


def kinds(function):
    graph, _ = expanded(model_of(function))
    return [
        (name, type(node.layer).__name__)
        for name, node in graph.nodes.items()
        if not node.is_input
    ]


def test_reversed_channels_become_those_of_the_kernels():
    found = [kind for _, kind in kinds(caffe)]
    assert found.count("Slice") == 0
    model = model_of(caffe)
    graph, _ = expanded(model)
    kernel = array(model.get_layer("c").kernel)
    np.testing.assert_array_equal(array(graph.nodes["c"].layer.kernel), kernel[:, :, ::-1])
    # Of depthwise and grouped kernels, which keep channels apart, it stays.
    found = [k for _, k in kinds(lambda x: layers.DepthwiseConv2D(3)(x[..., ::-1]))]
    assert found == ["Slice", "DepthwiseConv2D"]


def test_hard_swish_is_recognized_however_it_is_written():
    found = [kind for _, kind in kinds(hard_swishes)]
    assert found == ["Conv2D", *["Activation", "Multiply", "Conv2D"] * 3]


def test_constants_join_the_convolution_or_batch_norm_before_them():
    found = dict(kinds(constants))
    assert list(found.values()).count("DepthwiseConv2D") == 3
    assert "Rescaling" not in found.values()


def test_batch_norms_that_cannot_join_get_a_convolution_that_is_frozen():
    graph, _ = expanded(model_of(batch_norms))
    alone = [name for name in graph.nodes if f"{name}_norm" in graph.nodes]
    assert alone == ["first", "behind_relu", "beside", "again", "sum", "flat"]
    for name in alone:
        layer = graph.nodes[name].layer
        assert type(layer) is layers.DepthwiseConv2D and not layer.trainable_weights
        assert (array(layer.kernel) == 1).all()
    assert {graph.nodes[f"{name}_norm"].part_of for name in alone} == set(alone)


class CustomScaleLayer(layers.Layer):
    """That of `keras.applications.InceptionResNetV2`."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        return inputs[0] + inputs[1] * self.scale


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_scaled_sum_is_a_sum(activation):
    def function(x):
        a = conv("a")(x)
        return CustomScaleLayer(0.3, name="s")([a, conv("b", activation=activation)(x)])

    model = model_of(function)
    graph, same = expanded(model)
    np.testing.assert_allclose(array(same(X)), array(model(X)), rtol=1e-4, atol=1e-5)
    scalings = [n for n in graph.nodes if n == "s_scale"]
    assert len(scalings) == (activation is not None)


def test_what_prepares_images_stays_in_front():
    def function(x):
        x = layers.RandomFlip()(layers.Normalization(mean=0.5, variance=0.3)(x / 2.0 - 1.0))
        return conv("a")(x)

    graph, _ = expanded(model_of(function))
    kinds = [type(node.layer).__name__ for node in graph.nodes.values()]
    assert kinds[1:] == ["Rescaling", "Rescaling", "Normalization", "RandomFlip", "Conv2D"]


def test_lines_become_images_and_stay_so():
    graph, _ = expanded(model_of(lines))
    kinds = {type(node.layer).__name__ for node in graph.nodes.values()}
    assert not any(kind.endswith("1D") for kind in kinds)
    reshapes = [n.name for n in graph.nodes.values() if type(n.layer) is layers.Reshape]
    # Into images at the front, to lines for the permutation, and back.
    assert len(reshapes) == 4, reshapes
