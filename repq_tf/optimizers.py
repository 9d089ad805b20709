"""RepOpt: an optimizer whose gradients are re-parameterized (arXiv 2205.15242).

A constant-scale block and one plain convolution, whose gradients are multiplied by
constants, train alike. So the plain network can be trained as if it had branches, at the
plain price, and its kernels keep the plain network's distribution, which quantizes well.
"""

import base64
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from repq_tf.arguments import boolean
from repq_tf.branches import NumpyReading
from repq_tf.keras_api import (
    LEGACY,
    Array,
    Config,
    Tensor,
    Variable,
    dtype_name,
    keras,
    ops,
    register,
)
from repq_tf.layers import ConvBNBlock, CSLABlock

__all__ = ["RepOptimizer", "repopt"]


@register
class RepOptimizer(keras.optimizers.Optimizer):
    """An optimizer that sees the gradients of some variables times constants.

    The product is taken before anything else, hence before momentum, weight decay and
    clipping. RepOpt is meant to be used without gradient clipping, which depends on the
    gradients' scale.

    Learning rate, schedule, weight decay and so on are the wrapped optimizer's, whose
    `iterations`, `learning_rate` and `exclude_from_weight_decay` are reachable here. The
    multipliers are saved with a compiled model. For mixed precision, put
    `keras.optimizers.LossScaleOptimizer` around this one, as Keras does on its own.

    Args:
        optimizer: the Keras optimizer to wrap.
        multipliers: a dictionary from the path of a trainable variable (`variable.path`), or
            its position among the model's trainable variables, to an array of its shape.
            Gradients of other variables are left as they are.
        scale_updates: whether the steps of these variables are multiplied as well: for
            optimizers whose steps do not depend on the gradient's scale, such as Adam
            (TensorFlow and JAX).
        name: name of the optimizer.

    Raises:
        ValueError: the optimizer cannot be wrapped; or, when it meets the model's
            variables, one of the dictionary is not among them or has another shape.

    Example:
        >>> block = repq_tf.layers.ConvBNBlock(16, name="block")
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), block])
        >>> kernel, sgd = block.inner.kernel, keras.optimizers.SGD(0.1, momentum=0.9)
        >>> multipliers = {kernel.path: np.full(kernel.shape, 0.5)}
        >>> model.compile(repq_tf.optimizers.RepOptimizer(sgd, multipliers), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        multipliers: Mapping[str | int, Array],
        scale_updates: bool = False,
        name: str | None = None,
    ) -> None:
        if LEGACY:
            raise ValueError("RepOptimizer works with Keras 3. Received: TF_USE_LEGACY_KERAS=1")
        # Its own learning rate is never used.
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = _check_optimizer(optimizer)
        self.multipliers = {key: np.asarray(array) for key, array in multipliers.items()}
        self.scale_updates = boolean(scale_updates, "scale_updates")

    def build(self, variables: Sequence[Variable]) -> None:
        """Creates the variables of both optimizers, the multipliers among them."""
        if self.built:
            return
        positions = {_position(key, variables): key for key in self.multipliers}
        self._factors = [
            self._constant(variable, self.multipliers[positions[index]])
            if index in positions
            else None
            for index, variable in enumerate(variables)
        ]
        # A loaded model's paths may differ from the saved one's; the order does not.
        self.multipliers = {index: self.multipliers[key] for index, key in positions.items()}
        self.inner_optimizer.build(variables)
        if self.scale_updates:
            self._multiply_steps()
        super().build(variables)

    def _constant(self, variable: Variable, array: Array) -> Variable:
        if array.shape != tuple(variable.shape):
            raise ValueError(
                f"multipliers: the array of {variable.path!r} must have its variable's shape "
                f"{tuple(variable.shape)}. Received: shape {array.shape}"
            )
        return self.add_variable_from_reference(
            variable,
            name="multiplier",
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(array, dtype),
        )

    def _multiply_steps(self) -> None:
        """Gives the multiplied variables a learning rate for each of their elements."""
        step = self.inner_optimizer.update_step

        def update_step(gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
            step(gradient, variable, _product(learning_rate, self._factor(variable)))

        self.inner_optimizer.update_step = update_step

    def _factor(self, variable: Variable) -> Variable | None:
        try:
            return self._factors[self._get_variable_index(variable)]
        except KeyError:
            raise ValueError(
                "trainable_variables must be those that the optimizer was built with; compile "
                f"the model again. Received: {variable.name!r}"
            ) from None

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Iterable[Variable] | None = None
    ) -> None:
        """Multiplies the gradients and hands them to the wrapped optimizer."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
            factors = [self._factor(variable) for variable in trainable_variables]
        elif self.built:
            factors = self._factors
        else:
            raise ValueError("trainable_variables must be given first. Received: None")
        products = [_product(*pair) for pair in zip(grads, factors, strict=True)]
        self.inner_optimizer.apply(products, trainable_variables)

    @property
    def variables(self) -> list[Variable]:
        """The variables of both optimizers."""
        return super().variables + self.inner_optimizer.variables

    @property
    def iterations(self) -> Variable:
        """The number of steps taken."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Tensor:
        """The wrapped optimizer's learning rate."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    def exclude_from_weight_decay(
        self, var_list: Sequence[Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables from the wrapped optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """Lets the wrapped optimizer end the training."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> Config:
        """The arguments of the constructor; the multipliers packed, without loss."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "multipliers": [[key, _pack(array)] for key, array in self.multipliers.items()],
            "scale_updates": self.scale_updates,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict[str, Any] | None = None) -> Self:
        """The optimizer of a config."""
        optimizer = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        multipliers = {key: _unpack(text) for key, text in config["multipliers"]}
        return cls(**{**config, "optimizer": optimizer, "multipliers": multipliers})


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            f"optimizer must be a keras.optimizers.Optimizer. Received: {optimizer!r}"
        )
    around = "LossScaleOptimizer must be around RepOptimizer, not inside"
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(f"optimizer: {around}. Received: {optimizer!r}")
    if optimizer.loss_scale_factor is not None:
        raise ValueError(
            "optimizer must have no loss_scale_factor; put a LossScaleOptimizer around "
            f"RepOptimizer. Received: {optimizer.loss_scale_factor}"
        )
    return optimizer


def _position(key: str | int, variables: Sequence[Variable]) -> int:
    """The position of the variable that a key of `multipliers` means."""
    if isinstance(key, str):
        found = [i for i, variable in enumerate(variables) if variable.path == key]
    else:
        found = [i for i in range(len(variables)) if i == key]
    if len(found) != 1:
        raise ValueError(
            f"multipliers: {key!r} must be one of the {len(variables)} trainable variables. "
            f"Received: a key that fits {len(found)} of them"
        )
    return found[0]


def _product(value: Tensor | None, factor: Variable | None) -> Tensor | None:
    if value is None or factor is None:
        return value
    return value * ops.cast(factor, dtype_name(value))


def _pack(array: Array) -> str:
    """An array as text. Multipliers repeat few numbers, so they become small."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _unpack(text: str) -> Array:
    """The array of a text."""
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)


def repopt(
    optimizer: keras.optimizers.Optimizer,
    search: keras.Model,
    target: keras.Model,
    scale_updates: bool | None = None,
) -> RepOptimizer:
    """Prepares RepOpt's target stage: initial kernels and the optimizer.

    For every `CSLABlock` of the search model, the target model's `ConvBNBlock` of the
    same name gets what a freshly initialized block with the searched scales s, t and u
    merges to, `W = s K + t P + u I`, and its gradients the multipliers of that block
    (see `CSLABlock.multiplier`). Everything else of the target stays as it is.

    Args:
        optimizer: the Keras optimizer to wrap.
        search: the model whose scales have been trained. Its classes and image size may
            differ from the target's.
        target: the plain model to be trained, from scratch; its kernels are overwritten.
        scale_updates: whether steps are multiplied, by first powers of the scales, rather
            than gradients alone, by squares: for optimizers whose steps do not depend on
            the gradient's scale. Default: for all optimizers but SGD.

    Returns:
        The `RepOptimizer` to compile the target with.

    Raises:
        ValueError: the models do not match.

    Example:
        >>> search = repq_tf.models.repopt_vgg_b1_search(classes=100, input_shape=(32, 32, 3))
        >>> search.compile("sgd", loss)
        >>> search.fit(small_images, small_labels)
        >>> model = repq_tf.models.repopt_vgg_b1()
        >>> # The authors' 4e-5 gathers momentum; what Keras decays beside it has to be 4e-4.
        >>> sgd = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=4e-4)
        >>> sgd.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        >>> model.compile(repq_tf.optimizers.repopt(sgd, search, model), loss)
    """
    if scale_updates is None:
        scale_updates = not isinstance(optimizer, keras.optimizers.SGD)
    blocks = [layer for layer in search.layers if isinstance(layer, CSLABlock)]
    if not blocks:
        raise ValueError(f"search must have CSLABlocks. Received: {search.name!r}, without one")
    plain = {layer.name: layer for layer in target.layers if isinstance(layer, ConvBNBlock)}
    multipliers = {}
    for searched in blocks:
        if searched.name not in plain:
            raise ValueError(
                f"target must have a ConvBNBlock called {searched.name!r}, as search has a "
                f"CSLABlock. Received: {target.name!r}, without it"
            )
        block = plain[searched.name]
        fresh = _fresh_block(searched, block)
        convolution = block.inner
        convolution.kernel.assign(fresh.inner.merge(NumpyReading()).kernel)
        multiplier = fresh.multiplier(power=1 if scale_updates else 2)
        multipliers[convolution.kernel.path] = multiplier.astype(block.variable_dtype)
    return RepOptimizer(optimizer, multipliers, scale_updates)


def _fresh_block(searched: CSLABlock, block: ConvBNBlock) -> CSLABlock:
    """The constant-scale block that a plain one stands for, of new weights."""
    names = ("filters", "kernel_size", "groups")
    for name in names:
        if getattr(searched, name) != getattr(block, name):
            raise ValueError(
                f"search and target must have blocks of equal {name}. Received for "
                f"{block.name!r}: {getattr(searched, name)} and {getattr(block, name)}"
            )
    fresh = CSLABlock(
        **{name: getattr(block, name) for name in names},
        strides=block.strides,
        identity_scale=searched.identity_scale,
        kernel_initializer=block.kernel_initializer,
        dtype=block.dtype_policy,
    )
    fresh.build(block.input.shape)
    gains = {scaled.name: scaled.gain for scaled in searched.inner.children}
    for scaled in fresh.inner.children:
        # Smaller images may have no strides in the search, hence an identity more or less.
        if scaled.name in gains:
            scaled.gain.assign(gains[scaled.name])
    return fresh
