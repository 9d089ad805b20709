"""Every block trains under JAX in a process where TensorFlow cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

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
from repq_tf import layers
from repq_tf.layers import ACBlock, ConvBlock, ConvBNBlock, DenseBlock, Quantize, RepVGGBlock
from tests.zoo import BLOCKS

assert keras.backend.backend() == "jax"
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = np.maximum(rng.normal(size=(8, 6, 6, 3)), 0).astype("float32")
labels = rng.integers(0, 5, 8)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def quantized():
    # Every mode, every block.

    def quantize(y):
        return Quantize(8, signed=False)(*(y if isinstance(y, tuple) else (y,)))

    options = {"activation": "relu", "weight_bits": 4}
    inputs = keras.Input((6, 6, 3))
    y = quantize(inputs)
    for number, mode in enumerate(repq_tf.branches.MODES):
        kind = (ACBlock, RepVGGBlock)[number % 2]
        y = quantize(kind(4, bn_statistics=mode, **options)(*y))
    for name, extra in BLOCKS.items():
        y = quantize(getattr(layers, name)(4, **options, **extra)(*y))
    for levels, wide_tap in (("odd", False), ("cluster", False), ("odd", True)):
        few = {"weight_levels": levels, "wide_tap": wide_tap, "dampening": 0.01}
        y = quantize(RepVGGBlock(4, **{**options, **few, "weight_bits": 2})(*y))
    y = quantize(ConvBNBlock(4, groups=4, strides=2, **options)(*y))
    y = quantize(ConvBlock(4, groups=2, padding=1, **options)(*y))
    y = quantize(keras.layers.GlobalAveragePooling2D()(y[0]))
    return keras.Model(inputs, DenseBlock(5, weight_bits=4)(*y)[0])


def floating():
    # Branches run one by one.
    inputs = keras.Input((6, 6, 3))
    y = ACBlock(4, strides=2, activation="relu")(inputs)
    for name, extra in BLOCKS.items():
        y = getattr(layers, name)(4, **extra)(y)
    y = keras.layers.GlobalAveragePooling2D()(RepVGGBlock(4)(y))
    return keras.Model(inputs, DenseBlock(5)(y))


for make, policy in ((quantized, "float32"), (floating, "mixed_bfloat16")):
    keras.config.set_dtype_policy(policy)
    model = make()
    for layer in model.layers:
        if isinstance(layer, Quantize):
            layer.activation_quantizer.set_step(0.02)
        elif getattr(layer, "weight_quantizer", None) is not None:
            layer.weight_quantizer.initialize(layer.inner.merge().kernel)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=True)
    assert np.isfinite(model.train_on_batch(x, labels))
    moved = 0
    for variable, value in zip(model.trainable_variables, before):
        assert np.isfinite(np.array(variable)).all(), variable.path
        moved += not np.array_equal(np.array(variable), value)
    assert moved > 0.8 * len(before), (moved, len(before))
    path = f"{sys.argv[1]}/{make.__name__}.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    for variable, other in zip(loaded.variables, model.variables, strict=True):
        assert variable.path == other.path
        np.testing.assert_array_equal(np.array(variable), np.array(other))
    if make is quantized:
        assert np.isfinite(loaded.predict(x, verbose=0)).all()

keras.config.set_dtype_policy("float32")


def small():
    inputs = keras.Input((6, 6, 3))
    y = keras.layers.GlobalAveragePooling2D()(ACBlock(4, activation="relu")(inputs))
    return keras.Model(inputs, DenseBlock(5)(y))


teacher, student = small(), small()
before = [np.array(v) for v in teacher.variables]
first = tuple(model.layers[1].name for model in (student, teacher))
distiller = repq_tf.Distiller(student, teacher, [first])
distiller.compile(keras.optimizers.SGD(1e-3), loss, metrics=["accuracy"], jit_compile=True)
start = np.array(student.trainable_variables[0])
history = distiller.fit(x, labels, validation_data=(x, labels), epochs=2, verbose=0).history
assert np.isfinite(history["loss"]).all() and "val_accuracy" in history
assert not np.array_equal(np.array(student.trainable_variables[0]), start)
for variable, value in zip(teacher.variables, before, strict=True):
    np.testing.assert_array_equal(np.array(variable), value)
assert "tensorflow" not in sys.modules
print("trained")
"""


@pytest.mark.slow(40)
def test_blocks_train_under_jax_without_tensorflow(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 0 and result.stdout.strip().endswith("trained"), result.stderr
