"""Trained, quantized and deployed under JAX without TensorFlow; and then under TensorFlow."""

import keras
import numpy as np
import pytest

import repq_tf
from tests import forks

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

TRAIN = """
import keras, numpy as np, repq_tf
from repq_tf.layers import ACBlock, RepVGGBlock

array = keras.ops.convert_to_numpy
assert keras.backend.backend() == "jax"
folder = sys.argv[1]
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(0.3, 1, (64, 6, 6, 3)).astype("float32")
y = rng.normal(size=(64, 5))

inputs = keras.Input((6, 6, 3), name="image")
z = ACBlock(4, activation="relu", name="ac")(inputs)
z = keras.layers.Add(name="add")([z, RepVGGBlock(4, name="vgg")(z)])
z = keras.layers.PReLU(shared_axes=[1, 2], name="prelu")(z)
z = keras.layers.GlobalAveragePooling2D(name="mean")(z)
model = keras.Model(inputs, keras.layers.Dense(5, name="logits")(z))

def train(model, rate):
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse")
    before = [array(v).copy() for v in model.trainable_variables]
    losses = model.fit(x, y, batch_size=32, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    pairs = zip(model.trainable_variables, before, strict=True)
    assert any(not np.array_equal(array(v), b) for v, b in pairs)

train(model, 0.05)
deployed = repq_tf.merge(model)
for network in (model, deployed):
    assert repq_tf.summary(network).totals["macs"] == 36 * 9 * (3 * 4 + 4 * 4) + 4 * 5
deployed.save(f"{folder}/merged.keras")
outputs = {"merged": model(x)}
equal = repq_tf.equalize(model, x, verbose=False).model
rooted = repq_tf.restore_batch_norm(deployed, x, verbose=False)
for network in (equal, rooted):
    difference = np.abs(array(network(x)) - array(model(x))).max()
    assert difference <= 1e-5 * np.abs(array(model(x))).max()
repq_tf.reestimate_batch_norm(model, x)
qat = repq_tf.quantize(model, bits=BITS, calibration_data=x, verbose=False)
kept = [array(v).copy() for v in model.weights]
train(qat, 0.01)
qat.save(f"{folder}/qat.keras")
merged = repq_tf.merge(qat)
merged.save(f"{folder}/qat_merged.keras")
outputs["qat"], outputs["qat_merged"] = qat(x), merged(x)
analysis = repq_tf.analyze(qat, x, verbose=False)
outputs["noise"] = [row.noise.total for row in analysis.rows]
table = repq_tf.sensitivity(model, x[:8], bits=[2, 4], verbose=False)
(rule, *_) = repq_tf.allocate_bits(table, bit_operations=1e6)
assert rule == ("ac", {"weight_bits": 4}), rule
np.savez(f"{folder}/outputs.npz", x=x, **{k: array(v) for k, v in outputs.items()})
operators = repq_tf.export_tflite(qat, f"{folder}/jax.tflite")
assert operators["CONV_2D"] == 2 and "DEQUANTIZE" not in operators
report = repq_tf.check_parity(qat, f"{folder}/jax.tflite", x, verbose=False)
assert not any(row.different for row in report.layers), str(report)

wide = repq_tf.quantize(model, activation_bits=16, calibration_data=x, verbose=False)
repq_tf.export_tflite(wide, f"{folder}/wide.tflite")
report = repq_tf.check_parity(wide, f"{folder}/wide.tflite", x, verbose=False)
assert not any(row.different for row in report.layers), str(report)
for variable, value in zip(model.weights, kept):  # training the copy left it alone
    np.testing.assert_array_equal(array(variable), value)
anneal = repq_tf.callbacks.AnnealIdentities(1)
model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[anneal])
gains = [array(norm.gamma) for norm in repq_tf.callbacks.identity_norms(model)]
assert gains and not any(gain.any() for gain in gains)
"""


@pytest.mark.slow(20)
def test_a_model_from_jax_is_deployed_under_tensorflow(tmp_path):
    code = BLOCK + TRAIN.replace("BITS", "6")
    status, _, errors = forks.run(code, str(tmp_path), KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert status == 0, errors
    assert keras.backend.backend() == "tensorflow"
    with np.load(tmp_path / "outputs.npz") as arrays:
        outputs = dict(arrays)
    x = outputs["x"]
    for name in ("merged", "qat", "qat_merged"):
        model = keras.models.load_model(tmp_path / f"{name}.keras")
        expected = outputs[name]
        difference = np.abs(keras.ops.convert_to_numpy(model(x)) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), name
        modules = {type(layer).__module__.split(".")[0] for layer in model.layers}
        assert ("repq_tf" in modules) == (name != "merged")
    qat = keras.models.load_model(tmp_path / "qat.keras")
    report = repq_tf.check_parity(qat, tmp_path / "jax.tflite", x)
    assert not any(row.different for row in report.layers), str(report)
    operators = repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert operators["CONV_2D"] == 2 and "DEQUANTIZE" not in operators
    noise = [row.noise.total for row in repq_tf.analyze(qat, x, verbose=False).rows]
    np.testing.assert_allclose(noise, outputs["noise"], atol=0.1)
    report = repq_tf.check_parity(qat, tmp_path / "x.tflite", x)
    assert not any(row.different for row in report.layers), str(report)
    assert report.equal_outputs == 1.0
