"""Layers that a model calls in several places: one kernel, trained and exported exactly."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.graphs import read_graph
from repq_tf.layers import Quantize, ReparamConv
from tests.deployment.files import Convolution, assert_exact, read
from tests.quantization.networks import array

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0.2, 1, (32, 16, 16, 3)).astype("float32")


def pyramid(x, channels=6):
    """Two levels, the second one of larger values."""
    a = layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu", name="a")(x)
    b = layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu", name="b")(a)
    return a, layers.Rescaling(3.0, name="scaled")(b)


def joined(tensors):
    flat = [layers.Reshape((-1, tensor.shape[-1]))(tensor) for tensor in tensors]
    return layers.Concatenate(axis=1)(flat)


def retina(x):
    """A tower and a head on both levels, the tower's batch norm and ReLU shared, too."""
    tower = [
        layers.Conv2D(6, 3, padding="same", use_bias=False, name="tower"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.Conv2D(4, 3, padding="same", name="head"),
    ]
    head = keras.Sequential([keras.Input((None, None, 6)), *tower], name="sub")
    return joined([head(level) for level in pyramid(x)])


def norms_apart(x):
    """As in EfficientDet: a shared convolution, each level's own batch norm."""
    conv = layers.Conv2D(6, 3, padding="same", name="tower")
    ends = [layers.ReLU()(layers.BatchNormalization()(conv(level))) for level in pyramid(x)]
    return joined(ends)


def activations_apart(x):
    conv, (a, b) = layers.Conv2D(6, 3, padding="same", name="tower"), pyramid(x)
    return joined([layers.ReLU()(conv(a)), conv(b)])


def composed(x):
    """Shared layers that are several operators each."""
    shared = [
        layers.SeparableConv2D(6, 3, padding="same", activation="silu", name="separable"),
        repq_tf.layers.SqueezeExcite(2, name="gate"),
        repq_tf.layers.RepVGGBlock(6, name="block"),
        layers.BatchNormalization(name="alone"),
    ]
    ends = []
    for level in pyramid(x):
        for layer in shared:
            level = layer(level)
        ends.append(level)
    return joined(ends)


def recurrent(x):
    """A layer that reads its own results, and a dense one."""
    x, _ = pyramid(x)
    conv, dense = layers.Conv2D(6, 3, padding="same", activation="relu"), layers.Dense(3)
    x = conv(conv(conv(x)))
    return joined([layers.Reshape((1, 3))(dense(f(x))) for f in (mean(), most())])


def mean():
    return layers.GlobalAveragePooling2D()


def most():
    return layers.GlobalMaxPooling2D()


def built(function):
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:])
    model = keras.Model(x, function(x))
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(RNG.uniform(0.5, 1.5, weight.shape))
    return model


def quantized(function, **options):
    return repq_tf.quantize(built(function), calibration_data=X, verbose=False, **options)


NETWORKS = (retina, norms_apart, activations_apart, composed, recurrent)


@pytest.mark.parametrize("function", NETWORKS)
def test_trained_files_are_exact(function, tmp_path):
    bits = {"bits": 4} if function is retina else {}
    model = quantized(function, **bits)
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    model.train_on_batch(X, np.zeros((len(X), *model.output_shape[1:])))
    model.save(tmp_path / "shared.keras")
    loaded = keras.models.load_model(tmp_path / "shared.keras")
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    repq_tf.export_tflite(loaded, tmp_path / "shared.tflite")
    assert_exact(repq_tf.check_parity(loaded, tmp_path / "shared.tflite", X, verbose=False))


def test_calls_share_a_kernel_and_have_grids_of_their_own(tmp_path):
    model = quantized(retina)
    blocks = [layer for layer in model.layers if isinstance(layer, ReparamConv)]
    assert sum("tower" in block.name for block in blocks) == 1
    graph = read_graph(model)
    calls = [n for n in graph.nodes.values() if n.layer.name == "sub_tower"]
    assert len(calls) == 2
    steps = [float(graph.consumers(call.name)[0].layer.step) for call in calls]
    assert steps[1] > 1.5 * steps[0]
    repq_tf.export_tflite(model, tmp_path / "shared.tflite")
    file = read(tmp_path / "shared.tflite")
    first, second = (Convolution(file, call.name).kernel for call in calls)
    assert first.buffer == second.buffer
    assert first.quantization.scale.tolist() == second.quantization.scale.tolist()


def test_gradients_flow_through_all_calls():
    model = quantized(retina)
    block = next(layer for layer in model.layers if layer.name == "sub_tower")
    kernel = block.inner.kernel
    ends = np.zeros((2, *model.output_shape[1:]), "float32")

    def gradient(rows):
        weights = ends.copy()
        weights[:, rows] = 1.0
        model.compile(
            keras.optimizers.SGD(1.0), lambda y, p: keras.ops.sum(y * p), run_eagerly=True
        )
        before, state = array(kernel), model.get_weights()
        model.train_on_batch(X[:2], weights)
        moved = before - array(kernel)
        model.set_weights(state)
        return moved

    small, large = gradient(slice(0, 64)), gradient(slice(64, None))
    assert np.abs(small).max() > 0 and np.abs(large).max() > 0
    np.testing.assert_allclose(gradient(slice(None)), small + large, rtol=1e-2, atol=1e-4)


def test_statistics_are_the_means_of_the_calls():
    """As Keras's moving ones, which each call moves by its own batch's moments."""
    model = built(retina)
    norm = next(n.layer for n in read_graph(model).nodes.values() if n.layer.name == "norm")
    repq_tf.reestimate_batch_norm(model, X, verbose=False)
    tower = next(n.layer for n in read_graph(model).nodes.values() if n.layer.name == "tower")
    levels = keras.Model(model.input, pyramid_of(model))(X)
    features = [np.asarray(tower(level), np.float64) for level in levels]
    means = [f.mean((0, 1, 2)) for f in features]
    variances = [f.var((0, 1, 2)) for f in features]
    np.testing.assert_allclose(norm.moving_mean, np.mean(means, 0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, np.mean(variances, 0), rtol=1e-4)


def pyramid_of(model):
    return [model.get_layer("a").output, model.get_layer("scaled").output]


@pytest.mark.parametrize("function", [retina, composed])
def test_the_quantized_function_is_the_float_one(function):
    """The function of 8 bits is the float one, on both levels."""
    model = built(function)
    want = array(model(X))
    got = array(repq_tf.quantize(model, calibration_data=X, verbose=False)(X))
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).max()


def test_rules_name_all_calls_by_the_first():
    model = quantized(retina, rules=[("sub_tower", {"weight_bits": 5, "activation_bits": 6})])
    graph = read_graph(model)
    calls = [n for n in graph.nodes.values() if n.layer.name == "sub_tower"]
    assert calls[0].layer.weight_bits == 5
    assert {graph.consumers(call.name)[0].layer.bits for call in calls} == {6}
    one = [("sub_call1_tower", {"activation_bits": 3})]
    graph = read_graph(quantized(retina, rules=one))
    bits = [n.layer.bits for n in graph.nodes.values() if isinstance(n.layer, Quantize)]
    assert bits.count(3) == 1
    with pytest.raises(ValueError, match="all calls of a layer, by .* 'sub_tower'"):
        quantized(retina, rules=[("sub_call1_tower", {"weight_bits": 3})])


def test_merged_layers_stay_shared():
    model = built(composed)
    merged = repq_tf.merge(model)
    assert merged.count_params() < model.count_params()
    np.testing.assert_allclose(array(merged(X)), array(model(X)), atol=1e-4)


def test_reparameterized_layers_stay_shared():
    model = built(retina)
    blocks = repq_tf.reparameterize(model, "acnet", calibration_data=X, verbose=False)
    names = [layer.name for layer in blocks.layers if isinstance(layer, ReparamConv)]
    assert len(names) == 4 and len([n for n in names if "tower" in n]) == 1
    np.testing.assert_allclose(array(blocks(X)), array(model(X)), atol=1e-4)


def test_prelu_is_refused_by_name():
    def twice(x):
        shared = layers.PReLU(shared_axes=[1, 2], name="shared")
        return joined([shared(level) for level in pyramid(x)])

    with pytest.raises(ValueError, match="'shared_call1' .PReLU.: called more than once"):
        quantized(twice)
