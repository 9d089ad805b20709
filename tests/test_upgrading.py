"""`upgrade`: from a trained network to the file of one that was trained quantized."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, QARepVGGBlock
from repq_tf.tflite import reading
from tests.deployment.files import assert_exact, parity

CLASSES = 3


def images(count, seed):
    """Noise of which the class decides one channel's mean."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    x[np.arange(count), :, :, labels] += 0.7
    return x, labels


def network(softmax=False):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm", momentum=0.8)(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(CLASSES, activation="softmax" if softmax else None, name="out")(x)
    return keras.Model(inputs, x)


def operators(model, path):
    """The operators of a model's file, with the shape and the type of what they make."""
    repq_tf.export_tflite(model, str(path))
    file = reading.read(path)[1]
    graph = file.subgraphs[0]
    outputs = [graph.tensors[operator.outputs[0]] for operator in graph.operators]
    return [
        (reading.operator_name(file, operator), reading.shape(y), reading.type_name(y))
        for operator, y in zip(graph.operators, outputs, strict=True)
    ]


@pytest.mark.slow(12)
def test_its_file_has_the_operators_of_the_given_model(tmp_path):
    data, test = images(64, 0), images(48, 1)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(*data, epochs=3, verbose=0)
    before, optimizer = model.get_weights(), model.optimizer
    path = str(tmp_path / "last.keras")
    quantized = repq_tf.upgrade(
        model,
        data,
        test,
        bits=4,
        epochs=(2, 1),
        callbacks=[keras.callbacks.ModelCheckpoint(path)],
        verbose=False,
    )
    assert model.optimizer is optimizer and model.trainable
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    kinds = [type(layer) for layer in quantized.layers if hasattr(layer, "weight_quantizer")]
    assert kinds[:2] == [ACBlock, ACBlock]
    stages = quantized.upgrade.stages
    assert [stage.epochs for stage in stages] == [0, 2, 0, 1]
    own = model.evaluate(*test, verbose=0, return_dict=True)
    assert stages[0].metrics == pytest.approx(own)
    quantized.compile(loss=loss, metrics=["accuracy"])
    own = quantized.evaluate(*test, verbose=0, return_dict=True)
    assert stages[-1].metrics == pytest.approx(own) and set(own) == {"loss", "accuracy"}
    assert stages[-1].metrics["accuracy"] > 0.6
    assert f"{own['accuracy']:.4f}" in str(quantized.upgrade)
    saved = keras.models.load_model(path)
    np.testing.assert_array_equal(saved.predict(test[0]), quantized.predict(test[0]))
    _, report = parity(quantized, tmp_path / "a.tflite", test[0])
    assert_exact(report)
    plain = repq_tf.quantize(model, bits=4, calibration_data=data, verbose=False)
    found = [operators(m, tmp_path / "b.tflite") for m in (quantized, plain)]
    assert found[0] == found[1]


@pytest.mark.slow(8)
def test_probabilities_a_teacher_and_another_block():
    """Batches instead of arrays, no validation, no training in floating point."""
    import tensorflow as tf

    model, teacher = network(softmax=True), network(softmax=True)
    data = tf.data.Dataset.from_tensor_slices(images(32, 0)).batch(16)
    quantized = repq_tf.upgrade(
        model,
        data,
        epochs=(0, 1),
        teacher=teacher,
        block="qarepvgg",
        quantize_options={"weight_bits": 6},
        verbose=False,
    )
    blocks = [layer for layer in quantized.layers if isinstance(layer, QARepVGGBlock)]
    assert [block.weight_bits for block in blocks] == [8, 6]
    start, _, _, end = quantized.upgrade.stages
    assert start.metrics == end.metrics == {} and np.isfinite(end.loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 9}, ["bits", "9"]),
        ({"epochs": 1.5}, ["epochs", "whole", "1.5"]),
        ({"epochs": (1, 2, 3)}, ["epochs", "pair", "(1, 2, 3)"]),
        ({"block": "acnet2"}, ["pattern", "'acnet2'"]),
        ({"learning_rate": 0}, ["learning_rate", "0"]),
        ({"distill": -1}, ["distill", "-1"]),
        ({"teacher": 3}, ["teacher", "3"]),
    ],
)
def test_it_refuses_before_it_trains(options, words):
    with pytest.raises(ValueError) as error:
        repq_tf.upgrade(network(), images(4, 0), **{"verbose": False, **options})
    assert all(word in str(error.value) for word in words), error.value


def test_it_refuses_what_is_no_classifier():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    y = keras.layers.Activation("sigmoid", name="last")(x)
    with pytest.raises(ValueError, match="logits or their softmax.*'last'.*sigmoid"):
        repq_tf.upgrade(keras.Model(inputs, y), images(4, 0), verbose=False)
    with pytest.raises(ValueError, match="one output. Received: 2"):
        repq_tf.upgrade(keras.Model(inputs, [x, x]), images(4, 0), verbose=False)
