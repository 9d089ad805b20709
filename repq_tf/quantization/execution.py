"""Running a model layer by layer on batches of images, in inference."""

import numpy as np

from repq_tf.keras_api import keras, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.quantization.graph import evaluate
from repq_tf.quantization.nodes import fits


def as_batches(data, model, batch_size=128):
    """Returns calibration images as a list of float32 arrays `(batch, ...)`.

    Args:
        data: an array of images, or an iterable of batches (arrays, or tuples whose
            first item is the images).
        model: the model that will get them; shapes are checked.
        batch_size: used to cut an array.
    """
    size = batch_size if hasattr(data, "shape") else None
    return list(stream_batches(data, model, size, "calibration data"))


def stream_batches(data, model, batch_size, name="images"):
    """Yields images as float32 arrays `(batch, ...)`, each read when it is asked for.

    Args:
        data: as for `as_batches`.
        model: likewise.
        batch_size: the most images in a batch, a number or a function of an image's shape;
            None leaves batches as they are.
        name: what to call the images in a message.
    """
    if data is None or isinstance(data, str | bytes | int | float):
        raise ValueError(
            f"{name} must be an array of images or an iterable of batches. Received: {data!r}"
        )
    expected, empty = tuple(model.input_shape[1:]), True
    for part in [data] if hasattr(data, "shape") else data:
        images = part[0] if isinstance(part, tuple | list) else part
        shape, count = tuple(np.shape(images)[1:]), len(images)
        if count == 0:
            raise ValueError(f"{name} must not be empty")
        if not fits(expected, shape):
            raise ValueError(f"{name} must be images of shape {expected}. Received: {shape}")
        size = batch_size(shape) if callable(batch_size) else batch_size or count
        for first in range(0, count, size):
            batch = ops.convert_to_numpy(images[first : first + size])
            batch = np.asarray(batch, np.float32)
            if not np.isfinite(batch).all():
                raise ValueError(f"{name} must be finite; it holds NaN or infinity")
            yield batch
        empty = False
    if empty:
        raise ValueError(f"{name} must not be empty")


def run_batches(graph, batches, visit=None, observe=None):
    """Runs a graph on batches, layer by layer, in inference.

    Args:
        graph: the graph of a model.
        batches: list of arrays.
        visit: `visit(node, calls)`, called before a node runs, with the list of
            `(args, kwargs)` it is about to get, one for each batch.
        observe: `observe(node, results)`, called after it has run, with the list of
            its first outputs; what it returns, if anything, takes their place.

    Returns:
        The outputs: a list, one item for each batch.
    """

    def pick(structure, index):
        if isinstance(structure, _Batches):
            return structure[index]
        if isinstance(structure, list | tuple):
            return type(structure)(pick(item, index) for item in structure)
        if isinstance(structure, dict):
            return {key: pick(item, index) for key, item in structure.items()}
        return structure

    def apply(node, args, kwargs):
        calls = [(pick(args, k), pick(kwargs, k)) for k in range(len(batches))]
        if visit is not None:
            visit(node, calls)
        results = []
        for call_args, call_kwargs in calls:
            result = node.layer(*call_args, **{**call_kwargs, **_inference(node.layer)})
            results.append(result if isinstance(result, tuple | list) else (result,))
        first, *more = (_Batches(column) for column in zip(*results, strict=True))
        if observe is not None:
            first = _Batches(observe(node, first) or first)
        return (first, *more)

    def feed(node):
        tensors = _Batches(ops.convert_to_tensor(batch) for batch in batches)
        if observe is not None:
            observe(node, tensors)
        return tensors

    return evaluate(graph, feed, apply)


class _Batches(list):
    """One value for each batch."""


def _inference(layer):
    takes_training = isinstance(
        layer,
        ReparamConv | Quantize | keras.layers.BatchNormalization | keras.layers.Dropout,
    )
    return {"training": False} if takes_training else {}
