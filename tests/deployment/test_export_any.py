"""What people build, exported: the file computes exactly what the model does."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import repq_tf
from repq_tf.quantization.operators import activation_name
from tests.deployment.files import Convolution, assert_exact, parity, read, run
from tests.marks import slow
from tests.quantization.networks import SHAPE, array, images, layers, network, quantize, train
from tests.quantization.test_expand import (
    batch_norms,
    caffe,
    causal,
    constants,
    lines,
    many,
    separables,
)

# Extremes among the values, that no grid is wide enough for.
X = images(40) * np.where(np.arange(40) % 8, 1, 30)[:, None, None, None].astype("float32")


def conv(name, filters=4, size=3, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def moves(x):
    x = conv("a", 6)(x)
    x = layers.Permute((2, 1, 3))(layers.Cropping2D(((1, 0), (0, 2)))(x))
    x = ops.transpose(x[:, 1:, ::2, :-1], (0, 1, 3, 2))
    return conv("b", 4, 2)(x[..., ::-1])


def pairs(x):
    a, b = conv("a")(x), conv("b", activation="relu")(x)
    c = layers.Maximum()([layers.Subtract()([a, b]), layers.ReLU()(b - a), a])
    return conv("c")(layers.ReLU(6.0)(layers.Minimum()([c, b]) - conv("d")(x)))


@keras.saving.register_keras_serializable("tests")
def gelu_by_tanh(x):
    return keras.activations.gelu(x, approximate=True)


def functions(x):
    x = layers.ELU()(conv("a", activation="tanh")(x))
    x = layers.Activation("gelu")(conv("b", activation="softplus")(x))
    x = layers.Activation("mish")(conv("c", activation=gelu_by_tanh)(ops.gelu(x)))
    return layers.Activation("tanh")(layers.ELU(0.7)(conv("d", activation="gelu")(x)))


def training_only(x):
    x = layers.SpatialDropout2D(0.2)(layers.GaussianNoise(0.1)(conv("a")(x)))
    return layers.Identity()(conv("b")(layers.GaussianDropout(0.1)(x)))


def dilations(x):
    x = layers.ReLU()(conv("a", 6, dilation_rate=2, padding="same", use_bias=False)(x))
    x = layers.DepthwiseConv2D((2, 3), dilation_rate=2, name="d")(x)
    x = layers.BatchNormalization()(x)
    return conv("b", 4, 2, groups=2, dilation_rate=(1, 3))(x)


def activation_layers(x):
    """Layers as activations: of several kinds of layers, called twice, in one of its own."""
    twice = conv("a", 3, padding="same", activation=layers.LeakyReLU(0.3))
    x = repq_tf.layers.RepVGGBlock(4, activation=layers.ReLU(6.0))(twice(twice(x)))
    x = layers.SeparableConv2D(4, 3, activation=layers.ELU())(x)
    x = layers.Activation(layers.LeakyReLU(0.1))(layers.Reshape((-1, 4))(x))
    x = layers.Conv1D(4, 3, activation=layers.Activation("silu"))(x)
    x = layers.GlobalAveragePooling1D()(x)
    return layers.Dense(4, activation=layers.Softmax(), name="end")(x)


FUNCTIONS = [
    activation_layers,
    dilations,
    batch_norms,
    caffe,
    causal,
    constants,
    lines,
    many,
    separables,
    moves,
    pairs,
    functions,
    training_only,
]


@pytest.mark.slow(3)
@pytest.mark.parametrize("bits", [8, slow(3)])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_nothing_differs(function, bits, tmp_path):
    rules = {} if bits == 8 else {"*": {"weight_bits": bits, "activation_bits": bits}}
    try:
        qat = quantize(network(function), rules=rules)
    except ValueError:  # of tables whose bits the runtime prescribes
        assert bits == 3
        qat = quantize(network(function), bits=bits)
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    assert all(row.outputs >= len(X) for row in report.layers)
    y = array(qat(X))
    assert len(np.unique(y)) > 4


@pytest.mark.parametrize("before", [None, "relu"])
@pytest.mark.parametrize("function", ["tanh", "elu", "gelu", "softplus", "log_sigmoid"])
def test_functions_are_near_their_float_ones(function, before):
    model = network(
        lambda x: layers.Activation(function, name="f")(conv("a", activation=before)(x))
    )
    qat = quantize(model)
    want, got = array(model(images())), array(qat(images()))
    step = float(qat.layers[-1].step)
    within = np.abs(got - np.clip(want, got.min(), got.max()))
    # Half a step of its own, and what the input's rounding and its clipping are.
    assert np.quantile(within, 0.99) < 4 * step
    assert np.quantile(np.abs(got - want), 0.9) < 3 * step


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    "written",
    [
        ops.gelu,
        lambda x: layers.Activation(gelu_by_tanh)(x),
        lambda x: layers.Activation(lambda x: ops.gelu(x))(x),
        lambda x: conv("b", activation=gelu_by_tanh)(x),
    ],
)
def test_the_approximate_gelu_is_a_table_however_it_is_written(written, tmp_path):
    """The runtime's own, of float32, is one step off at 1 of 100,000 levels."""
    model = network(lambda x: written(conv("a")(x)))
    qat = quantize(model)
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert {"CAST", "ADD", "GATHER"} < operators.keys() and "GELU" not in operators
    (layer,) = (x for x in qat.layers if isinstance(x, repq_tf.layers.QuantizedLookup))
    grid = np.float32(0.02)
    found = array(layer.table(ops.convert_to_tensor(grid))).astype(int)
    x = np.arange(-128, 256) * np.float64(grid)
    wanted = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    levels = wanted.astype("float32") / array(layer.step)
    np.testing.assert_array_equal(found, np.clip(np.rint(levels), -128, 127))
    qat.save(tmp_path / "x.keras")  # which needs nothing that the test has defined
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert_exact(repq_tf.check_parity(again, tmp_path / "x.tflite", X, verbose=False))
    repq_tf.export_tflite_float(model, tmp_path / "float.tflite")
    (got, *_), _, _ = run(tmp_path / "float.tflite", X)
    np.testing.assert_allclose(got, array(model(X)), rtol=1e-4, atol=1e-5)


def test_a_layer_as_activation_is_one_behind_the_layer(tmp_path):
    """In its rules too; and the float file computes the model."""
    model = network(activation_layers)
    rules = {"a": {"activation_bits": 6}, "end": {"activation_bits": 7}}
    qat = quantize(model, rules=rules)
    bits = {
        layer.name: layer.bits
        for layer in qat.layers
        if isinstance(layer, repq_tf.layers.Quantize)
    }
    assert bits["a_quantize"] == 6 and bits["end_quantize"] == 7
    assert "LEAKY_RELU" in repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    path = tmp_path / "float.tflite"
    repq_tf.export_tflite_float(model, path)
    (got, *_), _, _ = run(path, X)
    np.testing.assert_allclose(got, array(model(X)), rtol=1e-4, atol=1e-5)


def test_functions_of_several_operations_are_refused_by_their_names():
    def twice(x):
        return ops.gelu(ops.gelu(x))

    for function, name in ((twice, "twice"), (layers.PReLU(), "PReLU")):
        with pytest.raises(ValueError, match=f"activation must be one of .* Received: {name}"):
            quantize(network(lambda x, f=function: conv("a", activation=f)(x)))
    gelu = functools.partial(keras.activations.gelu, approximate=True)
    with pytest.raises(ValueError, match="must be one that Keras can save; .*Received: .*part"):
        quantize(network(lambda x: layers.Activation(gelu)(conv("a")(x))))


def named(name, function):
    """A function of one's own that is called like one of Keras's."""
    function.__name__ = name
    return function


OWN = {
    "gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "leaky_relu": lambda x: ops.leaky_relu(x, 0.1),
    "elu": lambda x: ops.elu(x, 0.3),
    "linear": lambda x: 3 * x,
    "relu": lambda x: 2 * ops.relu(x),
    "relu6": lambda x: ops.clip(x, 0, 3),
    "sigmoid": ops.relu,
    "softmax": lambda x: ops.softmax(x, 1),
    "tanh": lambda x: 3 * ops.tanh(x),
}


@pytest.mark.parametrize("name", OWN)
def test_a_function_is_not_taken_by_its_name_alone(name, tmp_path):
    own = named(name, lambda x: OWN[name](x))
    for written in (layers.Activation(own), conv("b", activation=own)):
        model = network(lambda x, layer=written: layer(conv("a")(x)))
        for export in (quantize, lambda m: repq_tf.export_tflite_float(m, tmp_path / "x")):
            with pytest.raises(ValueError, match=f"{name}, a function of its own"):
                export(model)


def test_functions_of_other_libraries_are_those_of_their_names(tmp_path):
    import jax
    import tensorflow as tf

    x = np.random.default_rng(0).normal(0, 4, (5, 7)).astype("float32")
    for library in (tf.nn, jax.nn):
        for name in "elu relu relu6 selu sigmoid silu softmax softplus swish tanh".split():
            function = getattr(library, name)
            found = activation_name(layers.Activation(function))
            assert found == {"swish": "silu"}.get(name, name), library
            want = array(layers.Activation(found)(x))
            np.testing.assert_allclose(np.asarray(function(x)), want, rtol=1e-5, atol=1e-6)
    for library in (tf.nn, jax.nn):  # whose slopes differ, and whose GELUs
        assert "own" in activation_name(layers.Activation(library.leaky_relu))
        assert "own" in activation_name(layers.Activation(library.gelu))
    for function in (tf.nn.relu, tf.nn.relu6, tf.nn.elu, tf.tanh, tf.nn.softmax, tf.nn.silu):
        model = network(lambda x, f=function: conv("b", activation=f)(conv("a")(x)))
        _, report = parity(quantize(model), tmp_path / "x.tflite", X)
        assert_exact(report)
        repq_tf.export_tflite_float(model, tmp_path / "float.tflite")
        (got, *_), _, _ = run(tmp_path / "float.tflite", X)
        np.testing.assert_allclose(got, array(model(X)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "kind", "others"),
    [("tanh", "TANH", ()), ("elu", "ELU", ()), ("gelu", "GELU", ())]
    + [("mish", "GATHER", ("CAST", "ADD"))],
)
def test_the_runtimes_own_tables_are_taken_where_it_has_them(function, kind, others, tmp_path):
    qat = quantize(network(lambda x: layers.Activation(function)(conv("a")(x))))
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert operators == dict.fromkeys(("CONV_2D", kind, *others), 1)


def test_a_function_of_the_input_is_no_table_of_pixels(tmp_path):
    qat = quantize(network(lambda x: conv("a")(layers.Activation("softsign")(x))))
    for kind in ("int8", "uint8"):
        _, report = parity(qat, tmp_path / f"{kind}.tflite", X, input_type=kind)
        assert_exact(report)


def test_dilated_convolutions_are_the_operators_own(tmp_path):
    qat = quantize(network(dilations))
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert operators == {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1}
    for name, size in (("a", (3, 3)), ("d", (2, 3)), ("b", (2, 2))):
        found = Convolution(read(tmp_path / "x.tflite"), name)
        kernel = found.data(found.kernel)
        assert tuple(kernel.shape[1:3]) == size


def test_the_gradients_of_a_dilated_convolution_are_kerass():
    import tensorflow as tf

    x = tf.constant(images(4))
    stock = layers.Conv2D(4, 3, dilation_rate=(2, 1), padding="same", use_bias=False)
    block = repq_tf.layers.ConvBlock(4, 3, use_bias=False, dilation_rate=(2, 1))
    for layer in (stock, block):
        layer.build(x.shape)
    block.inner.kernel.assign(stock.kernel)
    found = []
    for layer in (stock, block):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * tf.cos(y))
        found.append([y, *tape.gradient(loss, [x, layer.trainable_weights[0]])])
    for want, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


# Images that the model prepares itself.


def prepared(x):
    mean, deviation = np.array([110.0, 90, 130], "float32"), [60.0, 50, 70]
    x = layers.Rescaling(1 / np.array(deviation), list(-mean / deviation), name="map")(x)
    return conv("b", 3)(layers.ReLU()(conv("a", padding="same")(layers.RandomFlip()(x))))


PIXELS = np.random.default_rng(0).integers(0, 256, (24, *SHAPE)).astype("float32")


@pytest.mark.slow(2)
@pytest.mark.parametrize("bits", [8, 5])
def test_a_file_takes_pixels_as_the_model_does(bits, tmp_path):
    qat = quantize(
        network(prepared), calibration_data=PIXELS, rules={"*": {"activation_bits": bits}}
    )
    _, report = parity(qat, tmp_path / "x.tflite", PIXELS, input_type="uint8")
    assert_exact(report)
    (got,), entry, (end,) = run(tmp_path / "x.tflite", PIXELS.astype(np.uint8))
    assert entry["dtype"] is np.uint8
    scale, zero = end["quantization"]
    np.testing.assert_allclose(
        (got.astype(float) - zero) * scale, array(qat(PIXELS, training=False)), 1e-5, 1e-6
    )
    # int8 is the grid behind the map.
    _, report = parity(qat, tmp_path / "y.tflite", PIXELS)
    assert_exact(report)


def test_other_ends_of_such_a_model_are_refused(tmp_path):
    qat = quantize(network(prepared), calibration_data=PIXELS)
    with pytest.raises(ValueError, match="input_type must be 'uint8' .* behind 'map'"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite", input_type="float32")
    with pytest.raises(ValueError, match="pixels must be None .*'map'"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite", "uint8", pixels=(127.5, 127.5))


@pytest.mark.parametrize(
    ("scale", "offset", "signed"), [(1 / 255, 0, False), (1 / 127.5, -1, True), (-1, 255, True)]
)
def test_the_grid_behind_a_map_is_signed_if_its_values_are(scale, offset, signed):
    def function(x):
        return conv("a")(layers.Rescaling(scale, offset)(x))

    assert quantize(network(function), calibration_data=PIXELS).layers[2].signed == signed


def test_a_direct_grid_needs_no_table(tmp_path):
    def function(x):
        return conv("a")(layers.Rescaling(1 / 255)(x))

    qat = quantize(network(function), calibration_data=PIXELS, input_step=1 / 255)
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite", input_type="uint8")
    assert operators == {"QUANTIZE": 1, "CONV_2D": 1}


@pytest.mark.slow(3)
def test_it_is_trained_and_saved(tmp_path):
    def function(x):
        x = layers.GaussianNoise(0.1)(layers.RandomFlip()(layers.Rescaling(0.01, -1.0)(x)))
        x = layers.SeparableConv2D(4, 3)(layers.BatchNormalization()(x)) * 0.5
        x = layers.Activation("gelu")(layers.Subtract()([x, ops.tanh(x)]))
        return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))

    qat = quantize(network(function), calibration_data=PIXELS)
    before = [array(v) for v in qat.trainable_variables]
    train(qat, PIXELS)
    frozen = [i for i, v in enumerate(qat.trainable_variables) if (array(v) == before[i]).all()]
    assert len(frozen) < len(before) / 4  # nothing that is trained stands still
    qat.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(PIXELS, training=False), qat(PIXELS, training=False))
    _, report = parity(loaded, tmp_path / "x.tflite", PIXELS, input_type="uint8")
    assert_exact(report)
