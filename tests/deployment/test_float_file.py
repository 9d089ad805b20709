"""`export_tflite_float`: the merged model in as few operators as a file can say it in."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import repq_tf
from repq_tf.layers import ACBlock, DepthToSpace, SqueezeExcite
from repq_tf.tflite import reading
from tests.deployment.files import run
from tests.quantization.networks import array, layers, network
from tests.quantization.test_expand import CustomScaleLayer

SHAPE = (8, 9, 3)
CONV = {"CONV_2D": 1}
DEPTHWISE = {"DEPTHWISE_CONV_2D": 1}
UPSCALED = {"SHAPE": 1, "STRIDED_SLICE": 1, "PACK": 1, "TRANSPOSE_CONV": 1}
PICTURES = np.random.default_rng(0).normal(0, 2, (3, *SHAPE)).astype("float32")


def conv(x, filters=3, **options):
    return layers.Conv2D(filters, 1, **options)(x)


def norm(x):
    return layers.BatchNormalization()(x)


def slopes(*axes):
    start = keras.initializers.RandomUniform(-0.5, 0.5, seed=0)
    return layers.PReLU(start, shared_axes=list(axes) or None)


def softplus(**more):
    return {"ABS": 1, "NEG": 1, "EXP": 1, "ADD": 2, "LOG": 1, "RELU": 1, **more}


# A function of an image, and the operators that it takes.
NETWORKS = {
    "fused": (
        lambda x: layers.ReLU()(norm(layers.Conv2D(6, 3, strides=2, padding="same")(x))),
        CONV,
    ),
    "dilated": (
        lambda x: layers.Activation("relu6")(norm(layers.Conv2D(6, 3, dilation_rate=2)(x))),
        CONV,
    ),
    "grouped": (lambda x: layers.Conv2D(6, 1, groups=2)(conv(x, 4)), {"CONV_2D": 2}),
    "groups of one": (lambda x: layers.Conv2D(6, (2, 3), groups=3)(x), DEPTHWISE),
    "depthwise": (
        lambda x: layers.ReLU()(norm(layers.DepthwiseConv2D(3, 2, depth_multiplier=2)(x))),
        DEPTHWISE,
    ),
    "separable": (
        lambda x: layers.ReLU()(norm(layers.SeparableConv2D(6, 3, padding="same")(x))),
        {**CONV, **DEPTHWISE},
    ),
    "transposed": (
        lambda x: layers.ReLU()(norm(layers.Conv2DTranspose(5, 3, 2, padding="same")(x))),
        UPSCALED,
    ),
    "transposed, valid": (lambda x: layers.Conv2DTranspose(5, 3, strides=2)(x), UPSCALED),
    "block": (lambda x: ACBlock(6, activation="relu", strides=2)(x), CONV),
    "dense": (
        lambda x: norm(layers.Dense(5)(layers.Dense(7, "relu")(layers.Flatten()(x)))),
        {"RESHAPE": 1, "FULLY_CONNECTED": 2},
    ),
    "dense on pixels": (
        lambda x: layers.Dense(5, "gelu")(x),
        {"FULLY_CONNECTED": 1, "GELU": 1},
    ),
    "scaled sum": (
        lambda x: CustomScaleLayer(0.3)([layers.ReLU()(x), x]),
        {"RELU": 1, "MUL": 1, "ADD": 1},
    ),
    "norms alone": (lambda x: layers.ReLU()(norm(x)), {"MUL": 1, "ADD": 1}),
    "no bias": (lambda x: layers.BatchNormalization(center=False)(x), {"MUL": 1, "ADD": 1}),
    "layer norm": (
        lambda x: layers.LayerNormalization()(x),
        {"MEAN": 2, "SQUARED_DIFFERENCE": 1, "ADD": 2, "RSQRT": 1, "MUL": 2, "SUB": 1},
    ),
    "sums": (
        lambda x: layers.ReLU()(layers.Add()([x, conv(x), conv(x)])),
        {"CONV_2D": 2, "ADD": 2},
    ),
    "pairs": (
        lambda x: layers.Average()(
            [
                layers.Subtract()([x, conv(x)]),
                layers.Maximum()([x, conv(x)]),
                layers.Minimum()([x, conv(x)]),
            ]
        ),
        {"CONV_2D": 3, "SUB": 1, "MAXIMUM": 1, "MINIMUM": 1, "ADD": 2, "MUL": 1},
    ),
    "unequal ranks": (
        lambda x: layers.Multiply()([layers.GlobalAveragePooling2D()(x), x]),
        {"MEAN": 1, "RESHAPE": 1, "MUL": 1},
    ),
    "gate": (
        lambda x: layers.ReLU()(SqueezeExcite(2)(x)),
        {"MEAN": 1, "FULLY_CONNECTED": 2, "LOGISTIC": 1, "MUL": 1},
    ),
    "joined": (
        lambda x: layers.Concatenate()([x, conv(x, 4, activation="silu")]),
        {"CONV_2D": 1, "LOGISTIC": 1, "MUL": 1, "CONCATENATION": 1},
    ),
    "pools": (
        lambda x: layers.MaxPooling2D(2)(layers.AveragePooling2D(3, 2, padding="same")(x)),
        {"AVERAGE_POOL_2D": 1, "MAX_POOL_2D": 1},
    ),
    "ends": (
        lambda x: {
            "top": layers.GlobalMaxPooling2D()(x),
            "classes": layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(x)),
        },
        {"REDUCE_MAX": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1},
    ),
    "moves": (
        lambda x: layers.Permute((2, 1, 3))(
            layers.Cropping2D(((1, 0), (0, 2)))(layers.ZeroPadding2D(((1, 2), (0, 1)))(x))
        ),
        {"PAD": 1, "STRIDED_SLICE": 1, "TRANSPOSE": 1},
    ),
    "slices": (lambda x: x[:, ::2, -3:, ::-1] + 1.0, {"STRIDED_SLICE": 1, "ADD": 1}),
    "reshaped": (lambda x: layers.Reshape((4, -1, 3))(x), {"RESHAPE": 1}),
    "larger": (
        lambda x: layers.UpSampling2D((1, 2))(
            layers.UpSampling2D(2, interpolation="bilinear")(x)
        ),
        {"RESIZE_BILINEAR": 1, "RESIZE_NEAREST_NEIGHBOR": 1},
    ),
    "shuffled": (lambda x: DepthToSpace(2)(conv(x, 8)), {**CONV, "DEPTH_TO_SPACE": 1}),
    "preprocessing": (
        lambda x: layers.Normalization(mean=[1, 2, 3.0], variance=[1, 4, 2.0])(
            layers.Rescaling(1 / 127.5, -1)(x)
        ),
        {"MUL": 2, "ADD": 2},
    ),
    "slopes": (lambda x: slopes()(slopes(1, 2)(x)), {"PRELU": 2}),
    "leaky": (
        lambda x: layers.ReLU(negative_slope=0.1)(layers.LeakyReLU(0.2)(x)),
        {"LEAKY_RELU": 2},
    ),
    "limited": (lambda x: layers.ReLU(4.0)(x), {"RELU": 1, "MINIMUM": 1}),
    "elu": (lambda x: layers.ELU(0.7)(x), {"ELU": 1, "MUL": 1, "MAXIMUM": 1}),
    "other axis": (lambda x: layers.Softmax(axis=1)(x), {"TRANSPOSE": 2, "SOFTMAX": 1}),
    "only in training": (
        lambda x: layers.ReLU()(layers.GaussianNoise(0.1)(layers.SpatialDropout2D(0.2)(x))),
        {"RELU": 1},
    ),
}
ACTIVATIONS = {
    "elu": {"ELU": 1},
    "exponential": {"EXP": 1},
    "gelu": {"GELU": 1},
    "hard_sigmoid": {"ADD": 1, "MUL": 1},
    "hard_silu": {"HARD_SWISH": 1},
    "hard_tanh": {"RELU_N1_TO_1": 1},
    "leaky_relu": {"LEAKY_RELU": 1},
    "log_sigmoid": softplus(NEG=3),
    "log_softmax": {"LOG_SOFTMAX": 1},
    "mish": softplus(TANH=1, MUL=1),
    "relu": {"RELU": 1},
    "relu6": {"RELU6": 1},
    "selu": {"ELU": 1, "MUL": 2, "MINIMUM": 1},
    "sigmoid": {"LOGISTIC": 1},
    "silu": {"LOGISTIC": 1, "MUL": 1},
    "softmax": {"SOFTMAX": 1},
    "softplus": softplus(),
    "softsign": {"ABS": 1, "ADD": 1, "DIV": 1},
    "tanh": {"TANH": 1},
}
NETWORKS["unit vectors"] = (layers.UnitNormalization(), {"L2_NORMALIZATION": 1})
NETWORKS["gelu by tanh"] = (keras.ops.gelu, {"GELU": 1})
NETWORKS |= {name: (layers.Activation(name), kinds) for name, kinds in ACTIVATIONS.items()}


def scattered(model):
    """Weights that no two layers share the sums of."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.mark.parametrize(("function", "kinds"), NETWORKS.values(), ids=NETWORKS.keys())
def test_the_file_computes_the_model(function, kinds, tmp_path):
    inputs = keras.Input(SHAPE, name="image")
    model = scattered(keras.Model(inputs, function(inputs)))
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    assert reading.count_operators(reading.read(tmp_path / "x.tflite")[1]) == kinds
    found, _, _ = run(tmp_path / "x.tflite", PICTURES)
    wanted = [array(y) for y in keras.tree.flatten(model(PICTURES, training=False))]
    by_shape = {y.shape: y for y in found}
    for want in wanted:
        np.testing.assert_allclose(
            by_shape[want.shape], want, rtol=0, atol=3e-6 * np.abs(want).max()
        )


def test_images_of_any_size(tmp_path):
    inputs = keras.Input((None, None, 3), name="image")
    y = layers.UpSampling2D(2, interpolation="bilinear")(layers.UpSampling2D((1, 2))(inputs))
    model = keras.Model(inputs, y)
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    (found,), _, _ = run(tmp_path / "x.tflite", PICTURES)
    np.testing.assert_allclose(found, array(model(PICTURES)), atol=1e-5)


def test_large_values_do_not_overflow(tmp_path):
    inputs = keras.Input((2, 2, 3), name="image")
    repq_tf.export_tflite_float(
        keras.Model(inputs, layers.Activation("softplus")(inputs)), tmp_path / "x.tflite"
    )
    (found,), _, _ = run(tmp_path / "x.tflite", np.full((1, 2, 2, 3), 200, np.float32))
    assert (found == 200).all()


def test_what_stands_between_two_readers_is_not_fused(tmp_path):
    def function(x):
        y = norm(conv(x))
        return {"sum": layers.Add()([layers.ReLU()(y), y]), "inner": y}

    model = network(function, SHAPE)
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    kinds = reading.count_operators(reading.read(tmp_path / "x.tflite")[1])
    assert kinds == {"CONV_2D": 1, "RELU": 1, "ADD": 1}
    found = Interpreter(str(tmp_path / "x.tflite")).get_signature_runner()(image=PICTURES[:1])
    for key, want in model(PICTURES[:1], training=False).items():
        np.testing.assert_allclose(found[key], array(want), atol=1e-5)


def test_one_dimensional_layers_are_images_of_height_one(tmp_path):
    x = inputs = keras.Input((24, 3), name="image")
    x = layers.Conv1D(8, 5, padding="same", use_bias=False)(x)
    x = y = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)(x)
    x = layers.SeparableConv1D(8, 3, dilation_rate=2, padding="same", activation="tanh")(x)
    x = layers.Conv1D(8, 3, padding="causal")(x)
    x = layers.MaxPooling1D(2)(layers.Add()([x, y]))
    x = layers.Concatenate()([x, layers.AveragePooling1D(2)(y)])
    x = layers.UpSampling1D(2)(layers.Cropping1D((1, 2))(layers.ZeroPadding1D(1)(x)))
    x = layers.Dense(4, activation="relu")(layers.Conv1D(4, 3, strides=2, groups=4)(x))
    pooled = layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)
    model = keras.Model(inputs, {"line": x, "vector": layers.Concatenate()(pooled)})
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 0.8, weight.shape) - 0.3 * ("kernel" in weight.path))
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    signals = rng.normal(size=(1, 24, 3)).astype("float32")
    found = Interpreter(str(tmp_path / "x.tflite")).get_signature_runner()(image=signals)
    for key, want in model(signals, training=False).items():
        np.testing.assert_allclose(found[key], array(want), rtol=1e-4, atol=1e-4)


def odd_layers(x):
    """Of what a float file has no operator for: the layers' names and the output."""
    x = layers.Conv2D(8, 1, name="fine")(x)
    x = layers.GroupNormalization(2, name="groups")(x)
    x = layers.Lambda(lambda x: keras.ops.sin(x), name="function", output_shape=x.shape[1:])(x)
    volume = layers.Reshape((*x.shape[1:3], 2, 4), name="volume")(x)
    x = layers.Conv3D(4, 1, name="conv3d")(volume)
    lines = layers.Reshape((-1, 4), name="lines")(x)
    lines = layers.MultiHeadAttention(2, 2, name="attention")(lines, lines)
    return layers.LSTM(3, name="recurrent")(lines)


def test_layers_without_operators_are_named_at_once(tmp_path):
    model = network(odd_layers, SHAPE)
    with pytest.raises(ValueError, match="cannot be written to a float file") as caught:
        repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    for name in ("groups", "function", "conv3d", "attention", "recurrent"):
        assert repr(name) in str(caught.value)
    assert "fine" not in str(caught.value) and not list(tmp_path.iterdir())


def test_every_layer_in_the_way_is_named(tmp_path):
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(3, 1, data_format="channels_last", name="fine")(inputs)
    x = layers.UpSampling2D(2, interpolation="bicubic", name="cubic")(x)
    x = layers.GroupNormalization(1, name="groups")(x)
    model = keras.Model(inputs, layers.Activation("squareplus", name="plus")(x), name="odd")
    with pytest.raises(ValueError, match="model 'odd' cannot be written") as caught:
        repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    for words in (
        "'cubic' (UpSampling2D: interpolation='bicubic')",
        "'groups' (GroupNormalization: no operator)",
        "'plus' (Activation: activation='squareplus')",
    ):
        assert words in str(caught.value)
    assert "fine" not in str(caught.value) and not list(tmp_path.iterdir())
