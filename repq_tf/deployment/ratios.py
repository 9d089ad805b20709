"""How much finer than its inputs' grids an operator's may be, for its runtimes."""

import math

from repq_tf.tflite.program import Operation, Program

# By operator and type of features. Of ADD and SUB one step of an input then passes all of an
# output's levels: XNNPACK takes no int8 ones (others add in their place, and round otherwise),
# and 16 bits end the process. XNNPACK's products pass 32 bits.
_LARGEST = {
    ("ADD", "int8"): 2**8,
    ("SUB", "int8"): 2**8,
    ("ADD", "int16"): 2**15,
    ("MUL", "int8"): 2**15,
}


def check_ratios(program: Program) -> None:
    """Raises ValueError if a grid is too fine for the operator that makes it; it is named."""
    for operation in program.operations:
        (y, *_) = operation.outputs
        largest = _LARGEST.get((operation.kind, y.type))
        if largest is not None and (ratio := _ratio(operation)) >= largest:
            raise ValueError(
                f"layer {y.name!r}: a step of what it reads must be less than {largest} steps "
                f"of its output, or the runtime does not run the file. Received: {ratio:.0f}. "
                "Its step has all but vanished in training, or those before have grown as "
                "much: train with a smaller learning rate, or quantize the float model again"
            )


def _ratio(operation: Operation) -> float:
    """The step of what an operator combines, in steps of its output."""
    grids = [tensor.grid for tensor in (*operation.inputs, *operation.outputs)]
    *steps, step = (float(grid.scale) for grid in grids if grid is not None)
    return (math.prod(steps) if operation.kind == "MUL" else max(steps)) / step
