import json
import os
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from matplotlib.figure import Figure

from repq_tf.callbacks import identity_norms
from repq_tf.layers import ReparamConv
from repq_tf.train import pipeline
from repq_tf.train.engines import choose, mirrored
from repq_tf.train.errors import DivergedError, UserError
from repq_tf.train.run import checkpoint, products, run_folder
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from repq_tf.train.tasks.base import Task
from tests.train.tiny import TinyTask, write_no_picture


@pytest.fixture(autouse=True, scope="module")
def _process_wide_state():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
        patch.setattr(Figure, "savefig", write_no_picture)
        yield


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The folder and the report of a run with the default settings, to be left as it is."""
    folder = tmp_path_factory.mktemp("default")
    return folder, _run(folder)


def _run(folder, make_task=TinyTask, **given):
    given = {"qat_epochs": 1, "calibration_images": 64, "verbose": 0, **given}
    if "init_from" not in given:
        given = {"epochs": 2, **given}
    settings = resolve(workdir=str(folder), **given)
    pipeline.run(settings, make_task)
    with open(folder / "report.json") as file:
        return json.load(file)


def _accuracy(report):
    return {name: found["accuracy"] for name, found in report["metrics"].items()}


def _file_is_the_model(report):
    found = _accuracy(report)
    assert abs(found["file"] - found["quantized"]) <= 1 / 360
    assert report["parity"]["top1_agreement"] >= 0.997
    assert found["float"] == found["float_merged"]
    assert report["merge_error"] < 1e-3
    return True


@pytest.mark.slow(10)
@pytest.mark.parametrize(
    "given",
    [
        {"bn_statistics": "batch", "bits": 4, "distill": "float"},
        {"bn_statistics": "estimate", "activation_bits": 16},
        {"bn_statistics": "running", "qat_learning_rate": 1e-4},
        {"method": "merged", "weight_bits": 4, "container": "int4"},
        {"method": "merged", "merged_bn": False, "qat_learning_rate": 1e-4},
        {"method": "plain"},
    ],
    ids=lambda given: "-".join(str(value) for value in given.values()) or "default",
)
def test_every_method_ends_in_an_exact_file(tmp_path, default, given):
    method = given.get("method", "repq")
    if method != "plain":  # the float stage is the same
        given = {**given, "init_from": str(default[0])}
    else:
        given = {**given, "distill": str(default[0])}
    report = _run(tmp_path, **given)
    assert _file_is_the_model(report)
    same = _accuracy(report)["float"] == _accuracy(default[1])["float"]
    assert same or method == "plain"
    assert os.path.exists(RunFolder(tmp_path).history("float")) == (method == "plain")
    blocks = _blocks(tmp_path)
    assert ("ACBlock" in {type(block).__name__ for block in blocks}) == (method == "repq")
    restored = [block for block in blocks if block.root is not None]
    assert bool(restored) == (method == "plain" or given.get("container") == "int4")


@pytest.mark.slow(10)
def test_without_training_kernels_are_rounded_by_what_layers_make(tmp_path, default):
    given = {"method": "ptq", "qat_epochs": 0, "weight_bits": 3, "init_from": str(default[0])}
    nearest = _run(tmp_path / "nearest", **given)
    fitted = _run(tmp_path / "descent", rounding="descent", ranges="percentile", **given)
    assert _file_is_the_model(nearest) and _file_is_the_model(fitted)
    kernels = []
    for name in ("nearest", "descent"):
        blocks = _blocks(tmp_path / name)
        assert {type(block).__name__ for block in blocks} <= {"ConvBlock", "DenseBlock"}
        kernels.append([block.inner.merge().kernel.numpy() for block in blocks])
    assert any((one != other).any() for one, other in zip(*kernels, strict=True))


@pytest.mark.slow(10)
@pytest.mark.parametrize("method", ["merged", "repq"])
def test_a_float_network_is_equalized_and_tuned_before_it_is_quantized(
    tmp_path, default, method
):
    given = {"method": method, "equalize": True, "finetune_epochs": 1, "qat_epochs": 0}
    restored = {"restore_batch_norm": method == "merged"}
    report = _run(tmp_path, init_from=str(default[0]), **given, **restored)
    assert _file_is_the_model(report)
    assert _accuracy(report)["float"] == _accuracy(default[1])["float"]
    prepared, tuned = (
        checkpoint.load_model(str(tmp_path / name))
        for name in (run_folder.PREPARED, run_folder.FINETUNED)
    )
    x = TinyTask(resolve()).test_inputs(16)[0]
    source = checkpoint.load_model(str(default[0] / run_folder.FLOAT))
    np.testing.assert_allclose(prepared.predict(x), source.predict(x), atol=1e-3)
    assert np.abs(tuned.predict(x) - source.predict(x)).max() > 1e-3
    assert os.path.exists(RunFolder(tmp_path).history("finetune"))


@pytest.mark.slow(10)
def test_identities_are_gone_before_the_network_is_quantized(tmp_path):
    given = {"anneal_identities": True, "finetune_epochs": 2, "distill": "float", "bits": 2}
    with pytest.raises(UserError, match="--anneal_identities is for networks with identity"):
        _run(tmp_path / "none", **given)
    report = _run(tmp_path / "run", model="repvgg_tiny", qat_epochs=0, epochs=1, **given)
    assert _file_is_the_model(report)
    path = str(tmp_path / "run" / run_folder.FINETUNED)
    (gain,) = (norm.gamma.numpy() for norm in identity_norms(checkpoint.load_model(path)))
    assert not gain.any()


@pytest.mark.slow(10)
def test_a_network_of_plain_convolutions_is_upgraded(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))
    path = str(tmp_path / "mine.keras")
    model.save(path)
    report = _run(tmp_path / "run", upgrade=path, epochs=1, bits=4)
    assert _file_is_the_model(report)
    assert (report["settings"]["model"], report["settings"]["distill"]) == ("mine", "float")
    names = {type(block).__name__ for block in _blocks(tmp_path / "run")}
    assert names == {"ACBlock", "DenseBlock"}
    y = keras.layers.Softmax()(model.output)
    keras.Model(inputs, y).save(path)
    with pytest.raises(UserError, match="--upgrade=.*must return logits"):
        _run(tmp_path / "other", upgrade=path)
    keras.Model(inputs, model.get_layer("conv").output).save(path)
    found = r"--upgrade=.*\(\(8, 8, 1\), \(10,\)\), and the network"
    with pytest.raises(UserError, match=found):
        _run(tmp_path / "other", upgrade=path)


@pytest.mark.slow
def test_the_default_method_restores_batch_norms(default):
    folder, report = default
    assert _file_is_the_model(report)
    blocks = _blocks(folder)
    assert {type(block).__name__ for block in blocks} >= {"ACBlock"}
    assert any(block.root is not None for block in blocks)


def _blocks(folder):
    model = checkpoint.load_model(str(folder / run_folder.QUANTIZED))
    return [layer for layer in model.layers if isinstance(layer, ReparamConv)]


@pytest.mark.slow(20)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_of_training_alone(tmp_path, default, precision):
    assert _file_is_the_model(_run(tmp_path, mixed_precision=precision))
    assert keras.config.dtype_policy().name == "float32"
    for name in (run_folder.FLOAT, run_folder.QUANTIZED, run_folder.MERGED):
        model = checkpoint.load_model(str(tmp_path / name))
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    folder, plain = default
    rows = [
        np.loadtxt(RunFolder(f).history("float"), delimiter=",", skiprows=1)
        for f in (tmp_path, folder)
    ]
    assert plain["settings"]["mixed_precision"] == "none"
    assert np.allclose(*rows, atol=0.1) and not np.array_equal(*rows)


@pytest.mark.slow(20)
def test_several_devices(tmp_path, default, two_replicas, monkeypatch):
    engine = mirrored.Mirrored(two_replicas)
    monkeypatch.setattr(choose, "make_engine", {"mirrored": engine}.get)
    report = _run(tmp_path, strategy="mirrored")
    assert _file_is_the_model(report)
    blocks = _blocks(tmp_path)
    assert blocks and all(block.synchronized for block in blocks)
    assert abs(_accuracy(report)["float"] - _accuracy(default[1])["float"]) <= 2 / 360
    with pytest.raises(UserError, match="--batch_size must be a multiple .*2.*Received: 63"):
        _run(tmp_path / "odd", strategy="mirrored", batch_size=63)


@pytest.mark.slow(10)
def test_a_file_that_takes_pixels(tmp_path, default):
    options = {"input_type": "uint8", "step_gradient": "lsq", "init_from": str(default[0])}
    report = _run(tmp_path, qat_epochs=0, **options)
    assert {block.step_gradient for block in _blocks(tmp_path)} == {"lsq"}
    assert _file_is_the_model(report) and report["parity"]["equal_outputs"] == 1
    with open(tmp_path / run_folder.METADATA) as file:
        found = json.load(file)
    assert found["inputs"][0]["type"] == "uint8" and found["operators"]["GATHER"] == 1
    assert found["normalization"]["applied"] == "by the file"
    assert found["labels"] == [str(digit) for digit in range(10)]
    # Digits are 0 to 16 there; as the data set's pixels they are what the file takes.
    interpreter = Interpreter(str(tmp_path / run_folder.FILE))
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    pixels = np.random.default_rng(0).integers(0, 256, entry["shape"]).astype("uint8")
    interpreter.set_tensor(entry["index"], pixels)
    interpreter.invoke()
    scale, zero = end["quantization"]
    logits = (interpreter.get_tensor(end["index"]).astype("float32") - zero) * np.float32(scale)
    model = checkpoint.load_model(str(tmp_path / run_folder.QUANTIZED))
    expected = keras.ops.convert_to_numpy(model(pixels.astype("float32") / 127.5 - 1))
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


@pytest.mark.slow(10)
def test_what_lies_beside_the_file(tmp_path, default):
    shutil.copytree(default[0], tmp_path, dirs_exist_ok=True)
    report = default[1]
    with open(tmp_path / run_folder.METADATA) as file:
        found = json.load(file)
    assert found["sha256"] == products.sha256(tmp_path / run_folder.FILE)
    assert found["normalization"] == {
        "applied": "by the caller",
        "formula": found["normalization"]["formula"],
        "mean": 127.5,
        "std": 127.5,
    }
    assert found["file"] == "model.tflite" and found["meaning"] == "logits"
    totals = report["summary"]["totals"]
    # 4x4 outputs of 3x3 kernels of 1 and of 16 channels, 16 filters; 10 classes.
    assert totals["macs"] == 16 * 9 * (1 + 16) * 16 + 160
    page = (tmp_path / "report.md").read_text()
    assert report["summary"]["text"] in page and "bit-operations" in page
    assert "<table>" in (tmp_path / "summary.html").read_text()
    assert report["analysis"]["text"] in page and "(analysis.html)" in page
    assert "tiny_ac_quantized, quantized, on 16 images" in page
    assert "<img" in (tmp_path / "analysis.html").read_text()
    assert not (tmp_path / run_folder.C_ARRAY).exists()
    before = (tmp_path / run_folder.FILE).stat().st_mtime_ns
    _run(tmp_path, c_array=True)  # of a finished run
    assert (tmp_path / run_folder.FILE).stat().st_mtime_ns == before
    header = (tmp_path / run_folder.C_ARRAY).read_text()
    assert found["sha256"] in header and "g_model[]" in header


@pytest.mark.slow
def test_products_hold_weights_only(default):
    folder, _ = default
    for name in (run_folder.FLOAT, run_folder.QUANTIZED, run_folder.MERGED):
        with zipfile.ZipFile(folder / name) as file:
            assert not json.loads(file.read("config.json")).get("compile_config")
    assert not os.path.exists(RunFolder(folder).state("float"))


@pytest.mark.slow
def test_float_weights_that_do_not_fit(tmp_path, default):
    folder, _ = default
    with pytest.raises(UserError, match="are not those of this model"):
        _run(tmp_path / "other", init_from=str(folder), method="plain")
    with pytest.raises(UserError, match="without float.keras"):
        _run(tmp_path / "other", init_from="/")
    assert not os.path.exists(tmp_path / "other")


class _OtherTask(TinyTask):
    """Judges the file by something else than accuracy."""

    headline = "loss"
    columns = Task.columns

    def evaluate_file(self, network, verbose=0):
        assert network(self.test_inputs(3)[0]).shape == (3, 10)
        return {"loss": 0.5}


@pytest.mark.slow(10)
def test_another_task_quantizes_a_float_file_and_does_not_train(tmp_path, default):
    folder, first = default
    source = str(folder / run_folder.FLOAT)
    report = _run(tmp_path, _OtherTask, init_from=source, bits=4, qat_epochs=0)
    with open(tmp_path / "report.md") as file:
        assert "| quantized, .tflite | 0.5000 " in file.read()
    assert report["metrics"]["float"] == first["metrics"]["float"]
    assert not os.path.exists(RunFolder(tmp_path).history("float"))
    start, end = (
        checkpoint.load_model(str(tmp_path / name)).get_weights()
        for name in (run_folder.QUANTIZED_START, run_folder.QUANTIZED)
    )
    for a, b in zip(start, end, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow(10)
def test_a_damaged_product_is_named(tmp_path, default):
    shutil.copytree(default[0], tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / run_folder.QUANTIZED).read_bytes()
    (tmp_path / run_folder.QUANTIZED).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="quantized.keras is damaged.*Delete it"):
        _run(tmp_path)  # although nothing reads it again
    for name in (run_folder.MERGED, "evaluation.json"):
        os.remove(tmp_path / name)
    with pytest.raises(UserError, match="quantized.keras is damaged.*Delete it"):
        _run(tmp_path)
    os.remove(tmp_path / run_folder.QUANTIZED)
    assert _file_is_the_model(_run(tmp_path))


@pytest.mark.slow
def test_a_stage_removes_what_was_made_of_its_product(tmp_path, default, monkeypatch):
    """Killed in it, nothing stale lies beside a new model."""

    def stop(*args, **options):
        raise UserError("killed")

    shutil.copytree(default[0], tmp_path, dirs_exist_ok=True)
    os.remove(tmp_path / run_folder.QUANTIZED)
    monkeypatch.setattr(pipeline, "train", stop)
    with pytest.raises(UserError, match="killed"):
        _run(tmp_path)
    kept = (run_folder.FLOAT, run_folder.FLOAT_FILE, run_folder.QUANTIZED_START)
    models = {name for name in os.listdir(tmp_path) if name.endswith((".keras", ".tflite"))}
    assert models == set(kept)
    for name in ("evaluation.json", "measurement.json", "model.json", "report.md"):
        assert os.path.exists(default[0] / name) and not os.path.exists(tmp_path / name)
    for name in kept:
        assert (tmp_path / name).read_bytes() == (default[0] / name).read_bytes()


@pytest.mark.slow
def test_quantized_training_that_diverges_names_its_stage(tmp_path, default):
    options = {"method": "merged", "merged_bn": False, "init_from": str(default[0])}
    with pytest.raises(DivergedError, match="of stage qat"):
        _run(tmp_path, bits=4, qat_learning_rate=1e20, **options)
    assert os.path.exists(tmp_path / run_folder.QUANTIZED_START)
    assert not os.path.exists(tmp_path / run_folder.QUANTIZED)


def test_a_network_that_cannot_be_quantized_is_refused_before_it_is_trained(tmp_path):
    class Normalized(TinyTask):
        def build(self, name, **options):
            model = super().build(name, **options)
            return keras.Model(model.input, keras.layers.LayerNormalization()(model.output))

    with pytest.raises(UserError, match="cannot be quantized: .*LayerNorm"):
        _run(tmp_path / "run", Normalized)
    assert not (tmp_path / "run").exists()
