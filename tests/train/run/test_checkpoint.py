import os

import keras
import numpy as np
import pytest

from repq_tf.files import replacing
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint, text_files


def _model(units=3, name="net"):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(units, name="first")(inputs)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x), name=name)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def _fit(model, seed, epochs=1):
    data = np.random.default_rng(seed)
    x, y = data.normal(size=(32, 4)), data.normal(size=(32, 2))
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


@pytest.mark.slow
def test_training_goes_on_from_a_state_as_if_nothing_had_happened(tmp_path):
    path = str(tmp_path / "state.npz")
    model = _model()
    _fit(model, seed=1)
    checkpoint.save_state(path, model, model.optimizer, {"epoch": 1})
    _fit(model, seed=2)
    other = _model()
    assert checkpoint.load_state(path, other, other.optimizer) == {"epoch": 1}
    _fit(other, seed=2)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_another_model_is_refused(tmp_path):
    path = str(tmp_path / "state.npz")
    model, other = _model(), _model(units=5)
    checkpoint.save_state(path, model, model.optimizer, {})
    with pytest.raises(UserError, match=r"kernel \(4, 3\) there and kernel \(4, 5\) here"):
        checkpoint.load_state(path, other, other.optimizer)


def test_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    model = _model()
    checkpoint.save_state(str(path), model, model.optimizer, {})
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="state.npz is damaged"):
            checkpoint.load_state(str(path), model, model.optimizer)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "record.json")
    text_files.write_json(path, {"good": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise RuntimeError("killed")
    assert text_files.read_json(path) == {"good": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_model_is_saved_whole(tmp_path):
    path, model = str(tmp_path / "model.keras"), _model()
    checkpoint.save_model(model, path)
    assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "model.keras"]
    loaded = checkpoint.load_model(path)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_damaged_files_are_named(tmp_path):
    keras_file, json_file = tmp_path / "model.keras", tmp_path / "some.json"
    checkpoint.save_model(_model(), str(keras_file))
    keras_file.write_bytes(keras_file.read_bytes()[:500])
    json_file.write_text("{")
    with pytest.raises(UserError, match="model.keras is damaged"):
        checkpoint.load_model(str(keras_file))
    with pytest.raises(UserError, match="some.json is damaged"):
        text_files.read_json(str(json_file))


def test_weights_are_copied_between_equal_models_only():
    source, target = _model(), _model(name="other")
    _fit(source, seed=1)
    checkpoint.copy_weights(source, target, "a.keras")
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=r"a.keras .*kernel \(4, 3\) there"):
        checkpoint.copy_weights(source, _model(units=4), "a.keras")
