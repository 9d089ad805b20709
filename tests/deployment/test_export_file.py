"""The file: its ends, corruption that is caught and located, and clear errors."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock
from repq_tf.train.interpreter import Network
from tests.deployment.files import (
    TYPES,
    Convolution,
    assert_exact,
    parity,
    read,
    run,
    write,
)
from tests.quantization.networks import (
    SHAPE,
    array,
    images,
    layers,
    network,
    quantize,
    residual,
)

X = images(64)
NAMES = ["stem", "ac", "vgg", "add", "mean", "logits"]


@pytest.fixture(scope="module")
def qat():
    return quantize(network(residual))


@pytest.fixture(scope="module")
def good(qat, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.tflite"
    repq_tf.export_tflite(qat, path)
    return path


# The ends.


@pytest.mark.parametrize("step", [1 / 127.5, 2 / 255])
def test_a_float_file_rounds_ties_as_the_model_does(step, tmp_path):
    """Pixels half way between two levels: the runtime multiplies by the reciprocal."""
    qat = quantize(
        network(lambda x: layers.Conv2D(4, 1, name="a")(x), (16, 16, 1)), input_step=step
    )
    repq_tf.export_tflite(qat, tmp_path / "x.tflite", "float32", "float32")
    pixels = np.arange(256, dtype="float32").reshape(1, 16, 16, 1)
    for x in ((pixels - 127.5) / 127.5, pixels / 255):
        (y,), *_ = run(tmp_path / "x.tflite", x)
        np.testing.assert_array_equal(y, array(qat(x)))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("entry", ["int8", "uint8", "float32"])
def test_all_ends_agree(qat, entry, output, tmp_path):
    path = tmp_path / "x.tflite"
    operators, report = parity(qat, path, X, input_type=entry, output_type=output)
    assert_exact(report)
    step = np.float32(qat.get_layer("image_quantize").step)
    levels = np.rint(np.clip(X / step, -128, 127))
    given = {"int8": levels, "uint8": levels + 128, "float32": X}[entry].astype(entry)
    (y,), source, (end,) = run(path, given)
    assert (source["dtype"], end["dtype"]) == (np.dtype(entry), np.dtype(output))
    expected = array(qat(X))
    if output == "float32":
        # To the last bit: the level times the step.
        np.testing.assert_array_equal(y, expected)
    else:
        scale, zero = end["quantization"]
        assert zero == {"int8": 0, "uint8": 128}[output]
        np.testing.assert_allclose((y.astype("float64") - zero) * scale, expected, rtol=1e-6)
    ends = (entry != "int8") + (output == "uint8")
    assert operators.get("QUANTIZE", 0) == ends
    assert operators.get("DEQUANTIZE", 0) == (output == "float32")
    graph = read(path).subgraphs[0]
    outer = {int(i) for i in (*graph.inputs, *graph.outputs)}
    for index, tensor in enumerate(graph.tensors):
        assert TYPES[tensor.type] in ("INT8", "INT32") or index in outer


def test_signature(good):
    """One input and one output, by name; the taps of the export are gone."""
    (signature,) = read(good).signatureDefs
    assert [len(signature.inputs), len(signature.outputs)] == [1, 1]
    graph = read(good).subgraphs[0]
    assert [int(i) for i in graph.outputs] == [o.tensorIndex for o in signature.outputs]


def test_tensors_are_named_after_layers(good):
    names = [tensor.name.decode() for tensor in read(good).subgraphs[0].tensors]
    assert {"image", *NAMES} <= set(names)


@pytest.mark.parametrize("argument", ["input_type", "output_type"])
@pytest.mark.parametrize("value", ["int16", "float16", 8, np.int8])
def test_bad_end_types(qat, argument, value, tmp_path):
    with pytest.raises(ValueError, match=rf"{argument} must be one of .*float32"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite", **{argument: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [6, 4, 2])
def test_a_small_input_grid_takes_integers_alone(bits, tmp_path):
    """Float images beyond the grid would not be clamped to it in the file."""
    inputs = keras.Input(SHAPE, name="image")
    y = layers.Conv2D(3, 3, name="a")(inputs)
    qat = quantize(keras.Model(inputs, y), rules={"image": {"activation_bits": bits}})
    with pytest.raises(ValueError, match=f"input_type must be 'int8'.*{bits} bits"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite", "float32", "float32")


# Corruption.


def flip(layer, position, bit):
    def change(model):
        found = Convolution(model, layer)
        values = found.data(found.kernel).copy()
        values.view(np.uint8).reshape(-1)[position] ^= 1 << bit
        found.set_data(found.kernel, values)

    return change


def shift_bias(layer, channel, amount):
    def change(model):
        found = Convolution(model, layer)
        values = found.data(found.bias).copy()
        values[channel] += amount
        found.set_data(found.bias, values)

    return change


def scale_weights(layer, channel, factor):
    def change(model):
        kernel = Convolution(model, layer).kernel
        kernel.quantization.scale = kernel.quantization.scale * np.where(
            np.arange(len(kernel.quantization.scale)) == channel, factor, 1
        ).astype("float32")

    return change


def scale_tensor(name, factor):
    def change(model):
        tensors = {t.name.decode(): t for t in model.subgraphs[0].tensors}
        quantization = tensors[name].quantization
        quantization.scale = quantization.scale * np.float32(factor)

    return change


CORRUPTIONS = {
    "top bit of a weight": ("ac", flip("ac", 40, 6)),
    "sign of a weight": ("vgg", flip("vgg", 100, 7)),
    "bit 4 of a weight": ("ac", flip("ac", 41, 4)),
    "weight of the first layer": ("stem", flip("stem", 3, 6)),
    "weight of the last layer": ("logits", flip("logits", 3, 6)),
    "one bias": ("ac", shift_bias("ac", 2, 3000)),
    "bias of the last layer": ("logits", shift_bias("logits", 1, -3000)),
    "scale of one channel": ("vgg", scale_weights("vgg", 5, 1.1)),
    "scale of a stored tensor": ("ac", scale_tensor("ac", 1.05)),
    "scale of a sum": ("add", scale_tensor("add", 1.05)),
    "scale of a mean": ("mean", scale_tensor("mean", 0.95)),
    "scale of the input": ("stem", scale_tensor("image", 1.05)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "change"),
    CORRUPTIONS.values(),
    ids=CORRUPTIONS.keys(),
)
def test_a_corrupted_file_is_caught_and_located(qat, good, layer, change, tmp_path):
    model = read(good)
    change(model)
    write(model, tmp_path / "bad.tflite")
    report = repq_tf.check_parity(qat, tmp_path / "bad.tflite", X)
    assert report.first_divergent == layer, str(report)
    rows = {row.name: row for row in report.layers}
    before = NAMES[: NAMES.index(layer)]
    assert not any(rows[name].different for name in before)
    assert rows[layer].diverges and rows[layer].different > 0
    assert report.equal_outputs < 1
    assert f"first divergent layer: {layer}" in str(report)


def test_the_report(qat, good):
    report = repq_tf.check_parity(qat, good, X, batch_size=30)
    assert_exact(report)
    assert [row.name for row in report.layers] == NAMES
    sizes = {"stem": 800, "ac": 800, "vgg": 800, "add": 800, "mean": 8, "logits": 5}
    assert {row.name: row.outputs for row in report.layers} == {
        name: 64 * size for name, size in sizes.items()
    }
    text = str(report)
    assert all(name in text for name in NAMES) and "first divergent layer: none" in text
    data = report.as_dict()
    assert data["first_divergent"] is None and data["layers"][0]["name"] == "stem"


def test_a_model_trained_further_is_not_in_its_old_file(qat, good):
    other = keras.models.clone_model(qat)
    other.set_weights(qat.get_weights())
    assert repq_tf.check_parity(other, good, X).first_divergent is None
    quantizer = other.get_layer("vgg_quantize").activation_quantizer
    quantizer.set_step(array(quantizer.step) * 1.03)
    assert repq_tf.check_parity(other, good, X).first_divergent == "vgg"


# Models that are not all integer.


LOOSE = {
    "float weights": ("ac", {"ac": {"weight_bits": None}}),
    "float output": ("ac", {"ac": {"activation_bits": None}}),
    "float last weights": ("logits", {"logits": {"weight_bits": None}}),
    "float input": ("stem", {"image": {"activation_bits": None}}),
}


@pytest.mark.parametrize(("name", "rules"), LOOSE.values(), ids=LOOSE.keys())
def test_a_layer_in_floating_point_is_refused_by_name(name, rules, tmp_path):
    def function(x):
        x = layers.Conv2D(4, 3, activation="relu", name="stem")(x)
        x = ACBlock(4, name="ac", activation="relu")(x)
        return layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x))

    qat = quantize(network(function), rules=rules)
    with pytest.raises(ValueError, match=rf"layer '{name}' computes in floating point"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_float_models_are_refused(tmp_path):
    model = network(residual)
    for source in (model, repq_tf.merge(model)):
        with pytest.raises(ValueError, match="is not quantized; export what repq_tf.quantize"):
            repq_tf.export_tflite(source, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_images_of_any_size(tmp_path):
    def model(last):
        inputs = keras.Input((None, None, 3), name="image")
        x = layers.Conv2D(4, 2, name="c")(inputs)  # makes nothing of the file's own 1x1
        return quantize(keras.Model(inputs, last(x)), calibration_data=X[:8])

    pooled = model(layers.GlobalAveragePooling2D(name="mean"))
    _, report = parity(pooled, tmp_path / "x.tflite", X)
    assert_exact(report)
    for shape in ((4, 7, 9, 3), (1, 17, 2, 3)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        assert_exact(repq_tf.check_parity(pooled, tmp_path / "x.tflite", x))
    found = Network(str(tmp_path / "x.tflite"))(X)
    np.testing.assert_array_equal(found, array(pooled(X)))
    with pytest.raises(ValueError, match=r"refused by the runtime: .*\(1, 1, 1, 3\)"):
        repq_tf.check_parity(pooled, tmp_path / "x.tflite", X[:, :1, :1])
    rows = model(layers.Reshape((-1, 4), name="rows"))
    with pytest.raises(ValueError, match="'rows' makes .* give input_shape"):
        repq_tf.export_tflite(rows, tmp_path / "y.tflite")
    repq_tf.export_tflite(rows, tmp_path / "y.tflite", input_shape=(6, 8, 3))
    assert_exact(repq_tf.check_parity(rows, tmp_path / "y.tflite", X[:, :6, :8]))


@pytest.mark.slow
def test_a_diverged_model_is_refused(tmp_path):
    qat = quantize(network(residual))
    beta = qat.get_layer("vgg").root.beta
    beta.assign(np.where(np.arange(8) == 3, np.nan, array(beta)))
    with pytest.raises(ValueError, match="NaN or infinity, first in layer 'vgg'"):
        repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_a_merged_quantized_model_is_refused(qat, tmp_path):
    with pytest.raises(ValueError, match="quantize|merged"):
        repq_tf.export_tflite(repq_tf.merge(qat), tmp_path / "x.tflite")


def test_a_quantized_model_has_no_float_file(qat, tmp_path):
    for model in (qat, repq_tf.merge(qat)):
        with pytest.raises(ValueError, match="must be a float model; repq_tf.export_tflite "):
            repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


# Files.


def test_a_missing_folder(qat, good, tmp_path, monkeypatch):
    for work in ("export.read_native", "float_file.read_native"):  # nothing is begun
        monkeypatch.setattr(f"repq_tf.deployment.{work}", None)
    path = tmp_path / "missing" / "x"
    for write_to in (
        lambda: repq_tf.export_tflite(qat, path),
        lambda: repq_tf.export_tflite_float(network(residual), path),
        lambda: repq_tf.export_metadata(good, path),
    ):
        with pytest.raises(FileNotFoundError, match=f"'{path}'"):
            write_to()
    with pytest.raises(FileNotFoundError, match="x.tflite"):
        repq_tf.check_parity(qat, tmp_path / "x.tflite", X)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write")
def test_a_folder_that_cannot_be_written(qat, monkeypatch):
    for work in ("export.read_native", "float_file.read_native"):  # nothing is begun
        monkeypatch.setattr(f"repq_tf.deployment.{work}", None)
    for write_to in (repq_tf.export_tflite, repq_tf.export_tflite_float):
        with pytest.raises(PermissionError, match="Its folder cannot be written: '/proc/x'"):
            write_to(qat, "/proc/x")


@pytest.mark.slow
def test_an_existing_file_survives_a_failed_export(qat, tmp_path, monkeypatch):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"precious")
    with pytest.raises(ValueError):
        repq_tf.export_tflite(network(residual), path)
    assert path.read_bytes() == b"precious"

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        repq_tf.export_tflite(qat, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]
    assert path.read_bytes() == b"precious"
    repq_tf.export_tflite(qat, path)
    assert path.read_bytes() != b"precious"


def test_paths_may_be_strings_and_links(qat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("here.tflite").symlink_to(Path("folder") / "there")
    repq_tf.export_tflite(qat, "here.tflite")
    assert Path("here.tflite").is_symlink() and os.listdir("folder") == ["there"]
    assert_exact(repq_tf.check_parity(qat, "here.tflite", X[:8]))


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(qat, good, part, tmp_path):
    content = good.read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match="cut.tflite is not a whole TFLite file"):
        repq_tf.check_parity(qat, path, X)


def test_a_foreign_file(qat, good, tmp_path):
    path = tmp_path / "foreign.tflite"
    for content in (b"PK\x03\x04 a zip file, say" * 20, b"\0" * 4 + b"TFL3" + b"\xff" * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="foreign.tflite is not a whole TFLite file"):
            repq_tf.check_parity(qat, path, X)
    inputs = keras.Input(SHAPE, name="image")
    other = quantize(keras.Model(inputs, layers.Conv2D(3, 3, name="lonely")(inputs)))
    with pytest.raises(ValueError, match=r"was not exported from .*'lonely'"):
        repq_tf.check_parity(other, good, X)
    repq_tf.export_tflite_float(network(residual), path)
    with pytest.raises(ValueError, match="was not exported from"):
        repq_tf.check_parity(qat, path, X)


def test_a_file_of_another_width(good):
    def wider(x):
        x = layers.Conv2D(12, 3, padding="same", activation="relu", name="stem")(x)
        x = ACBlock(12, name="ac", activation="relu")(x)
        y = ACBlock(12, name="vgg")(x)
        x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
        x = layers.GlobalAveragePooling2D(name="mean")(x)
        return layers.Dense(7, name="logits")(x)

    with pytest.raises(ValueError, match="was not exported from"):
        repq_tf.check_parity(quantize(network(wider)), good, X)


def test_images_of_another_size(qat, good):
    with pytest.raises(ValueError, match=r"images of shape \(10, 10, 3\)"):
        repq_tf.check_parity(qat, good, X[:, :8])
    with pytest.raises(ValueError, match="not quantized"):
        repq_tf.check_parity(network(residual), good, X)


# Several outputs, and outputs that keep their input's scale.


def heads(x):
    x = layers.Conv2D(4, 3, activation="relu", name="body")(x)
    return [layers.Conv2D(2, 1, name="a")(x), layers.Conv2D(5, 1, name="b")(x)]


def conv(name, filters=4):
    return layers.Conv2D(filters, 3, name=name)


ENDS = {
    "two heads": heads,
    "maximum": lambda x: layers.MaxPooling2D(2, name="p")(conv("c")(x)),
    "zeros around": lambda x: layers.ZeroPadding2D(1, name="z")(
        layers.Conv2D(4, 3, name="c")(x)
    ),
    "concatenation": lambda x: layers.Concatenate(name="cat")([conv("a")(x), conv("b", 3)(x)]),
}


@pytest.mark.parametrize("function", ENDS.values(), ids=ENDS.keys())
def test_the_file_of_any_ending_is_exact(function, tmp_path):
    """Seen by running the file; in the order of the model's outputs."""
    qat = quantize(network(function))
    repq_tf.export_tflite(qat, tmp_path / "x.tflite", "float32", "float32")
    found, _, _ = run(tmp_path / "x.tflite", X)
    expected = keras.tree.flatten(qat(X))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, array(other))


@pytest.mark.slow
@pytest.mark.parametrize("function", ENDS.values(), ids=ENDS.keys())
def test_parity_of_any_ending(function, tmp_path):
    _, report = parity(quantize(network(function)), tmp_path / "x.tflite", X)
    assert_exact(report)


# Comparing with the float file.


def test_the_float_file_computes_the_merged_model(tmp_path):
    model = network(residual)
    repq_tf.export_tflite_float(model, tmp_path / "float.tflite")
    (y,), entry, (end,) = run(tmp_path / "float.tflite", X)
    assert entry["dtype"] == end["dtype"] == np.float32
    np.testing.assert_allclose(y, array(model(X)), rtol=1e-4, atol=1e-5)


def test_a_file_holds_at_most_255_steps_of_an_output_in_one_of_its_sums(tmp_path):
    """The runtime does not take 256, and more gives the same levels."""
    model = network(lambda x: layers.Conv2D(3, 1, name="c")(x))
    path = tmp_path / "x.tflite"
    parity(quantize(model, output_step=1.0), path, X)
    largest = float(Convolution(read(path), "c").bias.quantization.scale.max())
    for ratio in (254.5, 256.6, 1e5):
        step = largest / ratio
        _, report = parity(quantize(model, output_step=step), path, X)
        assert_exact(report)
        stored = Convolution(read(path), "c").bias.quantization.scale.max()
        assert stored == pytest.approx(min(largest, 255 * step), rel=1e-6)
