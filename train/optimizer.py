"""The optimizer of both training stages: SGD with momentum and a cosine learning rate."""

from repq_tf.keras_api import keras, variable_path

MOMENTUM = 0.9


def make_optimizer(
    model, learning_rate, steps, warmup_steps=0, weight_decay=0.0, decay="kernels"
):
    """Returns SGD for a model, its learning rate a function of the optimizer's iteration.

    `weight_decay` is the coefficient of the papers, whose optimizers add
    `weight_decay * weight` to the gradient. Keras subtracts `learning_rate * weight_decay *
    weight` beside the momentum, which gathers no speed; dividing by `1 - momentum` makes the
    two decay equally fast.

    Args:
        model: The model to train.
        learning_rate: Its peak; cosine decay to zero.
        steps: Number of training steps.
        warmup_steps: Steps over which the learning rate rises linearly to its peak.
        weight_decay: L2 coefficient.
        decay: `"kernels"` decays kernels only, `"gains"` also the vectors that scale branches
            (OREPA's), `"all"` also biases and batch norms. Step sizes of quantizers are never
            decayed.

    Returns:
        A `keras.optimizers.SGD`.
    """
    warmup_steps = min(warmup_steps, steps - 1)
    if warmup_steps > 0:
        schedule = keras.optimizers.schedules.CosineDecay(
            learning_rate / warmup_steps,
            decay_steps=steps - warmup_steps,
            warmup_target=learning_rate,
            warmup_steps=warmup_steps,
        )
    else:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps=steps)
    optimizer = keras.optimizers.SGD(
        schedule,
        momentum=MOMENTUM,
        weight_decay=weight_decay / (1 - MOMENTUM) or None,
    )
    if weight_decay:
        spared = [
            v for v in model.trainable_variables if not is_decayed(variable_path(v), decay)
        ]
        optimizer.exclude_from_weight_decay(var_list=spared)
    return optimizer


def is_decayed(path, decay):
    """Says whether the variable of this path is decayed (see `make_optimizer`)."""
    name = path.split("/")[-1]
    if "step" in name:
        return False
    return decay == "all" or name.endswith("kernel") or (decay, name) == ("gains", "gain")
