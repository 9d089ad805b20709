"""Calibration keeps what was learned and corrects what quantization does, in few bytes."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import MODES, Chain, Convolution, Identity, Scale, Sum, UnitNorm
from repq_tf.calibration.batch_norm import match_moments
from repq_tf.calibration.batches import Stored
from repq_tf.calibration.moments import Moments
from repq_tf.layers import ACBlock, ConvBNBlock
from tests.quantization.networks import (
    SHAPE,
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
    relative,
    residual,
)
from tests.reference import convolution, moments

X = images()
OTHERS = 0.4 * images(seed=7) + 1.5  # what a new head sees, and no batch norm was trained on


def features(model, name):
    """What a layer makes, as float64."""
    output = model.get_layer(name).output
    output = output[0] if isinstance(output, list | tuple) else output
    return array(keras.Model(model.input, output)(OTHERS)).astype("float64")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_population_keeps_its_moments(mode, frozen):
    """Transfer learning: the calibration images are not what the batch norms learned."""
    model = network(residual)
    for layer in model.layers[:-1] if frozen else ():
        layer.trainable = False
    qat = quantize(model, bn_statistics=mode, calibration_data=OTHERS)
    assert relative(qat(OTHERS), model(OTHERS)) < 0.05


def stock(x):
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="biased")(x)
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.mark.parametrize("restore", [None, True])
def test_quantization_shifts_no_mean(restore):
    """Of trained and fresh roots and of biases, with kernels of 3 bits and one step each."""
    model = network(stock)
    qat = quantize(
        model,
        weight_bits=3,
        per_channel=False,
        restore_batch_norm=restore,
        calibration_data=OTHERS,
        rules={"*": {"weight_bits": 3}},
    )
    float_biased = keras.Sequential(model.layers[:4])(OTHERS)
    real = {
        "conv": features(model, "bn"),
        "biased": convolution(
            array(float_biased), *map(array, model.get_layer("biased").weights)
        ),
        "logits": features(model, "logits"),
    }
    for name, expected in real.items():
        block = block_of(qat, name)
        node = {"conv": "image_quantize", "biased": "conv_quantize"}.get(name, "mean")
        x = features(qat, node)
        x = x[:, None, None] if x.ndim == 2 else x
        kernel = array(block.weight_quantizer(block.inner.merge().kernel))
        y = convolution(x, kernel, array(block.inner.merge().bias))
        if block.root is not None:
            gain, shift = map(array, block.root.gain_and_shift())
            y = y * gain + shift
        mean, variance = moments(y)
        want = moments(expected.reshape(len(expected), -1, 1, expected.shape[-1]))
        np.testing.assert_allclose(mean, want[0], atol=0.01 * np.sqrt(want[1]).max())
        if block.root is not None:
            np.testing.assert_allclose(variance, want[1], rtol=0.35)


def test_moments_are_matched_by_the_formula(rng):
    """`gamma (y - m') / sqrt(v' + e)` is the batch norm of `m_f + rho (y - m_q)`."""
    block = ConvBNBlock(4, 1)
    block.build((None, 4, 4, 4))
    root, y = block.root, rng.normal(size=(9, 4))
    m, v = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    root.statistics.moving_mean.assign(m)
    root.statistics.moving_variance.assign(v)
    real, kernel, quantized = Moments(), Moments(), Moments()
    real.add(3, rng.normal(size=4), rng.uniform(1, 9, 4))
    kernel.add(3, rng.normal(size=4), np.array([1.0, 1.0, 9.0, 1e-12]))
    quantized.add(3, rng.normal(size=4), np.array([1.5, 0.7, 1.0, 1.0]))
    match_moments(root, real, kernel, quantized)
    rho = np.array([1.5**-0.5, 0.7**-0.5, 2.0, 1.0])  # the third is bounded, the last constant
    want = (real.mean + rho * (y - quantized.mean) - m) / np.sqrt(v + root.epsilon)
    gain, shift = map(array, root.gain_and_shift())
    np.testing.assert_allclose(y * gain + shift, want, rtol=1e-4, atol=1e-5)


def test_moments_are_matched_where_the_gain_is_bounded(rng):
    """Of an OABN, the mean of what comes out is right although its gain cannot grow."""
    block = ConvBNBlock(4, 1, oabn_k=0.5)
    block.build((None, 4, 4, 4))
    root, m = block.root, rng.normal(size=4)
    root.statistics.moving_mean.assign(m)
    root.gamma.assign([9.0, 0.1, 0.0, 1.0])
    gain, shift = (array(v).astype("float64") for v in root.gain_and_shift())
    real, kernel, quantized = Moments(), Moments(), Moments()
    real.add(3, m + 5, np.ones(4))
    kernel.add(3, m, np.ones(4))
    quantized.add(3, m - 3, np.full(4, 0.5))
    match_moments(root, real, kernel, quantized)
    after, moved = map(array, root.gain_and_shift())
    np.testing.assert_allclose(
        quantized.mean * after + moved, real.mean * gain + shift, rtol=1e-4
    )


def test_moments_of_parts_are_those_of_the_whole(rng):
    y, found = rng.normal(3, 2, (30, 5, 5, 4)), Moments()
    for part in (y[:4], y[4:5], y[5:]):
        found.add(len(part), *moments(part))
    np.testing.assert_allclose((found.mean, found.variance), moments(y), rtol=1e-12)


def expressions():
    """Expressions with a bias somewhere, and one without."""
    conv = Convolution(3, 3, name="plain")
    biased = Convolution(3, 1, use_bias=True, name="biased")
    yield Sum([conv, biased]), True
    yield (
        Chain([Convolution(2, 1, name="first"), Scale(Convolution(3, 3), use_bias=True)]),
        True,
    )
    yield Scale(UnitNorm(Convolution(3, 3, use_bias=True, name="unit"))), False
    yield UnitNorm(Convolution(3, 3, use_bias=True, name="unit")), True
    yield Sum([Identity(), Convolution(3, 3)]), False


def test_a_bias_of_an_expression_takes_a_shift():
    for expression, can in expressions():
        expression.build((None, 5, 5, 3))
        before = expression.merge()
        offset = np.float32([1, -2, 3])
        assert expression.shift(offset) == can
        after = expression.merge()
        np.testing.assert_array_equal(array(after.kernel), array(before.kernel))
        np.testing.assert_allclose(
            array(after.bias), array(before.bias) + can * offset, rtol=1e-6
        )


def test_batches_are_stored_as_they_are(rng, monkeypatch):
    """In memory or on disk, of values and of levels of a grid."""
    from repq_tf.calibration import batches

    monkeypatch.setattr(batches, "_IN_MEMORY", 2000)
    parts = [rng.normal(size=(n, 7, 3)).astype("float32") for n in (4, 9, 1)]
    step = np.float32(0.0371)
    levels = [np.float32(rng.integers(-128, 32768, p.shape)) for p in parts]
    values = [part * step for part in levels]
    for given, stored, read in (
        (parts, Stored(), parts),
        (levels, Stored("int16", step), values),
    ):
        for part in given:
            stored.append(part)
        assert stored.images == 14 and len(stored) == 3
        for k in (2, 0, 1, 1):
            np.testing.assert_array_equal(stored[k], read[k])
            assert stored[k].dtype == np.float32


@pytest.mark.slow
def test_layers_are_run_on_what_the_model_makes():
    """Stored, recomputed and read twice: each layer sees what the whole model makes.

    But for the last place of roundings, whose arithmetic is that of training.
    """
    from repq_tf.calibration.execution import run_layers
    from repq_tf.calibration.images import store_images
    from repq_tf.graphs import read_graph
    from repq_tf.progress import Progress

    model = network(residual)
    qat = quantize(model)
    stored, lowest = store_images(X, qat, 20, 40)
    assert stored.images == 40 and lowest == X[np.arange(40) * 48 // 40].min()
    seen = {}

    def visit(node, places):
        (calls,) = places
        tensors = [[array(value) for value in args[:2]] for args, _ in calls]
        seen[node.name] = np.concatenate([first for first, *_ in tensors])

    run_layers(read_graph(qat), stored, visit, Progress("", 1, "layer", verbose=False))
    chosen = X[np.arange(40) * 48 // 40]
    for name in ("ac", "vgg", "mean", "logits"):
        block = block_of(qat, name)
        tensor = block.input
        tensor = tensor[0] if isinstance(tensor, list | tuple) else tensor
        expected = array(keras.Model(qat.input, tensor)(chosen))
        assert relative(seen[block.name], expected) < 0.02, name
        assert np.mean(np.abs(seen[block.name] - expected) > 1e-5) < 0.1, (
            name
        )  # others a last place


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(monkeypatch):
    """Of a tensor only a batch is in memory: as many bytes of four times the images."""
    import tracemalloc

    from repq_tf.calibration import batches

    monkeypatch.setattr(batches, "_IN_MEMORY", 2**16)
    model = network(lambda x: ACBlock(16, activation="relu")(x), shape=(32, 32, 3))
    peaks = []
    for count in (32, 128):
        data = (images(8, (32, 32, 3), seed) for seed in range(count // 8))
        tracemalloc.start()
        repq_tf.quantize(model, calibration_data=data, verbose=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**21, peaks  # 96 images are 4.7 MB of features a layer


def test_steps_of_16_bits_clip_nothing(rng):
    """There the rounding costs nothing, so what the sample misses must not be clipped."""
    data = np.abs(rng.laplace(size=(64, 32, 32, 3))).astype("float32")
    model = network(lambda x: ConvBNBlock(4, name="conv")(x), shape=(32, 32, 3))
    qat = quantize(model, activation_bits=16, calibration_data=data)
    step = float(qat.get_layer("image_quantize").step)
    np.testing.assert_allclose(step, data.max() / (2**15 - 1), rtol=1e-4)


def test_estimates_are_not_fitted_to_blocks_that_run_their_branches():
    model = network(lambda x: ACBlock(4, name="ac")(x))
    rules = {"*": {"weight_bits": None, "activation_bits": None}}
    qat = quantize(model, bn_statistics="estimate", rules=rules)
    assert relative(qat(X, training=True), model(X, training=True)) < 1e-5


@keras.saving.register_keras_serializable(package="tests")
class Split(keras.layers.Layer):
    """A layer with a weight and two outputs of features."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.gain, -x * self.gain


def test_each_batch_has_its_own_second_outputs():
    image = keras.Input((4, 4, 2))
    norm = layers.BatchNormalization()
    model = keras.Model(image, norm(Split()(image)[1]))
    data = images(90, (4, 4, 2)) * np.linspace(0.1, 5, 90, dtype="float32")[:, None, None, None]
    repq_tf.reestimate_batch_norm(model, data, batch_size=30)
    np.testing.assert_allclose(array(norm.moving_variance), moments(-data)[1], rtol=1e-4)


def test_steps_may_be_given_by_name():
    image = keras.Input(SHAPE)
    x, step = repq_tf.layers.Quantize(bits=8, name="in")(image)
    block = ACBlock(4, weight_bits=8, name="ac")
    y = repq_tf.layers.Quantize(bits=8, name="out")(*block(x, input_step=step))[0]
    model = keras.Model(image, y)
    repq_tf.reestimate_batch_norm(model, X)
    assert (array(block.restored.statistics.moving_variance) != 1).all()


def test_rates_of_shared_quantizers_are_shares():
    def function(x):
        parts = [ConvBNBlock(4, name=f"c{k}")(x) for k in range(3)]
        return ConvBNBlock(2, name="last")(layers.Concatenate()(parts))

    qat = quantize(network(function))
    for quantizer in {id(q): q for q in repq_tf.quantizers.find(qat).values()}.values():
        if not quantizer.channels:
            quantizer.set_step(np.float32(1e-6))
    rates = repq_tf.quantization.clip_rates(qat, X)
    shared = [rate for name, rate in rates.items() if name.startswith("c") and "act" in name]
    assert shared and all(0.9 < rate <= 1 for rate in shared), rates
