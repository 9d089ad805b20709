"""The settings of a run: everything that decides its result, checked and complete."""

import dataclasses
import inspect
import os

from repq_tf.train.settings import checks
from repq_tf.train.settings.recipes import find_recipe

# What may differ when a run is continued: where things lie, how much is printed, and what is
# written beside the file.
_NOT_COMPARED = ("workdir", "data_dir", "verbose", "c_array")

_MODELS = {"classification": "ac_resnet18", "super_resolution": "ecbsr_m4c8"}
_DATASETS = {"classification": "digits", "super_resolution": "photographs"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run. Made by `resolve`, which fills in defaults and checks every value.

    Attributes mirror the flags of `main.py`; `optimizer`, `schedule`, `decay`, `warmup_epochs`
    and `branch_gamma` come from the recipe.
    `sync_bn`, `jit_compile` and `deterministic` stay `None` where the machine decides, and so
    do the flags of another task. `test_sets` are written as in the flag, with whole paths.
    """

    task: str
    model: str
    method: str
    bn_statistics: str
    merged_bn: bool
    weight_bits: int
    activation_bits: int
    quantizer: str
    container: str
    input_type: str
    c_array: bool
    dataset: str
    data_dir: str | None
    image_size: int | None
    width: float
    epochs: float
    qat_epochs: float
    learning_rate: float
    qat_learning_rate: float
    weight_decay: float
    optimizer: str
    schedule: str
    decay: str
    warmup_epochs: float
    augment: str
    randaugment: int
    mixup: float
    label_smoothing: float
    cache: bool
    skip_bad_images: bool
    scale: int | None
    color: str | None
    test_sets: str | None
    patch_size: int | None
    crops_per_image: int | None
    branch_gamma: float | None
    batch_size: int
    calibration_images: int
    seed: int
    deterministic: bool | None
    workdir: str
    init_from: str | None
    strategy: str
    sync_bn: bool | None
    mixed_precision: str
    jit_compile: bool | None
    verbose: int

    def as_dict(self):
        """Returns the settings as a dictionary of plain values."""
        return dataclasses.asdict(self)

    def differences(self, other):
        """Compares with the settings another run left behind.

        Args:
            other: What `as_dict` returned for that run.

        Returns:
            List of `(name, here, there)`, of settings that decide the result.
        """
        mine = self.as_dict()
        names = [name for name in mine if name not in _NOT_COMPARED]
        missing = object()
        return [
            (name, mine[name], other.get(name))
            for name in names
            if other.get(name, missing) != mine[name]
        ]


def resolve(
    task=None,
    model=None,
    method="repq",
    bn_statistics=None,
    merged_bn=None,
    bits=None,
    weight_bits=None,
    activation_bits=None,
    quantizer="keras",
    container="int8",
    input_type=None,
    c_array=False,
    dataset=None,
    data_dir=None,
    image_size=None,
    width=1.0,
    epochs=None,
    qat_epochs=None,
    learning_rate=None,
    qat_learning_rate=None,
    weight_decay=None,
    augment=None,
    randaugment=0,
    mixup=0.0,
    label_smoothing=0.0,
    cache=False,
    skip_bad_images=False,
    scale=None,
    color=None,
    test_sets=None,
    patch_size=None,
    crops_per_image=None,
    batch_size=None,
    calibration_images=256,
    seed=0,
    deterministic=None,
    workdir=None,
    init_from=None,
    strategy="auto",
    sync_bn=None,
    mixed_precision="none",
    jit_compile=None,
    verbose=1,
):
    """Checks the arguments, fills in what was left `None`, and returns `Settings`.

    The arguments are the flags of `main.py`, which documents them; `None` means "not given".

    Raises:
        UserError: Naming the flag, what was received and what is allowed.
    """
    given = dict(locals())
    defaults = {n: p.default for n, p in inspect.signature(resolve).parameters.items()}
    task = checks.find_task(task, model)
    checks.check_task_flags(task, given, defaults)
    model = _default(model, _MODELS[task])
    checks.one_of("method", method, checks.METHODS)
    checks.one_of("quantizer", quantizer, checks.QUANTIZERS)
    checks.one_of("container", container, checks.CONTAINERS)
    checks.one_of("strategy", strategy, checks.STRATEGIES)
    checks.one_of("mixed_precision", mixed_precision, checks.PRECISIONS)
    checks.check_conflicts({**given, "task": task, "model": model})
    dataset = _default(dataset, _DATASETS[task])
    if dataset.startswith("folder:"):
        dataset = f"folder:{_absolute(dataset.removeprefix('folder:'))}"
    weight_bits, activation_bits = checks.find_bits(bits, weight_bits, activation_bits)
    checks.check_container(container, weight_bits)
    input_type = checks.find_input_type(input_type, activation_bits, c_array)
    recipe = find_recipe(model, dataset, task)
    upscales = task == "super_resolution"
    scale = _default(scale, 2) if upscales else None
    chosen = Settings(
        task=task,
        model=model,
        method=method,
        bn_statistics=_default(bn_statistics, "restored"),
        merged_bn=_default(merged_bn, not upscales),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        quantizer=quantizer,
        container=container,
        input_type=input_type,
        c_array=c_array,
        dataset=dataset,
        data_dir=data_dir and _absolute(data_dir),
        image_size=image_size,
        width=width,
        epochs=_default(epochs, recipe.epochs),
        qat_epochs=_default(qat_epochs, recipe.qat_epochs),
        learning_rate=_default(learning_rate, recipe.learning_rate),
        qat_learning_rate=_default(qat_learning_rate, recipe.qat_learning_rate),
        weight_decay=_default(weight_decay, recipe.weight_decay),
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        decay=recipe.decay,
        warmup_epochs=recipe.warmup_epochs,
        augment=_default(augment, recipe.augment),
        randaugment=randaugment,
        mixup=mixup,
        label_smoothing=label_smoothing,
        cache=cache,
        skip_bad_images=skip_bad_images,
        scale=scale,
        color=_default(color, "y") if upscales else None,
        test_sets=_absolute_tests(test_sets),
        patch_size=_default(patch_size, recipe.patch_size),
        crops_per_image=_default(crops_per_image, recipe.crops_per_image),
        branch_gamma=None if method == "plain" else recipe.branch_gamma,
        batch_size=_default(batch_size, recipe.batch_size),
        calibration_images=calibration_images,
        seed=seed,
        deterministic=deterministic,
        workdir=workdir
        or _default_workdir(
            f"{model}-x{scale}" if upscales else model,
            method,
            weight_bits,
            activation_bits,
            quantizer,
            container,
            input_type,
            dataset,
        ),
        init_from=init_from and _absolute(init_from),
        strategy=strategy,
        sync_bn=sync_bn,
        mixed_precision=mixed_precision,
        jit_compile=jit_compile,
        verbose=verbose,
    )
    checks.check_values(chosen)
    return chosen


def _default_workdir(
    model, method, weight_bits, activation_bits, quantizer, container, input_type, dataset
):
    if weight_bits == activation_bits:
        bits = f"{weight_bits}bit"
    else:
        bits = f"w{weight_bits}a{activation_bits}bit"
    if quantizer == "tfmot":
        bits += "-tfmot"
    if container != "int8":
        bits += f"-{container}"
    if input_type not in ("int8", "int16"):
        bits += f"-{input_type}_input"
    name = dataset
    if dataset.startswith("folder:"):
        name = os.path.basename(dataset)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return os.path.join("runs", f"{model}-{method}-{bits}-{name}")


def _absolute_tests(text):
    """Returns `--test_sets` with whole paths, or `None`."""
    tests = checks.split_test_sets(text)
    return ",".join(f"{name}:{_absolute(path)}" for name, path in tests.items()) or None


def _absolute(path):
    return os.path.abspath(os.path.expanduser(path))


def _default(value, default):
    return default if value is None else value
