"""Files of grids whose steps lie far apart: exact, or refused by name."""

import numpy as np
import pytest

import repq_tf
from repq_tf.layers import Quantize
from tests.quantization.networks import array, block_of, images, layers, network, quantize

X = images(16)
RUNTIMES = ("xnnpack", "reference", "tflm")
KINDS = {
    "conv": lambda a, b: layers.Conv2D(4, 3, name="y")(a),
    "depthwise": lambda a, b: layers.DepthwiseConv2D(3, name="y")(a),
    "dense": lambda a, b: layers.Dense(3, name="y")(layers.Flatten()(a)),
    "mean": lambda a, b: layers.GlobalAveragePooling2D(name="y")(a),
    "add": lambda a, b: layers.Add(name="y")([a, b]),
    "subtract": lambda a, b: layers.Subtract(name="y")([a, b]),
    "multiply": lambda a, b: layers.Multiply(name="y")([a, b]),
    "prelu": lambda a, b: layers.PReLU(shared_axes=(1, 2), name="y")(a),
}


def terms(kind):
    """An operator on two convolutions, or on the first of them."""
    return lambda x: KINDS[kind](*(layers.Conv2D(4, 1, name=name)(x) for name in "ab"))


def collapsed(kind, ratio, bits=8):
    """A quantized model whose last step is that of what is summed, divided by a ratio."""
    qat = quantize(network(terms(kind)), activation_bits=bits)
    *before, last = (layer for layer in qat.layers if isinstance(layer, Quantize))
    steps = [float(layer.step) for layer in before[1:]]
    step = np.prod(steps) if kind == "multiply" else max(steps)
    weights = getattr(block_of(qat, "y"), "weight_quantizer", None)
    step = step if weights is None else step * array(weights.step).max()
    last.activation_quantizer.set_step(np.float32(step / ratio))
    return qat


def differing(qat, path, runtime):
    report = repq_tf.check_parity(qat, path, X, verbose=False, runtime=runtime)
    return sum(layer.different for layer in report.layers)


@pytest.mark.slow(4)
@pytest.mark.parametrize("ratio", [300.0, 1e6, 1e9])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense", "mean"])
def test_steps_of_sums_pass_all_levels_of_an_output(kind, ratio, tmp_path):
    """XNNPACK has no such operator, and LiteRT crashed on one; a mean wrapped around."""
    qat, path = collapsed(kind, ratio), tmp_path / "model.tflite"
    repq_tf.export_tflite(qat, path)
    for runtime in RUNTIMES:
        assert differing(qat, path, runtime) == 0, runtime


@pytest.mark.slow(4)
@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense", "mean"])
def test_sums_of_16_bits_wrap_around_as_in_the_file(kind, tmp_path):
    qat, path = collapsed(kind, 1e4, bits=16), tmp_path / "model.tflite"
    repq_tf.export_tflite(qat, path)
    assert differing(qat, path, "xnnpack") == 0


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("kind", "bits", "largest"),
    [("add", 8, 256), ("subtract", 8, 256), ("prelu", 8, 256), ("multiply", 8, 2**15)]
    + [("add", 16, 2**14), ("conv", 16, 2**14), ("depthwise", 16, 2**14)],
)
def test_sums_and_products_of_too_fine_a_grid_are_refused(kind, bits, largest, tmp_path):
    path = tmp_path / "model.tflite"
    qat = collapsed(kind, 0.98 * largest, bits)
    repq_tf.export_tflite(qat, path)
    assert differing(qat, path, "xnnpack") == 0
    path.unlink()
    with pytest.raises(ValueError, match=f"layer 'y': .* less than {largest} .* Received: "):
        repq_tf.export_tflite(collapsed(kind, 1.02 * largest, bits), path)
    assert not path.exists()


def dead(x):
    """A ReLU that no image wakes, and a kernel that training begins at zeros."""
    x = layers.Conv2D(4, 3, activation="relu", name="dead")(x)
    left, right = (layers.Conv2D(4, 3, name=name)(x) for name in ("left", "zeros"))
    return layers.GlobalAveragePooling2D(name="mean")(layers.Add(name="sum")([left, right]))


@pytest.mark.slow(2)
@pytest.mark.parametrize("weight_range", ["min_error", "output_error"])
def test_dead_features_do_not_stop_a_file(weight_range, tmp_path):
    model = network(dead)
    model.get_layer("dead").bias.assign(np.full(4, -50.0))
    model.get_layer("left").bias.assign(np.full(4, 1e-6))
    model.get_layer("zeros").kernel.assign(np.zeros((3, 3, 4, 4)))
    qat = quantize(model, weight_range=weight_range)
    steps = {
        layer.name: float(layer.step) for layer in qat.layers if isinstance(layer, Quantize)
    }
    assert steps["dead_quantize"] == steps["image_quantize"]  # of zeros, that of what they read
    kernel = qat.get_layer("zeros").weight_quantizer
    np.testing.assert_allclose(array(kernel.step), 1 / (6 * 127), rtol=1e-6)
    repq_tf.export_tflite(qat, tmp_path / "model.tflite")
    assert differing(qat, tmp_path / "model.tflite", "xnnpack") == 0


@pytest.mark.parametrize("kind", ["add", "subtract", "prelu"])
def test_a_sum_is_at_most_four_times_as_fine_as_what_is_added(kind):
    model = network(terms(kind))
    weights, bias = model.get_layer("a").get_weights()
    if kind == "prelu":  # all values are negative
        model.get_layer("a").bias.assign(np.full(4, -50.0))
        model.get_layer("y").alpha.assign(np.full((1, 1, 4), 1e-3))
    else:
        sign = -0.999 if kind == "add" else 0.999
        model.get_layer("b").set_weights([sign * weights, sign * bias])
    *before, last = (
        x for x in quantize(model, calibration_data=X).layers if isinstance(x, Quantize)
    )
    assert float(last.step) == max(float(layer.step) for layer in before[1:]) / 4
