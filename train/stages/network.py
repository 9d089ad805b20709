"""What becomes of the float network of a run: prepared, quantized, watched."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

import repq_tf
from repq_tf import quantization, quantizers
from repq_tf.callbacks import identity_norms
from repq_tf.keras_api import keras, ops
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint
from repq_tf.train.run.run_folder import find_float_model
from repq_tf.train.settings import Settings
from repq_tf.train.stages import tfmot
from repq_tf.train.tasks.base import Task
from repq_tf.upgrading import returns_probabilities


def check(model: keras.Model, settings: Settings) -> None:
    """Raises UserError if a network cannot be quantized, before it is trained."""
    checks = {"keras": quantization.check_quantizable, "tfmot": tfmot.check_quantizable}
    with _named(f"--model={settings.model} cannot be quantized"):
        checks[settings.quantizer](
            model,
            weight_bits=settings.weight_bits,
            activation_bits=settings.activation_bits,
        )
    if settings.anneal_identities and not identity_norms(model):
        raise UserError(
            "--anneal_identities is for networks with identity branches that have batch norms"
            f" of their own, such as repvgg_a0. Received: --model={settings.model}"
        )


def upgraded(settings: Settings, task: Task, synchronized: bool) -> keras.Model:
    """The network of `--upgrade`, re-parameterized.

    Args:
        settings: The run's `settings.Settings`.
        task: The `tasks.base.Task`.
        synchronized: Whether its batch norms share moments.

    Raises:
        UserError: If there is none in the file, or it is none for this data.
    """
    model = checkpoint.load_model(find_float_model(settings.upgrade, "upgrade"))
    with _named(f"--upgrade={settings.upgrade} is not possible"):
        images = task.calibration_data(settings.calibration_images)
        wanted = images.shape[1:], (len(task.labels or ()),)
        shapes = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
        if shapes != wanted:
            raise ValueError(
                f"the data has images and classes of {wanted}, and the network {shapes}"
            )
        if returns_probabilities(model):
            raise ValueError(
                "it must return logits, and returns their softmax; repq_tf.upgrade takes both"
            )
        pattern = {"pattern": "acnet", "options": {"synchronized": synchronized}}
        return repq_tf.reparameterize(model, pattern, images, None, bool(settings.verbose))


def check_teacher(model: keras.Model, teacher: keras.Model, settings: Settings) -> None:
    """Raises UserError if a network cannot learn from the teacher of `--distill`."""
    with _named(f"--distill={settings.distill} cannot teach --model={settings.model}"):
        shapes = [tuple(net.input_shape[1:]) for net in (model, teacher)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"images are {shapes[0]}, and the teacher's {shapes[1]}")
        repq_tf.Distiller(model, teacher)


def is_prepared(settings: Settings) -> bool:
    """Whether the float network is changed before it is trained quantized."""
    changes = settings.equalize or settings.restore_batch_norm or settings.finetune_epochs
    return settings.method != "ptq" and bool(changes)


def prepare(model: keras.Model, settings: Settings, task: Task) -> keras.Model:
    """Merges, equalizes and gives batch norms back, as the method and the flags say.

    Args:
        model: The float network.
        settings: The run's `settings.Settings`.
        task: The `tasks.base.Task`.

    Raises:
        UserError: If a flag's work is not possible with this network.
    """
    images = task.calibration_data(settings.calibration_images)
    options = {
        "calibration_images": settings.calibration_images,
        "verbose": bool(settings.verbose),
    }
    if settings.method == "merged":
        model = repq_tf.merge(model)
    if settings.equalize:
        with _named("--equalize is not possible"):
            model = repq_tf.equalize(model, images, **options).model
    if settings.restore_batch_norm:
        with _named("--restore_batch_norm is not possible"):
            model = repq_tf.restore_batch_norm(model, images, **options)
    return model


def quantize(model: keras.Model, settings: Settings, task: Task) -> keras.Model:
    """The quantized network, calibrated; of `--method=ptq` what is exported.

    Args:
        model: The float network, prepared if the settings say so.
        settings: The run's `settings.Settings`.
        task: The `tasks.base.Task`.

    Raises:
        UserError: If the network cannot be quantized.
    """
    work: Callable[..., keras.Model] = repq_tf.quantize
    options = task.quantize_options()
    if settings.method != "ptq":
        options |= {"weight_levels": settings.weight_levels, "wide_tap": settings.wide_tap}
    if settings.quantizer == "tfmot":
        work = tfmot.quantize
    else:
        if settings.ranges is not None:
            options |= dict.fromkeys(("weight_range", "activation_range"), settings.ranges)
        if settings.method != "ptq":
            options["dampening"] = settings.dampening
    if settings.method == "ptq":
        work = repq_tf.post_training_quantize
        options |= {"rounding": settings.rounding, "equalize": settings.equalize}
    else:
        options["step_gradient"] = settings.step_gradient
    if settings.method == "repq":
        options["bn_statistics"] = settings.bn_statistics
    elif settings.method == "merged":
        model = model if is_prepared(settings) else repq_tf.merge(model)
        options["restore_batch_norm"] = settings.merged_bn
    with _named("The float network cannot be quantized"):
        return work(
            model,
            weight_bits=settings.weight_bits,
            activation_bits=settings.activation_bits,
            calibration_data=task.calibration_data(settings.calibration_images),
            calibration_images=settings.calibration_images,
            verbose=bool(settings.verbose),
            **options,
        )


def scalars(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Every quantizer's step size, averaged over channels, and clip rate.

    Args:
        model: A quantized network in our own layers.
        images: Images that it sees.
    """
    steps = {
        f"step/{name}": float(np.mean(ops.convert_to_numpy(quantizer.step)))
        for name, quantizer in quantizers.find(model).items()
    }
    rates = quantization.clip_rates(model, images)
    return steps | {f"clip_rate/{name}": float(rate) for name, rate in rates.items()}


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Makes a user's error of a network's ValueError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
