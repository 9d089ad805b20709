"""Compares a quantized model with its `.tflite` file, layer by layer.

    python -m repq_tf.parity quantized.keras model.tflite --data=images.npy

Exit status 0: the file computes what the model computes. 1: it diverges; the first layer and
the likely cause are printed. 2: an argument is bad.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repq_tf.files import pictures

if TYPE_CHECKING:
    from repq_tf.keras_api import Array, Shape
    from repq_tf.parity.report import ParityReport

NORMALIZATIONS = {
    "pixels/127.5-1": pictures.scale_pixels,
    "pixels/255": lambda pixels: pixels.astype("float32") / np.float32(255),
    "pixels": lambda pixels: pixels.astype("float32"),
}
RUNTIMES = ("xnnpack", "xnnpack_arm", "tflm", "reference")
# Pictures that are read and kept at once.
_CHUNK = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    options = _parser().parse_args(arguments)
    # Read when TensorFlow is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if options.verbose > 1 else "3")
    try:
        _check(options)
        report = _compare(options)
        if options.output:
            report.save(options.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m repq_tf.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="the quantized model, a .keras file")
    parser.add_argument("file", type=Path, help="the .tflite file that was exported from it")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a .npy file of images (n, height, width, channels); a .npz file with one array "
        "or one called images; or a folder of pictures, with all folders in it",
    )
    parser.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        default="pixels/127.5-1",
        help="what becomes of uint8 pixels; arrays of other types are the model's inputs as "
        "they are. Default: %(default)s, as in train/main.py",
    )
    parser.add_argument("--images", type=int, help="how many images to use. Default: all")
    parser.add_argument("--batch_size", type=int, help="default: what fits a quarter gigabyte")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="what runs the file, and whose arithmetic the model's is. Default: LiteRT's on "
        "this machine, xnnpack or xnnpack_arm",
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for the table (CSV, JSON, Markdown) and a plot"
    )
    parser.add_argument(
        "--verbose",
        type=int,
        default=1,
        help="2, given as --verbose=2: all that TensorFlow tells",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses what can be known to be wrong before Keras is imported."""
    for name in ("images", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be positive. Received: {value}")
    for path in (options.model, options.file, options.data):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
    if not options.data.is_dir() and options.data.suffix not in (".npy", ".npz"):
        raise ValueError(
            "--data must be a .npy or .npz file or a folder of pictures."
            f" Received: {options.data}"
        )
    if options.output:
        _check_writable(options.output)


def _check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be made or written."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ValueError(
            f"--output must be a folder that can be written. Received: {folder}"
            f" ({error.strerror}: {existing})"
        ) from error


def _compare(options: argparse.Namespace) -> ParityReport:
    from repq_tf.files.keras_models import load_model
    from repq_tf.parity.compare import check_parity
    from repq_tf.parity.runtime import File, default_runtime

    model = load_model(options.model)
    # A picture is resized where the model or the file has a size.
    file = File(options.file, options.runtime or default_runtime())
    if isinstance(model.input_shape, list | dict):
        raise ValueError(
            f"{options.model} has several inputs; compare it by repq_tf.check_parity, which "
            "takes a dict of arrays"
        )
    mine, files = model.input_shape[1:], file.image_shape
    if len(mine) != len(files):
        raise ValueError(
            f"{options.file} was not exported from {options.model}: it takes inputs of shape "
            f"{files}, the model {mine}"
        )
    shape = tuple(ours or theirs for ours, theirs in zip(mine, files, strict=True))
    images: Any
    if options.data.is_dir():
        images = _pictures(options.data, shape, options.images)
    else:
        images = _array(options.data)[: options.images]
    if options.data.is_dir() or images.dtype == np.uint8:
        normalize = NORMALIZATIONS[options.normalize]
        images = (normalize(batch) for batch in _chunks(images))
    return check_parity(model, options.file, images, options.batch_size, options.runtime)


def _array(path: Path) -> Array:
    """The array of a `.npy` or `.npz` file; nothing in it is executed."""
    try:
        if path.suffix == ".npz":
            content = _array_of_several(path)
        else:
            content = np.load(path, mmap_mode="r", allow_pickle=False)
        if content.ndim == 0:
            raise ValueError("it holds a single number")
        return content
    except Exception as error:  # zip and NumPy errors
        raise ValueError(f"{path} cannot be read as images: {error}") from error


def _array_of_several(path: Path) -> Array:
    # A damaged file that NumPy opened itself stays open until it is collected.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = arrays.files
        if "images" not in names and len(names) != 1:
            raise ValueError(f"it must hold one array, or one called images, not {names}")
        return arrays["images" if "images" in names else names[0]]


def _pictures(folder: Path, shape: Shape, count: int | None) -> Iterator[Array]:
    """Yields the pictures of a folder, each `(1, height, width, channels)`, uint8."""
    *size, channels = shape
    if channels not in (1, 3):
        raise ValueError(
            f"--data={folder} holds pictures, of 1 or 3 channels; the model's input is {shape}"
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in pictures.SUFFIXES)
    if not paths:
        raise ValueError(f"--data={folder} holds no pictures ({' '.join(pictures.SUFFIXES)})")
    for path in paths[:count]:
        picture = pictures.read_picture(path, channels)
        if None not in size:
            picture = pictures.fit(picture, *size)
        yield pictures.pixels(picture, channels)[None]


def _chunks(images: Array | Iterable[Array]) -> Iterator[Array]:
    """Joins single images of equal shapes, or cuts an array."""
    if isinstance(images, np.ndarray):
        yield from (images[k : k + _CHUNK] for k in range(0, len(images), _CHUNK))
        return
    waiting: list[Array] = []
    for image in images:
        if waiting and (len(waiting) == _CHUNK or image.shape != waiting[0].shape):
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield np.concatenate(waiting)


if __name__ == "__main__":
    sys.exit(main())
