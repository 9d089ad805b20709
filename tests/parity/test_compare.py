"""`check_parity`: streaming, its files, its program."""

import csv
import json
import re
import subprocess
import sys
import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image

import repq_tf
from repq_tf.arithmetic.runtimes import RUNTIMES
from repq_tf.parity import __main__
from repq_tf.parity.__main__ import main
from repq_tf.parity.runtime import default_runtime
from tests.deployment.files import Convolution, assert_exact, read, run, write
from tests.quantization.networks import array, images, layers, network, quantize, residual

X = images(64)


@pytest.fixture(scope="module")
def qat():
    return quantize(network(residual))


@pytest.fixture(scope="module")
def folder(qat, tmp_path_factory):
    """A model, its file, and a damaged copy of the file."""
    path = tmp_path_factory.mktemp("parity")
    qat.save(path / "model.keras")
    repq_tf.export_tflite(qat, path / "good.tflite")
    model = read(path / "good.tflite")
    found = Convolution(model, "vgg")
    found.set_data(found.bias, found.data(found.bias) + 3000)
    write(model, path / "bad.tflite")
    return path


# Streaming.


@pytest.mark.slow(10)
def test_any_cut_gives_the_same_figures(qat, folder):
    whole = repq_tf.check_parity(qat, folder / "bad.tflite", X)
    assert whole.images == 64 and whole.first_divergent == "vgg"
    for size in (1, 7, 64):
        assert repq_tf.check_parity(qat, folder / "bad.tflite", X, batch_size=size) == whole
    parts = ((X[k : k + 20], None) for k in range(0, 64, 20))
    assert repq_tf.check_parity(qat, folder / "bad.tflite", parts) == whole


@pytest.mark.slow
def test_images_are_read_as_they_are_needed(qat, folder):
    asked = []

    def batches():
        for k in range(3):
            asked.append(k)
            yield X[16 * k : 16 * k + 16] if k < 2 else X[:4, :5]

    with pytest.raises(ValueError, match=r"batches of images of shape \(10, 10, 3\)"):
        repq_tf.check_parity(qat, folder / "good.tflite", batches())
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[:0], "images must not be empty"),
        ([], "images must not be empty"),
        ("x.npy", "array of images or an iterable .*'x.npy'"),
        (np.full((1, 10, 10, 3), np.nan), "images must be finite"),
    ],
)
def test_bad_images(qat, folder, data, message):
    with pytest.raises(ValueError, match=message):
        repq_tf.check_parity(qat, folder / "good.tflite", data)


def test_bad_arguments(qat, folder):
    with pytest.raises(ValueError, match="runtime must be one of .*'fast'"):
        repq_tf.check_parity(qat, folder / "good.tflite", X, runtime="fast")
    other = {"xnnpack": "xnnpack_arm", "xnnpack_arm": "xnnpack"}[default_runtime()]
    with pytest.raises(ValueError, match=f"runtime='{other}' runs on another processor"):
        repq_tf.check_parity(qat, folder / "good.tflite", X, runtime=other)
    for bad in (0, 2.5, "2"):
        with pytest.raises(ValueError, match=f"batch_size must be positive.* {bad!r}"):
            repq_tf.check_parity(qat, folder / "good.tflite", X, batch_size=bad)


@pytest.mark.slow
def test_memory_does_not_grow_with_depth(tmp_path):
    """NumPy's part: the integers of a layer or two, not of all layers."""

    def deep(depth):
        def function(x):
            for index in range(depth):
                x = layers.Conv2D(8, 1, activation="relu", name=f"c{index}")(x)
            return x

        return function

    peaks = []
    x = images(16, (32, 32, 3))
    for depth in (3, 12):
        path = tmp_path / f"{depth}.tflite"
        qat = quantize(network(deep(depth), (32, 32, 3)), calibration_data=x)
        repq_tf.export_tflite(qat, path)
        repq_tf.check_parity(qat, path, x[:1])
        tracemalloc.start()
        assert_exact(repq_tf.check_parity(qat, path, x, batch_size=16))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    tensor = 16 * 32 * 32 * 8 * 4
    assert peaks[1] - peaks[0] < 2 * tensor


# What is compared.


@pytest.mark.slow
def test_every_output_is_compared(tmp_path):
    def heads(x):
        x = layers.Conv2D(4, 3, activation="relu", name="body")(x)
        # Its name is that of the float twin of "a", almost.
        mean = layers.GlobalAveragePooling2D(name="a_float32")(x)
        return [
            layers.Dense(5, name="a")(mean),
            layers.Conv2D(2, 1, name="map")(x),
            layers.MaxPooling2D(2, name="pool")(x),
        ]

    qat = quantize(network(heads))
    for output in ("int8", "uint8", "float32"):
        path = tmp_path / f"{output}.tflite"
        repq_tf.export_tflite(qat, path, output_type=output)
        report = repq_tf.check_parity(qat, path, X)
        assert_exact(report)
        sizes = {"a": 5, "map": 128, "pool": 64}
        assert {end.name: end.outputs / 64 for end in report.outputs} == sizes
        assert report.top1_agreement == 1.0  # of the one vector
        model = read(path)
        found = Convolution(model, "map")
        found.set_data(found.bias, found.data(found.bias) + 3000)
        write(model, path)
        report = repq_tf.check_parity(qat, path, X)
        assert [end.diverges for end in report.outputs] == [False, True, False]
        assert report.first_divergent == "map" and report.top1_agreement == 1.0
        assert report.causes[0].kind == "bias"


def test_top1_agreement_of_feature_maps_is_none(tmp_path):
    qat = quantize(network(lambda x: layers.Conv2D(4, 3, name="c")(x)))
    repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    report = repq_tf.check_parity(qat, tmp_path / "x.tflite", X)
    assert report.top1_agreement is None and report.holds
    assert "top-1 agreement -," in str(report)
    assert "\noutside: values of the file" in str(report)


def test_figures_are_those_of_the_runtime(qat, folder):
    """Counted again from outside, by running the damaged file."""
    report = repq_tf.check_parity(qat, folder / "bad.tflite", X)
    step = np.float32(qat.get_layer("image_quantize").step)
    given = np.rint(np.clip(X / step, -128, 127)).astype("int8")
    (got,), _, _ = run(folder / "bad.tflite", given)
    want = np.rint(array(qat(X)) / array(qat.get_layer("logits").step))
    difference = np.abs(got - want)
    assert report.equal_outputs == pytest.approx((difference == 0).mean())
    assert report.largest_difference == difference.max()
    assert report.top1_agreement == np.mean(got.argmax(1) == want.argmax(1))


# Files.


@pytest.mark.slow
def test_the_saved_report(qat, folder, tmp_path):
    report = repq_tf.check_parity(qat, folder / "bad.tflite", X)
    report.save(tmp_path / "new" / "folder")
    report.save(tmp_path / "new" / "folder")  # again, over the first
    found = tmp_path / "new" / "folder"
    names = ["parity.csv", "parity.json", "parity.md", "parity.png"]
    assert sorted(path.name for path in found.iterdir()) == names
    rows = list(csv.DictReader((found / "parity.csv").read_text("utf-8").splitlines()))
    assert [row["name"] for row in rows if row["kind"] == "layer"] == [
        layer.name for layer in report.layers
    ]
    assert [int(row["different"]) for row in rows[:-1]] == [
        layer.different for layer in report.layers
    ]
    assert [row["diverges"] for row in rows][2] == "True"
    data = json.loads((found / "parity.json").read_text())
    assert data["first_divergent"] == "vgg" and data["holds"] is False
    assert data["causes"][0]["kind"] == "bias"
    text = (found / "parity.md").read_text()
    assert "| vgg | " in text and "bias off its grid" in text and "parity.png" in text
    with Image.open(found / "parity.png") as picture:
        red = np.asarray(picture.convert("RGB")).astype(int)
    red = (red[..., 0] > 200) & (red[..., 1] < 60) & (red[..., 2] < 60)
    assert red.sum() > 100  # the bars of what diverges


@pytest.mark.slow
def test_a_plot_of_many_layers(tmp_path):
    rows = tuple(repq_tf.parity.LayerParity(f"layer{k}", 100, k % 3, k % 2) for k in range(300))
    report = repq_tf.parity.ParityReport(1, None, rows, rows[:1])
    report.save(tmp_path)
    with Image.open(tmp_path / "parity.png") as picture:
        assert picture.width < 4000


# The program.


def arguments(folder, data, file="good.tflite", *more):
    return [str(folder / "model.keras"), str(folder / file), f"--data={data}", *more]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_the_program_on_arrays(folder, kind, tmp_path, capsys):
    path = tmp_path / f"x.{kind}"
    np.save(path, X) if kind == "npy" else np.savez(path, images=X, labels=np.arange(64))
    assert main(arguments(folder, path)) == 0
    assert "64 images: top-1 agreement 100.00%" in capsys.readouterr().out
    more = ("--images=20", "--batch_size=7", f"--output={tmp_path / 'out'}")
    assert main(arguments(folder, path, "bad.tflite", *more)) == 1
    out = capsys.readouterr().out
    assert "20 images" in out and "likely cause: layer 'vgg': bias off its grid" in out
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["images"] == 20


@pytest.mark.slow
def test_pixels_are_normalized(folder, qat, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3), "uint8")
    np.save(tmp_path / "x.npy", pixels)
    seen = []

    def check(model, path, data, *options):
        seen.append(np.concatenate([array(batch) for batch in data]))
        return repq_tf.check_parity(qat, path, seen[-1], *options)

    monkeypatch.setattr("repq_tf.parity.compare.check_parity", check)
    wanted = {
        "pixels/127.5-1": pixels / 127.5 - 1,
        "pixels/255": pixels / 255,
        "pixels": pixels,
    }
    for name, want in wanted.items():
        assert (
            main(arguments(folder, tmp_path / "x.npy", "good.tflite", f"--normalize={name}"))
            == 0
        )
        assert seen[-1].dtype == np.float32
        np.testing.assert_allclose(seen[-1], want, atol=1e-6)


def test_the_program_on_pictures(folder, tmp_path, capsys):
    """Class folders of pictures of several sizes and modes, resized to the model's input."""
    rng = np.random.default_rng(0)
    for k, size in enumerate([(10, 10), (31, 20), (8, 12), (10, 10)]):
        (tmp_path / f"class{k % 2}").mkdir(exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), "uint8"))
        if k == 3:
            picture = picture.convert("L")
        picture.save(tmp_path / f"class{k % 2}" / f"{k}.{'png' if k % 2 else 'jpg'}")
    (tmp_path / "labels.txt").write_text("no picture")
    assert main(arguments(folder, tmp_path)) == 0
    assert "4 images" in capsys.readouterr().out


BAD = {
    "no data": ("missing.npy", [], "missing.npy does not exist"),
    "no picture": ("pictures", [], "0.png cannot be read as an image"),
    "empty folder": ("empty", [], "holds no pictures"),
    "other kind": ("model.keras", [], "--data must be a .npy or .npz file or a folder"),
    "pickles": ("pickled.npy", [], "pickled.npy cannot be read as images"),
    "a number": ("number.npy", [], "number.npy cannot be read as images: .* single number"),
    "several arrays": ("several.npz", [], "one array, or one called images, not"),
    "other size": ("small.npy", [], r"images of shape \(10, 10, 3\)"),
    "no images": ("small.npy", ["--images=0"], "--images must be positive. Received: 0"),
    "not writable": ("good.npy", ["--output=/proc/no/such"], "/proc/no"),
}


@pytest.mark.parametrize(("data", "more", "message"), BAD.values(), ids=BAD.keys())
def test_bad_data_is_named(folder, data, more, message, capsys):
    np.save(folder / "good.npy", X[:2])
    np.save(folder / "small.npy", X[:2, :5])
    np.save(folder / "pickled.npy", np.array([{}, 1], object))
    np.save(folder / "number.npy", np.float32(1))
    np.savez(folder / "several.npz", a=X, b=X)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "0.png").write_bytes(b"no picture")
    assert main(arguments(folder, folder / data, "good.tflite", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err


def test_arguments_are_refused_before_keras_is_imported(folder):
    np.save(folder / "good.npy", X[:2])
    code = (
        "import sys\n"
        "from repq_tf.parity.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'keras', 'tensorflow', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    given = arguments(folder, folder / "good.npy", "good.tflite")
    for more, message in (
        (["--output=/proc/no/such"], "--output must be a folder that can be written"),
        ([f"--output={folder / 'good.npy'}"], "Not a directory"),
        (["--images=0"], "--images must be positive"),
    ):
        command = [sys.executable, "-c", code, *map(str, given), *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ") and message in done.stderr


def test_the_runtimes_are_those_of_the_library():
    assert __main__.RUNTIMES == RUNTIMES


@pytest.mark.slow
def test_bad_models_and_files(folder, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X[:2])
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.tflite").write_text("no file")
    network(residual).save(tmp_path / "float.keras")
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(tmp_path / "flat.keras")
    data = f"--data={tmp_path / 'x.npy'}"
    good = [str(folder / "model.keras"), str(folder / "good.tflite")]
    for model, file, message in (
        (str(tmp_path / "no.keras"), good[1], "no.keras does not exist"),
        (str(tmp_path / "text.keras"), good[1], "cannot be loaded as a .keras model"),
        (good[1], good[1], "its name must end in .keras"),
        (str(tmp_path / "float.keras"), good[1], "is not quantized"),
        (str(tmp_path / "flat.keras"), good[1], "good.tflite was not exported from"),
        (good[0], str(tmp_path / "text.tflite"), "is not a whole TFLite file"),
    ):
        assert main([model, file, data]) == 2
        assert message in capsys.readouterr().err
    for wrong in ([], [*good], [*good, data, "--normalize=half"], [*good, data, "--runtime=x"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
