"""Models with several inputs and outputs, in lists and dicts: trained, exported, compared."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.calibration import clip_rates
from repq_tf.graphs import read_graph
from repq_tf.tflite import reading
from tests.deployment.files import assert_exact

layers = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(24, 10, 10, 3)).astype("float32")
NUMBERS = RNG.uniform(0, 1, (24, 5)).astype("float32")
TARGETS = {"kind": RNG.uniform(size=(24, 3)), "age": RNG.normal(size=(24, 1))}
STRUCTURES = {"dict": {"picture": IMAGES, "facts": NUMBERS}, "list": [IMAGES, NUMBERS]}


def two_inputs(structure, prepared=False):
    """An image and a vector; two heads in a dict."""
    picture, facts = keras.Input((10, 10, 3), name="picture"), keras.Input((5,), name="facts")
    x = layers.Rescaling(1 / 64, -2.0)(picture) if prepared else picture
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Concatenate()([x, layers.Dense(4, activation="relu", name="facts_dense")(facts)])
    kind = layers.Dense(3, activation="softmax", name="kind_scores")(x)
    ends = {"kind": kind, "age": layers.Dense(1, name="years")(x)}
    inputs = {"picture": picture, "facts": facts} if structure == "dict" else [picture, facts]
    return keras.Model(inputs, ends)


def quantized(structure, **options):
    data = STRUCTURES[structure]
    return repq_tf.quantize(
        two_inputs(structure), calibration_data=data, verbose=False, **options
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_trained_and_saved_models_keep_names_and_are_exact(structure, tmp_path):
    data, path = STRUCTURES[structure], tmp_path / "two.tflite"
    model = quantized(structure)
    model.compile("sgd", {"kind": "categorical_crossentropy", "age": "mse"})
    model.fit(data, TARGETS, verbose=0)
    model.save(tmp_path / "two.keras")
    loaded = keras.models.load_model(tmp_path / "two.keras")
    repq_tf.export_tflite(loaded, path, input_type={"picture": "float32"})
    _, file = reading.read(path)
    (signature,) = file.signatureDefs
    assert [entry.name for entry in signature.inputs] == [b"picture", b"facts"]
    assert {entry.name for entry in signature.outputs} == {b"kind", b"age"}
    assert [end["type"] for end in reading.describe(file)["inputs"]] == ["float32", "int8"]
    assert_exact(repq_tf.check_parity(loaded, path, data, verbose=False))
    batches = [(data, None), (data, None)]  # as `fit` takes them
    assert repq_tf.check_parity(loaded, path, batches, verbose=False).images == 48


@pytest.mark.parametrize("structure", STRUCTURES)
def test_merged_and_reparameterized_models_compute_the_same(structure, tmp_path):
    model, data = two_inputs(structure), STRUCTURES[structure]
    blocks = repq_tf.reparameterize(model, "acnet", calibration_data=data, verbose=False)
    want = model(data)
    for made in (repq_tf.merge(model), blocks, repq_tf.merge(blocks)):
        got = made(data)
        for key in want:
            np.testing.assert_allclose(got[key], want[key], atol=1e-5)
    repq_tf.export_tflite_float(blocks, tmp_path / "float.tflite")
    _, file = reading.read(tmp_path / "float.tflite")
    assert reading.signature_inputs(file) == ["picture", "facts"]


def test_statistics_are_those_of_all_inputs():
    model = quantized("dict")
    rates = clip_rates(model, STRUCTURES["dict"])
    assert {"picture_quantize/activation", "facts_quantize/activation"} <= set(rates)
    norm = next(layer for layer in model.layers if layer.name == "conv")
    statistics = norm.expression.statistics
    statistics.moving_mean.assign(np.full(6, 9.0))
    repq_tf.reestimate_batch_norm(model, STRUCTURES["dict"], verbose=False)
    assert np.abs(statistics.moving_mean).max() < 3


def test_signs_are_settled_input_by_input():
    graph = read_graph(quantized("dict"))
    signs = {name: node.layer.signed for name, node in graph.nodes.items() if "_q" in name}
    assert signs["picture_quantize"] and not signs["facts_quantize"]


def test_pixels_are_prepared_before_one_of_several_inputs(tmp_path):
    pixels = RNG.integers(0, 256, IMAGES.shape).astype("float32")
    data = {"picture": pixels, "facts": NUMBERS}
    model = repq_tf.quantize(two_inputs("dict", True), calibration_data=data, verbose=False)
    path = tmp_path / "pixels.tflite"
    repq_tf.export_tflite(model, path, input_type={"picture": "uint8"})
    _, file = reading.read(path)
    assert [end["type"] for end in reading.describe(file)["inputs"]] == ["uint8", "int8"]
    assert_exact(repq_tf.check_parity(model, path, data, verbose=False))
    with pytest.raises(ValueError, match=r"must be of inputs of the model, .* \['image'\]"):
        repq_tf.export_tflite(model, path, input_type={"image": "uint8"})


def test_steps_are_fixed_for_all_inputs():
    graph = read_graph(quantized("list", input_step=1 / 32))
    for name in ("picture_quantize", "facts_quantize"):
        assert float(graph.nodes[name].layer.step) == 1 / 32


BAD = {
    "an array": (IMAGES, "arrays for each of the inputs .*, dicts or lists. Received: ndarray"),
    "too few": ({"picture": IMAGES}, r"inputs \['picture', 'facts'\].*keys \['picture'\]"),
    "counts": ([IMAGES, NUMBERS[:3]], "as many for each input. Received: .*24.*3"),
    "shapes": ([NUMBERS, IMAGES], "of input 'picture' must be batches"),
    "constant": ([IMAGES, 0 * NUMBERS], "of input 'facts' must be images"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_data(case):
    data, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        repq_tf.quantize(two_inputs("list"), calibration_data=data, verbose=False)
