"""Photographs of any size through a file, in tiles and whole."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2ycbcr, ycbcr2rgb

import repq_tf
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network
from repq_tf.train.tasks.super_resolution.color import (
    FINE_STEP,
    PIXEL_STEP,
    luma,
    to_network,
    to_pixels,
    to_rgb,
    to_ycbcr,
)
from repq_tf.train.tasks.super_resolution.imresize import imresize
from repq_tf.train.tasks.super_resolution.photographs import (
    Photograph,
    check_writable,
    read_photograph,
    write_photograph,
)
from repq_tf.train.tasks.super_resolution.upscaling import Upscaler, upscale_file
from tests.train.commands import ROOT, environment

SIZE = (20, 28)
RADIUS = 6


def photograph(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels)).astype("uint8")


def with_biases(model):
    """Biases make the zeros around an image show."""
    for layer in model.layers:
        if hasattr(layer, "merge"):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.random.default_rng(1).normal(0, 0.1, bias.shape)])
    return model


def write_float(path, channels):
    """ECBSR for images of one size, which the interpreter can change."""
    model = repq_tf.models.ecbsr_m4c8_plain(2, channels, (*SIZE, channels))
    repq_tf.export_tflite_float(with_biases(model), path)


def write_integer(path, channels):
    """RepVGG-SR in int8, for images of any size; and the same for pixels beside it."""
    model = with_biases(repq_tf.models.repvgg_sr(4, 8, 2, channels, block="ConvBlock"))
    images = to_network(photograph(3 * 12, 12, channels)).reshape(3, 12, 12, channels)
    qat = repq_tf.quantize(model, calibration_data=images, verbose=False)
    repq_tf.export_tflite(qat, path)
    pixels = path.with_suffix(".pixels")
    repq_tf.export_tflite(qat, pixels, input_type="uint8", pixels=to_network)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    found = {}
    for kind, write in (("float", write_float), ("integer", write_integer)):
        for channels in (1, 3):
            found[kind, channels] = folder / f"{kind}{channels}.tflite"
            write(found[kind, channels], channels)
    return found


def run_whole(path, image):
    return Network(str(path))(image[None])[0]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(75, 50), (33, 90), (13, 61), (5, 4), (1, 1), SIZE])
@pytest.mark.parametrize("kind", ["float", "integer"])
def test_tiles_give_what_the_whole_image_gives(files, kind, shape):
    """Borders included: to the last integer, and in float to its rounding."""
    image = to_network(photograph(*shape, 3))
    upscaler = Upscaler(files[kind, 3], tile=2 * RADIUS + 7)
    tiled = upscaler.run(image)
    whole = run_whole(files[kind, 3], image)
    assert whole.shape == (2 * shape[0], 2 * shape[1], 3)
    assert len(np.unique(whole)) > 10
    if kind == "integer":
        np.testing.assert_array_equal(tiled, whole)
    else:
        np.testing.assert_allclose(tiled, whole, atol=1e-6)


@pytest.mark.slow
def test_without_a_halo_seams_show(files):
    upscaler = Upscaler(files["integer", 3], tile=19)
    image = to_network(photograph(40, 40))
    whole = run_whole(files["integer", 3], image)
    upscaler.field = type(upscaler.field)(2, RADIUS - 1)
    assert (upscaler.run(image) != whole).any()


def test_tiles_have_the_files_size_or_a_useful_one(files):
    assert Upscaler(files["float", 1]).tile == (24, 28)  # four radii are 24
    assert Upscaler(files["integer", 1]).tile == (256, 256)
    assert Upscaler(files["float", 1], tile=40).tile == (40, 40)
    with pytest.raises(UserError, match="--tile must be larger than 12, twice .* Received: 12"):
        Upscaler(files["float", 1], tile=12)


def test_colors_against_another_implementation():
    pixels = photograph(9, 7)
    found = to_ycbcr(pixels)
    np.testing.assert_allclose(found, rgb2ycbcr(pixels), atol=1e-9)
    np.testing.assert_allclose(found[..., :1], luma(pixels), rtol=1e-14)
    np.testing.assert_allclose(to_rgb(found), pixels, atol=1e-9)
    np.testing.assert_allclose(to_rgb(found), 255 * ycbcr2rgb(found), atol=1e-2)


def test_luma_through_the_network_and_chroma_by_bicubic(files):
    pixels = photograph(30, 25)
    planes = rgb2ycbcr(pixels)
    y = to_pixels(run_whole(files["float", 1], to_network(planes[..., :1])))
    large = np.dstack([y, imresize(planes[..., 1:], 2)])
    expected = np.clip(255 * ycbcr2rgb(large), 0, 255)
    found = Upscaler(files["float", 1])(pixels)
    assert found.dtype == np.uint8 and found.shape == (60, 50, 3)
    assert np.abs(found - expected).max() <= 0.51  # a half, and what skimage's inverse is off


def test_color_through_the_network(files):
    pixels = photograph(30, 25)
    expected = np.rint(to_pixels(run_whole(files["integer", 3], to_network(pixels))))
    np.testing.assert_array_equal(Upscaler(files["integer", 3])(pixels), expected)


@pytest.mark.slow
def test_16_bits_are_finer_than_levels(tmp_path):
    model = with_biases(repq_tf.models.repvgg_sr(4, 8, 2, 3, block="ConvBlock"))
    images = to_network(photograph(3 * 12, 12)).reshape(3, 12, 12, 3)
    steps = {"input_step": FINE_STEP, "output_step": FINE_STEP}
    qat = repq_tf.quantize(
        model, activation_bits=16, calibration_data=images, verbose=False, **steps
    )
    repq_tf.export_tflite(qat, tmp_path / "wide.tflite")
    pixels = photograph(30, 25)
    output = qat.predict(to_network(pixels)[None], verbose=0)[0]
    upscaler = Upscaler(tmp_path / "wide.tflite", tile=2 * RADIUS + 7)
    assert (upscaler.field.scale, upscaler.field.radius) == (2, RADIUS)
    np.testing.assert_array_equal(upscaler.run(to_network(pixels)), output)
    assert np.mean(output / PIXEL_STEP % 1 != 0) > 0.9
    np.testing.assert_array_equal(upscaler(pixels), np.rint(to_pixels(output)))


def test_a_file_that_takes_pixels(files):
    path, pixels = files["integer", 3], photograph(30, 25)
    upscaler = Upscaler(path.with_suffix(".pixels"))
    assert upscaler.network.input_shape == (None, None, 3)
    np.testing.assert_array_equal(upscaler(pixels), Upscaler(path)(pixels))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_stays_grey_and_opacity_is_enlarged(files, channels):
    upscaler = Upscaler(files["float", channels])
    pixels = photograph(15, 17, 1)
    found = upscaler(pixels)
    as_color = upscaler(np.repeat(pixels, 3, axis=2))
    assert found.shape == (30, 34, 1)
    assert np.abs(found - as_color.mean(axis=2, keepdims=True)).max() <= 1  # each is rounded
    opacity = photograph(15, 17, 1, seed=1)
    both = upscaler(np.dstack([pixels, opacity]))
    np.testing.assert_array_equal(both[..., :1], found)
    np.testing.assert_array_equal(both[..., 1], imresize(opacity[..., 0], 2))
    assert upscaler(photograph(15, 17, 4)).shape == (30, 34, 4)


def test_progress(files):
    seen = []
    Upscaler(files["float", 3], tile=20)(photograph(30, 25), lambda *count: seen.append(count))
    assert seen == [(k, len(seen)) for k in range(1, len(seen) + 1)] and len(seen) > 4


@pytest.mark.parametrize(
    ("name", "channels"),
    [*((f"a.{end}", n) for end in ("png", "tif", "tiff") for n in (1, 2, 3, 4)), ("a.bmp", 3)],
)
def test_photographs_are_read_as_written(name, channels, tmp_path):
    pixels = photograph(6, 9, channels)
    write_photograph(tmp_path / name, Photograph(pixels, b"profile"))
    found = read_photograph(tmp_path / name)
    np.testing.assert_array_equal(found.pixels, pixels)
    if not name.endswith("bmp"):
        assert found.profile == b"profile"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("end", ["png", "webp", "tif", "tiff", "jpg", "jpeg", "bmp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_checked_can_be_written(end, channels, tmp_path):
    """Every format takes what it does not refuse; opacity stays, or is refused."""
    path, image = tmp_path / f"a.{end}", Photograph(photograph(16, 16, channels))
    if channels % 2 == 0 and end in ("jpg", "jpeg", "bmp"):
        with pytest.raises(
            UserError, match=f"has opacity, .* of .png .webp .tif .tiff. .*{end}"
        ):
            check_writable(path, image)
        assert not list(tmp_path.iterdir())
        return
    check_writable(path, image)
    assert not list(tmp_path.iterdir())
    write_photograph(path, image)
    found = read_photograph(path).pixels
    assert found.shape[2] % 2 == channels % 2
    if channels % 2 == 0:
        np.testing.assert_array_equal(found[..., -1], image.pixels[..., -1])


@pytest.mark.parametrize(("end", "largest"), [("webp", 16383), ("jpg", 65500)])
def test_a_result_that_is_too_large_is_refused_first(end, largest, tmp_path):
    """At the very size at which writing fails."""
    path = tmp_path / f"a.{end}"
    small = Photograph(photograph(1, largest // 3 + 1, 1))
    with pytest.raises(UserError, match=f"{largest} in a row or a column; .* .png .tif"):
        check_writable(path, small, scale=3)
    for size in (largest, largest + 1):
        image = Photograph(np.zeros((1, size, 1), "uint8"))
        if size > largest:
            with pytest.raises(UserError, match="holds at most"):
                check_writable(path, image)
            with pytest.raises(UserError, match="cannot be written"):
                write_photograph(path, image)
        else:
            check_writable(path, image)
            write_photograph(path, image)


def test_what_was_there_stays_when_writing_fails(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"before")
    with pytest.raises(UserError, match="a.jpg cannot be written: .* before is unchanged"):
        write_photograph(tmp_path / "a.jpg", Photograph(photograph(6, 9, 4)))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_the_profile_of_inks_is_left_out(tmp_path):
    picture = Image.fromarray(photograph(6, 9, 4), "CMYK")
    picture.save(tmp_path / "a.tif", icc_profile=b"profile of inks")
    found = read_photograph(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.pixels, np.asarray(picture.convert("RGB")))
    assert found.profile is None


def test_photographs_are_turned_upright(tmp_path):
    picture = Image.fromarray(photograph(6, 9))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn right
    picture.save(tmp_path / "a.png", exif=exif)
    found = read_photograph(tmp_path / "a.png")
    np.testing.assert_array_equal(found.pixels, np.rot90(photograph(6, 9), -1))


def test_a_palette_becomes_color(tmp_path):
    picture = Image.fromarray(photograph(6, 9)).quantize(8)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png").pixels, expected)


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.arange(12, dtype="uint16").reshape(3, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="8 bits a channel. Received: mode I;16"):
        read_photograph(tmp_path / "a.png")


def command(*args, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train" / "upscale.py"), *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.mark.slow
def test_the_command(files, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.tflite").write_bytes(files["integer", 1].read_bytes())
    pixels = photograph(50, 41)
    write_photograph(tmp_path / "in.png", Photograph(pixels))
    printed, errors = command(
        tmp_path / "in.png", tmp_path / "out.png", f"--model={run}", "--tile=32"
    )
    assert "4/4" in printed and "out.png: 82x100, 2 times as large" in printed
    assert not errors  # TensorFlow and LiteRT say nothing
    found = read_photograph(tmp_path / "out.png").pixels
    np.testing.assert_array_equal(found, Upscaler(files["integer", 1])(pixels))


def test_the_command_refuses(tmp_path):
    _, errors = command(tmp_path / "in.png", "--model=x", code=1)
    assert "error: Two names are needed" in errors and "Traceback" not in errors


ERRORS = {
    "must be a .tflite file or the folder .* Received: missing": (
        "in.png",
        "out.png",
        "missing",
    ),
    "no.tflite is no super-resolution file": ("in.png", "out.png", "no.tflite"),
    "cut.tflite is no super-resolution file: .* not a whole TFLite file": (
        "in.png",
        "out.png",
        "cut.tflite",
    ),
    "must make images of the 1 channels that it takes. Received: 3": (
        "in.png",
        "out.png",
        "colored",
    ),
    r"must end in one of .*\.png.* Received: out.txt": ("in.png", "out.txt", "good"),
    "must lie in a folder that exists.* Received: no/out": ("in.png", "no/out.png", "good"),
    "missing.png cannot be read as an image": ("missing.png", "out.png", "good"),
    "no.tflite cannot be read as an image": ("no.tflite", "out.png", "good"),
    "must take images of 1 or 3 channels. Received: 2": ("in.png", "out.png", "two"),
    "run/model.tflite is damaged": ("in.png", "out.png", "run"),
    r"has opacity, .* must end in one of \.png .* Received: out.jpg": (
        "in.png",
        "out.jpg",
        "good",
    ),
    "must end in one of .* Received: out.ico": ("in.png", "out.ico", "good"),
    "must be a file. Received: folder.png, which": ("in.png", "folder.png", "good"),
    "/proc/out.png cannot be written: ": ("in.png", "/proc/out.png", "good"),
}


@pytest.mark.parametrize(("message", "names"), ERRORS.items(), ids=ERRORS.keys())
def test_errors(message, names, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Upscaler, "__call__", None)  # nothing is computed
    write_photograph("in.png", Photograph(photograph(4, 4, 4)))  # JPEG has no opacity
    Path("no.tflite").write_bytes(b"nothing of the sort")
    good = files["float", 1].read_bytes()
    Path("good").write_bytes(good)
    Path("cut.tflite").write_bytes(good[: len(good) // 2])
    for name, channels in (("two", (2, 2)), ("colored", (1, 3))):
        if name in names:
            inputs = keras.Input((8, 8, channels[0]))
            model = keras.Model(inputs, keras.layers.Conv2D(channels[1], 1)(inputs))
            repq_tf.export_tflite_float(model, name)
    Path("folder.png").mkdir()
    Path("run").mkdir()
    Path("run/model.tflite").write_bytes(files["float", 1].read_bytes())
    Path("run/SHA256SUMS").write_text(f"{'0' * 64}  model.tflite\n")
    before = sorted(os.listdir())
    with pytest.raises(UserError, match=message):
        upscale_file(*names, verbose=0)
    assert sorted(os.listdir()) == before
