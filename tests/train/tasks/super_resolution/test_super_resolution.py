import json
import os

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_image

from repq_tf import models
from repq_tf.layers import ECB, ReparamConv
from repq_tf.train import pipeline
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint, run_folder
from repq_tf.train.settings import resolve
from repq_tf.train.tasks.super_resolution import image_quality
from repq_tf.train.tasks.super_resolution.color import FINE_STEP, to_network
from repq_tf.train.tasks.super_resolution.pairs import load_pairs, read_pairs
from repq_tf.train.tasks.super_resolution.task import SuperResolution
from tests.train.commands import TINY_MODELS, WITHOUT_TENSORFLOW, run
from tests.train.tiny import TinyUpscaling, write_no_picture


def _task(**given):
    given = {"model": "ecbsr_m4c8", "patch_size": 8, "batch_size": 4, **given}
    return SuperResolution(resolve(**given))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve pieces of a photograph to train on, two test sets of two sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    china = load_sample_image("china.jpg")
    for k in range(12):
        piece = china[30 * k : 30 * k + 41, 40 * k : 40 * k + 50]
        _write(folder / "train" / f"{k:02}.png", piece)
    _write(folder / "a" / "one.png", china[100:170, 200:290])
    _write(folder / "a" / "two.png", china[200:260, 100:200])
    _write(folder / "b" / "three.png", china[:64, :64])
    return folder


def _write(path, image):
    os.makedirs(path.parent, exist_ok=True)
    Image.fromarray(image).save(path)


def _given(folder):
    return {
        "dataset": f"folder:{folder / 'train'}",
        "test_sets": f"a:{folder / 'a'},b:{folder / 'b'}",
    }


def test_judged_as_scikit_image_judges(rng):
    photograph = load_sample_image("flower.jpg")[100:150, 100:160]
    for color in ("y", "rgb"):
        truth = rgb2ycbcr(photograph)[..., :1] if color == "y" else photograph
        pixels = np.clip(truth + rng.normal(0, 7, truth.shape), 0, 255)
        found = image_quality.judge(pixels, photograph, 3)
        for end, image in (("", pixels), ("_rounded", np.rint(pixels))):
            wanted = rgb2ycbcr(photograph)[..., 0]
            if color == "rgb":
                image = rgb2ycbcr(image / 255)
            elif end:
                wanted = np.rint(wanted)
            x, y = image[3:-3, 3:-3, 0], wanted[3:-3, 3:-3]
            psnr = peak_signal_noise_ratio(y, x, data_range=255)
            ssim = structural_similarity(
                y,
                x,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            assert found[f"psnr{end}"] == pytest.approx(psnr, abs=1e-9)
            assert found[f"ssim{end}"] == pytest.approx(ssim, abs=1e-9)


def test_grey_pictures_are_judged_by_luma_too(rng):
    grey = rng.integers(0, 256, (20, 20, 1))
    noisy = np.clip(grey + rng.normal(0, 7, grey.shape), 0, 255)
    photograph = grey.repeat(3, axis=2).astype("uint8")
    found = image_quality.judge(noisy.repeat(3, axis=2), photograph, 2)["psnr"]
    levels = peak_signal_noise_ratio(grey[2:-2, 2:-2], noisy[2:-2, 2:-2], data_range=255)
    assert found - levels == pytest.approx(1.3219, abs=1e-3)


def test_metrics_are_means_over_the_images_of_each_set(photographs, capsys):
    task = _task(**_given(photographs))
    assert task.headline == "a_psnr"
    assert [title for title, _, _ in task.columns] == ["a PSNR", "b PSNR"]
    bicubic = task.references()["bicubic"]
    assert set(bicubic) == {
        f"{name}_{metric}{end}"
        for name in "ab"
        for metric in ("psnr", "ssim")
        for end in ("", "_rounded")
    }

    class Nearest:
        """Repeats pixels, which is a network that has learned nothing."""

        def __call__(self, inputs, training=False):
            return inputs.repeat(2, axis=1).repeat(2, axis=2)

    capsys.readouterr()
    nearest = task.evaluate_file(Nearest(), verbose=1)
    assert f"{len(task._test_pairs)}/{len(task._test_pairs)}" in capsys.readouterr().out
    assert bicubic["a_psnr"] > nearest["a_psnr"] and bicubic["b_ssim"] > nearest["b_ssim"]
    model = models.ecbsr_m4c8_plain(2, 1, kernel_initializer="zeros")
    assert task.evaluate(model) == pytest.approx(nearest, abs=1e-4)
    pairs, values = read_pairs(str(photographs / "a"), 2), []
    for name in ("one", "two"):
        with Image.open(photographs / "a" / f"{name}.png") as file:
            photograph = np.asarray(file)
        (low,) = (pair.low for pair in pairs if pair.name == name)
        large = rgb2ycbcr(low)[..., 0].repeat(2, axis=0).repeat(2, axis=1)
        wanted = rgb2ycbcr(photograph)[2:-2, 2:-2, 0]
        values.append(peak_signal_noise_ratio(wanted, large[2:-2, 2:-2], data_range=255))
    assert nearest["a_psnr"] == pytest.approx(np.mean(values), abs=1e-5)


def test_psnr_while_training_is_that_of_the_crops(photographs):
    task = _task(**_given(photographs), color="rgb", scale=3)
    model = task.build("ecbsr_m4c8_plain", kernel_initializer="zeros")
    task.compile(model)
    batches = task.validation_batches()
    assert task.validation_batches() is batches  # made once, not in each epoch
    found = model.evaluate(batches, verbose=0, return_dict=True)
    values, losses = [], []
    for low, high in (batches[k] for k in range(len(batches))):
        large = low.repeat(3, axis=1).repeat(3, axis=2)
        losses.append(np.abs(large - high).mean((1, 2, 3)))
        values += [
            peak_signal_noise_ratio(y, x, data_range=255 / 128)
            for x, y in zip(large[:, 3:-3, 3:-3], high[:, 3:-3, 3:-3], strict=True)
        ]
    assert found["psnr"] == pytest.approx(np.mean(values), abs=1e-3)
    assert found["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ecbsr_m4c8", "repvgg_sr_m4c16"])
def test_blocks_compute_with_merged_kernels_which_is_the_same_function(name, photographs):
    task = _task(**_given(photographs))
    model, branches = task.build(name), models.build(name, 2)
    assert model.get_layer("block1").merged and not branches.get_layer("block1").merged
    branches.set_weights(model.get_weights())
    low = task.calibration_data(5)
    assert low.shape == (5, 8, 8, 1)
    np.testing.assert_allclose(model(low), branches(low), atol=1e-5)


def test_whole_images_are_compared(photographs):
    inputs = _task(**_given(photographs)).test_inputs(500)
    assert [x.shape for x in inputs] == [(1, 35, 45, 1), (1, 30, 50, 1), (1, 32, 32, 1)]
    assert len(_task(**_given(photographs)).test_inputs(1)) == 1


@pytest.mark.slow
def test_pictures_of_a_network(photographs, tmp_path):
    task = _task(**_given(photographs))
    model = task.build("ecbsr_m4c8")
    ((name, picture),) = task.pictures(model).items()
    assert name.startswith("one: bicubic, network, photograph")
    assert picture.dtype == np.uint8 and picture.shape == (70, 3 * 90, 1)
    with Image.open(photographs / "a" / "one.png") as file:
        truth = np.rint(rgb2ycbcr(np.asarray(file))[..., :1])
    np.testing.assert_array_equal(picture[:, 180:], truth)
    networks = dict.fromkeys(("float", "quantized", "file"), lambda x: np.asarray(model(x)))
    files = task.draw(networks, str(tmp_path))
    assert [os.path.basename(f) for f in files] == ["a_one.png", "a_two.png", "b_three.png"]
    for file in files:
        with Image.open(file) as plot:
            assert plot.format == "PNG" and plot.width > 800


@pytest.mark.parametrize(
    "given, words",
    [
        ({"patch_size": 26}, ["--patch_size", "26", "none of 12"]),
        ({"batch_size": 13, "crops_per_image": 1}, ["--batch_size", "12", "13"]),
        ({"test_sets": "a:/no/such"}, ["/no/such"]),
    ],
)
def test_what_cannot_be_is_refused(photographs, given, words):
    with pytest.raises(UserError) as error:
        _task(**{**_given(photographs), **given})
    for word in words:
        assert word in str(error.value)


def test_images_too_small_to_judge_are_refused(photographs):
    given = {**_given(photographs), "test_sets": f"c:{photographs / 'c'}"}
    _write(photographs / "c" / "least.png", np.zeros((18, 40, 3), "uint8"))
    assert _task(**given, scale=3).references()["bicubic"]["c_ssim"] == pytest.approx(1)
    with pytest.raises(UserError, match="--test_sets.* least 19x19 at.*least.png, 16x40"):
        _task(**given, scale=4)


def test_small_images_are_left_out_and_counted(photographs):
    _write(photographs / "mixed" / "small.png", np.zeros((15, 40, 3), "uint8"))
    _write(photographs / "mixed" / "large.png", np.zeros((40, 40, 3), "uint8"))
    task = _task(
        dataset=f"folder:{photographs / 'mixed'}",
        test_sets=f"a:{photographs / 'a'}",
        crops_per_image=8,
    )
    assert task.steps_per_epoch == 2
    assert task.describe()["training images smaller than a crop"] == 1


def test_the_default_input_is_made_of_whole_levels():
    task = SuperResolution(resolve(model="ecbsr_m4c8", color="rgb"))
    (inputs,) = task.test_inputs(10)
    assert inputs.shape == (1, 213, 320, 3)
    np.testing.assert_array_equal(inputs * 128, np.rint(inputs * 128))
    np.testing.assert_array_equal(
        inputs[0], to_network(load_pairs("photographs", 2).tests["flower"][0].low)
    )


# Two epochs of three steps, and one.
SHORT = {
    "patch_size": 8,
    "batch_size": 8,
    "crops_per_image": 2,
    "epochs": 2,
    "qat_epochs": 1,
    "calibration_images": 16,
    "verbose": 0,
}


@pytest.mark.slow(30)
def test_a_run_ends_in_an_exact_file(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    monkeypatch.setattr(Figure, "savefig", write_no_picture)
    given = {"method": "merged", "color": "rgb", "scale": 3, "activation_bits": 16}
    given = {**SHORT, **_given(photographs), **given}
    pipeline.run(resolve(model="ecbsr_m4c8", workdir=str(tmp_path), **given), TinyUpscaling)
    with open(tmp_path / "report.json") as file:
        report = json.load(file)
    assert report["parity"]["equal_outputs"] == 1 and report["parity"]["images"] == 3
    found = report["metrics"]
    for name, value in found["quantized"].items():
        assert found["file"][name] == pytest.approx(value, abs=1e-4), name
    assert found["float"] == pytest.approx(found["float_merged"], abs=1e-4)
    interpreter = Interpreter(str(tmp_path / run_folder.FILE))
    for details in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert details["dtype"] == np.int16 and details["quantization"] == (FINE_STEP, 0)
    model = checkpoint.load_model(str(tmp_path / run_folder.QUANTIZED))
    blocks = [layer for layer in model.layers if isinstance(layer, ReparamConv)]
    assert not any(isinstance(block, ECB) for block in blocks)
    assert all(block.root is None for block in blocks)  # no batch norm was restored
    assert {"a_one.png", "a_two.png", "b_three.png"} < set(os.listdir(tmp_path / "plots"))
    with open(tmp_path / "report.md") as file:
        page = file.read()
    assert "(plots/a_one.png)" in page and "| bicubic " in page and "| a_ssim_rounded " in page
    assert {"float_pictures", "qat_pictures"} < set(os.listdir(tmp_path / "logs"))


@pytest.mark.slow(40)
def test_without_tensorflow_it_ends_in_an_exact_file_too(tmp_path, photographs):
    options = {**SHORT, **_given(photographs), "model": "tiny_ecbsr", "bits": 4}
    options["workdir"] = tmp_path
    args = [f"--{name}={value}" for name, value in options.items()]
    output, _ = run(*args, before=[WITHOUT_TENSORFLOW, TINY_MODELS], KERAS_BACKEND="jax")
    assert "| quantized, .tflite | " in output and "equal 100.000%" in output
    assert "| bicubic " in output
    model = checkpoint.load_model(str(tmp_path / run_folder.QUANTIZED))
    assert isinstance(model.get_layer("first"), ECB)  # branches are trained, to the end
