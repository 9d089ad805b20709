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


@pytest.fixture(scope="module", params=make.MODELS)
def loaded(request):
    """The name of a file, and the model that it holds."""
    name = request.param
    return name, keras.models.load_model(make.HERE / f"{name}.keras", compile=False)


@pytest.mark.slow
def test_outputs_are_those_of_the_version_that_saved_it(loaded):
    name, model = loaded
    outputs = make.outputs(model)
    with np.load(make.HERE / f"{name}.npz") as expected:
        assert set(outputs) == set(expected)
        for key, value in outputs.items():
            if name == "float_blocks":
                np.testing.assert_allclose(value, expected[key], 1e-5, 1e-5, err_msg=key)
            else:  # whole numbers times a step
                np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_a_loaded_model_is_one_that_is_built_today(loaded):
    """The same configuration and names of weights: today's options are those of the file."""
    name, model = loaded
    built = make.MODELS[name]()
    assert [v.path for v in model.weights] == [v.path for v in built.weights]
    assert json.dumps(model.get_config()) == json.dumps(built.get_config())


def test_every_layer_has_a_file():
    files = [layers_in(make.HERE / f"{name}.keras") for name in make.MODELS]
    assert set(layers.__all__) - {"ReparamConv"} <= set().union(*files)
    blocks = {
        name for name in files[0] if hasattr(getattr(layers, name, None), "make_branches")
    }
    assert blocks - files[1] == set()  # quantized, too
