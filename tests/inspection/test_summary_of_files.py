"""`summary` and `export_metadata` of files: what they store, counted in NumPy."""

import importlib.util

import numpy as np
import pytest

import repq_tf
from tests.quantization.networks import layers, network, quantize, residual
from tests.quantization.test_containers import everything, positive

KINDS = {
    "tflite": repq_tf.export_tflite,
    "onnx": repq_tf.export_onnx,
}


@pytest.fixture(scope="module")
def qat():
    return quantize(network(residual))


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    if request.param == "onnx":
        pytest.importorskip("onnx")
    return tmp_path / f"model.{request.param}"


def export(model, path, **options):
    return KINDS[path.suffix[1:]](model, path, **options)


def test_costs_are_those_of_the_model(qat, path):
    export(qat, path)
    model, file = repq_tf.summary(qat), repq_tf.summary(path)
    assert file.totals == {**model.totals, "trained": 0}
    rows = {row.name: row for row in file.layers}
    for row in model.layers:
        if row.macs:
            found = rows[row.name]
            assert found.macs == row.macs and found.size == row.size
            assert found.shape == row.shape and found.output_step == row.output_step
            assert (found.weight_bits, found.input_bits, found.output_bits) == (8, 8, 8)
    assert path.name in str(file) and "stem" in file.html()


@pytest.mark.slow
def test_kernels_of_four_bits_take_half(path):
    qat = quantize(positive(network(everything)), weight_bits=4)
    export(qat, path, container="int4")
    totals = repq_tf.summary(path).totals
    assert totals["size"] == repq_tf.summary(qat, container="int4").totals["size"]
    assert {row.weight_bits for row in repq_tf.summary(path).layers} == {4, 8, None}


def test_metadata_says_what_goes_in_and_out(qat, path, tmp_path):
    operators = export(qat, path)
    found = repq_tf.export_metadata(path, labels="abcde", pixels=(127.5, 127.5))
    assert (tmp_path / "model.json").exists() and found["operators"] == operators
    ((entry,), (end,)) = found["inputs"], found["outputs"]
    assert (entry["name"], entry["shape"]) == ("image", [None, 10, 10, 3])
    assert end["shape"] == [None, 5] and found["normalization"]["applied"] == "by the caller"
    step, unsigned = qat.get_layer("image_quantize").step, path.suffix == ".onnx"
    assert np.float32(entry["scale"]) == np.float32(step)
    assert entry["zero_point"] == (128 if unsigned else 0)
    assert np.float32(end["scale"]) == np.float32(qat.layers[-1].step)


def test_float_files_have_no_bits(tmp_path):
    model = network(lambda x: layers.Conv2D(3, 3, name="a")(x))
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    found = repq_tf.summary(tmp_path / "x.tflite")
    (row,) = (row for row in found.layers if row.macs)
    assert (row.weight_bits, row.size) == (None, 4 * (27 * 3 + 3))
    assert row.macs == 27 * 3 * 64


def test_what_is_no_file_of_ours(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"something else")
    if importlib.util.find_spec("onnx") is not None:
        for function in (repq_tf.summary, repq_tf.export_metadata):
            with pytest.raises(ValueError, match="nor a whole ONNX file"):
                function(path)
    with pytest.raises(ValueError, match="model must be the path of a file.*a folder"):
        repq_tf.summary(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "repq_tf\[onnx\]"'):
        repq_tf.summary(path)
