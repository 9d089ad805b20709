"""Activations as operators of a float file."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.deployment.lowering import Lowering, Make
from repq_tf.deployment.moves import making, transpose
from repq_tf.keras_api import LEGACY, Shape
from repq_tf.tflite.program import Tensor, whole

# `activate(lowering, name, x)`: what makes an activation of x; tensors on the way are called
# like `name`.
Activate: TypeAlias = Callable[[Lowering, str, Tensor], Make]
_NONE = {"fusedActivationFunction": "NONE"}
# Of SELU (arXiv 1706.02515).
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class Calculation:
    """Operators one after the other, on tensors and numbers.

    Args:
        lowering: the `Lowering`.
        name: what tensors on the way are called like.
    """

    def __init__(self, lowering: Lowering, name: str) -> None:
        self.lowering, self._name = lowering, name

    def constant(self, value: Any) -> Tensor:
        """A float32 constant."""
        values = np.asarray(value, np.float32)
        return self.lowering.program.constant(f"{self._name}/constant", values)

    def last(self, kind: str, *values: Any, **options: Any) -> Make:
        """What makes the result of an operator on tensors and numbers, which are broadcast."""
        tensors = [v if isinstance(v, Tensor) else self.constant(v) for v in values]
        shape = broadcast([tensor.shape for tensor in tensors])
        return making(self.lowering, kind, tensors, shape, **options)

    def __call__(self, kind: str, *values: Any, **options: Any) -> Tensor:
        """The result of an operator on tensors and numbers, which are broadcast."""
        name = self.lowering.program.name(f"{self._name}/{kind.lower()}")
        return self.last(kind, *values, **options)(None, name)

    def sum(self, a: Any, b: Any, activation: str = "NONE") -> Tensor:
        """The sum of tensors or numbers."""
        return self("ADD", a, b, fusedActivationFunction=activation)

    def product(self, a: Any, b: Any) -> Tensor:
        """Their product."""
        return self("MUL", a, b, **_NONE)

    def mean(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """The mean over some axes, which are kept."""
        axes = [axis % len(x.shape) for axis in axes]
        shape = tuple(1 if k in axes else n for k, n in enumerate(x.shape))
        y = self.lowering.inner(f"{self._name}/mean", shape, None)
        constant = self.lowering.program.constant("axes", whole(axes))
        return self.lowering.program.add("MEAN", (x, constant), y, keepDims=True)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that some shapes are broadcast to; None is a size that is not known."""
    rank = max(map(len, shapes))
    rows = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*rows, strict=True))


def _operator(kind: str, **options: Any) -> Activate:
    def activate(lowering: Lowering, name: str, x: Tensor) -> Make:
        return Calculation(lowering, name).last(kind, x, **options)

    return activate


def leaky_relu(slope: float = 0.2) -> Activate:
    """`max(x, 0) + slope min(x, 0)`; the default is that of Keras's function."""
    return _operator("LEAKY_RELU", alpha=slope)


def clamp(low: float | None, high: float | None) -> Activate:
    """`min(max(x, low), high)`."""

    def activate(lowering: Lowering, name: str, x: Tensor) -> Make:
        calculate = Calculation(lowering, name)
        if high is None:
            return calculate.last("MAXIMUM", x, low)
        if low == 0:
            return calculate.last("MINIMUM", calculate("RELU", x), high)
        return calculate.last("MINIMUM", calculate("MAXIMUM", x, low), high)

    return activate


def elu(alpha: float = 1.0, scale: float = 1.0) -> Activate:
    """`scale x` above 0, `scale alpha (exp(x) - 1)` below."""
    if alpha == scale == 1:
        return _operator("ELU")

    def activate(lowering: Lowering, name: str, x: Tensor) -> Make:
        calculate = Calculation(lowering, name)
        y = calculate("ELU", x)  # of the two lines through it, the one that alpha tells
        above = y if scale == 1 else calculate.product(y, scale)
        below = calculate.product(y, scale * alpha)
        return calculate.last("MINIMUM" if alpha >= 1 else "MAXIMUM", above, below)

    return activate


def softmax(axis: int | Sequence[int] = -1) -> Activate:
    """Of one axis, which is brought to the end and back."""

    def activate(lowering: Lowering, name: str, x: Tensor) -> Make:
        assert isinstance(axis, int)  # as checked
        rank, last = len(x.shape), len(x.shape) - 1
        order = [k for k in range(rank) if k != axis % rank] + [axis % rank]
        if order == list(range(rank)):
            return _operator("SOFTMAX", beta=1.0)(lowering, name, x)
        moved = transpose(lowering, x, order)(None, lowering.program.name(f"{name}/moved"))
        found = _operator("SOFTMAX", beta=1.0)(lowering, name, moved)
        y = found(None, lowering.program.name(f"{name}/softmax"))
        back = [order.index(k) for k in range(last + 1)]
        return transpose(lowering, y, back)

    return activate


def _hard_sigmoid(lowering: Lowering, name: str, x: Tensor) -> Make:
    """`relu6(x + 3) / 6`, of Keras; `clip(x / 5 + 1 / 2, 0, 1)`, of tf_keras."""
    calculate = Calculation(lowering, name)
    if not LEGACY:
        return calculate.last("MUL", calculate.sum(x, 3.0, "RELU6"), 1 / 6, **_NONE)
    linear = calculate.sum(calculate.product(x, 0.2), 0.5)
    return clamp(0, 1)(lowering, name, linear)


def _gated(gate: str) -> Activate:
    def activate(lowering: Lowering, name: str, x: Tensor) -> Make:
        make = ACTIVATIONS[gate](lowering, f"{name}/{gate}", x)
        found = make(None, lowering.program.name(f"{name}/gate"))
        return Calculation(lowering, name).last("MUL", x, found, **_NONE)

    return activate


def _softplus(lowering: Lowering, name: str, x: Tensor) -> Make:
    """`log(1 + exp(x))` as `max(x, 0) + log(1 + exp(-|x|))`, which does not overflow."""
    calculate = Calculation(lowering, name)
    decay = calculate("EXP", calculate("NEG", calculate("ABS", x)))
    rest = calculate("LOG", calculate.sum(decay, 1.0))
    return calculate.last("ADD", calculate("RELU", x), rest, **_NONE)


def _log_sigmoid(lowering: Lowering, name: str, x: Tensor) -> Make:
    calculate = Calculation(lowering, name)
    make = _softplus(lowering, name, calculate("NEG", x))
    return calculate.last("NEG", make(None, lowering.program.name(f"{name}/softplus")))


def _mish(lowering: Lowering, name: str, x: Tensor) -> Make:
    calculate = Calculation(lowering, name)
    make = _softplus(lowering, name, x)
    found = calculate("TANH", make(None, lowering.program.name(f"{name}/softplus")))
    return calculate.last("MUL", x, found, **_NONE)


def _softsign(lowering: Lowering, name: str, x: Tensor) -> Make:
    calculate = Calculation(lowering, name)
    return calculate.last("DIV", x, calculate.sum(calculate("ABS", x), 1.0), **_NONE)


# By Keras's names.
ACTIVATIONS: dict[str, Activate] = {
    "elu": elu(),
    "exponential": _operator("EXP"),
    "gelu": _operator("GELU", approximate=False),
    "gelu_approximate": _operator("GELU", approximate=True),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _gated("hard_sigmoid") if LEGACY else _operator("HARD_SWISH"),
    "hard_tanh": _operator("RELU_N1_TO_1"),
    "leaky_relu": leaky_relu(),
    "log_sigmoid": _log_sigmoid,
    "log_softmax": _operator("LOG_SOFTMAX"),
    "mish": _mish,
    "relu": _operator("RELU"),
    "relu6": _operator("RELU6"),
    "selu": elu(_SELU_ALPHA, _SELU_SCALE),
    "sigmoid": _operator("LOGISTIC"),
    "silu": _gated("sigmoid"),
    "softmax": softmax(),
    "softplus": _softplus,
    "softsign": _softsign,
    "tanh": _operator("TANH"),
}
