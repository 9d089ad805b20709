"""The README and the pages of `docs/`: their code is run, their links lead somewhere."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from sklearn import datasets

import repq_tf

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(PAGES[page]) if kind == language]


PYTHON = sorted(page for page in PAGES if blocks(page, "python"))
SHELL = [(page, code) for page in sorted(PAGES) for code in blocks(page, "sh")]

# Python that is not run here, and why.
ELSEWHERE = {"docs/tfmot.md": "on tf_keras, by tests/tfmot/test_own_process.py"}
NOT_RUN = {'load_torch_checkpoint(repq_tf.models.repvgg_a0(), "RepVGG-A0-train.pth")': "a download"}


def test_every_block_has_a_language_and_is_run():
    for page, text in PAGES.items():
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert set(fences) <= {"", "python", "sh"}, page
        assert fences.count("") * 2 == len(fences), f"{page}: a block without its language"
        assert len(BLOCK.findall(text)) * 2 == len(fences), f"{page}: an indented block"
    left = [code for page in PYTHON for code in blocks(page, "python") if skipped(code)]
    assert len(left) == len(NOT_RUN)


def skipped(code):
    return any(line in code for line in NOT_RUN)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run in, with few images and steps that are not compiled."""
    compile_model = keras.Model.compile

    def compile_eagerly(*args, **options):
        compile_model(*args, run_eagerly=True, **options)

    digits = datasets.load_digits()
    few = SimpleNamespace(images=digits.images[:64], target=digits.target[:64])
    monkeypatch.setattr(keras.Model, "compile", compile_eagerly)
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page, names):
    """Runs the Python of a page, and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks(page, "python"):
            if not skipped(code):
                exec(compile(code, page, "exec"), names)
    return printed.getvalue()


@pytest.mark.slow
def test_the_example_of_the_readme(folder):
    printed = run("README.md", {})
    assert (folder / "digits.tflite").stat().st_size > 100_000
    assert "first divergent layer: none" in printed


@pytest.fixture
def names(folder):
    """What the README's example leaves, of a network of two blocks."""
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            repq_tf.layers.ACBlock(4, activation="relu", name="stem"),
            repq_tf.layers.ACBlock(4, activation="relu", name="stage4_block1"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    qat = repq_tf.quantize(model, bits=8, calibration_data=images)
    repq_tf.export_tflite(qat, "digits.tflite")
    return {
        "keras": keras,
        "np": np,
        "repq_tf": repq_tf,
        "images": images,
        "labels": np.arange(32) % 10,
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "model": model,
        "qat": qat,
        "merged": repq_tf.merge(model),
    }


@pytest.mark.parametrize("page", [p for p in PYTHON if p not in ("README.md", *ELSEWHERE)])
def test_the_python_of_a_page(page, names):
    printed = run(page, names)
    assert "first divergent layer" not in printed or "first divergent layer: none" in printed
