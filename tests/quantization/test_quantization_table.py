"""The table of a quantized model, and its warnings."""

import numpy as np
import pytest

import repq_tf
from tests.quantization.networks import (
    array,
    images,
    layers,
    network,
    quantize,
    residual,
)

X = images()


@pytest.fixture(scope="module")
def model():
    return network(residual)


def test_the_table(model, capsys):
    qat = repq_tf.quantize(
        model,
        bits=4,
        rules={"vgg": {"per_channel": False}, "ac": {"activation_bits": 6}},
        calibration_data=X,
    )
    printed = capsys.readouterr().out
    table = repq_tf.quantization_table(qat)
    assert printed == f"{table}\ncalibrated on 48 images\n"
    rows = {row.name: (row.kind, row.weight, row.output) for row in table.rows}
    assert rows == {
        "image": ("InputLayer", "", "8 bits, signed"),
        "stem": ("ConvBNBlock", "8 bits, per channel", "4 bits, unsigned"),
        "ac": ("ACBlock", "4 bits, per channel", "6 bits, unsigned"),
        "vgg": ("RepVGGBlock", "4 bits, per tensor", "4 bits, signed"),
        "add": ("QuantizedAdd", "", "4 bits, unsigned"),
        "mean": ("QuantizedMean", "", "8 bits, unsigned"),
        "logits": ("DenseBlock", "8 bits, per channel", "8 bits, signed"),
    }
    for name in (*rows, "BN gain:", "max/rms:"):
        assert any(line.startswith(f"{name} ") for line in printed.splitlines())
    by_name = {row.name: row for row in table.rows}
    for name in ("ac", "vgg"):
        norms = qat.get_layer(name).merged_batch_norms
        gains = [
            np.abs(array(n.gamma)) / np.sqrt(array(n.statistics.moving_variance) + 1e-5)
            for n in norms
        ]
        np.testing.assert_allclose(by_name[name].gain, np.max(gains), rtol=1e-5)
    assert by_name["stem"].gain is None and by_name["add"].peak is None
    kernel = array(qat.get_layer("vgg").inner.merge().kernel)
    rms = np.sqrt(np.mean(kernel**2))
    np.testing.assert_allclose(by_name["vgg"].peak, np.abs(kernel).max() / rms, rtol=1e-5)
    kernel = array(qat.get_layer("ac").inner.merge().kernel).reshape(-1, 8)
    worst = (np.abs(kernel).max(0) / np.sqrt(np.mean(kernel**2, 0))).max()
    np.testing.assert_allclose(by_name["ac"].peak, worst, rtol=1e-5)


def test_the_table_says_what_was_skipped_and_why():
    def function(x):
        x = layers.MaxPooling2D(2, name="pool")(layers.Conv2D(4, 3, name="c")(x))
        x = layers.Conv2D(4, 3, name="loose", activation="relu")(x)
        return layers.Flatten(name="flat")(x)

    rules = {"loose": {"weight_bits": None, "activation_bits": None}}
    table = repq_tf.quantization_table(quantize(network(function), rules=rules))
    rows = {row.name: (row.weight, row.output) for row in table.rows}
    assert rows["pool"] == ("", "none: shares its input's scale")
    assert rows["loose"] == ("floating point", "floating point")


@pytest.mark.parametrize("bits", [8, 4])
def test_the_table_warns_of_kernels_with_outliers(bits):
    """One tap of 1 among 0.01: max/rms near its greatest value, sqrt(27 * 8 * 9)."""

    def function(x):
        x = layers.Conv2D(24, 3, activation="relu", name="first")(x)
        return layers.Conv2D(4, 3, name="last")(layers.Conv2D(24, 3, name="spiky")(x))

    model = network(function)
    kernel = np.full((3, 3, 24, 24), 0.001, "float32")
    kernel[1, 1, 0, 5] = 1.0
    model.get_layer("spiky").kernel.assign(kernel)
    qat = quantize(model, bits=bits)
    peak = {row.name: row.peak for row in repq_tf.quantization_table(qat).rows}["spiky"]
    np.testing.assert_allclose(peak, 1 / np.sqrt((1 + 215e-6) / 216), rtol=1e-5)  # 14.7
    assert not repq_tf.quantization_table(qat).warnings
    # Per tensor it stands among 24 times as many: 72, too much for 4 bits and not for 8.
    table = repq_tf.quantization_table(quantize(model, bits=bits, per_channel=False))
    warning = "spiky: max/rms of the merged kernel is 71.8, much for 4 bits"
    assert [w.startswith(warning) for w in table.warnings] == ([True] if bits == 4 else [])
