"""Transfer learning, end to end: a network of `keras.applications`, frozen in part."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf

RNG = np.random.default_rng(0)
PIXELS = np.round(RNG.uniform(0, 255, (24, 32, 32, 3))).astype("float32")
LABELS = np.arange(24) % 3
FROZEN = ("Conv1", "bn_Conv1", "expanded")  # begin the names of these layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier():
    """MobileNetV2 with its first block frozen, nested in a model that prepares pixels."""
    keras.utils.set_random_seed(0)
    shape = (32, 32, 3)
    options = {"alpha": 0.35, "include_top": False, "weights": None}
    whole = keras.applications.MobileNetV2(shape, **options)
    backbone = keras.Model(whole.input, whole.get_layer("block_2_add").output, name="backbone")
    for layer in backbone.layers:
        layer.trainable = not layer.name.startswith(FROZEN)
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="classes")(x))


def is_frozen(name):
    """Whether a layer of the quantized model is one of the frozen ones."""
    return name.startswith(tuple(f"backbone_{start}" for start in FROZEN)) and (
        not name.endswith("_quantize")
    )


def fit(model, **options):
    model.compile(keras.optimizers.Adam(1e-3), LOSS, metrics=["accuracy"], run_eagerly=True)
    options = {"batch_size": 12, "class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, **options}
    return model.fit(PIXELS, LABELS, verbose=0, **options)


def values(model):
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}


def changed(model, before):
    return {path for path, value in values(model).items() if np.any(value != before[path])}


@pytest.mark.slow(15)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_from_a_backbone_to_a_file(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier()
        fit(model, epochs=1)
        qat = repq_tf.quantize(model, calibration_data=PIXELS, verbose=False)
        learned, before = {v.path for v in qat.trainable_variables}, values(qat)
        # Blocks, to the steps of their kernels; grids of features are not the layers'.
        frozen = {v.path for x in qat.layers if is_frozen(x.name) for v in x.weights}
        assert frozen and not frozen & learned

        best = tmp_path / "best.keras"
        history = fit(
            qat,
            epochs=3,
            validation_data=(PIXELS, LABELS),
            callbacks=[
                repq_tf.callbacks.QuantizationMonitor(),
                keras.callbacks.ModelCheckpoint(best, "val_loss", save_best_only=True),
                keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9),
                keras.callbacks.BackupAndRestore(tmp_path / "backup"),
                keras.callbacks.TensorBoard(tmp_path / "logs"),
            ],
        )
        assert len(history.epoch) == 2  # the second was no better by as much
        assert list((tmp_path / "logs").rglob("events*"))
        loaded = keras.models.load_model(best)
        before_loop = values(loaded)
        optimizer = keras.optimizers.SGD(1e-2)
        with tf.GradientTape() as tape:
            loss = LOSS(LABELS, loaded(PIXELS, training=True))
        gradients = tape.gradient(loss, loaded.trainable_variables)
        optimizer.apply_gradients(zip(gradients, loaded.trainable_variables, strict=True))
    finally:
        keras.config.set_dtype_policy("float32")
    for trained, start in ((qat, before), (loaded, before_loop)):
        found = changed(trained, start)
        assert found and not found & frozen

    loaded.save(tmp_path / "last.keras")
    last = keras.models.load_model(tmp_path / "last.keras")
    assert not changed(last, values(loaded))
    repq_tf.export_tflite(last, tmp_path / "last.tflite", input_type="uint8")
    report = repq_tf.check_parity(last, tmp_path / "last.tflite", PIXELS, verbose=False)
    assert not any(layer.different for layer in report.layers), str(report)
