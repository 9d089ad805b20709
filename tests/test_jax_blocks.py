"""Every block trains under JAX in a process where TensorFlow cannot be imported."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())

import keras
import numpy as np
import repq_tf
from repq_tf.layers import ACBlock, ConvBlock, ConvBNBlock, DenseBlock, Quantize, RepVGGBlock

assert keras.backend.backend() == "jax"
keras.utils.set_random_seed(0)
keras.config.set_dtype_policy(sys.argv[1])
MODES = repq_tf.branches.MODES
rng = np.random.default_rng(0)
x = np.maximum(rng.normal(size=(8, 8, 8, 3)), 0).astype("float32")
labels = rng.integers(0, 5, 8)


def network(bits):
    step = None
    y = inputs = keras.Input((8, 8, 3))

    def quantize(y, **options):
        return Quantize(8, **options)(*(y if isinstance(y, tuple) else (y,)))

    def apply(block, y, step):
        if bits is None:
            return block(y), None
        return quantize(block(y, step), signed=False)

    if bits is not None:
        y, step = quantize(y, signed=False)
    options = {"activation": "relu", "weight_bits": bits}
    for mode in MODES:
        merged = {"bn_statistics": mode, "merged": mode != "batch"}
        y, step = apply(ACBlock(4, **merged, **options), y, step)
        y, step = apply(RepVGGBlock(4, groups=2, **merged, **options), y, step)
    y, step = apply(ConvBNBlock(4, groups=4, strides=2, **options), y, step)
    y, step = apply(ConvBlock(4, padding=1, **options), y, step)
    y = keras.layers.GlobalAveragePooling2D()(y)
    if bits is not None:
        y, step = quantize(y, signed=False)
    y = DenseBlock(5, weight_bits=bits)(y, step) if bits else DenseBlock(5)(y)
    return keras.Model(inputs, y[0] if isinstance(y, tuple) else y)


for bits in (None, 4):
    model = network(bits)
    for layer in model.layers:
        if isinstance(layer, Quantize):
            layer.activation_quantizer.set_step(0.02)
        elif getattr(layer, "weight_quantizer", None) is not None:
            layer.weight_quantizer.initialize(layer.inner.merge().kernel)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    loss = model.train_on_batch(x, labels)
    assert np.isfinite(loss), loss
    after = [np.array(v) for v in model.trainable_variables]
    assert all(np.isfinite(a).all() for a in after)
    moved = [not np.array_equal(a, b) for a, b in zip(after, before)]
    assert np.mean(moved) > 0.8, [v.path for v, m in zip(model.trainable_variables, moved) if not m]
    outputs = model.predict(x, verbose=0)
    assert np.isfinite(outputs).all()
    path = f"{sys.argv[2]}/{bits}.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), outputs)
assert "tensorflow" not in sys.modules
print("trained")
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_blocks_train_under_jax_without_tensorflow(policy, tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), policy, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0 and result.stdout.strip().endswith("trained"), result.stderr
