"""How much finer than its inputs' grids an operator's may be, for its runtimes."""

import math

import numpy as np

from repq_tf.tflite.program import Operation, Program

# By operator and type of features. Of ADD and SUB one step of an input then passes all of an
# output's levels: XNNPACK takes no int8 ones (others add in their place, and round otherwise),
# and 16 bits end the process. XNNPACK's products pass 32 bits, and grouped convolutions of 16
# bits shift by less than nothing. (Convolutions of 8 bits have a `limited_scale`.)
_LARGEST = {
    ("ADD", "int8"): 2**8,
    ("SUB", "int8"): 2**8,
    ("MUL", "int8"): 2**15,
    ("ADD", "int16"): 2**14,
    ("CONV_2D", "int16"): 2**14,
    ("DEPTHWISE_CONV_2D", "int16"): 2**14,
    ("FULLY_CONNECTED", "int16"): 2**14,
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
                "much: train with a smaller learning rate, or quantize the float model again. "
                "If its batch norms were never trained, call repq_tf.reestimate_batch_norm "
                "on it first"
            )


def _ratio(operation: Operation) -> float:
    """The largest step of what an operator adds, in steps of its output."""
    tensors = *operation.inputs[:2], operation.outputs[0]
    *steps, step = (float(np.max(t.grid.scale)) for t in tensors if t.grid is not None)
    return (max(steps) if operation.kind in ("ADD", "SUB") else math.prod(steps)) / step
