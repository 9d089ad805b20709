"""Merged models through Keras's own exports: the same numbers in other runtimes."""

import keras
import numpy as np
import pytest

import repq_tf
from tests.quantization.networks import array, images, network, quantize, residual

X = images(9)


def upscaler():
    """A super-resolution network for images of any size, with weights."""
    model = repq_tf.models.ecbsr_m4c16()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.08, np.shape(w)) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module", params=["float", "quantized", "upscaler"])
def merged(request):
    """A merged model, images for it and what it makes of them."""
    if request.param == "upscaler":
        model, x = upscaler(), np.random.default_rng(1).uniform(size=(2, 7, 9, 1))
    else:
        model, x = network(residual), X
        if request.param != "float":
            model = quantize(model, bits=6)
    model, x = repq_tf.merge(model), x.astype("float32")
    return model, x, array(model(x))


@pytest.mark.slow
def test_keras_file(merged, tmp_path):
    model, x, expected = merged
    model.save(tmp_path / "merged.keras")
    found = keras.saving.load_model(tmp_path / "merged.keras")(x)
    np.testing.assert_array_equal(array(found), expected)


@pytest.mark.slow
def test_saved_model(merged, tmp_path):
    import tensorflow as tf

    model, x, expected = merged
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")  # it owns the variables
    found = loaded.serve(x)
    np.testing.assert_allclose(array(found), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx(merged, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, expected = merged
    path = str(tmp_path / "merged.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    (found,) = session.run(None, {entry.name: x})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # And of any number of images.
    (one,) = session.run(None, {entry.name: x[:1]})
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx_has_one_convolution_for_each_block(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = repq_tf.merge(network(residual))
    model(X)  # Keras exports to ONNX what has been called
    model.export(str(tmp_path / "merged.onnx"), format="onnx", verbose=False)
    kinds = [node.op_type for node in onnx.load(tmp_path / "merged.onnx").graph.node]
    assert kinds.count("Conv") == 3 and "BatchNormalization" not in kinds
