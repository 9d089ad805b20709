"""Squeeze and excite (arXiv 1709.01507)."""

from typing import Unpack

from repq_tf.arguments import positive
from repq_tf.keras_api import Config, Layer, LayerOptions, Shape, Tensor, keras, ops, register
from repq_tf.layers.freezing import build_config, freeze_new_weights, read_build_config


@register
class SqueezeExcite(Layer):
    """`x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)`: channels weighed by their means.

    It depends on the image, so it cannot be merged into a kernel: networks put it between a
    block without activation and the activation. `repq_tf.quantize` makes of it a mean, two 1x1
    convolutions, a sigmoid and a product, with its weights.

    Args:
        reduced: number of channels between the two dense maps.

    Input and output: `(batch, height, width, channels)`.

    Example:
        >>> x = repq_tf.layers.MobileOneBlock(64, groups=64)(x)
        >>> x = repq_tf.layers.SqueezeExcite(reduced=4)(x)
        >>> x = keras.layers.ReLU()(x)
    """

    def __init__(self, reduced: int, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.reduced = positive(reduced, "reduced")

    def build(self, input_shape: Shape) -> None:
        """Creates the two dense maps."""
        channels = input_shape[-1]
        self.reduce = keras.layers.Dense(
            self.reduced, activation="relu", name="reduce", dtype=self.dtype_policy
        )
        self.expand = keras.layers.Dense(
            channels, activation="sigmoid", name="expand", dtype=self.dtype_policy
        )
        self.reduce.build((None, channels))
        self.expand.build((None, self.reduced))
        freeze_new_weights(self)
        self.built = True

    @property
    def trainable_parts(self) -> dict[str, list[Layer]]:
        """The two dense maps, each of which can be frozen alone."""
        return {"reduce": [self.reduce], "expand": [self.expand]}

    def call(self, x: Tensor) -> Tensor:
        """Weighs the channels."""
        weights = self.expand(self.reduce(ops.mean(x, axis=(1, 2))))
        return x * ops.expand_dims(weights, (1, 2))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The input's shape."""
        return input_shape

    def get_build_config(self) -> Config | None:
        """The input shape that the layer was built for, and which parts are frozen."""
        config = super().get_build_config()
        return build_config(self, config) if config else config

    def build_from_config(self, config: Config | None) -> None:
        """Builds the layer for a saved input shape, and freezes its parts."""
        super().build_from_config(config)
        if config:
            read_build_config(self, config)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "reduced": self.reduced}
