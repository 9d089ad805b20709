"""MobileOne-S0 with its authors' weights, quantized without training, on ImageNet pictures.

    python benchmarks/imagenet_sample.py --weights=mobileone_s0_fused_flat.npz \
        --images=imagenet_sample224 --json=mobileone_s0.json

`--weights` holds the merged kernels and biases in flat arrays, named as in the authors'
repository, `--images` the pictures `000.jpg` to `999.jpg`, one of each class and called after
it. They are resized to 240 pixels (bicubic), the middle 224 are taken, and normalised by
ImageNet's means and deviations. Every fifth one calibrates; the others judge.

Each row is a `.tflite` file: the float network's top-1 minus the file's on the pictures that
judge, how often both see the same class, the logits' signal-to-noise ratio, and the seconds of
processor time that quantizing took. Files of this library are also compared with their models,
value by value, on a few pictures. Beside them stand the files of TensorFlow's converter and, if
it is installed, of ai-edge-quantizer. A row in the JSON file is not computed again.
"""

import functools
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from PIL import Image

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.tflite.interpreter import Interpreter

FLAGS = flags.FLAGS
flags.DEFINE_string("weights", None, "The .npz file of the merged network.", required=True)
flags.DEFINE_string("images", None, "The folder of the pictures.", required=True)
flags.DEFINE_string("only", "", "Compute the rows alone whose names contain this.")
flags.DEFINE_string("json", None, "Write the table to this file, and go on from it.")

_MEAN, _DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], "float32")
_RESIZED, _SIZE, _PICTURES = 240, 224, 1000
_CALIBRATES = 5  # one of so many does
_COMPARED = 20
_AVERAGE_BITS = 5
_ROUNDINGS = "nearest", "descent", "adaround", "adaquant"
_FIGURES = ("drop", "agreement", "sqnr", "seconds", "differing")


def network():
    """The float network with the authors' weights, of Keras's layers."""
    model = repq_tf.merge(repq_tf.models.mobileone_s0())
    with np.load(FLAGS.weights) as arrays:
        names = {name.rsplit(".", 1)[0] for name in arrays if name.startswith("stage")}
        layers = [layer for layer in model.layers if layer.weights]
        for layer, name in zip(layers, [*sorted(names, key=_place), "linear"], strict=True):
            shape, flat = layer.kernel.shape, arrays[f"{name}.weight"]
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                kernel = flat.reshape(shape[2], *shape[:2], 1).transpose(1, 2, 0, 3)
            else:
                turned = np.moveaxis(np.empty(shape, bool), (-1, -2), (0, 1)).shape
                kernel = np.moveaxis(flat.reshape(turned), (0, 1), (-1, -2))
            layer.kernel.assign(kernel)
            layer.bias.assign(arrays[f"{name}.bias"])
    return model


def _place(name):
    """The numbers in a name, by which layers are in order."""
    return [int(number) for number in re.findall(r"\d+", name)]


def pictures():
    """The calibrating pictures, the judging ones and these ones' classes."""
    found = np.stack([_picture(number) for number in range(_PICTURES)])
    numbers = np.arange(_PICTURES)
    calibrates = numbers % _CALIBRATES == 0
    return found[calibrates], found[~calibrates], numbers[~calibrates]


def _picture(number):
    with Image.open(Path(FLAGS.images) / f"{number:03}.jpg") as image:
        image = image.convert("RGB")
    scale = _RESIZED / min(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - _SIZE) // 2 for side in image.size)
    image = image.crop((left, top, left + _SIZE, top + _SIZE))
    return (np.asarray(image, np.float32) / 255 - _MEAN) / _DEVIATION


def methods(model, images):
    """Returns the function that makes the file of each row, by its name.

    A function takes the path of the file, and returns the quantized model if it is this
    library's.
    """
    # Ranges are those of least error of the values where a row does not name others.
    given = {"weight_range": "min_error", "activation_range": "min_error"}
    own = functools.partial(_own, model, images, **given)
    of_features = functools.partial(own, activation_range="output_error")
    made = {}
    for rounding in ("nearest", "descent"):
        name, options = f"W8A8 per channel, {rounding}", {"rounding": rounding}
        made[f"{name}, min_error"] = functools.partial(own, **options)
        made[f"{name}, output_error of features"] = functools.partial(of_features, **options)
        made[f"{name}, output_error"] = functools.partial(
            of_features, weight_range="output_error", **options
        )
        made[f"W4A8, {rounding}, output_error of features"] = functools.partial(
            of_features, weight_bits=4, **options
        )
        for equalize in (False, True):
            name = f"W8A8 per tensor, {'' if equalize else 'not '}equalized, {rounding}"
            options = {"per_channel": False, "equalize": equalize, "rounding": rounding}
            made[name] = functools.partial(own, **options)
    for rounding in _ROUNDINGS:
        made[f"W4A8, {rounding}"] = functools.partial(own, weight_bits=4, rounding=rounding)
        options = {"rounding": rounding, "average_bits": _AVERAGE_BITS}
        made[f"W{_AVERAGE_BITS}A8 on average, {rounding}"] = functools.partial(own, **options)
    for name, per_channel in (("channel", True), ("tensor", False)):
        made[f"TensorFlow's converter, W8A8 per {name}"] = functools.partial(
            _converted, model, images, per_channel
        )
    made["ai-edge-quantizer, W8A8 per channel"] = functools.partial(
        _by_ai_edge_quantizer, model, images
    )
    return made


def _own(model, images, path, average_bits=None, **options):
    if average_bits is not None:
        options["rules"] = _allocated(model, images, average_bits)
    quantized = repq_tf.post_training_quantize(
        model, calibration_data=images, verbose=False, **options
    )
    repq_tf.export_tflite(quantized, path)
    return quantized


def _allocated(model, images, bits):
    """Rules that give the network's weights so many bits on average."""
    table = repq_tf.sensitivity(model, images, verbose=False)
    size = sum(cost.size(bits) for cost in table.costs.values())
    return repq_tf.allocate_bits(table, size=size)


def _converted(model, images, per_channel, path):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter._experimental_disable_per_channel = not per_channel
    path.write_bytes(converter.convert())


def _by_ai_edge_quantizer(model, images, path):
    from ai_edge_quantizer import quantizer, recipe

    repq_tf.export_tflite_float(model, path)
    made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    data = {"serving_default": [{model.inputs[0].name: image[None]} for image in images]}
    made.quantize(made.calibrate(data)).export_model(str(path), overwrite=True)


def logits_of(path, images):
    """What a file makes of each image; integers at its ends are numbers on their grids."""
    interpreter, found = Interpreter(path), []
    (scale, zero), kind = interpreter.input_grid, interpreter.input_type
    if scale:
        ends = np.iinfo(kind)
        images = np.clip(np.rint(images / scale) + zero, ends.min, ends.max).astype(kind)
    for image in images:
        interpreter.run(image[None])
        found.append(interpreter.output()[0].astype(np.float64))
    scale, zero = interpreter.output_grid()
    return (np.stack(found) - zero) * scale if scale else np.stack(found)


def judged(make, real, images, labels):
    """The figures of a row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        begin = time.process_time()
        quantized = make(path=path)
        seconds = time.process_time() - begin
        logits = logits_of(path, images)
        row = {
            "drop": 100 * (_accuracy(real, labels) - _accuracy(logits, labels)),
            "agreement": 100 * _accuracy(logits, real.argmax(-1)),
            "sqnr": 10 * np.log10(np.square(real).sum() / np.square(real - logits).sum()),
            "seconds": seconds,
            "bytes": path.stat().st_size,
        }
        if quantized is not None:
            report = repq_tf.check_parity(quantized, path, images[:_COMPARED], verbose=False)
            parts = (*report.layers, *report.outputs)
            row["differing"] = sum(part.different for part in parts)
    return row


def _accuracy(logits, labels):
    return float((logits.argmax(-1) == labels).mean())


def show(row):
    """Prints a row of the table."""
    cells = (f"{row[key]:.2f}" if key in row else "" for key in _FIGURES)
    print(f"| {row['method']} | {' | '.join(cells)} |", flush=True)


def main(_):
    """Prints a row after the other, and writes them as JSON if asked to."""
    calibration, images, labels = pictures()
    model = network()
    real = model.predict(images, 50, verbose=0).astype(np.float64)
    print(f"float: {_accuracy(real, labels):.2%} of {len(images)} pictures\n")
    print(f"| | {' | '.join(_FIGURES)} |\n|{' --- |' * (1 + len(_FIGURES))}")
    content = {"float": _accuracy(real, labels), "rows": []}
    if FLAGS.json and os.path.exists(FLAGS.json):
        content = json.loads(Path(FLAGS.json).read_text(encoding="utf-8"))
    done = {row["method"]: row for row in content["rows"]}
    for method, make in methods(model, calibration).items():
        if method in done:
            show(done[method])
        elif FLAGS.only in method:
            try:
                found = judged(make, real, images, labels)
            except ImportError as error:
                print(f"left out: {method}: {error}")
                continue
            content["rows"].append({"method": method, **found})
            show(content["rows"][-1])
            if FLAGS.json:
                text = json.dumps({"command": " ".join(sys.argv), **content}, indent=2)
                write_atomically(FLAGS.json, text.encode())


if __name__ == "__main__":
    app.run(main)
