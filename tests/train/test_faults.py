"""Damage to what a run has written, disks that are full, and files that hold code."""

import errno
import json
import os
import re
import resource
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from repq_tf.train import pipeline
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint, run_folder, text_files
from repq_tf.train.run.products import SUMS, check_product, product
from repq_tf.train.run.records import Records
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from repq_tf.train.stages.report import make_report
from repq_tf.train.tasks.classification.task import Classification
from tests.train.tiny import TinyTask


@pytest.fixture(autouse=True)
def _process_wide_state(monkeypatch):
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)


@pytest.fixture
def small_files():
    """Files cannot grow beyond a kilobyte, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _model(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(30, name="d")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def _flips(whole, count):
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=count):
        yield whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :]


def test_flipped_bits_of_a_checkpoint_never_pass_unnoticed(tmp_path):
    path, model = tmp_path / "state.npz", _model()
    checkpoint.save_state(str(path), model, model.optimizer, {"epoch": 7})
    wanted, other = [np.asarray(v) for v in model.variables], _model(seed=1)
    refused, flips = 0, list(_flips(path.read_bytes(), 300))
    for damaged in flips:
        path.write_bytes(damaged)
        other.set_weights([0 * np.asarray(v) for v in other.weights])
        try:
            progress = checkpoint.load_state(str(path), other, other.optimizer)
        except UserError as error:
            assert f"The checkpoint {path} is damaged" in str(error)
            refused += 1
        else:  # a bit that means nothing, such as one of a date
            assert progress == {"epoch": 7}
            for a, b in zip(wanted, other.variables, strict=True):
                np.testing.assert_array_equal(a, b)
    assert refused > 0.8 * len(flips)


def test_a_checkpoint_whose_zip_was_written_again_is_damaged(tmp_path):
    path, model = str(tmp_path / "state.npz"), _model()
    checkpoint.save_state(path, model, model.optimizer, {})
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    arrays["v0"] = arrays["v0"] + 1
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="damaged .its SHA-256"):
        checkpoint.load_state(path, model, model.optimizer)


def test_a_checkpoint_with_pickled_objects_is_refused(tmp_path):
    path, model = str(tmp_path / "state.npz"), _model()
    np.savez(path, record=np.array([print], dtype=object))
    with pytest.raises(UserError, match="state.npz is damaged .*pickle"):
        checkpoint.load_state(path, model, model.optimizer)


def test_flipped_bits_of_products_are_named(tmp_path):
    path = tmp_path / "float.keras"
    checkpoint.save_model(_model(), str(path))
    for damaged in _flips(path.read_bytes(), 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="float.keras is damaged: its SHA-256"):
            checkpoint.load_model(str(path))


def test_flipped_bits_of_records_are_named(tmp_path):
    path, value = tmp_path / "seconds.json", {"float": 1.25, "list": [1, None], "name": "ü"}
    text_files.write_json(str(path), value)
    assert text_files.read_json(str(path)) == value
    for damaged in _flips(path.read_bytes(), 300):
        path.write_bytes(damaged)
        try:
            assert text_files.read_json(str(path)) == value
        except UserError as error:
            assert f"{path} is damaged" in str(error)


def test_sums_are_those_of_sha256sum(tmp_path):
    for name, content in (("b", b"two"), ("a", b"one"), ("b", b"three")):
        with product(str(tmp_path / name)) as temporary, open(temporary, "wb") as file:
            file.write(content)
    assert (tmp_path / SUMS).read_text() == (
        "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed  a\n"
        "8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f  b\n"
    )
    check_product(str(tmp_path / "a"))
    (tmp_path / "c").write_bytes(b"of somebody else")
    check_product(str(tmp_path / "c"))


def _save_state(path, seed):
    model = _model(seed)
    checkpoint.save_state(path, model, model.optimizer, {"seed": seed})


def _save_json(path, seed):
    text_files.write_json(path, {"numbers": list(range(seed, 500))})


@pytest.mark.parametrize(
    "name, save",
    [
        ("state.npz", _save_state),
        ("model.keras", lambda path, seed: checkpoint.save_model(_model(seed), path)),
        ("some.json", _save_json),
    ],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, small_files, name, save):
    path = tmp_path / name
    save(str(path), 1)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    small_files()
    with pytest.raises(UserError, match=f"{name} cannot be written: .*unchanged"):
        save(str(path), 2)
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}
    small_files(10**7)
    save(str(path), 2)
    assert files[path] != path.read_bytes()


def test_a_full_disk_is_named_by_the_records_too(tmp_path, small_files):
    run = RunFolder(tmp_path)
    records = Records(run, "float", [], [])
    small_files(300)
    with pytest.raises(UserError, match="logs/float cannot be written"):
        for epoch in range(10):
            records.add({"epoch": epoch}, {f"step/{k}": 1.0 for k in range(20)})


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_folders_that_cannot_be_written_are_named(tmp_path, monkeypatch, code):
    path = tmp_path / "state.npz"
    _save_state(str(path), 1)
    whole = path.read_bytes()

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=f"{path} cannot be written: {os.strerror(code)}"):
        _save_state(str(path), 2)
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["state.npz"]


def _with_lambda(path):
    """Writes a `.keras` file that would leave a file beside it, if its code ran."""
    trace = f"{path}.ran"
    inputs = keras.Input((4,))
    outputs = keras.layers.Lambda(lambda x: (open(trace, "w").close(), x)[1], name="code")(
        inputs
    )
    keras.Model(inputs, outputs).save(path)
    os.remove(trace)
    return trace


def test_files_that_hold_code_are_refused(tmp_path):
    source = str(tmp_path / "crafted.keras")
    trace = _with_lambda(source)
    settings = resolve(init_from=source, workdir=str(tmp_path / "new"), verbose=0)
    with pytest.raises(UserError, match="crafted.keras is refused: it holds Python code"):
        pipeline.run(settings, TinyTask)
    assert not os.path.exists(tmp_path / "new")
    resumed = RunFolder(tmp_path / "resumed")
    settings = resolve(workdir=resumed.path, verbose=0)
    resumed.claim(settings)
    os.replace(source, resumed.file(run_folder.FLOAT))
    with pytest.raises(UserError, match="float.keras is refused: it holds Python code"):
        pipeline.run(settings, TinyTask)
    assert not os.path.exists(trace)


def test_configurations_that_name_functions_are_refused(tmp_path):
    path, trace = str(tmp_path / "model.keras"), tmp_path / "trace"
    _model().save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = {"module": "os", "class_name": "system", "config": {"command": f"touch {trace}"}}
    parts["config.json"] = json.dumps({**config, "registered_name": None}).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(UserError, match="model.keras cannot be loaded"):
        checkpoint.load_model(path)
    assert not trace.exists()
    with pytest.raises(UserError, match="must end in .keras"):
        checkpoint.load_model(str(tmp_path / "model.h5"))


def test_skipped_images_are_counted_in_the_report(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        os.makedirs(tmp_path / "images" / label)
        for k in range(20):
            pixels = rng.integers(0, 256, (12, 12, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{k}.png")
    bad = tmp_path / "images" / "cat" / "7.png"
    bad.write_bytes(bad.read_bytes()[:200])
    given = {"dataset": f"folder:{tmp_path / 'images'}", "batch_size": 8}
    with pytest.raises(UserError, match="7.png cannot be read"):
        Classification(resolve(**given))
    settings = resolve(**given, skip_bad_images=True)
    run = RunFolder(tmp_path)
    results = {"metrics": {}, "quantization": ""}
    make_report(settings, Classification(settings), run, results)
    data = text_files.read_json(run.file("report.json"))["data"]
    assert data["skipped images"] == 1
    assert data["names of skipped images"] == str(bad)
    assert data["training images"] + data["test images"] == 39
    page = (tmp_path / "report.md").read_text()
    assert re.search(r"\| skipped images +\| 1 +\|", page) and str(bad) in page
