"""Transfer learning end to end: a frozen backbone of Keras, nested, with its preprocessing."""

import keras
import numpy as np
import pytest

import repq_tf
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import array, layers

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (12, 32, 32, 3)).astype("float32")
Y = RNG.integers(0, 3, 12)


def fine_tuned():
    """A backbone that is frozen but for its end, and a head."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.35, minimalistic=True, include_top=False, weights=None
    )
    for layer in backbone.layers[:-3]:
        layer.trainable = False
    inputs = keras.Input((32, 32, 3), name="pixels")
    x = layers.RandomFlip()(inputs)
    x = layers.GlobalAveragePooling2D()(backbone(x, training=False))
    x = layers.Dense(8, use_bias=False, name="hidden")(x)
    x = layers.Dropout(0.2)(layers.ReLU()(layers.BatchNormalization(name="norm")(x)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))
    repq_tf.reestimate_batch_norm(model, X, verbose=False)
    return model


@pytest.mark.slow(30)
def test_a_fine_tuned_backbone_is_trained_on_and_deployed(tmp_path):
    qat = repq_tf.quantize(fine_tuned(), calibration_data=X, verbose=False)
    frozen = [array(v) for v in qat.non_trainable_variables if "kernel" in v.path]
    assert len(frozen) > 20
    qat.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", ["accuracy"])
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=False),
        keras.callbacks.EarlyStopping("loss", patience=5),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        repq_tf.callbacks.FreezeBatchNorm(1),
    ]
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    before = [array(v) for v in qat.trainable_variables]
    qat.fit(X, Y, batch_size=6, epochs=2, class_weight=weights, verbose=0, callbacks=callbacks)
    after = [array(v) for v in qat.non_trainable_variables if "kernel" in v.path]
    assert all((a == b).all() for a, b in zip(frozen, after, strict=True))
    moved = [
        (a != array(v)).any() for a, v in zip(before, qat.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.8
    best = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(best(X, training=False), qat(X, training=False))
    _, report = parity(best, tmp_path / "x.tflite", X, input_type="uint8")
    assert_exact(report)
