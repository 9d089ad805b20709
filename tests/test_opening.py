"""The public names are imported late, and yet Keras finds the classes of every file."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import api, opening
from tests.train.commands import environment

ROOT = Path(__file__).parents[1]


def python(code, **changed):
    """Runs code in a process of its own and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(TF_CPP_MIN_LOG_LEVEL="3", **changed),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A quantized network of layers from several rooms, saved."""
    images = keras.Input((8, 8, 3))
    x = repq_tf.layers.ACBlock(4, activation="relu")(images)
    x = repq_tf.layers.RepVGGBlock(4)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, x]))
    model = keras.Model(images, keras.layers.Dense(2)(x))
    path = tmp_path_factory.mktemp("opening") / "quantized.keras"
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    repq_tf.quantize(model, bits=4, calibration_data=data, verbose=False).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import repq_tf, keras",
        "from repq_tf.kernels import AffineKernel; import keras",
        "import repq_tf, tensorflow; keras = tensorflow.keras",
    ],
)
def test_keras_finds_the_classes_of_a_file(file, imports):
    load = f"print(keras.models.load_model({str(file)!r}).count_params())"
    expected = keras.models.load_model(file).count_params()
    assert python(f"{imports}; {load}") == f"{expected}\n"


@pytest.mark.slow
def test_every_class_is_known_to_the_keras_that_is_imported():
    names = "sorted(n for n in {}.get_custom_objects() if n.startswith('repq_tf'))"
    ours = eval(names.format("keras.saving"))
    assert len(ours) > 20
    code = f"import repq_tf, tf_keras; print({names.format('tf_keras.utils')})"
    assert set(eval(python(code, TF_USE_LEGACY_KERAS="1"))) >= set(ours)


@pytest.mark.slow
def test_keras_is_as_its_own_loader_made_it():
    code = (
        "import repq_tf, importlib.util, sys\n"
        "spec = importlib.util.find_spec('keras')\n"  # a look is no import
        "assert 'repq_tf.api' not in sys.modules and spec.origin.endswith('__init__.py')\n"
        "assert importlib.util.find_spec('repq_tf.nothing') is None\n"
        "import keras\n"
        "assert 'repq_tf.api' in sys.modules and not keras.__spec__._initializing\n"
        "print(keras.__spec__.loader is keras.__loader__, type(keras.__loader__).__name__)\n"
    )
    assert python(code) == "True SourceFileLoader\n"


@pytest.mark.slow
def test_light_modules_import_no_keras():
    code = (
        "import importlib, sys\n"
        "import repq_tf\n"
        "from repq_tf import opening\n"
        "assert repq_tf.__version__\n"
        "for name in opening.LIGHT:\n"
        "    if name != 'repq_tf.api': importlib.import_module(name)\n"
        "import repq_tf.train.main, repq_tf.train.upscale\n"
        "from repq_tf.model_names import MODELS\n"
        "listed = dict(MODELS)\n"
        "assert not {'keras', 'tensorflow', 'repq_tf.api'} & set(sys.modules)\n"
        "import repq_tf.models\n"
        "assert listed == MODELS and set(repq_tf.models.registry._FUNCTIONS) == set(MODELS)\n"
    )
    python(code)


def test_the_face_is_that_of_the_api():
    assert repq_tf.__all__ == api.__all__
    for name in api.__all__:
        assert getattr(repq_tf, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="module 'repq_tf' has no attribute 'quantise'"):
        _ = repq_tf.quantise


def test_watched_names():
    assert opening.is_watched("keras") and opening.is_watched("repq_tf.layers")
    for name in ("repq_tf", "repq_tf.train.main", "repq_tf.version", "keras.ops", "numpy"):
        assert not opening.is_watched(name)
