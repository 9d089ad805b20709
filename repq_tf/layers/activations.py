"""Activations that Keras computes but has no name for, so that files can name them."""

from repq_tf.keras_api import Identifier, Tensor, keras, register


@register
def gelu_approximate(x: Tensor) -> Tensor:
    """GELU by tanh (arXiv 1606.08415), which `keras.ops.gelu` computes unless told otherwise.

        0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

    Args:
        x: features.
    """
    return keras.activations.gelu(x, approximate=True)


def activation_of(name: str) -> Identifier:
    """What a layer of Keras takes as `activation` for a name: that, or the function."""
    return gelu_approximate if name == gelu_approximate.__name__ else name
