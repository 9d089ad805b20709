"""Functions of single stored values, looked up in tables."""

from typing import Any, Unpack

import numpy as np

from repq_tf.arithmetic import sums, tables
from repq_tf.keras_api import Config, Layer, Tensor, keras, ops, register
from repq_tf.layers.options import QuantizeOptions
from repq_tf.layers.quantized.quantize import FixedGrid, Quantize


@register
class QuantizedLookup(Quantize):
    """A function of single values on a learned grid.

    A stored tensor has at most 256 levels, so inference takes what the function makes of each,
    `n_out = round(f(n s_in) / s)`, from a table (`repq_tf.arithmetic.tables.of_function`). The
    file computes ELU and GELU with the runtime's operators, which make such tables, too; of
    other functions it holds the table.

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

    def table(self, step_in: Tensor) -> Tensor:
        """The output's levels for the input's levels -128 to 255."""
        quantizer = self.activation_quantizer
        values = tables.of_function(self.function.call, step_in)
        levels = ops.round(values / ops.cast(quantizer.step, values.dtype))
        return ops.clip(levels, quantizer.low, quantizer.high)

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        return tables.look_up(self.table(step_in), sums.whole(x, step_in))

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "function": keras.layers.serialize(self.function)}


@register
class QuantizedTanh(FixedGrid):
    """`tanh(x)` on the grid that the integer runtime prescribes: steps of 1/128.

    Args:
        **options: those of `FixedGrid`.

    Input: features and their step. Output: `(tanh(x), step)`.
    """

    STEP = 1 / 128
    SIGNED = True

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The function in floating point."""
        return ops.tanh(x)

    values_shape = FixedGrid.values_shape  # it is a function of single values

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output, `round(128 tanh(x))`."""
        table = ops.round(tables.of_function(ops.tanh, step_in) * np.float32(128))
        return tables.look_up(ops.clip(table, -128, 127), sums.whole(x, step_in))
