"""Checks of flags that belong together, before any time is spent; all raise `UserError`."""

import importlib.util
import os
from typing import Any

from repq_tf.model_names import MODELS, list_models
from repq_tf.train.errors import UserError
from repq_tf.train.settings.flags import FLAGS, WIDE_BITS
from repq_tf.train.settings.kinds import did_you_mean
from repq_tf.train.settings.recipes import BY_DATASET

WIDE_INPUT_TYPES = ("int16", "float32")
INPUT_TYPES = ("int8", "uint8", "float32")

# What `--dataset` may name beside folders: task -> names, the default first; for classification
# all other names of TFDS too.
DATASETS = {
    "classification": ("digits", *(name for name in BY_DATASET if name != "digits")),
    "super_resolution": ("photographs", "div2k"),
}
_NAMES = {
    "classification": "digits, folder:PATH, or a TFDS name such as cifar10 or imagenet2012",
    "super_resolution": "photographs, folder:PATH or div2k",
}
# Those that are not of TFDS.
_OWN = ("digits", "photographs")
FOLDER = "folder:"


def find_task(task: str | None, model: str | None) -> str:
    """Returns the task of a run, from `--task` or the model.

    Args:
        task: What `--task` says, or `None`.
        model: What `--model` says, or `None`.
    """
    if model is None:
        return task or "classification"
    if model not in MODELS:
        names = list_models(task)
        raise UserError(
            f"--model must be one of: {', '.join(names)}. Received: {model!r}"
            f"{did_you_mean(model, names)}"
        )
    if task not in (None, MODELS[model].task):
        raise UserError(
            f"--model={model} is a network for {MODELS[model].task}, not for --task={task}."
            f" Networks for that are: {', '.join(list_models(task))}."
        )
    return MODELS[model].task


def check_task_flags(task: str, values: dict[str, Any]) -> None:
    """Refuses flags of another task.

    Args:
        task: The task of the run.
        values: Flag name -> value.
    """
    for name, flag in FLAGS.items():
        if flag.task not in (None, task) and values[name] != flag.default:
            raise UserError(
                f"--{name} is of --task={flag.task} and has no meaning for {task}."
                f" Received: --{name}={values[name]}"
            )


def check_conflicts(values: dict[str, Any]) -> None:
    """Refuses pairs of flags of which one would be ignored.

    Args:
        values: Flag name -> value; those of `task` and `model` are found.
    """
    method, model = values["method"], values["model"]
    upscales = values["task"] == "super_resolution"
    if values["bn_statistics"] is not None:
        if method != "repq":
            raise UserError(
                "--bn_statistics says how RepQ merges batch norms and goes with"
                f" --method=repq only. Received: --bn_statistics={values['bn_statistics']}"
                f" --method={method}"
            )
        if upscales:
            raise UserError(
                f"--bn_statistics says how RepQ merges batch norms, and --model={model} has"
                f" none. Received: --bn_statistics={values['bn_statistics']}"
            )
    if upscales and values["sync_bn"] is not None:
        raise UserError(
            f"--sync_bn says how devices train batch norms, and --model={model} has none."
            f" Received: --sync_bn={values['sync_bn']}"
        )
    if values["merged_bn"] is not None and method != "merged":
        raise UserError(
            "--merged_bn goes with --method=merged only."
            f" Received: --merged_bn={values['merged_bn']} --method={method}"
        )
    _check_post_training(values)
    if values["upgrade"] is not None:
        for name in ("model", "width", "init_from"):
            if values[name] != FLAGS[name].default:
                raise UserError(
                    f"--upgrade is itself the network, and --{name} has no meaning beside it."
                    f" Received: --upgrade={values['upgrade']} --{name}={values[name]}"
                )
        if method != "repq":
            raise UserError(
                "--upgrade re-parameterizes a network for --method=repq. Received:"
                f" --upgrade={values['upgrade']} --method={method}"
            )
    if values["bits"] is not None:
        for name in ("weight_bits", "activation_bits"):
            if values[name] is not None:
                raise UserError(
                    "--bits sets the bits of weights and activations; give either --bits, or"
                    " --weight_bits and --activation_bits."
                    f" Received: --bits={values['bits']} --{name}={values[name]}"
                )
    if values["wide_tap"] and values["container"] == "int4":
        raise UserError(
            "--wide_tap gives weights 8 bits, which --container=int4 cannot hold. Received:"
            " both"
        )
    if values["weight_levels"] == "cluster":
        for name, value in (("wide_tap", True), ("container", "int4")):
            if values[name] == value:
                raise UserError(
                    "--weight_levels=cluster has codes of 8 bits where the weights are, and"
                    f" goes with --{name}={FLAGS[name].default} only. Received: {value}"
                )
    if values["anneal_identities"] and not (values["finetune_epochs"] and method == "repq"):
        raise UserError(
            "--anneal_identities goes with --finetune_epochs and --method=repq. Received:"
            f" --finetune_epochs={values['finetune_epochs']} --method={method}"
        )
    temperature = values["distill_temperature"]
    if values["distill"] is None and temperature != FLAGS["distill_temperature"].default:
        raise UserError(
            f"--distill_temperature goes with --distill. Received: {temperature} alone"
        )
    if values["c_array"] and upscales:
        raise UserError(
            "--c_array is for files that take inputs of one size, and those of"
            " --task=super_resolution take images of any size; export the run's model with"
            " repq_tf.export_tflite(..., input_shape=(h, w, c)) and then use"
            f" repq_tf.export_c_array. Received: --c_array --model={model}"
        )
    if values["quantizer"] == "tfmot":
        _check_tfmot(values["task"], values["mixed_precision"], values["activation_bits"])
    if values["strategy"] == "data_parallel" and values["sync_bn"] is False:
        raise UserError(
            "--strategy=data_parallel always synchronises batch norm: JAX's arrays are those of"
            " all devices. Received: --sync_bn=false"
        )
    if values["init_from"] is not None:
        for name in ("epochs", "learning_rate"):
            if values[name] is not None:
                raise UserError(
                    "--init_from takes the float weights from an earlier run, so the float"
                    f" stage does not run and --{name} has no meaning."
                    f" Received: --init_from={values['init_from']} --{name}={values[name]}"
                )


def _check_post_training(values: dict[str, Any]) -> None:
    """Refuses flags of quantization without training beside the rest, and the reverse."""
    alone = values["method"] == "ptq"
    if not alone and values["rounding"] is not None:
        raise UserError(
            "--rounding goes with --method=ptq only; training moves the weights."
            f" Received: --rounding={values['rounding']} --method={values['method']}"
        )
    if alone:
        for name in (
            "qat_epochs",
            "finetune_epochs",
            "restore_batch_norm",
            "weight_levels",
            "wide_tap",
            "dampening",
            "step_rate",
            "distill",
        ):
            if values[name] and values[name] != FLAGS[name].default:
                raise UserError(
                    f"--{name} goes with methods that train quantized, and --method=ptq does"
                    f" not. Received: --{name}={values[name]}"
                )
    if values["quantizer"] == "tfmot":
        for name in (
            "equalize",
            "restore_batch_norm",
            "ranges",
            "finetune_epochs",
            "dampening",
            "step_rate",
        ):
            if values[name] and values[name] != FLAGS[name].default:
                raise UserError(
                    f"--{name} goes with --quantizer=keras only."
                    f" Received: --{name}={values[name]} --quantizer=tfmot"
                )
        if values["weight_levels"] == "cluster":
            raise UserError(
                "--weight_levels=cluster goes with --quantizer=keras only."
                " Received: --weight_levels=cluster --quantizer=tfmot"
            )
        if alone:
            raise UserError(
                "--method=ptq goes with --quantizer=keras only. Received: --quantizer=tfmot"
            )


def _check_tfmot(task: str, mixed_precision: str, activation_bits: int | None) -> None:
    """Refuses what TFMOT cannot do, as far as it is known before TFMOT is imported."""
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
    if mixed_precision != "none":
        raise UserError(
            "--quantizer=tfmot trains in float32: its wrappers do not cast."
            f" Received: --mixed_precision={mixed_precision}"
        )
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        raise UserError(
            "--quantizer=tfmot is not possible here: it needs tensorflow-model-optimization,"
            ' pip install "repq_tf[tfmot]"'
        )


def check_dataset(dataset: str, task: str, data_dir: str | None = None) -> None:
    """Refuses data sets of another task, misspelt names of ours, and `--data_dir` beside them.

    Args:
        dataset: What `--dataset` says.
        task: The task of the run.
        data_dir: What `--data_dir` says, or `None`.
    """
    if dataset.startswith(FOLDER):
        if not dataset.removeprefix(FOLDER).strip():
            raise UserError(
                f"--dataset={FOLDER}PATH must name a folder. Received: {dataset!r}, without one"
            )
    else:
        _check_name(dataset, task)
    if data_dir is not None and dataset.startswith((FOLDER, *_OWN)):
        raise UserError(
            "--data_dir is where TFDS sets lie and has no meaning with this data set."
            f" Received: --data_dir={data_dir} --dataset={dataset}"
        )


def _check_name(dataset: str, task: str) -> None:
    """Refuses a name that cannot be that of a data set of the task."""
    name = dataset.split("/")[0].split(":")[0]
    known = DATASETS[task]
    problem = None  # what is wrong, after what was received
    for other, names in DATASETS.items():
        if other != task and name in names:
            problem = f", which is a data set for --task={other}"
    if name in _OWN and name != dataset:
        problem = f": {name} has no configurations or versions"
    elif name not in known and (task == "super_resolution" or name.lower() in known):
        problem = problem or did_you_mean(name, known)
    if problem is not None:
        raise UserError(
            f"--dataset must be {_NAMES[task]} for --task={task}."
            f" Received: {dataset!r}{problem}"
        )


def check_float_model(flag: str, path: str | None) -> None:
    """Refuses a float network that is not there.

    Args:
        flag: Name of the flag that names it.
        path: What the flag says, or `None`.
    """
    if path is not None and not os.path.exists(path):
        raise UserError(
            f"--{flag} must be a .keras file or the folder of an earlier run."
            f" Received: {path}, which does not exist"
        )


def check_file(settings: Any) -> None:
    """Refuses an exported file that cannot be.

    Args:
        settings: The `settings.Settings`.
    """
    s, wide = settings, settings.activation_bits == WIDE_BITS
    allowed = WIDE_INPUT_TYPES if wide else INPUT_TYPES
    if s.input_type not in allowed:
        raise UserError(
            f"--input_type must be one of: {', '.join(allowed)}, with activations of"
            f" {s.activation_bits} bits. Received: {s.input_type!r}"
        )
    if s.container == "int4" and s.weight_bits > 4:
        raise UserError(
            "--container=int4 stores weights of at most 4 bits; set --weight_bits or --bits."
            f" Received: weights of {s.weight_bits} bits"
        )
    if s.c_array and s.input_type == "uint8":
        raise UserError(
            "--c_array goes with --input_type=int8 or float32: pixels are looked up after a"
            " CAST that TensorFlow Lite Micro lacks. Received: --input_type=uint8"
        )


def split_test_sets(text: str | None) -> dict[str, str]:
    """Returns the test sets of `--test_sets`, name -> folder, in their order."""
    tests = {}
    for item in text.split(",") if text else ():
        name, colon, path = item.partition(":")
        if not (name.isidentifier() and colon and path.strip()) or name in tests:
            raise UserError(
                "--test_sets must be NAME:PATH,NAME:PATH,... with different names of letters"
                f" and digits. Received: {item!r}"
            )
        tests[name] = path
    return tests


def check_paths(settings: Any) -> None:
    """Makes sure that the folders which flags name are there.

    Args:
        settings: The `settings.Settings`.
    """
    if settings.dataset.startswith(FOLDER):
        check_dataset_folder(settings.dataset.removeprefix(FOLDER))
    for name, path in split_test_sets(settings.test_sets).items():
        check_test_set(name, path)
    check_data_dir(settings.data_dir)


def check_dataset_folder(path: str) -> None:
    """Makes sure that the folder of `--dataset=folder:PATH` is there."""
    if not os.path.isdir(path):
        raise UserError(
            "--dataset=folder:PATH must name an existing folder: for classification with one"
            " folder of images per class, for super resolution of photographs."
            f" Received: {path}, which is not a folder"
        )


def check_test_set(name: str, path: str) -> None:
    """Makes sure that a folder of `--test_sets` is there."""
    if not os.path.isdir(os.path.expanduser(path)):
        raise UserError(
            "--test_sets=NAME:PATH,... must name folders of photographs."
            f" Received: {name}:{path}, and {path} is not a folder"
        )


def check_data_dir(path: str | None) -> None:
    """Makes sure that the folder of `--data_dir` is there, if it is given."""
    if path and not os.path.isdir(path):
        raise UserError(
            "--data_dir must be an existing folder: TFDS reads prepared data sets from it,"
            f" or downloads into it. Received: {path}"
        )
