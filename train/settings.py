"""The settings of a run: everything that decides its result, checked and complete."""

import dataclasses
import difflib
import importlib
import math
import os

from repq_tf.models import list_models
from repq_tf.train.data.augment import KINDS
from repq_tf.train.errors import UserError
from repq_tf.train.recipes import find_recipe

METHODS = ("plain", "merged", "repq")
QUANTIZERS = ("keras", "tfmot")
BN_STATISTICS = ("restored", "batch", "estimate", "sample", "running")
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "data_parallel")
PRECISIONS = ("none", "bfloat16", "float16")
CONTAINERS = ("int8", "int4")
BITS = range(2, 9)

# What may differ when a run is continued: where things lie and how much is printed.
_NOT_COMPARED = ("workdir", "data_dir", "verbose")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run. Made by `resolve`, which fills in defaults and checks every value.

    Attributes mirror the flags of `main.py`; `decay`, `warmup_epochs` and `branch_gamma` come
    from the recipe.
    `sync_bn`, `jit_compile` and `deterministic` stay `None` where the machine decides.
    """

    model: str
    method: str
    bn_statistics: str
    merged_bn: bool
    weight_bits: int
    activation_bits: int
    quantizer: str
    container: str
    dataset: str
    data_dir: str | None
    image_size: int | None
    width: float
    epochs: float
    qat_epochs: float
    learning_rate: float
    qat_learning_rate: float
    weight_decay: float
    decay: str
    warmup_epochs: float
    augment: str
    randaugment: int
    mixup: float
    label_smoothing: float
    cache: bool
    skip_bad_images: bool
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
    model="ac_resnet18",
    method="repq",
    bn_statistics=None,
    merged_bn=None,
    bits=None,
    weight_bits=None,
    activation_bits=None,
    quantizer="keras",
    container="int8",
    dataset="digits",
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
    _check_model(model)
    _one_of("method", method, METHODS)
    _one_of("quantizer", quantizer, QUANTIZERS)
    _one_of("container", container, CONTAINERS)
    _one_of("strategy", strategy, STRATEGIES)
    _one_of("mixed_precision", mixed_precision, PRECISIONS)
    _check_conflicts(locals())
    if dataset.startswith("folder:"):
        dataset = f"folder:{_absolute(dataset.removeprefix('folder:'))}"
    weight_bits, activation_bits = _bits(bits, weight_bits, activation_bits)
    if container == "int4" and weight_bits > 4:
        raise UserError(
            "--container=int4 stores weights of at most 4 bits; set --weight_bits or --bits."
            f" Received: weights of {weight_bits} bits"
        )
    recipe = find_recipe(model, dataset)
    chosen = Settings(
        model=model,
        method=method,
        bn_statistics=_default(bn_statistics, "restored"),
        merged_bn=_default(merged_bn, True),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        quantizer=quantizer,
        container=container,
        dataset=dataset,
        data_dir=data_dir and _absolute(data_dir),
        image_size=image_size,
        width=width,
        epochs=_default(epochs, recipe.epochs),
        qat_epochs=_default(qat_epochs, recipe.qat_epochs),
        learning_rate=_default(learning_rate, recipe.learning_rate),
        qat_learning_rate=_default(qat_learning_rate, recipe.qat_learning_rate),
        weight_decay=_default(weight_decay, recipe.weight_decay),
        decay=recipe.decay,
        warmup_epochs=recipe.warmup_epochs,
        augment=_default(augment, recipe.augment),
        randaugment=randaugment,
        mixup=mixup,
        label_smoothing=label_smoothing,
        cache=cache,
        skip_bad_images=skip_bad_images,
        branch_gamma=None if method == "plain" else recipe.branch_gamma,
        batch_size=_default(batch_size, recipe.batch_size),
        calibration_images=calibration_images,
        seed=seed,
        deterministic=deterministic,
        workdir=workdir
        or _default_workdir(
            model, method, weight_bits, activation_bits, quantizer, container, dataset
        ),
        init_from=init_from and _absolute(init_from),
        strategy=strategy,
        sync_bn=sync_bn,
        mixed_precision=mixed_precision,
        jit_compile=jit_compile,
        verbose=verbose,
    )
    _check_values(chosen)
    return chosen


def _check_model(name):
    """Refuses unknown models, and those of tasks that the program does not train."""
    trained = list_models("classification")
    if name in list_models() and name not in trained:
        raise UserError(
            f"--model={name} is no classification network, which is what this program trains."
            f" Those are: {', '.join(trained)}."
        )
    _one_of("model", name, trained)


def _check_conflicts(given):
    """Refuses pairs of flags of which one would be ignored."""
    method = given["method"]
    if given["bn_statistics"] is not None:
        _one_of("bn_statistics", given["bn_statistics"], BN_STATISTICS)
        if method != "repq":
            raise UserError(
                "--bn_statistics says how RepQ merges batch norms and goes with"
                f" --method=repq only. Received: --bn_statistics={given['bn_statistics']}"
                f" --method={method}"
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
    if given["quantizer"] == "tfmot":
        _check_tfmot(given["mixed_precision"])
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


def _check_tfmot(mixed_precision):
    """Imports TFMOT, which also makes its layers known to Keras; refuses what it cannot do."""
    try:
        importlib.import_module("repq_tf.tfmot")
    except ImportError as error:
        raise UserError(f"--quantizer=tfmot is not possible here: {error}") from error
    if mixed_precision != "none":
        raise UserError(
            "--quantizer=tfmot trains in float32: its wrappers do not cast."
            f" Received: --mixed_precision={mixed_precision}"
        )


def _bits(bits, weight_bits, activation_bits):
    for name, value in (
        ("bits", bits),
        ("weight_bits", weight_bits),
        ("activation_bits", activation_bits),
    ):
        if value is not None and value not in BITS:
            raise UserError(
                f"--{name} must be an integer from {BITS[0]} to {BITS[-1]}. Received: {value}"
            )
    default = _default(bits, 8)
    return _default(weight_bits, default), _default(activation_bits, default)


def _check_values(s):
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
    _one_of("augment", s.augment, ("auto", *KINDS))
    _number("randaugment", s.randaugment, 0)
    _number("mixup", s.mixup, 0)
    _number("label_smoothing", s.label_smoothing, 0)
    if s.label_smoothing >= 1:
        raise UserError(f"--label_smoothing must be less than 1. Received: {s.label_smoothing}")
    if not s.dataset:
        raise UserError("--dataset must name a data set. Received an empty string")
    if s.init_from and not os.path.exists(s.init_from):
        raise UserError(
            "--init_from must be a .keras file or the folder of an earlier run."
            f" Received: {s.init_from}, which does not exist"
        )


def _number(name, value, low, open_end=False):
    """Refuses what is not a finite number above `low`."""
    good = isinstance(value, (int, float)) and math.isfinite(value)
    if not (good and (value > low if open_end else value >= low)):
        bound = f"greater than {low}" if open_end else f"at least {low}"
        raise UserError(f"--{name} must be {bound}. Received: {value}")


def _one_of(name, value, allowed):
    if value not in allowed:
        near = difflib.get_close_matches(str(value), list(allowed), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--{name} must be one of: {', '.join(allowed)}. Received: {value!r}.{hint}"
        )


def _default_workdir(
    model, method, weight_bits, activation_bits, quantizer, container, dataset
):
    if weight_bits == activation_bits:
        bits = f"{weight_bits}bit"
    else:
        bits = f"w{weight_bits}a{activation_bits}bit"
    if quantizer == "tfmot":
        bits += "-tfmot"
    if container != "int8":
        bits += f"-{container}"
    name = dataset
    if dataset.startswith("folder:"):
        name = os.path.basename(dataset)
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return os.path.join("runs", f"{model}-{method}-{bits}-{name}")


def _absolute(path):
    return os.path.abspath(os.path.expanduser(path))


def _default(value, default):
    return default if value is None else value
