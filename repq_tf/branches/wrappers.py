"""Nodes that wrap a branch and change its kernel: a scale, a norm, and where it runs."""

from typing import Any

from repq_tf.arguments import boolean
from repq_tf.branches.base import Branch, Wrapper, check_branch
from repq_tf.branches.batch_norm import BatchNorm
from repq_tf.branches.readings import NumpyReading, Reading
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import Array, Identifier, Pair, Shape, Tensor, add_parameter, keras, ops
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window, convolve


class Scale(Wrapper):
    """A branch times a vector, per output channel: `gain * y + shift`.

    Args:
        child: the branch.
        initializer: Keras initializer of the gain.
        use_bias: whether there is a shift.
        bias_initializer: of the shift.
        trainable: whether gain and shift are trained; constants otherwise, as RepOpt's.
        name: name of the node; defaults to `CHILD_scale`.
    """

    def __init__(
        self,
        child: Branch,
        initializer: Identifier = "ones",
        use_bias: bool = False,
        bias_initializer: Identifier = "zeros",
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(check_branch(child, "child"), name or f"{child.name}_scale", dtype)
        self.initializer = keras.initializers.get(initializer)
        self.use_bias = boolean(use_bias, "use_bias")
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.constant = not boolean(trainable, "trainable")

    def build(self, input_shape: Shape) -> None:
        """Builds the child and creates the gain and, if asked for, the shift."""
        super().build(input_shape)
        shape = (self.output_channels(input_shape[-1]),)
        trainable = not self.constant
        self.gain = add_parameter(self, "gain", shape, self.initializer, trainable=trainable)
        self.bias = None
        if self.use_bias:
            self.bias = add_parameter(
                self, "bias", shape, self.bias_initializer, trainable=trainable
            )

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Runs the child and scales its output."""
        y = self.child(x, window=window, strides=strides, training=training)
        y = y * ops.cast(self.gain, y.dtype)
        return y if self.bias is None else y + ops.cast(self.bias, y.dtype)

    def shift(self, offset: Tensor) -> bool:
        """Adds to the shift, if there is one."""
        if self.bias is None:
            return False
        self.bias.assign(self.bias + offset)
        return True

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """The outputs are free, whatever the child's are: the gain follows."""
        scaled = self.child.join_streams(inputs, streams)
        outputs = streams.new(len(scaled))
        streams.read(scaled, self.scale_inputs)
        streams.make(outputs, self.scale_outputs)
        return outputs

    def scale_inputs(self, gain: Array) -> None:
        """Takes outputs of the child that are divided by `gain`: multiplies its own."""
        self.gain.assign(NumpyReading().value(self.gain) * gain)

    def scale_outputs(self, gain: Array) -> None:
        """Multiplies the gain and the shift."""
        for variable in (self.gain, self.bias):
            if variable is not None:
                variable.assign(NumpyReading().value(variable) * gain)

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The child's kernel, scaled and shifted."""
        reading = reading or Reading()
        shift = None if self.bias is None else reading.value(self.bias)
        return self.child.merge(reading).scale(reading.value(self.gain), shift)


class Online(Wrapper):
    """A branch that always runs as its merged kernel, in multi-branch training too.

    OREPA's way (arXiv 2204.00826): however many terms the kernel has, the features see one
    convolution.

    Args:
        child: a branch without batch norms, which need the features of their own branch.
        name: name of the node.
    """

    def __init__(self, child: Branch, name: str = "online", dtype: Any = None) -> None:
        super().__init__(child, name, dtype)
        if any(isinstance(node, BatchNorm) for node in self.child.walk()):
            raise ValueError(f"{name}: a branch with batch norms inside cannot run merged")

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Convolves with the merged kernel."""
        affine = self.merge()
        y = convolve(x, affine.kernel, affine.groups, strides, window)
        return y + ops.cast(affine.bias, y.dtype) if affine.has_bias else y

    def shift(self, offset: Tensor) -> bool:
        """Adds to the child's output."""
        return self.child.shift(offset)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Those of the child."""
        return self.child.join_streams(inputs, streams)

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The child's kernel."""
        return self.child.merge(reading or Reading())


class UnitNorm(Online):
    """A branch whose filters are divided by their L2 norms; its bias stays.

    `W[..., o] / sqrt(sum_{h,d,i} W[h,d,i,o]^2)`: with a `Scale` around it, weight
    normalization (arXiv 1602.07868).

    Args:
        child: a branch without batch norms.
        name: name of the node; defaults to `CHILD_unit`.
    """

    # Keeps the gradient of a filter of zeros finite.
    _TINY = 1e-24

    def __init__(self, child: Branch, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(check_branch(child, "child"), name or f"{child.name}_unit", dtype)

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Another scale of an input would be another norm: neither side is free."""
        outputs = streams.new(self.output_channels(len(inputs)))
        for channels in (inputs, outputs):
            streams.fix(channels, f"the filters of {self.name!r} are normalized")
        return outputs

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """The child's kernel, each filter of norm 1."""
        reading = reading or Reading()
        affine = super().merge(reading)
        squares = reading.xp.sum(affine.kernel * affine.kernel, axis=(0, 1, 2))
        norms = reading.xp.sqrt(squares + self._TINY)
        return AffineKernel(affine.kernel / norms, affine.bias, affine.groups)
