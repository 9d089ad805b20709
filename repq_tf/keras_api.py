"""Which Keras: `keras` (3), or `tf_keras` when `TF_USE_LEGACY_KERAS=1`.

Every other module takes Keras from here. Arithmetic always goes through
`keras.ops` of Keras 3, which works inside `tf_keras` layers unchanged on the
TensorFlow backend; only the base classes differ.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np

from repq_tf.quiet import quiet

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true")

with quiet():  # TensorFlow is imported here, if it is the backend
    import keras as _keras3
    from keras import ops, tree

    if TYPE_CHECKING:  # of which a name is bound only once
        import keras
        from keras.layers import Layer
    else:
        if LEGACY:
            import tf_keras as keras
        else:
            keras = _keras3
        Layer = keras.layers.Layer

Array: TypeAlias = np.ndarray
Tensor: TypeAlias = Any  # a tensor of any Keras backend
Variable: TypeAlias = Any  # a variable of either Keras
Pair: TypeAlias = tuple[int, int]  # (height, width)
Shape: TypeAlias = tuple[Any, ...]  # whole sizes, None for one that is not known
Config: TypeAlias = dict[str, Any]  # what `get_config` returns
# What `keras.initializers.get` takes, and its like for regularizers and activations.
Identifier: TypeAlias = str | Config | Callable[..., Any]

register = keras.saving.register_keras_serializable(package="repq_tf")


class LayerOptions(TypedDict, total=False):
    """The options of every Keras layer.

    Attributes:
        name: of the layer.
        dtype: a name or a dtype policy.
        trainable: whether its weights are trained.
        autocast: whether Keras casts its inputs to the compute dtype.
        activity_regularizer: of its outputs.
    """

    name: str | None
    dtype: Any
    trainable: bool
    autocast: bool
    activity_regularizer: Any


__all__ = [
    "LEGACY",
    "UNCAST",
    "Array",
    "Config",
    "Identifier",
    "Layer",
    "LayerOptions",
    "Pair",
    "Shape",
    "Tensor",
    "Variable",
    "add_parameter",
    "add_statistic",
    "backend",
    "check_same_keras",
    "dtype_name",
    "fold",
    "keras",
    "overrides",
    "ops",
    "register",
    "replica_mean",
    "replicas",
    "to_numpy",
    "traced_for_xla",
    "trained_weights",
    "tree",
    "variable_path",
]


def backend() -> str:
    """Returns the name of the array backend: `"tensorflow"`, `"jax"` or `"torch"`."""
    return _keras3.backend.backend()


def check_same_keras(thing: object, name: str) -> None:
    """Raises ValueError for a model or symbolic tensor of the Keras that was not chosen.

    Args:
        thing: anything.
        name: what to call it in the message.
    """
    roots = {kind.__module__.split(".")[0] for kind in type(thing).__mro__}
    if LEGACY and "keras" in roots and "tf_keras" not in roots:
        raise ValueError(
            f"{name} is made with Keras 3, but repq_tf works on tf_keras in this process, "
            "because TF_USE_LEGACY_KERAS was 1 when it was imported (importing "
            "tensorflow_model_optimization sets it). Make models with tf_keras (`from "
            "repq_tf.keras_api import keras`); or, for Keras 3, start Python with "
            "TF_USE_LEGACY_KERAS=0 and import repq_tf before tensorflow_model_optimization."
        )
    if not LEGACY and "tf_keras" in roots and "keras" not in roots:
        raise ValueError(
            f"{name} is made with tf_keras, but repq_tf works on Keras 3 in this process. Make "
            "models with keras; or, for tf_keras and TFMOT, start Python with "
            "TF_USE_LEGACY_KERAS=1, or set it in os.environ before the first import of "
            "tensorflow, keras or repq_tf."
        )


def overrides(kind: type, name: str, beyond: str) -> bool:
    """Whether a class defines a method anew in a subclass of the one that defines another.

    Args:
        kind: the class.
        name: of the method.
        beyond: of the other method.
    """
    owners = {
        method: next(k for k, c in enumerate(kind.__mro__) if method in vars(c))
        for method in (name, beyond)
    }
    return owners[name] < owners[beyond]


def dtype_name(array: Any) -> str:
    """Returns the dtype of a tensor, variable or NumPy array as a string."""
    return _keras3.backend.standardize_dtype(array.dtype)


# Of `add_weight`: mixed precision leaves the variable in its own dtype.
UNCAST = {"experimental_autocast": False} if LEGACY else {"autocast": False}


def add_statistic(
    layer: Layer, name: str, shape: tuple[int, ...], initializer: Any
) -> Variable:
    """Adds a non-trainable float variable whose replicas are averaged on assignment.

    Keras 3's default (`aggregation="none"`) lets the replicas of a
    `MirroredStrategy` diverge, and replica 0's copy is what gets saved.

    Args:
        layer: the layer that owns the variable.
        name: its name.
        shape: its shape.
        initializer: its initializer.

    Returns:
        The variable.
    """
    options: dict[str, Any] = {"aggregation": "mean"}
    if LEGACY:
        import tensorflow as tf

        options = {
            "aggregation": tf.VariableAggregation.MEAN,
            "synchronization": tf.VariableSynchronization.ON_READ,
        }
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, trainable=False, **options, **UNCAST
    )


def add_parameter(
    layer: Layer,
    name: str,
    shape: tuple[int, ...],
    initializer: Any,
    regularizer: Any = None,
    trainable: bool = True,
) -> Variable:
    """Adds a variable, trainable as a rule, that mixed precision leaves in its own dtype.

    Kernels, batch-norm parameters and step sizes enter the algebra of merged
    kernels, which half precision would spoil; features alone are cast.
    """
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        regularizer=regularizer,
        trainable=trainable,
        **UNCAST,
    )


def to_numpy(variable: Variable) -> Array:
    """Returns a variable's values; of one with copies on several devices, what they are."""
    return variable.numpy() if LEGACY else ops.convert_to_numpy(variable)


def trained_weights(layer: Layer) -> list[Variable]:
    """The weights of a layer that training changes, also those of a part that was thawed."""
    if LEGACY:
        return layer.trainable_weights
    return [variable for variable in layer.weights if variable.trainable]


def variable_path(variable: Variable) -> str:
    """Returns the name of a variable with those of what owns it: `"block/conv/kernel"`."""
    return variable.name.removesuffix(":0") if LEGACY else variable.path


def fold(
    function: Callable[[Any, Any], Any], items: Sequence[tuple], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`functools.reduce(function, items, state)`; in a TensorFlow graph, as a loop of it.

    Unrolled, each item would be traced and optimized on its own there.

    Args:
        function: `function(state, item)` returns the next state.
        items: a list of tuples of numbers, each of which may reach `function` as a tensor.
        state: a tuple of tensors.
    """
    if backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            columns = [tf.constant(column) for column in zip(*items, strict=True)]

            def body(index: Tensor, state: Any) -> Any:
                return function(state, [column[index] for column in columns])

            return ops.fori_loop(0, len(items), body, state)
    return functools.reduce(function, items, state)


def replicas() -> int:
    """Returns how many replicas of a strategy run what is computed here.

    Outside a TensorFlow replica context, and on JAX, whose sharded arrays are global already,
    there is one.
    """
    if backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_mean(tensor: Tensor) -> Tensor:
    """Averages a tensor over the replicas that run what is computed here; differentiable."""
    if replicas() == 1:
        return tensor
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, tensor)


def traced_for_xla() -> bool:
    """Whether TensorFlow traces a function that XLA will compile."""
    import tensorflow as tf

    # There is no public way to ask; tf_keras has a copy of this function for it.
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
