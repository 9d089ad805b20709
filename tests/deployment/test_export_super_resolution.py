"""Super-resolution networks as integer files: whole images, of any size."""

import re

import keras
import numpy as np
import pytest

import repq_tf
from tests.deployment.files import assert_exact, parity, read, run


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype("float32")


X = pictures(6, 20, 28, 1)


@pytest.fixture(scope="module", params=[8, 4, 2])
def trained(request):
    """ECBSR-M4C8 x2 of any image size, calibrated and trained a little."""
    keras.utils.set_random_seed(1)
    model = repq_tf.models.ecbsr_m4c8(scale=2)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.PReLU):
            layer.set_weights([rng.uniform(-0.4, 1.2, layer.alpha.shape)])
    qat = repq_tf.quantize(model, bits=request.param, calibration_data=X, verbose=False)
    qat.compile(keras.optimizers.Adam(1e-3), "mae", run_eagerly=True)
    qat.fit(X, X.repeat(2, 1).repeat(2, 2), batch_size=3, verbose=0)
    return qat, request.param


@pytest.mark.slow
def test_bits_of_the_model(trained):
    """Between a convolution and its PReLU are 8 bits; first and last kernels have 8 too."""
    qat, bits = trained
    for name in ("first", "block1", "block4", "last"):
        assert qat.get_layer(f"{name}_quantize").bits == 8
        assert qat.get_layer(name).weight_bits == (8 if name in ("first", "last") else bits)
    for name in ("first", "block1", "block3"):
        assert qat.get_layer(f"{name}_prelu").bits == bits
    assert qat.get_layer("block4_prelu").bits == 8  # what the last layer reads


@pytest.mark.slow
def test_whole_images_of_any_size(trained, tmp_path):
    qat, _ = trained
    path = tmp_path / "x.tflite"
    operators, report = parity(qat, path, X[:2])
    assert_exact(report)
    assert report.equal_outputs == 1
    for shape in ((1, 37, 23, 1), (2, 5, 48, 1)):
        report = repq_tf.check_parity(qat, path, pictures(*shape, seed=7))
        assert_exact(report)
    assert operators["CONV_2D"] == 6 and operators["DEPTH_TO_SPACE"] == 1
    assert not {"TRANSPOSE", "PAD", "RESHAPE", "DEQUANTIZE"} & set(operators)


@pytest.mark.slow
def test_a_file_of_one_size(tmp_path):
    model = repq_tf.models.ecbsr(m=1, c=4, scale=3, channels=3)
    x = pictures(3, 12, 16, 3)
    qat = repq_tf.quantize(model, calibration_data=x, verbose=False)
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(qat, path, input_shape=(12, 16, 3), input_type="uint8")
    graph = read(path).subgraphs[0]
    assert list(graph.tensors[graph.inputs[0]].shape) == [1, 12, 16, 3]
    assert list(graph.tensors[graph.outputs[0]].shape) == [1, 36, 48, 3]
    assert_exact(repq_tf.check_parity(qat, path, x))
    (y,), _, _ = run(path, np.zeros((1, 12, 16, 3), "uint8"))
    assert y.shape == (1, 36, 48, 3)
    with pytest.raises(ValueError, match=r"takes images of shape \(12, 16, 3\)"):
        repq_tf.check_parity(qat, path, x[:, :5])
    for bad in ((12, 16, 1), (0, 16, 3), (-12, 16, 3), (12.0, 16, 3), 12):
        with pytest.raises(
            ValueError, match=f"input_shape must be .* Received: {re.escape(str(bad))}"
        ):
            repq_tf.export_tflite(qat, tmp_path / "y.tflite", input_shape=bad)


@pytest.mark.slow
def test_the_plain_twin(tmp_path):
    model = repq_tf.models.ecbsr_m4c8_plain(scale=2)
    qat = repq_tf.quantize(model, bits=4, calibration_data=X, verbose=False)
    _, report = parity(qat, tmp_path / "x.tflite", X[:2])
    assert_exact(report)
