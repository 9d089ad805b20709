"""Reading models of another package's layers."""

import keras
import pytest

from repq_tf import graphs, layers
from repq_tf.graphs import foreign


def model(*inner):
    inputs = keras.Input((4, 4, 3))
    x = inputs
    for layer in inner:
        x = layer(x)
    return keras.Model(inputs, x)


def strange(package):
    """A layer of a class from another package."""
    kind = type("Wrapper", (keras.layers.ReLU,), {"__module__": f"{package}.inside"})
    return kind(name="wrapped")


def test_a_registered_package_is_converted(monkeypatch):
    ours, given = model(layers.ConvBlock(2, name="equal")), []

    def convert(other):
        given.append(other)
        return ours

    monkeypatch.setattr(foreign, "_CONVERSIONS", {})
    theirs = model(strange("their_package"))
    assert "wrapped" in graphs.read_native(theirs).nodes  # a layer like any other
    graphs.register_conversion("their_package", convert)
    assert "equal" in graphs.read_native(theirs).nodes
    assert given == [theirs]
    assert "wrapped" in graphs.read_native(model(strange("third_package"))).nodes


def test_a_package_whose_module_is_not_imported_is_refused():
    theirs = model(strange("tensorflow_model_optimization"))
    message = "'wrapped' .* is one of tensorflow_model_optimization; import repq_tf.tfmot first"
    with pytest.raises(ValueError, match=message):
        graphs.read_native(theirs)
