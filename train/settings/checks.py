"""Checks of the flags of a run, before any time is spent; all raise `UserError`."""

import difflib
import importlib
import math
import os

from repq_tf.models import list_models
from repq_tf.models.registry import TASKS
from repq_tf.train.errors import UserError

METHODS = ("plain", "merged", "repq")
QUANTIZERS = ("keras", "tfmot")
BN_STATISTICS = ("restored", "batch", "estimate", "sample", "running")
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "data_parallel")
PRECISIONS = ("none", "bfloat16", "float16")
CONTAINERS = ("int8", "int4")
INPUT_TYPES = ("int8", "uint8", "float32")
WIDE_INPUT_TYPES = ("int16", "float32")
AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop")
COLORS = ("y", "rgb")
BITS = range(2, 9)
WIDE_BITS = 16  # of activations

# Flags of one task alone.
TASK_FLAGS = {
    "classification": (
        *("image_size", "augment", "randaugment", "mixup", "label_smoothing"),
        *("cache", "skip_bad_images", "width"),
    ),
    "super_resolution": ("scale", "color", "test_sets", "patch_size", "crops_per_image"),
}


def find_task(task, model):
    """Returns the task of a run, from `--task` or the model.

    Args:
        task: What `--task` says, or `None`.
        model: What `--model` says, or `None`.
    """
    if task is not None:
        one_of("task", task, TASKS)
    if model is None:
        return task or "classification"
    tasks = [name for name in TASKS if model in list_models(name)]
    if not tasks:
        one_of("model", model, list_models(task))
    if task not in (None, *tasks):
        raise UserError(
            f"--model={model} is a network for {tasks[0]}, not for --task={task}. Networks for"
            f" that are: {', '.join(list_models(task))}."
        )
    return tasks[0]


def check_task_flags(task, given, defaults):
    """Refuses flags of another task.

    Args:
        task: The task of the run.
        given: Flag name -> value.
        defaults: Flag name -> value when not given.
    """
    for other, names in TASK_FLAGS.items():
        for name in names:
            if other != task and given[name] != defaults[name]:
                raise UserError(
                    f"--{name} is of --task={other} and has no meaning for {task}."
                    f" Received: --{name}={given[name]}"
                )


def check_conflicts(given):
    """Refuses pairs of flags of which one would be ignored.

    Args:
        given: Flag name -> value.
    """
    method = given["method"]
    if given["bn_statistics"] is not None:
        one_of("bn_statistics", given["bn_statistics"], BN_STATISTICS)
        if method != "repq":
            raise UserError(
                "--bn_statistics says how RepQ merges batch norms and goes with"
                f" --method=repq only. Received: --bn_statistics={given['bn_statistics']}"
                f" --method={method}"
            )
        if given["task"] == "super_resolution":
            raise UserError(
                "--bn_statistics says how RepQ merges batch norms, and"
                f" --model={given['model']} has none."
                f" Received: --bn_statistics={given['bn_statistics']}"
            )
    if given["task"] == "super_resolution" and given["sync_bn"] is not None:
        raise UserError(
            "--sync_bn says how devices train batch norms, and"
            f" --model={given['model']} has none. Received: --sync_bn={given['sync_bn']}"
        )
    if given["merged_bn"] is not None and method != "merged":
        raise UserError(
            "--merged_bn goes with --method=merged only."
            f" Received: --merged_bn={given['merged_bn']} --method={method}"
        )
    if given["bits"] is not None:
        for name in ("weight_bits", "activation_bits"):
            if given[name] is not None:
                raise UserError(
                    "--bits sets the bits of weights and activations; give either --bits, or"
                    " --weight_bits and --activation_bits."
                    f" Received: --bits={given['bits']} --{name}={given[name]}"
                )
    if given["c_array"] and given["task"] == "super_resolution":
        raise UserError(
            "--c_array is for files that take inputs of one size, and those of"
            " --task=super_resolution take images of any size; export the run's model with"
            " repq_tf.export_tflite(..., input_shape=(h, w, c)) and then use"
            f" repq_tf.export_c_array. Received: --c_array --model={given['model']}"
        )
    if given["quantizer"] == "tfmot":
        _check_tfmot(given["task"], given["mixed_precision"], given["activation_bits"])
    if given["strategy"] == "data_parallel" and given["sync_bn"] is False:
        raise UserError(
            "--strategy=data_parallel always synchronises batch norm: JAX's arrays are those of"
            " all devices. Received: --sync_bn=false"
        )
    if given["init_from"] is not None:
        for name in ("epochs", "learning_rate"):
            if given[name] is not None:
                raise UserError(
                    "--init_from takes the float weights from an earlier run, so the float"
                    f" stage does not run and --{name} has no meaning."
                    f" Received: --init_from={given['init_from']} --{name}={given[name]}"
                )


def _check_tfmot(task, mixed_precision, activation_bits):
    """Imports TFMOT, which also makes its layers known to Keras; refuses what it cannot do."""
    if activation_bits == WIDE_BITS:
        raise UserError(
            "--quantizer=tfmot quantizes activations to 2 to 8 bits."
            f" Received: --quantizer=tfmot --activation_bits={activation_bits}"
        )
    if task != "classification":
        raise UserError(
            "--quantizer=tfmot trains classification networks."
            f" Received: --quantizer=tfmot --task={task}"
        )
    try:
        importlib.import_module("repq_tf.tfmot")
    except ImportError as error:
        raise UserError(f"--quantizer=tfmot is not possible here: {error}") from error
    if mixed_precision != "none":
        raise UserError(
            "--quantizer=tfmot trains in float32: its wrappers do not cast."
            f" Received: --mixed_precision={mixed_precision}"
        )


def find_bits(bits, weight_bits, activation_bits):
    """Returns the bits of weights and of activations, 8 unless given."""
    for name, value in (
        ("bits", bits),
        ("weight_bits", weight_bits),
        ("activation_bits", activation_bits),
    ):
        wide = name == "activation_bits"
        if value is not None and value not in BITS and not (wide and value == WIDE_BITS):
            more = f", or {WIDE_BITS}" if wide else ""
            raise UserError(
                f"--{name} must be an integer from {BITS[0]} to {BITS[-1]}{more}."
                f" Received: {value}"
            )
    default = 8 if bits is None else bits
    return tuple(default if n is None else n for n in (weight_bits, activation_bits))


def check_container(container, weight_bits):
    """Refuses int4 tensors for weights that do not fit."""
    if container == "int4" and weight_bits > 4:
        raise UserError(
            "--container=int4 stores weights of at most 4 bits; set --weight_bits or --bits."
            f" Received: weights of {weight_bits} bits"
        )


def find_input_type(input_type, activation_bits, c_array):
    """Returns the file's input type; refuses unknown ones, and pixels on microcontrollers."""
    allowed = WIDE_INPUT_TYPES if activation_bits == WIDE_BITS else INPUT_TYPES
    if input_type is None:
        return allowed[0]
    one_of("input_type", input_type, allowed)
    if c_array and input_type == "uint8":
        raise UserError(
            "--c_array goes with --input_type=int8 or float32: pixels are looked up after a"
            " CAST that TensorFlow Lite Micro lacks. Received: --input_type=uint8"
        )
    return input_type


def check_values(s):
    """Refuses values out of range.

    Args:
        s: The `settings.Settings`.
    """
    _number("width", s.width, 0, open_end=True)
    _number("epochs", s.epochs, 0, open_end=True)
    _number("qat_epochs", s.qat_epochs, 0)
    _number("learning_rate", s.learning_rate, 0, open_end=True)
    _number("qat_learning_rate", s.qat_learning_rate, 0, open_end=True)
    _number("weight_decay", s.weight_decay, 0)
    _number("batch_size", s.batch_size, 1)
    _number("calibration_images", s.calibration_images, 1)
    _number("seed", s.seed, 0)
    if s.seed >= 2**32:
        raise UserError(f"--seed must be less than 2**32. Received: {s.seed}")
    if s.image_size is not None:
        _number("image_size", s.image_size, 1)
    one_of("augment", s.augment, ("auto", *AUGMENTATIONS))
    _number("randaugment", s.randaugment, 0)
    _number("mixup", s.mixup, 0)
    _number("label_smoothing", s.label_smoothing, 0)
    if s.label_smoothing >= 1:
        raise UserError(f"--label_smoothing must be less than 1. Received: {s.label_smoothing}")
    if s.task == "super_resolution":
        _number("scale", s.scale, 2)
        one_of("color", s.color, COLORS)
        _number("patch_size", s.patch_size, 1)
        _number("crops_per_image", s.crops_per_image, 1)
    if not s.dataset:
        raise UserError("--dataset must name a data set. Received an empty string")
    if s.init_from and not os.path.exists(s.init_from):
        raise UserError(
            "--init_from must be a .keras file or the folder of an earlier run."
            f" Received: {s.init_from}, which does not exist"
        )


def split_test_sets(text):
    """Returns the test sets of `--test_sets`, name -> folder, in their order."""
    tests = {}
    for item in text.split(",") if text else ():
        name, colon, path = item.partition(":")
        if not (name.isidentifier() and colon and path) or name in tests:
            raise UserError(
                "--test_sets must be NAME:PATH,NAME:PATH,... with different names of letters"
                f" and digits. Received: {item!r}"
            )
        tests[name] = path
    return tests


def _number(name, value, low, open_end=False):
    """Refuses what is not a finite number above `low`."""
    good = isinstance(value, (int, float)) and math.isfinite(value)
    if not (good and (value > low if open_end else value >= low)):
        bound = f"greater than {low}" if open_end else f"at least {low}"
        raise UserError(f"--{name} must be {bound}. Received: {value}")


def one_of(name, value, allowed):
    """Refuses a value that is not among those allowed, with the nearest one that is."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), list(allowed), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--{name} must be one of: {', '.join(allowed)}. Received: {value!r}.{hint}"
        )
