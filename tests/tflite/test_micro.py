"""What the table of operators says of TensorFlow Lite Micro, tried on its Python package."""

import re

import numpy as np
import pytest

import repq_tf
from repq_tf.tflite import micro, reading
from tests.deployment.test_wide_activations import shared_scales, upscaling, wide
from tests.quantization.networks import layers, network, quantize, residual
from tests.quantization.test_containers import positive

pytest.importorskip("tflite_micro")


def dense(x):
    x = layers.Flatten(name="flat")(layers.Conv2D(4, 3, name="a")(x))
    return layers.Dense(4, name="f")(x)


def largest(x):
    return layers.GlobalMaxPooling2D(name="top")(layers.Conv2D(3, 3, name="a")(x))


def packed(function):
    return quantize(positive(network(function)), weight_bits=4, rules={"*": {"weight_bits": 4}})


REFUSED = {
    "FULLY_CONNECTED of int8 with kernels of 4 bits": (packed, dense, "int4"),
    "BATCH_TO_SPACE_ND of int16": (wide, upscaling, "int8"),
    "REDUCE_MAX of int16": (wide, largest, "int8"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "made"), REFUSED.items(), ids=REFUSED.keys())
def test_what_the_runtime_refuses_is_refused_before(words, made, tmp_path):
    quantized, function, container = made
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(quantized(function), path, container=container)
    with pytest.raises(ValueError, match=f"TensorFlow Lite Micro has no {words}"):
        repq_tf.export_c_array(path, tmp_path / "x.h")
    content, model = reading.read(path)
    end = model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])]
    with pytest.raises((ValueError, RuntimeError)):  # at the latest when it runs
        image = np.zeros(end.shape, reading.type_name(end).lower())
        micro.MicroInterpreter(content).run(image)


def test_the_runtime_runs_what_is_accepted_of_int16(tmp_path):
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(wide(shared_scales), path)
    repq_tf.export_c_array(path, tmp_path / "x.h")
    micro.MicroInterpreter(path.read_bytes()).run(np.zeros((1, 10, 10, 3), np.int16))


def test_the_arena_is_enough_and_no_more(tmp_path):
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(quantize(network(residual)), path)
    repq_tf.export_c_array(path, tmp_path / "x.h")
    found = re.search(r"tensor arena: (\d+) bytes, measured", (tmp_path / "x.h").read_text())
    size = int(found[1])
    assert micro._open(path.read_bytes(), size, False) is not None
    assert micro._open(path.read_bytes(), size - 3 * 1024, False) is None


def test_without_the_package_the_features_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "is_installed", lambda: False)
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(quantize(network(residual)), path)
    repq_tf.export_c_array(path, tmp_path / "x.h")
    # Two images of 8 channels are alive at once, and the sum of them.
    text = (tmp_path / "x.h").read_text()
    assert "tensor arena: more than 2400 bytes, which its features take" in text
