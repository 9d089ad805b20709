"""Networks that come trained: those that are shipped, and what does not fit them."""

import hashlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from repq_tf import models
from repq_tf.models import pretrained
from repq_tf.train.interpreter import Network

ROOT = Path(__file__).parents[2]
SHIPPED = [
    (name, weights) for name in models.list_models() for weights in models.list_weights(name)
]


def square(picture, size=(32, 32)):
    return np.asarray(ImageOps.fit(Image.fromarray(picture), size))


@pytest.fixture(scope="module")
def pieces():
    """Pieces of two photographs, 32x32 and as a network of CIFAR-10 takes them."""
    photographs = load_sample_images().images
    corners = [(y, x) for y in range(0, 300, 60) for x in range(0, 500, 60)]
    cut = [square(p[y : y + 120, x : x + 120]) for p in photographs for y, x in corners]
    return np.stack(cut) / np.float32(127.5) - 1


def test_resnet8_on_cifar10_is_shipped():
    assert ("resnet8", "cifar10") in SHIPPED
    assert models.list_weights("ac_resnet18") == []


@pytest.mark.parametrize(("name", "weights"), SHIPPED)
def test_files_are_small_and_those_of_the_card(name, weights):
    card = models.model_card(name, weights)
    paths = list(pretrained.FOLDER.glob(f"{name}-{weights}.*"))
    assert {path.suffix for path in paths} == {".json", ".npz", ".tflite"}
    for path in paths:
        content = path.read_bytes()
        assert len(content) < 500_000
        kind = path.suffix.removeprefix(".")
        if kind != "json":
            assert hashlib.sha256(content).hexdigest() == card["sha256"][kind]
            assert len(content) == card["bytes"][kind]


@pytest.mark.parametrize(("name", "weights"), SHIPPED)
def test_the_page_has_the_figures_of_the_card(name, weights, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "pretrained.py"))
    page = script["CARDS"].read_text("utf-8")
    assert script["write_table"](models.model_card(name, weights), page) == page


def test_defaults_are_those_of_the_weights():
    model, card = models.resnet8(weights="cifar10"), models.model_card("resnet8", "cifar10")
    assert model.input_shape == (None, *card["input_shape"]) == (None, 32, 32, 3)
    assert model.output_shape == (None, len(card["labels"]))
    assert model.count_params() == card["parameters"]
    given = models.build("resnet8", 10, (32, 32, 3), weights="cifar10", bn_statistics="batch")
    for one, other in zip(model.get_weights(), given.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_computes_the_classes_of_the_model(pieces):
    logits = models.resnet8(weights="cifar10").predict(pieces, verbose=0)
    levels = Network(models.pretrained_tflite("resnet8", "cifar10"))(pieces)
    assert np.mean(logits.argmax(-1) == levels.argmax(-1)) > 0.7  # trained on, on other images
    assert np.corrcoef(logits.ravel(), levels.ravel())[0, 1] > 0.9


def test_a_cat_is_a_cat():
    """The photograph that comes with scikit-image."""
    skimage = pytest.importorskip("skimage.data")
    cat = square(skimage.cat())[None]
    labels = models.model_card("resnet8", "cifar10")["labels"]
    normalized = cat / np.float32(127.5) - 1
    logits = models.resnet8(weights="cifar10").predict(normalized, verbose=0)
    assert labels[logits.argmax()] == "cat"
    levels = Network(models.pretrained_tflite("resnet8", "cifar10"))(normalized)
    assert labels[levels.argmax()] == "cat"


OTHERS = """
import sys
import numpy as np
import repq_tf

model = repq_tf.models.resnet8(weights="cifar10")
images = np.load(sys.argv[1])
np.save(sys.argv[1], np.array(model(images)))
"""


@pytest.mark.slow(8)
@pytest.mark.parametrize(
    "environment", [{"KERAS_BACKEND": "jax"}, {"TF_USE_LEGACY_KERAS": "1"}], ids=str
)
def test_weights_load_under_jax_and_legacy_keras(environment, pieces, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, pieces[:4])
    command = [sys.executable, "-c", OTHERS, str(path)]
    subprocess.run(command, check=True, env={**os.environ, **environment}, cwd=ROOT)
    expected = models.resnet8(weights="cifar10").predict(pieces[:4], verbose=0)
    np.testing.assert_allclose(np.load(path), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weights": "imagenet"},
            "weights of resnet8 .* one of: cifar10. Received: 'imagenet'",
        ),
        ({"weights": True}, "weights of resnet8 must be .* Received: True"),
        ({"classes": 100}, "classes must be 10, .*weights='cifar10'. Received: 100"),
        ({"input_shape": (64, 64, 3)}, r"input_shape must be \(32, 32, 3\).* \(64, 64, 3\)"),
        (
            {"width": 0.5},
            "weights must be None for this width .*first that differs is '000 stem gamma'",
        ),
        (
            {"use_bias": False},
            "weights must be None .*block_options; .* Received: 41 .* for 48",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.resnet8(**{"weights": "cifar10", **arguments})


def test_transfer_learning_starts_from_them():
    model = models.resnet8(weights="cifar10")
    head = keras.layers.Dense(3)(model.get_layer("flatten").output)
    assert keras.Model(model.input, head).output_shape == (None, 3)
