"""Codebooks against NumPy in double precision: levels, k-means, gradients, files, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf
from repq_tf import layers as blocks
from repq_tf.quantization.weights import bits_of_a_weight, entropy_of_weights
from repq_tf.quantizers import LSQ, ClusterLSQ
from repq_tf.quantizers.cluster import least_squares_centres
from tests.deployment.files import assert_exact, parity

array = keras.ops.convert_to_numpy
SHAPE = (3, 3, 6, 8)


def weights(seed=0, shape=SHAPE):
    """Long tails, as merged kernels have them."""
    return np.random.default_rng(seed).laplace(size=shape).astype("float32")


def built(bits=2, channels=8, values=None, kind=ClusterLSQ):
    quantizer = kind(bits=bits, channels=channels)
    quantizer.build(None)
    quantizer.initialize(weights() if values is None else values)
    return quantizer


def codes_of(quantizer):
    """The whole numbers of steps that weights may be, `(codes, channels)`, in float64."""
    centres, step = (array(v).astype("f8") for v in (quantizer.centres, quantizer.step))
    codes = np.rint(np.clip(centres / step, -127, 127))
    return np.concatenate([np.zeros_like(codes[:1]), codes])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("channels", [8, None])
def test_weights_take_the_nearest_code(bits, channels):
    values, quantizer = weights(), built(bits, channels)
    codes, step = codes_of(quantizer), array(quantizer.step).astype("f8")
    assert codes.shape == ((2**bits, 8) if channels else (2**bits,))
    distances = np.abs((values / step)[None] - codes.reshape(2**bits, 1, 1, 1, -1))
    expected = np.take_along_axis(
        np.broadcast_to(codes.reshape(2**bits, 1, 1, 1, -1), distances.shape),
        distances.argmin(0)[None],
        0,
    )[0]
    np.testing.assert_array_equal(array(quantizer.integers(values)), expected)
    np.testing.assert_array_equal(
        array(quantizer.kernel_integers(keras.ops.convert_to_tensor(values))), expected
    )
    quantized = (expected.astype("f4") * array(quantizer.step)).astype("f4")
    np.testing.assert_array_equal(array(quantizer(values)), quantized)
    assert 0 in expected and np.abs(expected).max() > 50  # of the grid of int8


@pytest.mark.parametrize("number", [2, 4, 16])
def test_clusters_are_a_fixed_point_no_worse_than_their_start(number):
    values = weights(shape=(500,)).astype("f8")
    centres = np.append(least_squares_centres(values, number), 0.0)

    def error(codes):
        return np.square(values[:, None] - codes).min(1).sum()

    start = np.quantile(values, (np.arange(number) + 0.5) / number)
    start[np.abs(start).argmin()] = 0
    assert error(centres) < 0.95 * error(start)
    members = np.abs(values[:, None] - centres).argmin(1)
    means = [values[members == k].mean() for k in range(number - 1)]
    np.testing.assert_allclose(centres[:-1], means, rtol=1e-9)
    np.testing.assert_array_equal(least_squares_centres(values[::-1], number), centres[:-1])


def test_few_codes_where_weights_are_beat_levels_at_equal_distances():
    values = weights()
    values[1, 1, 0] *= 40  # the tap of an identity
    errors = [
        np.square(array(built(bits, 8, values, kind)(values)) - values).sum()
        for kind in (ClusterLSQ, LSQ)
        for bits in (2,)
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("channels", [8, None])
def test_codes_get_the_mean_gradient_of_their_members(channels):
    values, quantizer = weights(), built(2, channels)
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype("float32")
    with tf.GradientTape() as tape:
        x = tf.constant(values)
        tape.watch(x)
        loss = tf.reduce_sum(quantizer(x) * upstream)
    of_x, of_codes = tape.gradient(loss, [x, quantizer.centres.value])
    np.testing.assert_array_equal(of_x, upstream)  # straight through
    codes = codes_of(quantizer)
    found = array(quantizer.integers(values))
    for k in range(1, 4):
        members = found == codes[k]
        axes = (0, 1, 2) if channels else None
        mean = (upstream * members).sum(axes) / members.sum(axes)
        np.testing.assert_allclose(of_codes[k - 1], mean, rtol=1e-4, atol=1e-6)
    assert [v.path.split("/")[-1] for v in quantizer.trainable_variables] == ["codes"]


def test_a_channel_of_zeros_stays_one():
    values = weights()
    values[..., 3] = 0
    assert not array(built(values=values)(values))[..., 3].any()
    assert not array(built(channels=None, values=0 * values)(0 * values)).any()


@pytest.mark.slow(8)
def test_a_network_trains_and_its_file_is_exact(tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    inputs = keras.Input((8, 8, 3))
    y = blocks.ConvBlock(8, activation="relu", name="first")(inputs)
    y = blocks.RepVGGBlock(8, activation="relu", name="second")(y)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(y))
    rules = {"first": {"weight_bits": 4, "per_channel": False}}
    options = {"calibration_data": x, "verbose": False, "weight_levels": "cluster"}
    qat = repq_tf.quantize(model, weight_bits=2, rules=rules, wide_tap="auto", **options)
    block = qat.get_layer("second")
    block.restored.gamma.assign(-block.restored.gamma)  # integers turn round
    before = array(block.weight_quantizer.centres)
    qat.compile(keras.optimizers.SGD(1e-2), "mse")
    assert np.isfinite(qat.train_on_batch(x, np.ones((16, 3))))
    assert (array(block.weight_quantizer.centres) != before).mean() > 0.9
    qat.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), qat.predict(x, verbose=0))
    have = {name: loaded.get_layer(name).weight_levels for name in ("first", "second")}
    assert have == {"first": "cluster", "second": "cluster"}
    _, report = parity(loaded, tmp_path / "x.tflite", x)
    assert_exact(report)
    integers = array(block.integer_weights(qat.get_layer("first_quantize").step)[0])
    rows = integers.reshape(-1, 8).T
    assert max(len(np.unique(row)) for row in rows) == 4 and np.abs(rows).max() > 50
    kernel = array(block.inner.merge().kernel)
    bits, entropy = bits_of_a_weight(block, kernel), entropy_of_weights(block, kernel)
    assert bits == pytest.approx(2 + 3 * 8 / 72)  # three codes of 8 bits for 72 weights
    assert f"cluster levels: {bits:.2f} a weight, entropy {entropy:.2f}" in str(
        repq_tf.quantization_table(qat)
    )
    row = {row.name: row for row in repq_tf.summary(qat).layers}["second"]
    assert (row.bits_a_weight, row.weight_entropy) == (bits, entropy)
    with pytest.raises(ValueError, match="int4.*cannot hold codebooks.*'first', 'second'"):
        repq_tf.export_tflite(qat, str(tmp_path / "y.tflite"), container="int4")


def test_the_entropy_is_that_of_each_channel():
    block = blocks.ConvBlock(2, 1, weight_bits=8)
    block.build((None, 4, 4, 8))
    kernel = np.zeros((1, 1, 8, 2), "float32")
    kernel[0, 0, :4, 0] = 100  # one bit
    kernel[0, 0, :, 1] = np.arange(8) + 1  # three
    block.weight_quantizer.set_step(1.0)
    assert entropy_of_weights(block, kernel) == 2.0
    assert bits_of_a_weight(block, kernel) == 8.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="at most 4 bits, signed.*bits=5"):
        ClusterLSQ(bits=5)
    with pytest.raises(ValueError, match="odd=True"):
        ClusterLSQ(bits=2, odd=True)
    with pytest.raises(ValueError, match="goes without wide_tap. Received: both"):
        blocks.RepVGGBlock(8, weight_bits=2, weight_levels="cluster", wide_tap=True)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, name="conv")])
    options = {"calibration_data": np.zeros((1, 8, 8, 3), "float32"), "wide_tap": True}
    with pytest.raises(ValueError, match="layer 'conv': weight_levels='cluster'.*without wide"):
        repq_tf.quantize(model, 4, rules={"conv": {"weight_levels": "cluster"}}, **options)
