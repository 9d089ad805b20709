"""Distillation against NumPy in double precision, and whatever `fit` does with a model."""

import contextlib

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers as blocks

array = keras.ops.convert_to_numpy
X = np.random.default_rng(0).normal(size=(12, 6, 6, 3)).astype("float32")
Y = np.random.default_rng(1).integers(0, 4, 12)


def network(width=4, seed=0, softmax=False, block=blocks.ACBlock):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = block(width, 3, activation="relu", name="first")(inputs)
    x = block(4, 3, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(4, activation="softmax" if softmax else None, name="out")(x)
    return keras.Model(inputs, x)


def log_softmax(logits, temperature):
    scaled = logits.astype("f8") / temperature
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def divergence(student, teacher, temperature):
    """Hinton's, in float64."""
    s, t = (log_softmax(logits, temperature) for logits in (student, teacher))
    return temperature**2 * (np.exp(t) * (t - s)).sum(-1).mean()


def distance(student, teacher):
    """Between features of which each image's have the length 1."""
    s, t = (x.reshape(len(x), -1).astype("f8") for x in (student, teacher))
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
    return np.square(s - t).sum(1).mean()


def features(model, name, training=False):
    return array(keras.Model(model.input, model.get_layer(name).output)(X, training=training))


def loss_of(distiller, loss=None, **options):
    """The loss of a training step that changes nothing."""
    distiller.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True, **options)
    return float(distiller.train_on_batch(X, Y))


def plain(seed, **options):
    """A network that computes in training what it does in inference."""
    return network(seed=seed, block=blocks.ConvBlock, **options)


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")  # features alone
def test_the_loss_is_that_of_its_terms():
    student, teacher = plain(1), plain(2, width=6)
    s, t = (array(model(X)) for model in (student, teacher))
    expected = 0.5 * divergence(s, t, 3.0)
    options = {"temperature": 3.0, "logits_weight": 0.5}
    found = loss_of(repq_tf.Distiller(student, teacher, **options))
    assert found == pytest.approx(expected, rel=1e-5) and found > 1e-4
    between = distance(*(features(model, "second") for model in (student, teacher)))
    options |= {"features": ["second"], "features_weight": 2.0}
    found = loss_of(repq_tf.Distiller(student, teacher, **options))
    assert found == pytest.approx(expected + 2 * between, rel=1e-5)
    labels = -log_softmax(s, 1.0)[np.arange(12), Y].mean()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = loss_of(repq_tf.Distiller(student, teacher, **options), loss, loss_weights=0.3)
    assert found == pytest.approx(expected + 2 * between + 0.3 * labels, rel=1e-5)
    options |= {"logits_weight": 0, "features": [("second", "second"), ("mean", "mean")]}
    mean = distance(*(features(model, "mean") for model in (student, teacher)))
    found = loss_of(repq_tf.Distiller(student, teacher, **options))
    assert found == pytest.approx(2 * (between + mean), rel=1e-5)


def test_probabilities_are_logits_too():
    """Softmax of logarithms of probabilities over T is softmax of logits over T."""
    found = []
    for softmax in (False, True):
        pair = [plain(seed, softmax=softmax) for seed in (1, 2)]
        found.append(loss_of(repq_tf.Distiller(*pair, from_logits=not softmax)))
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[0] > 1e-4


def test_a_teacher_of_itself_teaches_nothing():
    student = plain(1)
    teacher = keras.models.clone_model(student)
    teacher.set_weights(student.get_weights())
    assert abs(loss_of(repq_tf.Distiller(student, teacher, ["first"]))) < 1e-6


@pytest.mark.slow(8)
def test_fit_trains_a_quantized_student_alone(tmp_path):
    """With callbacks that stop and save, XLA, and metrics that are the student's own."""
    teacher = network()
    student = repq_tf.quantize(teacher, bits=3, calibration_data=X, verbose=False)
    before = [array(v) for v in teacher.weights]
    trained = [v.path for v in student.trainable_variables]
    distiller = repq_tf.Distiller(student, teacher, ["first"])
    assert [v.path for v in distiller.trainable_variables] == trained
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"], jit_compile=True)
    start = [array(v) for v in student.trainable_variables]
    path = str(tmp_path / "best.keras")
    history = distiller.fit(
        X,
        Y,
        batch_size=6,
        epochs=2,
        validation_data=(X, Y),
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(path),
            keras.callbacks.EarlyStopping("val_loss", patience=5),
        ],
    ).history
    for old, variable in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(array(variable), old)
    assert all(v.trainable for v in teacher.trainable_variables) and teacher.trainable
    moved = [
        not np.array_equal(a, array(b))
        for a, b in zip(start, student.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.8
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), student.predict(X, verbose=0))
    student.compile(loss=loss, metrics=["accuracy"], jit_compile=True)  # XLA rounds its way
    own = student.evaluate(X, Y, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(own["loss"], rel=1e-5)
    assert history["val_accuracy"][-1] == own["accuracy"]


def test_the_student_follows_its_teacher():
    """Without any label."""
    student, teacher = plain(1), plain(2)
    distiller = repq_tf.Distiller(student, teacher, ["second"], temperature=2.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    losses = distiller.fit(X, batch_size=12, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.slow(3)
def test_half_precision_scales_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = network(seed=1)
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = repq_tf.Distiller(student, network(seed=2), ["second"])
    distiller.compile(keras.optimizers.SGD(0.01))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    before = array(student.trainable_variables[0])
    assert np.isfinite(distiller.train_on_batch(X))
    assert not np.array_equal(array(student.trainable_variables[0]), before)


@pytest.mark.slow(8)
def test_two_replicas_train_what_one_trains(two_replicas):
    """The mean over the images is that of both replicas' images, with levels of any kind."""
    found, images = [], np.maximum(X, 0)
    kinds = {
        "first": {"weight_bits": 3, "weight_levels": "cluster"},
        "second": {"weight_levels": "odd", "wide_tap": True},
    }
    source = plain(1)
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            student = repq_tf.quantize(
                source,
                weight_bits=2,
                rules=kinds,
                dampening=0.01,
                calibration_data=images,
                verbose=False,
            )
            distiller = repq_tf.Distiller(student, plain(2), ["second"])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            distiller.compile(keras.optimizers.SGD(0.05), loss)
            history = distiller.fit(images, Y, 12, epochs=2, shuffle=False, verbose=0)
        found.append(([array(v.value) for v in student.weights], history.history["loss"]))
    (one, losses), (two, again) = found
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "other"}, ["teacher", "'other'"]),
        ({"temperature": 0}, ["temperature", "above 0", "0"]),
        ({"logits_weight": -1}, ["logits_weight", "at least 0", "-1"]),
        ({"features_weight": None}, ["features_weight", "None"]),
        ({"from_logits": "no"}, ["from_logits", "'no'"]),
        ({"features": [3]}, ["features", "pairs", "3"]),
        ({"features": ["third"]}, ["student", "first, second", "'third'"]),
        ({"features": [("first", "third")]}, ["teacher", "'third'"]),
        ({"features": ["first"]}, ["('first', 'first')", "(6, 6, 4)", "(6, 6, 8)"]),
    ],
)
def test_it_refuses(options, words):
    options = {"student": plain(1), "teacher": plain(2, width=8), **options}
    with pytest.raises(ValueError) as error:
        repq_tf.Distiller(**options)
    assert all(word in str(error.value) for word in words), error.value


def test_it_refuses_other_outputs():
    student = plain(1)
    teacher = keras.Model(student.input, student.get_layer("first").output)
    with pytest.raises(ValueError, match="outputs of the same shapes"):
        repq_tf.Distiller(student, teacher)
