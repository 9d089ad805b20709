"""What every classification network has: checked arguments, a feature map, logits."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from repq_tf.arguments import positive
from repq_tf.keras_api import Shape, Tensor, keras
from repq_tf.layers import ReparamConv
from repq_tf.layers.options import NetworkOptions
from repq_tf.models.arguments import check_block_options, check_input_shape, check_width
from repq_tf.models.parts import torch_uniform
from repq_tf.models.pretrained import load_weights, model_card, pretrained_file
from repq_tf.models.registry import ModelFunction, register

_CLASSES, _INPUT_SHAPE = 1000, (224, 224, 3)  # ImageNet's

_DOCUMENTATION = """{summary}

    Args:
        classes: number of outputs; by default that of `weights`, else 1000.
        input_shape: `(height, width, channels)` of the images; by default that of `weights`,
            else (224, 224, 3).
        width: what every number of channels is multiplied by; the products are rounded
            to multiples of 8.
        weights: the data set of the weights that it comes with, one of
            `list_weights("{name}")`; None for random ones.
        **block_options: passed to every block, such as `bn_statistics`, `synchronized`,
            `merged` or `kernel_initializer`; what only `{block}` takes, to those alone.

    Returns:
        A Functional `keras.Model` from images to logits.

    Example:
        >>> model = repq_tf.models.{name}(classes=10, input_shape=(32, 32, 3))
    """


def _mean(x: Tensor) -> Tensor:
    return keras.layers.GlobalAveragePooling2D(name="mean")(x)


def _ends(
    name: str, weights: str | None, classes: int | None, input_shape: Sequence[int] | None
) -> tuple[int, Shape]:
    """The number of outputs and the shape of an image, checked, or what implies them."""
    implied = (_CLASSES, _INPUT_SHAPE)
    if weights is not None:
        card = model_card(name, weights)
        implied = (len(card["labels"]), tuple(card["input_shape"]))
    ends = (
        implied[0] if classes is None else positive(classes, "classes"),
        implied[1] if input_shape is None else check_input_shape(input_shape),
    )
    if weights is not None:
        for argument, found, wanted in zip(
            ("classes", "input_shape"), ends, implied, strict=True
        ):
            if found != wanted:
                raise ValueError(
                    f"{argument} must be {wanted}, or left out, with weights={weights!r}. "
                    f"Received: {found}"
                )
    return ends


def classifier(
    name: str,
    summary: str,
    block: type[ReparamConv],
    features: Callable[..., Tensor],
    pool: Callable[[Tensor], Tensor] = _mean,
    **defaults: Any,
) -> ModelFunction:
    """Makes and registers the function that builds a classification network.

    Args:
        name: name of the function and of its models.
        summary: its documentation, without the arguments.
        block: the class of its blocks.
        features: `features(images, width, block, options)` returns the last feature map;
            `options` are those of the blocks.
        pool: a function from it to `(batch, channels)`; by default the mean.
        **defaults: options of the blocks where the user gives none.

    Returns:
        The function: `name(classes, input_shape, width, weights, **block_options)`.
    """

    def build(
        classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        width: float = 1.0,
        weights: str | None = None,
        **block_options: Unpack[NetworkOptions],
    ) -> keras.Model:
        classes, input_shape = _ends(name, weights, classes, input_shape)
        check_width(width)
        check_block_options(name, block, block_options)
        images = keras.Input(input_shape, name="image")
        x = features(images, width, block, {**defaults, **block_options})
        logits = keras.layers.Dense(classes, kernel_initializer=torch_uniform(), name="logits")
        model = keras.Model(images, logits(pool(x)), name=name)
        if weights is not None:
            load_weights(model, pretrained_file(name, weights, "npz"))
        return model

    build.__name__ = build.__qualname__ = name
    build.__module__ = "repq_tf.models"
    build.__doc__ = _DOCUMENTATION.format(summary=summary, name=name, block=block.__name__)
    return register(build)
