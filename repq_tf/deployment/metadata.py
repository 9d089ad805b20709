"""What a program has to know to use a `.tflite` file, as JSON beside it.

The file format has a place for metadata, but no tool that fills it can be installed beside
TensorFlow 2.21: TFLite Support had its last release in July 2023 and wants protobuf below 4,
and the writer in MediaPipe 1.2 imports an extension that its wheels lack.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repq_tf.arithmetic import input_levels
from repq_tf.deployment.pixels import check_pixels, normalize
from repq_tf.files import file_path, new_file, write_atomically
from repq_tf.keras_api import Array
from repq_tf.onnx import reading as onnx_reading
from repq_tf.tflite import reading
from repq_tf.tflite.pixels import pixel_levels, takes_pixels
from repq_tf.version import __version__

_FORMULA = "real = (pixel - mean) / std"
_PIXELS = 256
_ON_GRID = "integer = clip(round(real / scale) + zero_point)"


def export_metadata(
    tflite_path: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    pixels: Any = None,
    meaning: str | None = None,
) -> dict[str, Any]:
    """Describes a `.tflite` or `.onnx` file in JSON: ends, labels, and how to feed it images.

    The JSON has `file`, its `sha256` and size in `bytes`, `inputs` and `outputs` (name, type,
    shape, scale and zero point of each), `operators`, `labels`, `repq_tf` (the version), and
    for images `normalization`: `mean` and `std`, and whether it is `applied` "by the file",
    which then takes pixels as they are, or "by the caller".

    Args:
        tflite_path: the file, of either kind.
        path: the JSON file; default: the same name with `.json`.
        labels: names of the classes, in the order of the output's last axis.
        pixels: `(mean, std)` with which the model was trained on pixels of 0 to 255, two
            numbers or two sequences with one for each channel.
        meaning: of the output, such as "logits".

    Returns:
        The description, a dict.

    Raises:
        ValueError: the file is of neither kind, or an argument does not fit it: `pixels`
            that are not what the file does itself, say.

    Example:
        >>> repq_tf.export_metadata("model.tflite", labels=names, pixels=(127.5, 127.5))
    """
    tflite_path = file_path(tflite_path, "tflite_path")
    path = new_file(f"{os.path.splitext(tflite_path)[0]}.json" if path is None else path)
    kind: Any = reading if reading.is_tflite(tflite_path) else onnx_reading
    content, model = kind.read(tflite_path)
    described = kind.describe(model)
    (first, *_) = described["outputs"]
    if labels is not None and len(labels) != first["shape"][-1]:
        raise ValueError(
            f"labels must name the {first['shape'][-1]} values of output {first['name']!r}. "
            f"Received: {len(labels)} labels"
        )
    description = {
        "file": os.path.basename(tflite_path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **described,
        "meaning": meaning,
        "labels": None if labels is None else [str(label) for label in labels],
        "normalization": (None if pixels is None else _normalization(model, described, pixels)),
        "operators": kind.count_operators(model),
        "repq_tf": __version__,
    }
    write_atomically(path, (json.dumps(description, indent=2) + "\n").encode())
    return description


def _normalization(model: Any, described: Mapping[str, Any], pixels: Any) -> dict[str, Any]:
    """Who turns pixels into what the network computes with, and how."""
    (end, *_) = described["inputs"]
    mean, std = check_pixels(pixels, end["shape"][-1])
    record = {"mean": mean.tolist(), "std": std.tolist()}
    looks_up = end["type"] == "uint8" and takes_pixels(model)
    if looks_up and not _is_table(*pixel_levels(model), mean, std):
        raise ValueError(
            "pixels must be the normalization that the file was exported with, since it looks "
            f"its results up. Received: {pixels!r}"
        )
    if looks_up or (end["type"] == "uint8" and _is_grid(end, mean, std)):
        return {"applied": "by the file", "formula": _FORMULA, **record}
    formula = _FORMULA if end["type"] == "float32" else f"{_FORMULA}; {_ON_GRID}"
    return {"applied": "by the caller", "formula": formula, **record}


def _is_table(levels: Array, scale: float, top: int, mean: Array, std: Array) -> bool:
    """Whether levels for each channel and pixel value are those of the normalisation."""
    low = 0 if levels.min() >= 0 else -top - 1
    values = normalize(np.arange(_PIXELS)[:, None], mean, std)
    return bool((input_levels(values, scale, low, top).T == levels).all())


def _is_grid(end: Mapping[str, Any], mean: Array, std: Array) -> bool:
    """Whether a tensor's own grid is the normalisation."""
    scale = np.float32(end["scale"])
    return bool((mean == end["zero_point"]).all() and (scale * std == 1).all())
