"""`repq_tf.analyze` against NumPy on small networks."""

import json

import keras
import numpy as np
import pytest
from scipy import stats

import repq_tf
from repq_tf.layers import ConvBlock, Quantize, RepVGGBlock
from tests.quantization.networks import array, images, network, quantize, residual

layers = keras.layers
SHAPE = (6, 6, 3)
X = images(24, SHAPE)


def pixels(x):
    """Two 1x1 convolutions, which NumPy computes in a line each."""
    x = layers.Conv2D(5, 1, activation="relu", name="a")(x)
    return layers.Conv2D(4, 1, name="b")(x)


@pytest.fixture(scope="module")
def floating():
    return network(pixels, SHAPE)


@pytest.fixture(scope="module")
def quantized(floating):
    rules = [("*", {"weight_bits": 4, "activation_bits": 5})]
    return quantize(floating, rules=rules, calibration_data=X)


def analyze(model, data=X, **options):
    return repq_tf.analyze(model, data, verbose=False, **options)


def rows(analysis):
    return {row.name: row for row in analysis.rows}


def decibels(real, other):
    real, other = np.asarray(real, np.float64), np.asarray(other, np.float64)
    return 10 * np.log10(np.sum(real**2) / np.sum((other - real) ** 2))


# Weights and branches.


def test_figures_of_a_kernel(floating):
    found = rows(analyze(floating))["a"].weights
    kernel = array(floating.get_layer("a").kernel).astype(np.float64)
    ranges = np.abs(kernel).max(axis=(0, 1, 2))
    rms = np.sqrt((kernel**2).mean(axis=(0, 1, 2)))
    assert found.std == pytest.approx(kernel.std())
    assert found.peak == pytest.approx((ranges / rms).max())
    assert found.kurtosis == pytest.approx(stats.kurtosis(kernel, axis=None, fisher=False))
    assert found.range_ratio == pytest.approx(ranges.max() / ranges.min())
    assert (found.bits, found.channels, found.constant) == (8, 5, 0)


@pytest.fixture(scope="module")
def broken():
    """An identity branch of gain 692, and channels without weights, one dead, one constant."""

    def function(x):
        x = layers.Conv2D(4, 1, activation="relu", name="first")(x)
        x = RepVGGBlock(4, name="stage2_block1", activation="relu")(x)
        return layers.Conv2D(3, 1, name="last")(x)

    model = network(function, SHAPE)
    first = model.get_layer("first")
    kernel, bias = array(first.kernel).copy(), array(first.bias).copy()
    kernel[..., 1], kernel[..., 2] = 1e-24, 0
    bias[1], bias[2] = -1, 0.5  # dead and constant
    first.set_weights([kernel, bias])
    norm = model.get_layer("stage2_block1").expression.children[2]
    gamma, variance = array(norm.gamma).copy(), array(norm.statistics.moving_variance).copy()
    variance[1], gamma[1] = 1e-9, 692 * np.sqrt(1e-9 + 1e-5)
    norm.gamma.assign(gamma)
    norm.statistics.moving_variance.assign(variance)
    return model


def test_a_branch_of_large_gain_is_named(broken):
    analysis = analyze(broken)
    square, pointwise, identity = rows(analysis)["stage2_block1"].branches
    assert [b.name for b in (square, pointwise, identity)] == [
        "square",
        "pointwise",
        "identity",
    ]
    assert identity.gain == pytest.approx(692, rel=1e-4) and identity.channel == 1
    assert identity.variance == pytest.approx(1e-9)
    assert max(identity.high, -identity.low) == pytest.approx(692, rel=1e-4)
    (warning,) = [text for text in analysis.warnings if "gain" in text]
    assert warning.startswith("identity branch of stage2_block1 has gain 692 at channel 1")
    assert "nearly constant" in warning and "OABN" in warning and "equalize" in warning
    assert f"warning: {warning}" in str(analysis)
    norm = broken.get_layer("stage2_block1").expression.children[0]
    kernel, gain = array(norm.child.kernel), array(norm.gain_and_shift()[0])
    assert square.std == pytest.approx((kernel * gain).std(), rel=1e-5)
    assert square.low == pytest.approx((kernel * gain).min(), rel=1e-5)
    assert square.gain == pytest.approx(np.abs(gain).max(), rel=1e-5)


def test_channels_that_say_nothing(broken):
    analysis = analyze(broken)
    first = rows(analysis)["first"]
    assert first.weights.constant == 2 and first.weights.range_ratio < 100
    assert (first.features.dead, first.features.constant) == (1, 1)
    (warning,) = first.warnings
    assert warning.startswith("2 of 4 channels of first are constant")
    model = network(pixels, SHAPE)
    a = model.get_layer("a")
    a.bias.assign([0.1, -100, 0.1, -100, 0.1])
    a = rows(analyze(model))["a"]
    assert a.features.dead == 2 and a.weights.constant == 0
    (warning,) = a.warnings
    assert warning.startswith("2 of 5 channels of a are 0 on all images: prune them")


# Features.


def test_figures_of_features(floating):
    x = images(40, (24, 24, 3), seed=3)  # so many that the quantile is not the largest
    model = network(pixels, (24, 24, 3))
    found = rows(analyze(model, x))
    a = model.get_layer("a")
    y = np.maximum(x.astype(np.float64) @ array(a.kernel)[0, 0] + array(a.bias), 0)
    for values, figures in ((x, found["image"].features), (y, found["a"].features)):
        size, ranges = np.abs(values), np.abs(values).max(axis=(0, 1, 2))
        assert figures.low == pytest.approx(values.min(), rel=1e-5)
        assert figures.high == pytest.approx(values.max(), rel=1e-5)
        assert figures.std == pytest.approx(values.std(), rel=1e-5)
        quantile = np.quantile(size, 0.9999, method="higher")
        assert figures.quantile == pytest.approx(quantile, rel=1e-5) and quantile < size.max()
        assert figures.range_ratio == pytest.approx(ranges.max() / ranges.min(), rel=1e-5)
        assert (figures.dead, figures.constant, figures.bits) == (0, 0, 8)


def test_a_known_share_is_clipped():
    """A grid of 0 ... 15 and values of which one in four is 20."""
    inputs = keras.Input((4, 4, 2), name="image")
    quantize = Quantize(bits=4, signed=False, name="grid")
    block = ConvBlock(2, 1, weight_bits=8, name="block")
    model = keras.Model(inputs, block(*quantize(inputs))[0])
    values = np.random.default_rng(0).integers(0, 16, (8, 4, 4, 2)).astype("float32")
    values[:, :2, :2] = 20
    analysis = analyze(model, values)
    image = rows(analysis)["image"]
    assert image.features.clipped == 0.25
    (warning,) = image.warnings[:1]
    assert "image clips 25 % of its outputs" in warning
    expected = 10 * np.log10(np.sum(values.astype(np.float64) ** 2) / (25.0 * 8 * 8))
    assert image.noise.features_alone == pytest.approx(expected)
    assert image.noise.total == pytest.approx(expected) and image.noise.weights is None


# Noise.


class Pixels:
    """`pixels`, float and quantized, in float64."""

    def __init__(self, floating, quantized):
        self.real = [self._affine(floating.get_layer(name)) for name in "ab"]
        self.blocks = [quantized.get_layer(name) for name in ("a", "b_operator")]
        names = ("image_quantize", "a_quantize", "b")
        self.grids = [quantized.get_layer(name).activation_quantizer for name in names]

    @staticmethod
    def _affine(layer):
        return [array(v).astype(np.float64) for v in (layer.kernel[0, 0], layer.bias)]

    def run(self, x, weights=(), features=()):
        """All tensors, with the quantizers of these numbers on."""

        def stored(k, y):
            return self.round(self.grids[k], y) if k in features else y

        tensors = [stored(0, x.astype(np.float64))]
        for k, block in enumerate(self.blocks):
            kernel, bias = self.real[k]
            if k in weights:
                kernel = self.round(block.weight_quantizer, self.real[k][0])
                bias = array(block.inner.bias).astype(np.float64)  # corrected
            y = tensors[-1] @ kernel + bias
            tensors.append(stored(k + 1, np.maximum(y, 0) if k == 0 else y))
        return tensors

    @staticmethod
    def round(quantizer, values):
        step = array(quantizer.step).astype(np.float64)
        return np.clip(np.rint(values / step), quantizer.low, quantizer.high) * step


def test_noise_against_the_float_model(floating, quantized):
    """With `reference`: the corrected biases are those of quantized weights."""
    found = [row.noise for row in analyze(quantized, reference=floating).rows]
    model = Pixels(floating, quantized)
    real = model.run(X)
    weights, features = model.run(X, (0, 1)), model.run(X, (), (0, 1, 2))
    both = model.run(X, (0, 1), (0, 1, 2))
    for k, noise in enumerate(found):
        assert noise.features == pytest.approx(decibels(real[k], features[k]), abs=0.01)
        assert noise.total == pytest.approx(decibels(real[k], both[k]), abs=0.01)
        rounded = model.round(model.grids[k], real[k])
        assert noise.features_alone == pytest.approx(decibels(real[k], rounded), abs=0.01)
        if k:
            alone = model.run(X, (k - 1,))
            assert noise.weights == pytest.approx(decibels(real[k], weights[k]), abs=0.01)
            assert noise.weights_alone == pytest.approx(decibels(real[k], alone[k]), abs=0.01)
    assert found[0].weights is None and found[0].weights_alone is None
    assert found[2].weights_alone > found[2].weights > found[2].total


def test_a_float_model_has_the_noise_of_what_quantize_makes():
    model = network(residual, SHAPE)
    one = analyze(model, bits=4)
    two = analyze(quantize(model, bits=4, calibration_data=X), reference=model)
    assert [row.name for row in one.rows] == [row.name for row in two.rows]
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b.noise.total == pytest.approx(a.noise.total, abs=0.1), a.name
        assert b.features.clipped == pytest.approx(a.features.clipped, abs=1e-3)
    assert one.bits == 4 and two.bits is None and one.name == model.name
    merged = rows(analyze(repq_tf.merge(model), bits=4))["ac"]
    ac = rows(one)["ac"]
    assert merged.weights.std == pytest.approx(ac.weights.std, rel=1e-5)
    assert merged.branches == () and len(ac.branches) == 3


def test_the_noise_of_the_output_is_that_of_the_model():
    """Up to the last place, in which the runtime's arithmetic differs from training's."""
    model = network(residual, SHAPE)
    qat = quantize(model, weight_bits=3, activation_bits=4, calibration_data=X)
    found = analyze(qat, reference=model).rows[-1].noise.total
    assert found == pytest.approx(decibels(model(X), qat(X)), abs=0.3)


def test_a_quantized_model_beside_its_own_function(quantized, floating):
    own = rows(analyze(quantized))["b"].noise
    model = Pixels(floating, quantized)
    for k, block in enumerate(model.blocks):  # with the corrected biases everywhere
        model.real[k][1] = array(block.inner.bias).astype(np.float64)
    real, both = model.run(X), model.run(X, (0, 1), (0, 1, 2))
    assert own.total == pytest.approx(decibels(real[2], both[2]), abs=0.01)
    merged = analyze(repq_tf.merge(quantized))
    assert all(row.noise.weights is row.noise.weights_alone is None for row in merged.rows)
    assert rows(merged)["a"].noise.features > own.features - 3


def test_noise_advice_names_the_layer_and_the_rule():
    model = network(residual, SHAPE)
    before = model.get_weights()
    (ac,) = [row for row in analyze(model, bits=2).rows if row.name == "ac"]
    assert ac.noise.weights_alone < 15
    (text,) = [text for text in ac.warnings if "weights of ac alone" in text]
    assert "rules=[('ac', {'weight_bits': ...})]" in text
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


# The result.


def test_text_page_and_data(broken, tmp_path):
    analysis = analyze(broken)
    for name in ("a.html", "a.json"):
        analysis.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json"]
    data = json.loads((tmp_path / "a.json").read_text())
    assert data == json.loads(json.dumps(analysis.as_dict())) == analysis.as_dict()
    (row,) = [row for row in data["rows"] if row["name"] == "stage2_block1"]
    assert row["branches"][2]["gain"] == pytest.approx(692, rel=1e-4)
    assert row["noise"]["total"] == rows(analysis)["stage2_block1"].noise.total
    page = (tmp_path / "a.html").read_text()
    assert page.count('src="data:image/png;base64,iVBOR') == 4
    headers = page.split("<thead>")[1:]
    assert len(headers) == 4
    for header in headers:
        for title in header.split("</thead>")[0].split("<th>")[1:]:
            assert f"<dt>{title.split('<')[0]}</dt><dd>" in page
    text = str(analysis)
    for part in ("Weights", "Branches", "Features", "Noise", "identity", "99.99 %", "dB"):
        assert part in text and part in page
    assert "on 24 images" in text


def test_arguments_are_checked_early(floating, quantized, tmp_path):
    cases = [
        (floating, X, {"bits": 9}, "bits must be .*Received: 9"),
        (quantized, X, {"bits": 8}, "bits must be left out for a quantized model"),
        (floating, X, {"reference": floating}, "reference must be left out for a float model"),
        (
            quantized,
            X,
            {"reference": network(residual)},
            "reference must be the float model .*'a'",
        ),
        (floating, X[:0], {}, "data must not be empty"),
        (floating, None, {}, "data must be an array of images"),
        (floating, X[:, :3], {}, "data must be batches of images of shape"),
        (floating, X, {"calibration_images": 0}, "calibration_images must be a positive"),
        ("model", X, {}, "model must be a Functional or Sequential"),
    ]
    for model, data, options, message in cases:
        with pytest.raises(ValueError, match=message):
            analyze(model, data, **options)
    with pytest.raises(FileNotFoundError):
        analyze(quantized, X[:2]).save(tmp_path / "none" / "a.html")
    parts = [layers.Conv2D(2, 1), layers.LayerNormalization()]
    refused = keras.Sequential([keras.Input((4, 4, 3)), *parts])
    with pytest.raises(ValueError, match="LayerNormalization"):
        analyze(refused, X[:, :4, :4])
