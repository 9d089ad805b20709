"""The base of every re-parameterized convolution."""

from repq_tf.arguments import boolean, explicit_window, number, pair, positive, tuples
from repq_tf.arithmetic import WIDE, integer_weights
from repq_tf.branches import (
    OABN,
    BatchNorm,
    Convolution,
    FeatureReading,
    Identity,
    Reading,
    WideReading,
    check_batch_norm,
    check_branch,
    check_groups,
    check_mode,
)
from repq_tf.convolution import convolve, same_window
from repq_tf.keras_api import (
    LEGACY,
    Layer,
    check_same_keras,
    keras,
    ops,
    overrides,
    register,
)
from repq_tf.layers.freezing import (
    build_config,
    freeze_new_weights,
    parts,
    read_build_config,
)
from repq_tf.quantizers import LSQ, check_bits, check_step_gradient


@register
class ReparamConv(Layer):
    """A convolution that is trained as an expression over branches.

    A subclass declares the expression in `make_branches`; everything else is done
    here. In floating point the branches run one by one. With `merged=True` or with
    `weight_bits`, `call` computes the merged kernel `M` and bias `b` from the branch
    variables, differentiably, and returns

        activation(root(conv(x, Q(M)) + b))

    where Q is the LSQ quantizer (none without `weight_bits`) and root is the batch
    norm at the root of the expression, if there is one, or the *restored* one: it
    follows the convolution exactly and folds into the per-channel scale of the
    deployed layer. This is RepQ (arXiv 2311.05317, Eq. 1 and Algorithm 1).

    In inference, a quantized block that is given the step of its input computes what
    the integer runtime computes: whole-number weights and inputs, and a bias on the
    `input_step * weight_step` grid. It then returns that grid's steps with its output,
    for the `Quantize` layer behind it.

    Args:
        filters: number of output channels.
        kernel_size: of the merged kernel; a number or `(height, width)`.
        strides: a number or `(height, width)`.
        padding: "same" (Keras's rule), "valid", or explicit zeros: a number,
            `(height, width)` or `((top, bottom), (left, right))`. The input is padded
            once, for the full kernel; smaller branches work on a centred crop.
        groups: number of groups.
        activation: Keras activation, applied last.
        merged: whether to compute with the merged kernel in floating point too.
        bn_statistics: where merged batch norms get their moments in training:
            "restored", "batch", "estimate", "sample" or "running"; see
            `BatchNormStatistics`.
        restore_batch_norm: whether a batch norm stands after the merged convolution of
            a block that has none at its root. Default: where batch norms inside are
            merged with `bn_statistics="restored"`.
        weight_bits: 2 to 8 to quantize the merged kernel; None for floating point.
        per_channel: whether each output channel has a step of its own.
        step_gradient: how fast the steps of the weights learn: "bounded", about as fast as
            the weights, or "lsq", by LSQ's published gradient scale; see
            `repq_tf.quantizers.lsq`.
        momentum: of the batch norms' moving statistics.
        epsilon: of the batch norms.
        synchronized: whether replicas share batch moments.
        sample_fraction: the share of the batch for `bn_statistics="sample"`.
        literal_estimate: whether "estimate" takes the paper's Eq. 5 as printed.
        oabn_k: the largest gain of the branches' batch norms, which are `OABN` then.
        kernel_initializer: of the branches' kernels.
        kernel_regularizer: of the branches' kernels.

    Input: `(batch, height, width, channels)`, and the step of the grid that it lies on for a
    quantized block. Output: `(batch, height', width', filters)`; of a quantized block
    that is given a step, `(output, scale)`, scale `(filters,)`.

    Example, a new re-parameterization in ten lines:
        >>> @keras.saving.register_keras_serializable()
        ... class WideBlock(repq_tf.layers.ReparamConv):
        ...     def make_branches(self, in_channels):
        ...         wide = self.batch_norm(self.convolution((1, 5), name="wide"))
        ...         tall = self.batch_norm(self.convolution((5, 1), name="tall"))
        ...         return repq_tf.branches.Sum([wide, tall])
        >>> y = WideBlock(16, kernel_size=5, activation="relu")(x)
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        padding="same",
        groups=1,
        activation=None,
        merged=False,
        bn_statistics="restored",
        restore_batch_norm=None,
        weight_bits=None,
        per_channel=True,
        step_gradient="bounded",
        momentum=0.9,
        epsilon=1e-5,
        synchronized=True,
        sample_fraction=1 / 8,
        literal_estimate=False,
        oabn_k=None,
        kernel_initializer="he_normal",
        kernel_regularizer=None,
        **kwargs,
    ):
        # Steps of the input must not be cast to half precision; features are cast here.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.filters = positive(filters, "filters")
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.strides = pair(strides, "strides")
        self._window = explicit_window(padding)
        self.padding = tuples(padding)
        self.groups = positive(groups, "groups")
        self.activation = keras.activations.get(activation)
        self.merged = boolean(merged, "merged")
        self.bn_statistics = bn_statistics
        self.restore_batch_norm = boolean(restore_batch_norm, "restore_batch_norm", True)
        self.weight_bits = weight_bits
        self.per_channel = boolean(per_channel, "per_channel")
        self.step_gradient = check_step_gradient(step_gradient)
        check_batch_norm(momentum, epsilon, sample_fraction)
        self.momentum = momentum
        self.epsilon = epsilon
        self.synchronized = boolean(synchronized, "synchronized")
        self.sample_fraction = sample_fraction
        self.literal_estimate = boolean(literal_estimate, "literal_estimate")
        self.oabn_k = None if oabn_k is None else number(oabn_k, "oabn_k", above=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        # What is put here quantizes the merged kernel from outside (TFMOT).
        self.kernel_hook = None
        self.weight_quantizer = None
        if weight_bits is not None:
            self.weight_quantizer = LSQ(
                bits=check_bits(weight_bits, "weight_bits"),
                signed=True,
                channels=self.filters if self.per_channel else None,
                bounded=self.step_gradient == "bounded",
                name="weight_quantizer",
                dtype=self.dtype_policy,
            )

    # What a subclass declares, and what helps it to.

    def make_branches(self, in_channels):
        """Returns the expression: a `Branch`, built of new branch layers.

        Args:
            in_channels: number of input channels.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement make_branches")

    def convolution(self, kernel_size=None, name=None, **options):
        """A `Convolution` branch with the block's filters, groups and initializer."""
        options.setdefault("filters", self.filters)
        options.setdefault("groups", self.groups)
        options.setdefault("kernel_initializer", self._fresh_initializer())
        options.setdefault("kernel_regularizer", self.kernel_regularizer)
        return Convolution(kernel_size=kernel_size or self.kernel_size, name=name, **options)

    def batch_norm(self, child, name=None, **options):
        """A batch-norm branch with the block's settings; `OABN` where `oabn_k` is set."""
        options = {**self._batch_norm_options, **options}
        if self.oabn_k is not None:
            return OABN(child, k=self.oabn_k, name=name, **options)
        return BatchNorm(child, name=name, **options)

    @property
    def _batch_norm_options(self):
        names = ("momentum", "epsilon", "synchronized")
        return {name: getattr(self, name) for name in names}

    def _fresh_initializer(self):
        """A copy with a seed of its own, so that branches do not start from equal weights."""
        if not isinstance(self.kernel_initializer, keras.initializers.Initializer):
            return self.kernel_initializer
        config = self.kernel_initializer.get_config()
        if isinstance(config.get("seed"), int):
            config["seed"] += self._initializers
            self._initializers += 1
        return type(self.kernel_initializer).from_config(config)

    # Building.

    def build(self, input_shape):
        """Creates the branches and, where they are needed, the restored BN and the steps."""
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                f"{self.name}: the input must be (batch, height, width, channels) with a "
                f"known number of channels. Received: shape {tuple(input_shape)}"
            )
        self._built_shape = tuple(input_shape)
        self._initializers = 0
        channels = input_shape[-1]
        check_groups(self, channels)
        if self._window == "same":
            same_window(self.kernel_size, self.strides, input_shape[1:3])
        expression = self.make_branches(channels)
        self.expression = check_branch(expression, f"{self.name}: make_branches's result")
        inner = self.inner
        if inner.kernel_size != self.kernel_size:
            raise ValueError(
                f"{self.name}: the branches make a kernel of size {inner.kernel_size}, but "
                f"kernel_size is {self.kernel_size}"
            )
        self._share_dtype(self.expression)
        self.expression.build(input_shape)
        if inner.output_channels(channels) != self.filters:
            raise ValueError(
                f"{self.name}: the branches make {inner.output_channels(channels)} channels, "
                f"but filters is {self.filters}"
            )
        self.restored = None
        if self._restores():
            # Of any gain: it is the convolution's scale, no part of the kernel.
            self.restored = BatchNorm(
                Identity(), name="restored_bn", **self._batch_norm_options
            )
            self._share_dtype(self.restored)
            self.restored.build((None, None, None, self.filters))
        for node in self.merged_batch_norms:
            node.statistics.mode = self.bn_statistics
            node.statistics.sample_fraction = self.sample_fraction
            node.statistics.literal_estimate = self.literal_estimate
        if self.weight_quantizer is not None:
            self.weight_quantizer.build(None)
        freeze_new_weights(self)
        self.built = True

    def _share_dtype(self, expression):
        """Gives the branches the block's own dtype policy."""
        if LEGACY:  # there it is fixed when a layer is made
            return
        for node in expression.walk():
            node.dtype_policy = self.dtype_policy
            if isinstance(node, BatchNorm):
                node.statistics.dtype_policy = self.dtype_policy

    @property
    def bn_statistics(self):
        """Where merged batch norms get their moments in training."""
        return self._bn_statistics

    @bn_statistics.setter
    def bn_statistics(self, mode):
        self._bn_statistics = check_mode(mode)
        if self.built:
            for node in self.merged_batch_norms:
                node.statistics.mode = mode

    def _restores(self):
        if isinstance(self.expression, BatchNorm):
            return False
        if self.restore_batch_norm is not None:
            return self.restore_batch_norm
        return (
            self.uses_merged_kernel
            and self.bn_statistics == "restored"
            and bool(self.merged_batch_norms)
        )

    @property
    def inner(self):
        """The part of the expression that is merged into the kernel."""
        root = isinstance(self.expression, BatchNorm)
        return self.expression.child if root else self.expression

    @property
    def root(self):
        """The `BatchNorm` that follows the merged convolution, or None."""
        return self.expression if isinstance(self.expression, BatchNorm) else self.restored

    @property
    def merged_batch_norms(self):
        """The batch norms that are merged into the kernel, inner ones first."""
        return [node for node in self.inner.walk() if isinstance(node, BatchNorm)]

    @property
    def trainable_parts(self):
        """The layers inside that can be frozen alone; see `repq_tf.layers.freezing`."""
        found = {"expression": parts(self.expression)}
        if self.restored is not None:
            found["restored"] = parts(self.restored)
        if self.weight_quantizer is not None:
            found["weight_quantizer"] = [self.weight_quantizer]
        return found

    def window(self, spatial):
        """The zeros around an input of `(height, width)`."""
        if self._window == "same":
            return same_window(self.kernel_size, self.strides, spatial)
        return self._window

    # Running.

    def call(self, inputs, input_step=None, training=False, wide=False):
        """Runs the block.

        Args:
            inputs: `(batch, height, width, channels)`.
            input_step: the step of the grid that the inputs lie on, `()`; given, a
                quantized block's inference is the integer runtime's.
            training: whether batch norms use the batch's moments.
            wide: whether integer inference adds and returns float64 (where the backend has
                it), for sums that float32 does not hold and scales to their last bit.
        """
        check_same_keras(inputs, f"the input of {self.name}")
        x = ops.cast(inputs, self.compute_dtype)
        window = self.window(x.shape[1:3])
        integer = self.weight_quantizer is not None and input_step is not None
        if integer and not training:
            y, scale = self._integer_convolution(inputs, input_step, window, wide)
            return self.activation(y), scale
        if self.uses_merged_kernel:
            y = self._merged_convolution(x, window, training)
        else:
            y = self.expression(x, window=window, strides=self.strides, training=training)
        y = self.activation(ops.cast(y, self.compute_dtype))
        # The scale matters to inference alone.
        return (y, ops.broadcast_to(input_step, (self.filters,))) if integer else y

    def compute_output_spec(self, inputs, input_step=None, training=False, wide=False):
        """The shape and dtype of `call`'s outputs, without tracing it.

        A subclass with a `call` of its own is traced, unless it says that this holds for it.
        """
        if overrides(type(self), "call", beyond="compute_output_spec"):
            return super().compute_output_spec(inputs, input_step, training=training, wide=wide)
        check_same_keras(inputs, f"the input of {self.name}")
        spatial = [
            None if size is None else (size + sum(zeros) - kernel) // stride + 1
            for size, zeros, kernel, stride in zip(
                inputs.shape[1:3],
                self.window(inputs.shape[1:3]),
                self.kernel_size,
                self.strides,
                strict=True,
            )
        ]
        shape = (inputs.shape[0], *spatial, self.filters)
        if self.weight_quantizer is None or input_step is None:
            return keras.KerasTensor(shape, self.compute_dtype)
        if training:
            step = keras.KerasTensor((self.filters,), input_step.dtype)
            return keras.KerasTensor(shape, self.compute_dtype), step
        dtype = WIDE if wide else "float32"
        return keras.KerasTensor(shape, dtype), keras.KerasTensor((self.filters,), dtype)

    def _merged_convolution(self, x, window, training):
        reading = FeatureReading(x, window, self.strides) if training else Reading()
        affine = self.inner.merge(reading)
        kernel = affine.kernel
        quantizer = self.weight_quantizer or self.kernel_hook
        if quantizer is not None:
            kernel = quantizer(kernel)
        y = convolve(x, kernel, affine.groups, self.strides, window)
        bias = affine.bias if affine.has_bias else None
        if self.root is not None:
            training = training and self.bn_statistics != "running"
            return self.root.normalize(y, training, bias)
        return y if bias is None else y + ops.cast(bias, y.dtype)

    def _integer_convolution(self, x, input_step, window, wide):
        integers, scale, bias, groups = self.integer_weights(input_step)
        x, input_step = ops.cast(x, scale.dtype), ops.cast(input_step, scale.dtype)
        x = ops.round(x / input_step)
        if wide:
            x, scale, bias, input_step = (
                ops.cast(value, WIDE) for value in (x, scale, bias, input_step)
            )
        y = convolve(x, integers, groups, self.strides, window)
        scale = scale * input_step
        return (y + bias) * scale, scale

    # Reading.

    def merge(self, reading=None):
        """Returns the `AffineKernel` that the whole block is in inference.

        Args:
            reading: a `Reading`; `NumpyReading()` merges in float64.
        """
        reading = reading or Reading()
        affine = self.inner.merge(reading)
        root = self.root
        if root is None or (root is self.restored and not self.uses_merged_kernel):
            return affine
        return affine.scale(*root.gain_and_shift(reading=reading))

    @property
    def uses_merged_kernel(self):
        """Whether it computes with the merged kernel rather than branch by branch."""
        return self.merged or (self.weight_quantizer or self.kernel_hook) is not None

    def integer_weights(self, input_step):
        """The weights of the deployed integer layer; see `repq_tf.arithmetic.weights`."""
        reading = WideReading()
        affine = self.inner.merge(reading)
        gain, shift = None, None
        if self.root is not None:
            gain, shift = self.root.gain_and_shift(reading=reading)
        return integer_weights(affine, self.weight_quantizer, input_step, gain, shift)

    # Saving.

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        names = (
            "filters kernel_size strides padding groups merged bn_statistics "
            "restore_batch_norm weight_bits per_channel step_gradient momentum epsilon "
            "synchronized sample_fraction literal_estimate oabn_k"
        )
        config.update({name: getattr(self, name) for name in names.split()})
        if self.built and (self.restored is not None) != self._restores():
            # `bn_statistics` was set to another mode since.
            config["restore_batch_norm"] = self.restored is not None
        config["activation"] = keras.activations.serialize(self.activation)
        config["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        config["kernel_regularizer"] = keras.regularizers.serialize(self.kernel_regularizer)
        return config

    def get_build_config(self):
        """The input shape that the block was built for, and which parts are frozen."""
        return build_config(self, {"input_shape": self._built_shape}) if self.built else None

    def build_from_config(self, config):
        """Builds the block for a saved input shape, and freezes its parts."""
        if config:
            self.build(config["input_shape"])
            read_build_config(self, config)
