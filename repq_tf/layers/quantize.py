"""The quantizer of a stored activation tensor, as a layer of the model."""

from repq_tf.keras_api import Layer, ops, register
from repq_tf.quantizers import LSQ


@register
class Quantize(Layer):
    """Fake-quantizes an activation tensor and hands its step on.

    One stands after every tensor that the integer runtime stores. Tensors that must
    share one scale (the inputs of a concatenation) go through one shared layer.

    Args:
        bits: 2 to 8.
        signed: whether the grid has negative levels; unsigned after a ReLU.
        step: a fixed step, for operators whose output scale the runtime prescribes
            (softmax: 1/256); None to learn it.

    Input: a tensor. Output: `(quantized tensor, step)`; the step, `()`, goes to
    the blocks that read the tensor, which need it for their integer biases.

    Example:
        >>> x, step = Quantize(bits=8)(keras.Input((32, 32, 3)))
        >>> y = repq_tf.layers.ACBlock(64, weight_bits=8, activation="relu")(x, step)
    """

    def __init__(self, bits=8, signed=True, step=None, **kwargs):
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.bits = bits
        self.signed = signed
        self.fixed_step = step
        self.activation_quantizer = LSQ(
            bits=bits, signed=signed, narrow=False, per_image=True, name="activation_quantizer"
        )

    def build(self, input_shape):
        """Creates the step."""
        self.activation_quantizer.build(None)
        if self.fixed_step is not None:
            self.activation_quantizer.trainable = False
            self.activation_quantizer.initial_step.assign(self.fixed_step)
        self.built = True

    @property
    def step(self):
        """The step, `()`."""
        return self.activation_quantizer.step

    def call(self, x, training=False):
        """Returns the quantized tensor and the step."""
        x = ops.cast(x, self.compute_dtype)
        if training:
            return self.activation_quantizer(x), self.activation_quantizer.step
        step = self.activation_quantizer.step
        wide = ops.cast(x, step.dtype)
        return ops.cast(self.activation_quantizer.integers(wide) * step, x.dtype), step

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "bits": self.bits,
            "signed": self.signed,
            "step": self.fixed_step,
        }
