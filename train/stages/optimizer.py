"""The optimizer of both training stages."""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array, keras, variable_path
from repq_tf.optimizers import RepOptimizer

MOMENTUM = 0.9


def make_optimizer(
    model: keras.Model,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    kind: str = "sgd",
    schedule: str = "cosine",
    step_rate: float = 1.0,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer for a model, its learning rate a function of its iteration.

    With SGD, `weight_decay` is the coefficient of the papers, whose optimizers add
    `weight_decay * weight` to the gradient. Keras subtracts `learning_rate * weight_decay *
    weight` beside the momentum, which gathers no speed; dividing by `1 - momentum` makes the
    two decay equally fast. With Adam it is Keras's own, decoupled from the gradient.

    Args:
        model: The model to train.
        learning_rate: Its peak.
        steps: Number of training steps.
        warmup_steps: Steps over which the learning rate rises linearly to its peak.
        weight_decay: L2 coefficient.
        decay: `"kernels"` decays kernels only, `"gains"` also the vectors that scale branches
            (OREPA's), `"all"` also biases and batch norms. Step sizes and codes of quantizers
            are never decayed.
        kind: `"sgd"`, with momentum, or `"adam"`.
        schedule: `"cosine"` decay to zero, or `"constant"`, without warm-up.
        step_rate: The learning rate of quantizers' steps, in parts of the others'.

    Returns:
        A Keras optimizer.
    """
    rate = _schedule(schedule, learning_rate, steps, warmup_steps)
    if kind == "adam":
        optimizer = keras.optimizers.Adam(rate, weight_decay=weight_decay or None)
    else:
        optimizer = keras.optimizers.SGD(
            rate, momentum=MOMENTUM, weight_decay=weight_decay / (1 - MOMENTUM) or None
        )
    if weight_decay:
        spared = [
            v for v in model.trainable_variables if not is_decayed(variable_path(v), decay)
        ]
        optimizer.exclude_from_weight_decay(var_list=spared)
    steps_of_grids = [v for v in model.trainable_variables if _is_step(variable_path(v))]
    if step_rate != 1 and steps_of_grids:
        rates: dict[str | int, Array] = {
            variable_path(v): np.full(v.shape, step_rate) for v in steps_of_grids
        }
        return RepOptimizer(optimizer, rates, scale_updates=kind == "adam")
    return optimizer


def _schedule(name: str, learning_rate: float, steps: int, warmup_steps: int) -> Any:
    """The learning rate as a function of the iteration."""
    if name == "constant":
        return learning_rate
    warmup_steps = min(warmup_steps, steps - 1)
    cosine = keras.optimizers.schedules.CosineDecay
    if warmup_steps > 0:
        return cosine(
            learning_rate / warmup_steps,
            decay_steps=steps - warmup_steps,
            warmup_target=learning_rate,
            warmup_steps=warmup_steps,
        )
    return cosine(learning_rate, decay_steps=steps)


def _is_step(path: str) -> bool:
    return "step" in path.split("/")[-1]


def is_decayed(path: str, decay: str) -> bool:
    """Says whether the variable of this path is decayed (see `make_optimizer`)."""
    name = path.split("/")[-1]
    if _is_step(path) or name == "codes":
        return False
    return decay == "all" or name.endswith("kernel") or (decay, name) == ("gains", "gain")
