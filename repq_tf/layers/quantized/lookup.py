"""Functions of single stored values, looked up in tables."""

from collections.abc import Callable
from typing import Any, Unpack

from repq_tf.arithmetic import sums, tables
from repq_tf.arithmetic.runtimes import elu_of
from repq_tf.keras_api import Config, Layer, Tensor, keras, ops, register
from repq_tf.layers.options import QuantizeOptions
from repq_tf.layers.quantized.quantize import FixedGrid, Quantize


class _Tabled:
    """What layers of tables have in common whose function may be an operator of the file."""

    operator: str | None
    is_certain: Callable[[Tensor], Tensor]

    def operator_of(self, step_in: Tensor) -> str | None:
        """The `operator`, where the file has it; None where the file holds the table."""
        return self.operator if self.operator and self.is_certain(step_in) else None


@register
class QuantizedLookup(_Tabled, Quantize):
    """A function of single values on a learned grid.

    A stored tensor has at most 256 levels, so inference takes what the function makes of each,
    `n_out = round(f(n s_in) / s)`, from a table (`repq_tf.arithmetic.tables.of_function`). The
    file computes ELU and GELU with the runtime's operators, which make such tables, too, each
    in its own way (`tables.elu`, `tables.gelu`); of other functions it holds the table.

    Args:
        function: a layer without weights that computes the function, or its configuration.
        **options: those of `Quantize`.

    Input: features and their step. Output: `(f(x), step)`.
    """

    def __init__(
        self,
        function: Layer | Config,
        bits: int = 8,
        signed: bool = True,
        **options: Unpack[QuantizeOptions],
    ) -> None:
        super().__init__(bits, signed, **options)
        if isinstance(function, dict):
            function = keras.layers.deserialize(function)
        self.function: Any = function

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The function in floating point."""
        return self.function.call(x)

    values_shape = Quantize.values_shape  # it is a function of single values

    @property
    def operator(self) -> str | None:
        """The file's operator for the function, "ELU" or "GELU"; None: the file's table."""
        function = self.function
        if type(function) is keras.layers.ELU:
            return "ELU" if function.alpha == 1 else None
        if type(function) is not keras.layers.Activation:
            return None
        known = {keras.activations.elu: "ELU", keras.activations.gelu: "GELU"}
        return known.get(function.activation)

    def table(self, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The output's levels for the input's levels -128 to 255, as a runtime makes them."""
        quantizer = self.activation_quantizer
        step, zero_point = ops.cast(quantizer.step, step_in.dtype), self.operator_zero_point
        levels = ops.round(self._in_steps(step_in))
        if self.operator is not None:
            own = tables.gelu(step_in, step)
            if self.operator == "ELU":
                own = elu_of(runtime)(step_in, step, zero_point)
            levels = ops.where(self.is_certain(step_in), own, levels)
        return ops.clip(levels, quantizer.low, quantizer.high)

    def is_certain(self, step_in: Tensor) -> Tensor:
        """Whether the `operator` makes the same table everywhere; else the file holds it."""
        quantizer = self.activation_quantizer
        # Beyond the grid all is clamped; and ELU leaves what is positive.
        high = 0 if self.operator == "ELU" else quantizer.high
        levels = ops.clip(self._in_steps(step_in), quantizer.low, high)
        return tables.is_certain(levels, self.operator_zero_point)

    def _in_steps(self, step_in: Tensor) -> Tensor:
        values = tables.of_function(self.function.call, step_in)
        return values / ops.cast(self.activation_quantizer.step, values.dtype)

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        return tables.look_up(self.table(step_in, runtime), sums.whole(x, step_in))

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "function": keras.layers.serialize(self.function)}


@register
class QuantizedTanh(_Tabled, FixedGrid):
    """`tanh(x)` on the grid that the integer runtime prescribes: steps of 1/128.

    Args:
        **options: those of `FixedGrid`.

    Input: features and their step. Output: `(tanh(x), step)`.
    """

    STEP = 1 / 128
    SIGNED = True
    operator = "TANH"

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The function in floating point."""
        return ops.tanh(x)

    values_shape = FixedGrid.values_shape  # it is a function of single values

    def table(self, step_in: Tensor) -> Tensor:
        """The output's levels for the input's levels -128 to 255, `round(128 tanh(x))`."""
        return ops.clip(tables.tanh(step_in), -128, 127)

    def is_certain(self, step_in: Tensor) -> Tensor:
        """Whether the `operator` makes the same table everywhere; else the file holds it."""
        return tables.is_certain(tables.tanh_in_steps(step_in), 0)

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        return tables.look_up(self.table(step_in), sums.whole(x, step_in))
