"""`repq_tf.summary` against published and hand-made counts."""

import html.parser
import json
import math

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, ConvBNBlock, MobileOneBlock, RepVGGBlock, SqueezeExcite
from tests.models.outline import outline
from tests.quantization.networks import network, quantize, residual

# Multiply-accumulates at 224x224 as published: by torchvision for its ResNets, by RepVGG's
# authors (their repository; 1.4 G in arXiv 2101.03697) and in MobileOne's tables
# (arXiv 2206.04040), on deployed networks.
PUBLISHED = {
    "resnet18": 1.81e9,
    "ac_resnet18": 1.81e9,
    "repvgg_a0": 1.36e9,
    "mobileone_s0": 275e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_multiplications(name):
    found = repq_tf.summary(outline(name)).totals["macs"]
    assert found == pytest.approx(PUBLISHED[name], rel=0.005)


def rows(summary):
    return {row.name: row for row in summary.layers}


@pytest.fixture(scope="module")
def floating():
    return network(residual)


@pytest.fixture(scope="module")
def quantized(floating):
    rules = [("ac", {"weight_bits": 4}), ("stem", {"activation_bits": 6})]
    return quantize(floating, rules=rules)


def test_hand_counts_of_a_float_model(floating):
    summary = repq_tf.summary(floating)
    found = rows(summary)
    # 10x10 outputs, 3x3 kernels, 3 and 8 input channels, 8 filters.
    assert found["stem"].macs == 100 * 9 * 3 * 8
    assert found["ac"].macs == found["vgg"].macs == 100 * 9 * 8 * 8
    assert found["logits"].macs == 8 * 5
    assert found["ac"].bit_operations == found["ac"].macs * 32 * 32
    assert found["stem"].trained == 9 * 3 * 8 + 2 * 8
    assert found["ac"].trained == (9 + 3 + 3) * 8 * 8 + 3 * 2 * 8
    assert found["vgg"].trained == (9 + 1) * 8 * 8 + 3 * 2 * 8
    assert found["ac"].deployed == 9 * 8 * 8 + 8
    assert found["ac"].size == 4 * found["ac"].deployed
    assert found["ac"].shape == (10, 10, 8) and found["logits"].shape == (5,)
    assert found["ac"].kind == "ACBlock" and found["add"].macs == 0
    assert (
        found["ac"].weight_bits is found["ac"].weight_steps is found["ac"].output_step is None
    )
    totals = summary.totals
    assert totals["macs"] == 100 * 9 * (3 + 8 + 8) * 8 + 40
    assert totals["deployed"] == repq_tf.merge(floating).count_params()


def test_hand_counts_of_a_quantized_model(quantized):
    summary = repq_tf.summary(quantized)
    found = rows(summary)
    bits = {n: (r.weight_bits, r.input_bits, r.output_bits) for n, r in found.items()}
    assert bits["stem"] == (8, 8, 6)
    assert bits["ac"] == (4, 6, 8)
    assert bits["logits"] == (8, 8, 8)
    assert bits["image"] == (None, None, 8)
    assert found["ac"].bit_operations == 100 * 9 * 8 * 8 * 4 * 6
    assert found["stem"].bit_operations == 100 * 9 * 3 * 8 * 8 * 8
    assert found["ac"].size == 9 * 8 * 8 + 4 * 8  # int8 kernel, int32 bias
    steps = keras.ops.convert_to_numpy(quantized.get_layer("ac").weight_quantizer.step)
    assert found["ac"].weight_steps == (steps.min(), steps.max()) and steps.min() < steps.max()
    assert found["stem"].output_step == quantized.get_layer("stem_quantize").step
    assert found["add"].output_step == quantized.get_layer("add").step
    trainable = sum(math.prod(v.shape) for v in quantized.trainable_variables)
    assert summary.totals["trained"] == trainable


def test_four_bit_weights_share_a_byte(quantized):
    wide, packed = (rows(repq_tf.summary(quantized, container=c)) for c in ("int8", "int4"))
    assert packed["ac"].size == 9 * 8 * 8 // 2 + 4 * 8
    assert all(packed[name].size == wide[name].size for name in wide if name != "ac")
    as_stored = repq_tf.summary(repq_tf.with_container(quantized, "int4"), container="int4")
    assert as_stored.totals["size"] == sum(row.size for row in packed.values())
    with pytest.raises(ValueError, match="container must be one of .*Received: 'int2'"):
        repq_tf.summary(quantized, container="int2")


def test_a_merged_model_keeps_the_grids_of_its_activations(quantized):
    found = rows(repq_tf.summary(repq_tf.merge(quantized)))
    assert (found["ac"].weight_bits, found["ac"].input_bits) == (None, 6)
    assert found["ac"].macs == 100 * 9 * 8 * 8
    assert found["ac"].trained == 9 * 8 * 8 + 8 + 1  # and the step behind it


def test_pooled_inputs_lie_on_the_grid_before():
    def function(x):
        x = ConvBNBlock(4, activation="relu", name="a")(x)
        x = keras.layers.MaxPooling2D(name="pool")(x)
        x = keras.layers.Flatten(name="flat")(x)
        return keras.layers.Dense(3, name="b")(x)

    model = quantize(network(function), rules=[("a", {"activation_bits": 5})])
    found = rows(repq_tf.summary(model))
    assert [found[n].output_bits for n in ("a", "pool", "flat")] == [5, 5, 5]
    assert found["b"].input_bits == 5 and found["b"].macs == 5 * 5 * 4 * 3


def test_strides_groups_and_excitation():
    inputs = keras.Input((9, 9, 8))
    x = MobileOneBlock(8, strides=2, groups=8, name="wise")(inputs)
    x = SqueezeExcite(2, name="excite")(x)
    x = RepVGGBlock(12, groups=4, strides=2, name="grouped")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="stock")(x)
    found = rows(repq_tf.summary(keras.Model(inputs, x)))
    assert found["wise"].macs == 25 * 9 * 8 and found["wise"].deployed == 9 * 8 + 8
    assert found["excite"].macs == 2 * 8 * 2 and found["excite"].deployed == 16 + 2 + 16 + 8
    assert found["grouped"].macs == 9 * 9 * 2 * 12
    assert found["stock"].macs == 1 * 9 * 12 * 2


def test_a_layer_called_twice_has_its_weights_once():
    inputs = keras.Input((6, 6, 4))
    layer = keras.layers.Conv2D(4, 3, padding="same", name="twice")
    summary = repq_tf.summary(keras.Model(inputs, layer(layer(inputs))))
    assert summary.totals["macs"] == 2 * 36 * 9 * 16
    assert summary.totals["deployed"] == summary.totals["trained"] == 9 * 16 + 4


def test_unknown_layers_are_named_not_guessed():
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.SeparableConv2D(4, 3, name="separable")(inputs)
    x = keras.layers.PReLU(name="slope")(keras.layers.BatchNormalization()(x))
    summary = repq_tf.summary(keras.Model(inputs, x))
    assert summary.unknown == ["separable"] and summary.totals["macs"] == 0
    assert "separable" in str(summary).splitlines()[-1]
    assert "separable" in summary.html().rpartition("</table>")[2]


def test_images_of_any_size():
    model = repq_tf.models.ecbsr_m4c16()
    for height, width in ((10, 12), (720, 1280)):
        summary = repq_tf.summary(model, input_shape=(height, width, 1))
        kernels = 16 + 4 * 16 * 16 + 16 * 4
        assert summary.totals["macs"] == height * width * 9 * kernels
        assert summary.layers[-1].shape == (2 * height, 2 * width, 1)
    with pytest.raises(ValueError, match=r"input_shape must be given .*\(None, None, 1\)"):
        repq_tf.summary(model)
    for bad in ((10, 12), (10, 12, 3), (0, 4, 1), (None, 4, 1), (4.0, 4, 1), 8):
        with pytest.raises(ValueError, match=r"input_shape must be .* fit .*Received"):
            repq_tf.summary(model, input_shape=bad)


def test_the_model_does_not_notice(floating):
    weights = floating.get_weights()
    repq_tf.summary(floating)
    assert all(layer.output is not None for layer in floating.layers)  # raises for two calls
    for one, two in zip(weights, floating.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_sequential():
    model = keras.Sequential([keras.Input((8, 8, 3)), ACBlock(4), keras.layers.Flatten()])
    assert repq_tf.summary(model).totals["macs"] == 64 * 27 * 4


class _Cells(html.parser.HTMLParser):
    """The rows of a page's table."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.title = [], ""
        self.feed(page.split("</table>")[0])

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, text):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += text.strip()


def test_text_page_and_data_agree(quantized, tmp_path):
    summary = repq_tf.summary(quantized)
    text = str(summary).splitlines()
    path = tmp_path / "model.html"
    summary.save(path)
    assert path.read_text() == summary.html()
    assert [p.name for p in tmp_path.iterdir()] == ["model.html"]
    header, *body, total = _Cells(summary.html()).rows
    assert len(body) == len(summary.layers) and len({len(row) for row in (header, *body)}) == 1
    for line, cells in zip(text[1:], (header, *body, total), strict=True):
        assert line.split() == " ".join(cells).split()
    data = json.loads(json.dumps(summary.as_dict()))
    assert data["totals"] == summary.totals
    (stem,) = (row for row in data["layers"] if row["name"] == "stem")
    assert stem["macs"] == 21600 and stem["bit_operations"] == 21600 * 64
    assert "21.6 k" in text[3] and text[3].split()[:2] == ["stem", "ConvBNBlock"]
    assert total[:1] == ["total"]


def test_the_page_explains_its_numbers(quantized):
    page = repq_tf.summary(quantized).html()
    for term in _Cells(page).rows[0][3:]:
        assert f"<dt>{term}</dt><dd>" in page


def test_names_are_escaped():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="a<b")(inputs), name="x&y")
    page = repq_tf.summary(model).html()
    assert "a&lt;b" in page and "x&amp;y" in page and "a<b" not in page


def test_quantities():
    from repq_tf.text import quantity

    expected = {
        0: "0",
        999: "999",
        1000: "1.00 k",
        9994: "9.99 k",
        9996: "10.0 k",
        99960: "100 k",
        999_600: "1.00 M",
        1_814_073_344: "1.81 G",
        2.5e12: "2.50 T",
    }
    assert {n: quantity(n) for n in expected} == expected
