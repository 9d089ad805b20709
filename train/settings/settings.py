"""The settings of a run: everything that decides its result, checked and complete."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from repq_tf.train.settings import checks
from repq_tf.train.settings.flags import FLAGS, OWN_TEACHER, WIDE_BITS, fill
from repq_tf.train.settings.recipes import Recipe, find_recipe

_MODELS = {"classification": "ac_resnet18", "super_resolution": "ecbsr_m4c8"}

# `--bits` becomes the other two; what a recipe alone decides is no flag.
_FLAGS = [(name, flag.kind.type | None) for name, flag in FLAGS.items() if name != "bits"]
_FIELDS = _FLAGS + [(f.name, f.type) for f in dataclasses.fields(Recipe) if f.name not in FLAGS]

_Values: Any = dataclasses.make_dataclass("_Values", _FIELDS, frozen=True)


class Settings(_Values):
    """One run. Made by `resolve`, which fills in defaults and checks every value.

    Attributes mirror the flags of `main.py`; `optimizer`, `schedule`, `decay`, `warmup_epochs`
    and `branch_gamma` come from the recipe.
    `sync_bn`, `jit_compile` and `deterministic` stay `None` where the machine decides, and so
    do the flags of another task. `test_sets` are written as in the flag, with whole paths.
    """

    @property
    def teacher_path(self) -> str | None:
        """Where the teacher of `--distill` lies, if it is not the run's own float network."""
        return None if self.distill == OWN_TEACHER else self.distill

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as a dictionary of plain values."""
        return dataclasses.asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Compares with the settings another run left behind.

        Args:
            other: What `as_dict` returned for that run. What it lacks became a flag later, and
                had the value of that flag's default.

        Returns:
            List of `(name, here, there)`, of settings that decide the result.
        """
        older = {**fill({}), "task": "classification", **other}
        there = {**_complete(older), **other}
        return [
            (name, here, there[name])
            for name, here in self.as_dict().items()
            if there[name] != here and (name not in FLAGS or FLAGS[name].compared)
        ]


def resolve(**given: Any) -> Settings:
    """Checks the values of flags, fills in what was not given, and returns `Settings`.

    Args:
        **given: Flag name -> value, for the flags of `flags.FLAGS`, which documents them;
            `None` means "not given".

    Raises:
        UserError: Naming the flag, what was received and what is allowed.
    """
    values = fill(given)
    task = values["task"] = checks.find_task(values["task"], values["model"])
    checks.check_task_flags(task, values)
    values["dataset"] = values["dataset"] or checks.DATASETS[task][0]
    checks.check_conflicts(values)
    values["model"] = values["model"] or _upgraded(values["upgrade"]) or _MODELS[task]
    checks.check_dataset(values["dataset"], task, values["data_dir"])
    settings = Settings(**_complete(_with_whole_paths(values)))
    checks.check_float_model("init_from", settings.init_from)
    checks.check_float_model("upgrade", settings.upgrade)
    checks.check_float_model("distill", settings.teacher_path)
    checks.check_file(settings)
    return settings


def _complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of all fields; what is `None` gets what the others imply.

    Args:
        values: Field or flag name -> value; those of `task`, `model` and `dataset` are not
            `None`.
    """
    values = dict(values)
    bits, upscales = values.pop("bits") or 8, values["task"] == "super_resolution"
    recipe = find_recipe(values["model"], values["dataset"], values["task"])
    implied = {
        **dataclasses.asdict(recipe),
        "branch_gamma": None if values["method"] == "plain" else recipe.branch_gamma,
        "bn_statistics": "restored",
        "merged_bn": not upscales,
        "ranges": None if values["method"] == "ptq" else "min_error",
        "rounding": "nearest",
        "weight_bits": bits,
        "activation_bits": bits,
        "input_type": "int16" if values["activation_bits"] == WIDE_BITS else "int8",
        "scale": 2 if upscales else None,
        "color": "y" if upscales else None,
    }
    if values["upgrade"] is not None:  # trained before; the second training is half as long
        epochs = recipe.qat_epochs if values["epochs"] is None else values["epochs"]
        implied |= {
            "epochs": epochs,
            "qat_epochs": epochs / 2,
            "learning_rate": recipe.qat_learning_rate,
            "distill": OWN_TEACHER,
        }
    if values["method"] == "ptq":
        implied["qat_epochs"] = 0.0
    values |= {name: value for name, value in implied.items() if values.get(name) is None}
    values["workdir"] = values["workdir"] or _default_workdir(values)
    return values


def _upgraded(path: str | None) -> str | None:
    """The name of the network in a file, if there is one."""
    return path and os.path.splitext(os.path.basename(_absolute(path)))[0]


def _default_workdir(values: Mapping[str, Any]) -> str:
    """Returns a run folder named after what users compare."""
    weight_bits, activation_bits = values["weight_bits"], values["activation_bits"]
    if weight_bits == activation_bits:
        bits = f"{weight_bits}bit"
    else:
        bits = f"w{weight_bits}a{activation_bits}bit"
    if values["quantizer"] == "tfmot":
        bits += "-tfmot"
    if values["container"] != "int8":
        bits += f"-{values['container']}"
    if values["input_type"] not in ("int8", "int16"):
        bits += f"-{values['input_type']}_input"
    model, name = values["model"], values["dataset"]
    if values["scale"]:
        model += f"-x{values['scale']}"
    if name.startswith(checks.FOLDER):
        name = os.path.basename(name)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return os.path.join("runs", f"{model}-{values['method']}-{bits}-{name}")


def _with_whole_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with paths that mean the same wherever the run is continued."""
    dataset, tests = values["dataset"], checks.split_test_sets(values["test_sets"])
    if dataset.startswith(checks.FOLDER):
        dataset = f"{checks.FOLDER}{_absolute(dataset.removeprefix(checks.FOLDER))}"
    tests = ",".join(f"{name}:{_absolute(path)}" for name, path in tests.items())
    paths = {"dataset": dataset, "test_sets": tests or None}
    for name in ("data_dir", "init_from", "upgrade", "distill"):
        keeps = name == "distill" and values[name] == OWN_TEACHER
        paths[name] = values[name] if keeps else values[name] and _absolute(values[name])
    return {**values, **paths}


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
