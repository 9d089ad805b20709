"""Files that users have saved with earlier versions load, and compute what they did."""

import json
import zipfile

import keras
import numpy as np
import pytest

from repq_tf import layers
from tests.keras_files import make


def layers_in(path):
    """The names of our classes in a `.keras` file."""
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))
    names = {str(entry["registered_name"]) for entry in config["config"]["layers"]}
    return {name.removeprefix("repq_tf>") for name in names}


@pytest.mark.parametrize("name", make.MODELS)
def test_outputs_are_those_of_the_version_that_saved_it(name):
    model = keras.models.load_model(make.HERE / f"{name}.keras", compile=False)
    outputs = make.outputs(model)
    with np.load(make.HERE / f"{name}.npz") as expected:
        assert set(outputs) == set(expected)
        for key, value in outputs.items():
            if name == "float_blocks":
                np.testing.assert_allclose(value, expected[key], 1e-5, 1e-5, err_msg=key)
            else:  # whole numbers times a step
                np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.mark.parametrize("name", make.MODELS)
def test_a_loaded_model_is_saved_as_one_that_was_built(name, tmp_path):
    """The same configuration and names of weights: today's options are those of the file."""
    loaded = keras.models.load_model(make.HERE / f"{name}.keras", compile=False)
    built = make.MODELS[name]()
    assert [v.path for v in loaded.weights] == [v.path for v in built.weights]
    assert json.dumps(loaded.get_config()) == json.dumps(built.get_config())


def test_every_layer_has_a_file():
    files = [layers_in(make.HERE / f"{name}.keras") for name in make.MODELS]
    assert set(layers.__all__) - {"ReparamConv"} <= set().union(*files)
    blocks = {
        name for name in files[0] if hasattr(getattr(layers, name, None), "make_branches")
    }
    assert blocks - files[1] == set()  # quantized, too
