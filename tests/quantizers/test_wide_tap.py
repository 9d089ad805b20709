"""The wide tap against NumPy in double precision, in training, in files and refusals."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers as blocks
from repq_tf.branches import Identity
from repq_tf.quantizers import LSQ, WideTapLSQ, min_error_step
from repq_tf.quantizers.wide_tap import identity_taps
from tests.deployment.files import assert_exact, parity

array = keras.ops.convert_to_numpy


def kernel(shape=(3, 3, 8, 8), tap=40.0, seed=0):
    """Weights of which one in each filter is so many times the others' deviation."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    signs = rng.choice([-1, 1], shape[-1])
    values[identity_taps(shape)] = np.broadcast_to(tap * signs, shape[-1])
    return values.astype("float32")


def built(quantizer):
    quantizer.build(None)
    return quantizer


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 3, 4, 8), 2), ((1, 1, 6, 6), 1), ((5, 5, 1, 7), 7)]
)
def test_the_taps_are_those_of_an_identity(shape, groups):
    """A convolution with ones at the taps returns its input."""
    x = np.random.default_rng(0).normal(size=(2, 9, 9, shape[-1])).astype("float32")
    ones = identity_taps(shape).astype("float32")
    if shape[2] == 1:
        y = keras.ops.depthwise_conv(x, ones.reshape(*shape[:2], -1, 1), padding="same")
    else:
        y = keras.ops.conv(x, ones, padding="same")
    assert groups * shape[2] == shape[-1]
    np.testing.assert_array_equal(array(y), x)


@pytest.mark.parametrize(("bits", "largest"), [(4, 0.02), (2, 0.2)])
def test_it_serves_the_tap_and_the_others(bits, largest):
    """Squared errors in parts of the other weights' energy: one grid for all keeps nothing."""
    values = kernel((3, 3, 64, 64))
    others = ~identity_taps(values.shape)
    errors = []
    for kind in (LSQ, WideTapLSQ):
        quantizer = built(kind(bits=bits, channels=64))
        quantizer.initialize(values)
        error = np.square(array(quantizer(values)).astype("f8") - values).sum()
        errors.append(error / np.square(values[others].astype("f8")).sum())
    assert errors[0] > 0.95 and errors[1] < largest


@pytest.mark.parametrize("channels", [8, None])
@pytest.mark.parametrize("tap", [5.0, 4000.0])
def test_step_levels_and_clip_rate_are_numpys(channels, tap):
    values, taps = kernel(tap=tap), identity_taps((3, 3, 8, 8))
    quantizer = built(WideTapLSQ(bits=4, channels=channels))
    quantizer.initialize(values)
    rows = np.moveaxis(values, -1, 0)[np.moveaxis(~taps, -1, 0)].reshape(8, -1).T
    step = min_error_step(rows if channels else rows.ravel(), -8, 7, bool(channels))
    step = np.maximum(step, np.float32(tap) / 127)  # or the tap would be clipped
    np.testing.assert_allclose(array(quantizer.step), step, rtol=1e-6)
    step = array(quantizer.step)
    low, high = np.where(taps, -127, -8), np.where(taps, 127, 7)
    expected = np.rint(np.clip(values / step, low, high))
    np.testing.assert_array_equal(array(quantizer.integers(values)), expected)
    np.testing.assert_array_equal(array(quantizer(values)), (expected * step).astype("f4"))
    outside = np.abs(np.where(taps, 0, values / step) + 0.5) > 8
    assert array(quantizer.clip_rate(values)) == pytest.approx(outside[~taps].mean(), abs=1e-6)


def test_its_gradients_are_lsqs_with_bounds_of_each_weight():
    """And the limit of the step's gradient looks at the other weights alone."""
    import tensorflow as tf

    values, taps = kernel(), identity_taps((3, 3, 8, 8))
    upstream = np.random.default_rng(1).normal(size=values.shape).astype("float32")
    quantizer = built(WideTapLSQ(bits=4, channels=8))
    quantizer.set_step(np.full(8, 0.2, np.float32))
    x = tf.Variable(values)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(x) * upstream)
    to_x, to_change = tape.gradient(total, [x, quantizer.change.value])
    v = values.astype("f8") / np.float32(0.2)
    low, high = np.where(taps, -127, -8), np.where(taps, 127, 7)
    inside = (v > low) & (v < high)
    np.testing.assert_allclose(to_x, upstream * inside)
    error = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    limit = np.mean(np.square(error * ~taps), axis=(0, 1, 2))
    limit = 0.2 / np.sqrt(limit * np.square(values * ~taps).sum((0, 1, 2)))
    scale = np.minimum(1 / np.sqrt(values.size / 8 * 7), limit)
    # The change gets the gradient of the step s divided by ds / dchange = s; see `lsq`.
    expected = (upstream * error).sum((0, 1, 2)) * scale / 0.2
    np.testing.assert_allclose(to_change, expected, rtol=2e-3)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = blocks.RepVGGBlock(8, activation="relu", name="first")(inputs)
    for name in ("second", "third"):
        x = blocks.RepVGGBlock(8, activation="relu", name=name)(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = blocks.RepVGGBlock(8, strides=2, name="last")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


@pytest.mark.slow(15)
@pytest.mark.parametrize("bits", [4, 2])
def test_a_network_trains_and_its_file_is_exact(bits, tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    model = network()
    wide = repq_tf.quantize(
        model, weight_bits=bits, wide_tap=True, calibration_data=x, verbose=False
    )
    plain = repq_tf.quantize(model, weight_bits=bits, calibration_data=x, verbose=False)
    have = {layer.name: layer.wide_tap for layer in wide.layers if hasattr(layer, "wide_tap")}
    expected = ("second", "third", "depthwise")
    assert have == {name: name in expected for name in have} and set(expected) < set(have)
    wide.compile(keras.optimizers.SGD(1e-3), "mse")
    assert np.isfinite(wide.train_on_batch(x, np.zeros((16, 8))))
    wide.save(tmp_path / "wide.keras")
    wide = keras.models.load_model(tmp_path / "wide.keras")
    operators = repq_tf.export_tflite(plain, tmp_path / "plain.tflite")
    written, report = parity(wide, tmp_path / "x.tflite", x)
    assert_exact(report)
    assert repq_tf.export_tflite(wide, tmp_path / "x.tflite") == operators
    block = wide.get_layer("second")
    integers = array(block.integer_weights(wide.get_layer("first_quantize").step)[0])
    assert np.abs(integers[identity_taps(integers.shape)]).max() > 2**bits
    assert "wide tap" in str(repq_tf.quantization_table(wide))
    with pytest.raises(ValueError, match="int4.*cannot hold wide taps.*'second'"):
        repq_tf.export_tflite(wide, tmp_path / "no.tflite", container="int4")
    assert written is not None


def test_auto_finds_the_kernels_whose_tap_stands_out():
    """Those of identities at few bits, branches or merged; not every kernel of the geometry."""
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    model = network()
    for name in ("second", "third"):
        norms = model.get_layer(name).merged_batch_norms
        (identity,) = (norm for norm in norms if isinstance(norm.child, Identity))
        identity.gamma.assign(np.full(8, 20.0))
    for source in (model, repq_tf.merge(model)):
        for bits, expected in ((4, {"second", "third"}), (8, set())):
            found = repq_tf.quantize(
                source, weight_bits=bits, wide_tap="auto", calibration_data=x, verbose=False
            )
            assert {v.name for v in found.layers if getattr(v, "wide_tap", False)} == expected


def test_geometry_and_arguments_are_checked():
    x = np.zeros((1, 8, 8, 3), "float32")
    for options in ({"strides": 2}, {}, {"kernel_size": 2}):
        filters = 8 if not options else 3
        block = blocks.ConvBlock(filters, weight_bits=4, wide_tap=True, **options)
        with pytest.raises(ValueError, match="wide_tap is for odd kernels"):
            block(x)
    with pytest.raises(ValueError, match="wide_tap must be True, False or 'auto'. Received"):
        repq_tf.quantize(network(), wide_tap="yes", calibration_data=x)
    with pytest.raises(ValueError, match="rule 'x': wide_tap must be True, False or"):
        repq_tf.quantize(network(), rules={"x": {"wide_tap": "no"}}, calibration_data=x)
