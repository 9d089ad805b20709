"""The blocks on tf_keras, in a process of its own, because Keras is chosen at import."""

import pytest

from tests import forks
from tests.zoo import BLOCKS

SCRIPT = """
import tempfile

import numpy as np
import repq_tf
from repq_tf.branches import MODES
from repq_tf.keras_api import keras
from tests.zoo import BLOCKS

assert keras.__name__ == "tf_keras"
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(16, 7, 8, 4)).astype("float32")
y = rng.integers(0, 3, 16)


def network(**options):
    inputs = keras.Input((7, 8, 4))
    h = repq_tf.layers.ACBlock(4, activation="relu", **options)(inputs)
    h = repq_tf.layers.RepVGGBlock(4, activation="relu", **options)(h)
    h = keras.layers.GlobalAveragePooling2D()(h)
    model = keras.Model(inputs, keras.layers.Dense(3)(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model


model = network()
assert repq_tf.summary(model).totals["macs"] == 2 * 7 * 8 * 9 * 4 * 4 + 4 * 3
model.fit(x, y, epochs=3, verbose=0)
branches = model.predict(x, verbose=0)
teacher, student = model, network()
fixed = [w.numpy() for w in teacher.weights]
first = (student.layers[1].name, teacher.layers[1].name)
distiller = repq_tf.Distiller(student, teacher, [first])
distiller.compile(keras.optimizers.SGD(0.01), student.loss)
before = [w.numpy() for w in student.trainable_weights]
history = distiller.fit(x, y, validation_data=(x, y), epochs=2, verbose=0)
assert np.isfinite(history.history["loss"]).all()
assert not any(map(np.array_equal, before, student.trainable_weights))
assert all(map(np.array_equal, fixed, teacher.weights))
print("distilled")

for layer in model.layers[1:3]:
    layer.merged = True
model.compile()
np.testing.assert_allclose(model.predict(x, verbose=0), branches, rtol=1e-4, atol=1e-5)

for mode in MODES:
    model = network(weight_bits=8, bn_statistics=mode)  # four may clip an identity
    for layer in model.layers[1:3]:
        layer.weight_quantizer.initialize(layer.inner.merge().kernel)
    before = [w.numpy() for w in model.trainable_weights]
    history = model.fit(x, y, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all(), mode
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.trainable_weights)]
    still = [w.name for w, m in zip(model.trainable_weights, moved) if not m]
    # Betas of merged batch norms cancel in a batch norm that follows.
    assert all("beta" in name for name in still), (mode, still)
print("trained", len(MODES), "modes")

model = network()
norm = model.layers[1].expression.children[0]
norm.trainable, norm.child.trainable = False, True  # the batch norm alone
norm.gamma.assign([2.0, 3.0, 4.0, 5.0])
model = repq_tf.quantize(model, calibration_data=x, bn_statistics="batch", verbose=False)
norm = model.layers[2].expression.children[0]
before = [weight.numpy() for weight in norm.weights]
model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
model.fit(x, rng.normal(size=(16, 3)), verbose=0)
still = [np.array_equal(a, b) for a, b in zip(before, norm.weights)]
assert still == [False, True, True, True, True], still
assert norm.gamma.numpy().tolist() == [2.0, 3.0, 4.0, 5.0]
print("a frozen batch norm stays")

with tempfile.TemporaryDirectory() as folder:  # of other weights than the quantized model's
    np.savez(f"{folder}/other.npz", other=x)
    try:
        repq_tf.load_torch_checkpoint(model, f"{folder}/other.npz")
    except ValueError as error:
        assert "/step_change" in str(error), error
        print("refused other weights")

for name, options in BLOCKS.items():
    inputs = keras.Input((7, 8, 4))
    block = getattr(repq_tf.layers, name)(4, weight_bits=8, **options)
    h = keras.layers.GlobalAveragePooling2D()(block(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(h))
    block.weight_quantizer.initialize(block.inner.merge().kernel)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    before = block.inner.merge().kernel.numpy()
    history = model.fit(x, y, verbose=0)
    assert np.isfinite(history.history["loss"]).all(), name
    assert np.abs(block.inner.merge().kernel.numpy() - before).max() > 1e-6, name
print("trained", len(BLOCKS), "blocks")
"""


@pytest.mark.slow(40)
def test_blocks_train_on_legacy_keras():
    status, output, errors = forks.run(SCRIPT, TF_USE_LEGACY_KERAS="1")
    assert status == 0, errors[-3000:]
    assert "distilled" in output
    assert "trained 5 modes" in output
    assert "refused other weights" in output
    assert "a frozen batch norm stays" in output
    assert f"trained {len(BLOCKS)} blocks" in output
