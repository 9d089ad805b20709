"""The table of models, and what it refuses."""

import inspect
import pickle

import numpy as np
import pytest

from repq_tf import models
from repq_tf.models.registry import register

REPVGG = [
    *("repvgg_a0", "repvgg_a1", "repvgg_a2", "repvgg_b0"),
    *("repvgg_b1", "repvgg_b1g2", "repvgg_b1g4"),
    *("repvgg_b2", "repvgg_b2g2", "repvgg_b2g4"),
    *("repvgg_b3", "repvgg_b3g2", "repvgg_b3g4"),
]


def blocks(model):
    return [layer for layer in model.layers if hasattr(layer, "merge")]


def test_list():
    plain = [f"{name}_plain" for name in REPVGG]
    assert models.list_models() == sorted(["ac_resnet18", "resnet18", *REPVGG, *plain])


@pytest.mark.parametrize("name", models.list_models())
def test_every_model_is_a_public_function(name):
    function = getattr(models, name)
    assert name in models.__all__
    assert function.__name__ == name
    assert f"models.{name}(classes=10" in function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function
    defaults = {
        argument: parameter.default
        for argument, parameter in inspect.signature(function).parameters.items()
    }
    assert defaults.pop("block_options") is inspect.Parameter.empty
    assert defaults == {"classes": 1000, "input_shape": (224, 224, 3), "width": 1.0}


def test_plain_twins():
    assert models.plain_twin("ac_resnet18") == "resnet18"
    assert models.plain_twin("resnet18") == "resnet18"
    for name in REPVGG:
        assert models.plain_twin(name) == f"{name}_plain"
        assert models.plain_twin(f"{name}_plain") == f"{name}_plain"


def test_build_takes_what_shapes_and_labels_are_made_of():
    model = models.build(
        "resnet18", classes=np.int64(4), input_shape=[8, np.int32(8), 1], width=np.float32(0.1)
    )
    assert model.name == "resnet18"
    assert model.input.shape == (None, 8, 8, 1)
    assert model.output.shape == (None, 4)


def test_options_reach_every_block():
    model = models.ac_resnet18(
        3,
        (96, 96, 3),
        0.01,
        bn_statistics="batch",
        synchronized=False,
        merged=True,
        kernel_initializer="ones",
        gamma_initializer="zeros",
    )
    assert len(blocks(model)) == 20
    for block in blocks(model):
        assert block.bn_statistics == "batch"
        assert block.merged and not block.synchronized
        assert type(block.kernel_initializer).__name__ == "Ones"
        if block.kernel_size == (3, 3):
            assert block.gamma_initializer == "zeros"


def test_options_reach_repvgg():
    model = models.repvgg_a0(3, (8, 8, 1), 0.01, momentum=0.5, weight_bits=4)
    assert {(block.momentum, block.weight_bits) for block in blocks(model)} == {(0.5, 4)}


@pytest.mark.parametrize("find", [models.build, models.plain_twin])
def test_unknown_name(find):
    with pytest.raises(ValueError, match="ac_resnet18, repvgg_a0.*Received: 'resnet19'"):
        find("resnet19")


def test_names_are_unique():
    def resnet18():
        pass

    with pytest.raises(ValueError, match="'resnet18', which is registered"):
        register(resnet18)


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be a positive whole number. Received: 0"),
        ({"classes": 2.5}, "classes .* Received: 2.5"),
        ({"classes": True}, "classes .* Received: True"),
        ({"input_shape": (32, 32)}, r"\(height, width, channels\).* Received: \(32, 32\)"),
        ({"input_shape": (None, 32, 32, 3)}, "without the batch"),
        ({"input_shape": 32}, "input_shape .* Received: 32"),
        ({"input_shape": (None, 32, 3)}, "size of input_shape .* Received: None"),
        ({"input_shape": (32, 0, 3)}, "size of input_shape .* Received: 0"),
        ({"width": 0}, "width must be a positive number. Received: 0"),
        ({"width": float("nan")}, "width .* Received: nan"),
        ({"width": "half"}, "width .* Received: 'half'"),
        ({"wights": 3}, "block_options of .* bn_statistics, .* Received: wights"),
        ({"strides": 2}, "block_options .* Received: strides"),
        ({"gamma_initializer": "ones"}, "block_options .* Received: gamma_initializer"),
        ({"bn_statistics": "exact"}, "Received: 'exact'"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **arguments)
