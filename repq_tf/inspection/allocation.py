"""`allocate_bits`: how many bits each layer's weights get for a budget."""

import glob
import math
from typing import Any

from repq_tf.arguments import check_bits, number
from repq_tf.arithmetic import ACTIVATION_BITS
from repq_tf.inspection.sensitivity_table import LayerCost, Sensitivity
from repq_tf.inspection.trade_off import allocate

_BUDGETS = {"size": "bytes", "bit_operations": "bit-operations"}


def allocate_bits(
    table: Sensitivity,
    size: float | None = None,
    bit_operations: float | None = None,
    activation_bits: int = 8,
) -> list[tuple[str, dict[str, Any]]]:
    """Chooses the bits of each layer's weights so that noise is least within a budget.

    The noise of a network is taken to be the sum of its layers', each quantized alone. Bits
    are spent where they take most noise away for their cost: along the lower convex hull of
    each layer's (cost, noise), which is within a single layer's step of the least noise.

    Args:
        table: of `repq_tf.sensitivity`.
        size: bytes of all weights, `bits / 8` each, rounded up in each layer, and 4 for each
            bias. With 8 bits everywhere that is the size in `repq_tf.summary`, and with 4 bits
            everywhere the size for `container="int4"` of layers without groups; the int8
            container stores a byte for each weight, however few its bits.
        bit_operations: sum of `MACs * weight bits * input bits` for an image, as in
            `repq_tf.summary`. Give this or `size`.
        activation_bits: of `repq_tf.quantize`, for `bit_operations`; inputs of first and last
            layers have 8 at least, as there.

    Returns:
        Rules, `[(layer, {"weight_bits": bits}), ...]`, for each layer of the table.

    Raises:
        ValueError: an argument is bad, or the budget is too small; the least one is named.

    Example:
        >>> table = repq_tf.sensitivity(model, images)
        >>> rules = repq_tf.allocate_bits(table, size=0.5e6)
        >>> qat = repq_tf.quantize(model, rules=rules, calibration_data=images)
    """
    if not isinstance(table, Sensitivity):
        raise ValueError(
            f"table must be what repq_tf.sensitivity returns. Received: {type(table).__name__}"
        )
    given = {"size": size, "bit_operations": bit_operations}
    found = [name for name, budget in given.items() if budget is not None]
    if len(found) != 1:
        raise ValueError(
            f"size or bit_operations must be given, one of them. Received: {given}"
        )
    (argument,) = found
    budget = number(given[argument], argument, above=0)
    check_bits(activation_bits, "activation_bits", ACTIVATION_BITS)
    if argument == "size":
        choices = table.choices(LayerCost.size)
    else:
        choices = table.choices(lambda layer, b: layer.bit_operations(b, activation_bits))
    path = allocate(choices, budget)
    if path[0].cost > budget:
        raise ValueError(
            f"{argument} must be at least {math.ceil(path[0].cost):,} {_BUDGETS[argument]}, "
            f"which the fewest bits of the table take. Received: {budget:,}"
        )
    chosen = path[-1].choices
    return [(glob.escape(name), {"weight_bits": c.bits}) for name, c in chosen.items()]
