"""The ends of a `.tflite` file: what it takes and what it gives."""

from repq_tf.deployment.flatbuffer import type_name


def describe(model):
    """What goes in and out of a parsed file.

    Returns:
        `{"inputs": [...], "outputs": [...]}`, for each tensor a dict of its `name`, `type`,
        `shape` (None for a size that is open), and the `scale` and `zero_point` of its grid, or
        None.
    """
    graph = model.subgraphs[0]
    return {
        "inputs": [_describe(graph.tensors[int(i)]) for i in graph.inputs],
        "outputs": [_describe(graph.tensors[int(i)]) for i in graph.outputs],
    }


def _describe(tensor):
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    grid = tensor.quantization
    on_grid = grid is not None and grid.scale is not None
    return {
        "name": tensor.name.decode(),
        "type": type_name(tensor).lower(),
        "shape": [None if size < 0 else int(size) for size in shape],
        "scale": float(grid.scale[0]) if on_grid else None,
        "zero_point": int(grid.zeroPoint[0]) if on_grid else None,
    }
