"""Outputs keep their names through everything: losses, metrics and labels are keyed by them."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import Quantize
from tests.quantization.networks import array, images, network, quantize, settle

layers = keras.layers
X = images(16)


def heads(x):
    """A softmax, a linear head, and features that are read inside as well."""
    features = layers.Conv2D(4, 3, activation="relu", name="features")(x)
    h = layers.GlobalAveragePooling2D(name="mean")(features)
    gender = layers.Dense(2, activation="softmax", name="gender")(h)
    return [gender, layers.Dense(3, name="age")(h), features]


def signature(path):
    from ai_edge_litert.interpreter import Interpreter

    (found,) = Interpreter(str(path)).get_signature_list().values()
    return found


@pytest.fixture(scope="module")
def model():
    return network(heads)


@pytest.fixture(scope="module")
def qat(model):
    return quantize(model, rules={"gender": {"weight_bits": 4}, "age": {"weight_bits": 4}})


@pytest.mark.slow
def test_labels_keyed_by_name_fit(model, qat):
    loss = {"gender": "sparse_categorical_crossentropy", "age": "mse", "features": "mse"}
    labels = {"gender": np.zeros(16), "age": np.zeros((16, 3))}
    labels["features"] = np.zeros((16, 8, 8, 4))
    for one in (model, qat):
        one.compile("sgd", loss, run_eagerly=True)
        assert np.isfinite(one.evaluate(X, labels, verbose=0)).all()


def test_every_copy_has_the_outputs_names(model, qat, tmp_path):
    names = ["gender", "age", "features"]
    qat.save(tmp_path / "qat.keras")
    copies = {
        "float": model,
        "quantized": qat,
        "merged": repq_tf.merge(model),
        "merged integers": repq_tf.merge(qat),
        "container": repq_tf.with_container(qat, "int4"),
        "loaded": keras.models.load_model(tmp_path / "qat.keras", compile=False),
        "blocks": repq_tf.reparameterize(model, "acnet", verbose=False),
    }
    assert {name: copy.output_names for name, copy in copies.items()} == {
        name: names for name in copies
    }


@pytest.mark.slow
def test_rules_tables_and_reports_name_the_layers_that_the_user_made(qat, tmp_path):
    rows = {row.name: row.weight for row in repq_tf.quantization_table(qat).rows}
    assert rows["gender"] == rows["age"] == "4 bits, per channel"
    assert not [name for name in rows if name.endswith("_operator")]
    for container in ("int8", "int4"):
        path = tmp_path / f"{container}.tflite"
        repq_tf.export_tflite(qat, path, container=container)
        report = repq_tf.check_parity(qat, path, X)
        found = [layer.name for layer in report.layers]
        assert found == ["features", "mean", "gender", "age", "gender_softmax"]
        assert report.equal_outputs == 1, report


@pytest.mark.slow
def test_the_files_have_the_models_names(model, qat, tmp_path):
    wanted = {"inputs": ["image"], "outputs": ["age", "features", "gender"]}
    for types in ({}, {"input_type": "uint8", "output_type": "float32"}):
        repq_tf.export_tflite(qat, tmp_path / "model.tflite", **types)
        assert signature(tmp_path / "model.tflite") == wanted
    repq_tf.export_tflite_float(model, tmp_path / "float.tflite")
    assert signature(tmp_path / "float.tflite") == wanted
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(tmp_path / "float.tflite")).get_signature_runner()
    found = run(image=X[:1])
    for name, value in zip(model.output_names, model(X[:1]), strict=True):
        np.testing.assert_allclose(found[name], array(value), atol=1e-5)


def test_outputs_in_a_dict_keep_their_keys(tmp_path):
    def function(x):
        h = layers.GlobalAveragePooling2D(name="mean")(x)
        return {"who": layers.Dense(2, name="a")(h), "age": layers.Dense(3, name="b")(h)}

    qat = quantize(network(function))
    assert {key: y.shape[1] for key, y in qat(X).items()} == {"who": 2, "age": 3}
    repq_tf.export_tflite(qat, tmp_path / "model.tflite")
    assert signature(tmp_path / "model.tflite")["outputs"] == ["age", "who"]
    repq_tf.export_tflite_float(network(function), tmp_path / "model.tflite")
    assert signature(tmp_path / "model.tflite")["outputs"] == ["age", "who"]


def shared(x):
    """Two outputs on the grid of a concatenation."""
    a, b = layers.Conv2D(2, 3, name="a")(x), layers.Conv2D(2, 3, name="b")(x)
    return [a, b, layers.Concatenate(name="cat")([a, b])]


def nested(x):
    y = layers.Dense(3, name="inner")(layers.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(x, y, name="whole")(keras.layers.ReLU(name="first")(x))


def fused(x):
    x = layers.BatchNormalization(name="n")(layers.Conv2D(4, 3, name="c")(x))
    return layers.ReLU(name="last")(x)


def twice(x):
    y = layers.Dense(3, name="one")(layers.GlobalAveragePooling2D(name="mean")(x))
    return [y, y]


def sums(x):
    a, b = layers.Conv2D(2, 3, name="a")(x), layers.Conv2D(2, 3, name="b")(x)
    return layers.ReLU(name="relu")(layers.Add(name="add")([a, b]))


def gate(x):
    return layers.Conv2D(2, 3, activation="sigmoid", name="g")(x)


@pytest.mark.parametrize("function", [shared, nested, fused, twice, sums, gate])
def test_unusual_outputs(function, tmp_path):
    model = network(function)
    qat = quantize(model)
    for copy in (qat, repq_tf.merge(model), repq_tf.merge(qat)):
        assert copy.output_names == model.output_names
    repq_tf.export_tflite(qat, tmp_path / "model.tflite")
    assert len(signature(tmp_path / "model.tflite")["outputs"]) == len(model.output_names)
    report = repq_tf.check_parity(qat, tmp_path / "model.tflite", X)
    assert report.equal_outputs == 1 and len(report.outputs) == len(model.output_names)
    assert report.holds


def test_a_sequential_model_and_names_that_are_taken():
    stages = [layers.Flatten(name="last_operator"), layers.Dense(3, name="last")]
    qat = quantize(settle(keras.Sequential([keras.Input(X.shape[1:]), *stages])))
    assert qat.output_names == ["last"] and isinstance(qat.get_layer("last"), Quantize)
    assert qat.get_layer("last_operator_explicit").weight_bits == 8


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "hard_sigmoid", "silu"])
def test_a_layer_of_two_operators_is_known_by_its_name(activation):
    def function(x):
        return layers.Conv2D(2, 3, activation=activation, name="g")(x)

    qat = quantize(network(function))
    rows = {row.name: row.weight for row in repq_tf.quantization_table(qat).rows}
    assert rows["g"] == "8 bits, per channel" and "g_operator" not in rows
    assert len(rows) == len(repq_tf.quantization_table(qat).rows)
