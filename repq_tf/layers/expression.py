"""What every re-parameterized convolution is: options, and an expression made with them."""

from collections.abc import Callable
from typing import Any, Unpack

from repq_tf.arguments import (
    boolean,
    check_bits,
    explicit_window,
    number,
    pair,
    positive,
    tuples,
)
from repq_tf.branches import (
    OABN,
    BatchNorm,
    Branch,
    Convolution,
    Identity,
    check_batch_norm,
    check_branch,
    check_groups,
    check_mode,
)
from repq_tf.keras_api import (
    LEGACY,
    Config,
    Identifier,
    Layer,
    LayerOptions,
    Pair,
    Shape,
    Tensor,
    keras,
)
from repq_tf.layers.freezing import (
    build_config,
    freeze_new_weights,
    parts,
    read_build_config,
)
from repq_tf.layers.options import Padding
from repq_tf.quantizers import (
    check_identity_taps,
    check_step_gradient,
    check_weight_levels,
    kernel_quantizer,
)
from repq_tf.windows import Window, same_window


class ExpressionLayer(Layer):
    """A layer of one branch expression, with its quantizer and its restored batch norm.

    How it computes with them is `ReparamConv`'s, which documents the arguments.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Pair = 3,
        strides: int | Pair = 1,
        padding: Padding = "same",
        groups: int = 1,
        activation: Identifier | None = None,
        merged: bool = False,
        bn_statistics: str = "restored",
        restore_batch_norm: bool | None = None,
        weight_bits: int | None = None,
        per_channel: bool = True,
        step_gradient: str = "bounded",
        weight_levels: str = "uniform",
        wide_tap: bool = False,
        dampening: float = 0.0,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        synchronized: bool = True,
        sample_fraction: float = 1 / 8,
        literal_estimate: bool = False,
        oabn_k: float | None = None,
        kernel_initializer: Identifier = "he_normal",
        kernel_regularizer: Identifier | None = None,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
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
        self.weight_levels = check_weight_levels(weight_levels)
        self.wide_tap = boolean(wide_tap, "wide_tap")
        self.dampening = number(dampening, "dampening", least=0)
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
        self.kernel_hook: Callable[[Tensor], Tensor] | None = None
        self.weight_quantizer = None
        if weight_bits is not None:
            self.weight_quantizer = kernel_quantizer(
                self.weight_levels,
                self.wide_tap,
                bits=check_bits(weight_bits, "weight_bits"),
                signed=True,
                channels=self.filters if self.per_channel else None,
                bounded=self.step_gradient == "bounded",
                name="weight_quantizer",
                dtype=self.dtype_policy,
            )

    # What a subclass declares, and what helps it to.

    def make_branches(self, in_channels: int) -> Branch:
        """Returns the expression: a `Branch`, built of new branch layers.

        Args:
            in_channels: number of input channels.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement make_branches")

    def convolution(
        self, kernel_size: int | Pair | None = None, name: str | None = None, **options: Any
    ) -> Convolution:
        """A `Convolution` branch with the block's filters, groups and initializer."""
        options.setdefault("filters", self.filters)
        options.setdefault("groups", self.groups)
        options.setdefault("kernel_initializer", self._fresh_initializer())
        options.setdefault("kernel_regularizer", self.kernel_regularizer)
        return Convolution(kernel_size=kernel_size or self.kernel_size, name=name, **options)

    def batch_norm(self, child: Branch, name: str | None = None, **options: Any) -> BatchNorm:
        """A batch-norm branch with the block's settings; `OABN` where `oabn_k` is set."""
        options = {**self._batch_norm_options, **options}
        if self.oabn_k is not None:
            return OABN(child, k=self.oabn_k, name=name, **options)
        return BatchNorm(child, name=name, **options)

    @property
    def _batch_norm_options(self) -> dict[str, Any]:
        names = ("momentum", "epsilon", "synchronized")
        return {name: getattr(self, name) for name in names}

    def _fresh_initializer(self) -> Any:
        """A copy with a seed of its own, so that branches do not start from equal weights."""
        if not isinstance(self.kernel_initializer, keras.initializers.Initializer):
            return self.kernel_initializer
        config = self.kernel_initializer.get_config()
        if isinstance(config.get("seed"), int):
            config["seed"] += self._initializers
            self._initializers += 1
        return type(self.kernel_initializer).from_config(config)

    # Building.

    def build(self, input_shape: Shape) -> None:
        """Creates the branches and, where they are needed, the restored BN and the steps."""
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                f"{self.name}: the input must be (batch, height, width, channels) with a "
                f"known number of channels. Received: shape {tuple(input_shape)}"
            )
        self._built_shape = tuple(input_shape)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: input_shape[-1]})
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
        self.restored: BatchNorm | None = None
        if self._restores():
            # Unclipped: its gain scales the convolution, not the kernel.
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
            if self.wide_tap:
                check_identity_taps(
                    self.name, channels, self.filters, self.kernel_size, self.strides
                )
        freeze_new_weights(self)
        self.built = True

    def _share_dtype(self, expression: Branch) -> None:
        """Gives the branches the block's own dtype policy."""
        if LEGACY:  # there it is fixed when a layer is made
            return
        for node in expression.walk():
            node.dtype_policy = self.dtype_policy
            if isinstance(node, BatchNorm):
                node.statistics.dtype_policy = self.dtype_policy

    @property
    def bn_statistics(self) -> str:
        """Where merged batch norms get their moments in training."""
        return self._bn_statistics

    @bn_statistics.setter
    def bn_statistics(self, mode: str) -> None:
        self._bn_statistics = check_mode(mode)
        if self.built:
            for node in self.merged_batch_norms:
                node.statistics.mode = mode

    def _restores(self) -> bool:
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
    def inner(self) -> Branch:
        """The part of the expression that is merged into the kernel."""
        root = isinstance(self.expression, BatchNorm)
        return self.expression.child if root else self.expression

    @property
    def root(self) -> BatchNorm | None:
        """The `BatchNorm` that follows the merged convolution, or None."""
        return self.expression if isinstance(self.expression, BatchNorm) else self.restored

    @property
    def merged_batch_norms(self) -> list[BatchNorm]:
        """The batch norms that are merged into the kernel, inner ones first."""
        return [node for node in self.inner.walk() if isinstance(node, BatchNorm)]

    @property
    def trainable_parts(self) -> dict[str, list[Layer]]:
        """The layers inside that can be frozen alone; see `repq_tf.layers.freezing`."""
        found = {"expression": parts(self.expression)}
        if self.restored is not None:
            found["restored"] = parts(self.restored)
        if self.weight_quantizer is not None:
            found["weight_quantizer"] = [self.weight_quantizer]
        return found

    @property
    def uses_merged_kernel(self) -> bool:
        """Whether it computes with the merged kernel rather than branch by branch."""
        return self.merged or (self.weight_quantizer or self.kernel_hook) is not None

    def window(self, spatial: Shape) -> Window:
        """The zeros around an input of `(height, width)`."""
        if self._window == "same":
            return same_window(self.kernel_size, self.strides, spatial)
        return self._window

    # Saving.

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        names = (
            "filters kernel_size strides padding groups merged bn_statistics "
            "restore_batch_norm weight_bits per_channel step_gradient weight_levels wide_tap "
            "dampening momentum epsilon synchronized sample_fraction literal_estimate oabn_k"
        )
        config.update({name: getattr(self, name) for name in names.split()})
        if self.built and (self.restored is not None) != self._restores():
            # `bn_statistics` was set to another mode since.
            config["restore_batch_norm"] = self.restored is not None
        config["activation"] = keras.activations.serialize(self.activation)
        config["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        config["kernel_regularizer"] = keras.regularizers.serialize(self.kernel_regularizer)
        return config

    def get_build_config(self) -> Config | None:
        """The input shape that the block was built for, and which parts are frozen."""
        return build_config(self, {"input_shape": self._built_shape}) if self.built else None

    def build_from_config(self, config: Config | None) -> None:
        """Builds the block for a saved input shape, and freezes its parts."""
        if config:
            self.build(config["input_shape"])
            read_build_config(self, config)
