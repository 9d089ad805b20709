"""Running a model over images, in inference: batch by batch, or layer by layer."""

import functools
import tempfile
import weakref

import numpy as np

from repq_tf.calibration.prepared import call, positional, prepare
from repq_tf.graphs import evaluate
from repq_tf.keras_api import ops
from repq_tf.layers import Quantize, ReparamConv

# Bytes of a tensor that stay in memory; more lie in a temporary file.
_IN_MEMORY = 2**23
# Bytes that the largest tensor of a batch and what computes it may take, and those for each
# of its values: float32 copies and integer intermediates.
_WORKING = 2**28
_OF_A_VALUE = 40
_LARGEST_BATCH = 128


class Batches:
    """One tensor's values for all batches; `batches[k]` are those of batch k."""

    def __getitem__(self, k):
        raise NotImplementedError


class Stored(Batches):
    """A tensor's batches in a temporary file, which memory need not hold.

    Args:
        step: the step of the grid that the values lie on, if they do: whole numbers are
            stored then.
    """

    def __init__(self, step=None):
        self._step = None if step is None else np.float32(step)
        self._dtype = np.dtype("float32" if step is None else "int16")
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
        weakref.finalize(self, self._file.close)
        self._places = []

    def append(self, batch):
        """Adds a batch."""
        values = np.asarray(batch, np.float32)
        if self._step is not None:
            values = np.rint(values / self._step)
        self._file.seek(0, 2)
        self._places.append((self._file.tell(), values.shape))
        self._file.write(values.astype(self._dtype).tobytes())

    def __len__(self):
        return len(self._places)

    @property
    def images(self):
        """The number of images in all batches."""
        return sum(shape[0] for _, shape in self._places)

    def __getitem__(self, k):
        start, shape = self._places[k]
        self._file.seek(start)
        content = self._file.read(self._dtype.itemsize * int(np.prod(shape)))
        values = np.frombuffer(content, self._dtype).reshape(shape)
        return values if self._step is None else values.astype(np.float32) * self._step


class Calls:
    """The calls of one layer, one for each batch; iterated over, each is computed anew."""

    def __init__(self, args, kwargs, count):
        self._args, self._kwargs, self._count = args, kwargs, count

    def __len__(self):
        return self._count

    def __getitem__(self, k):
        """The arguments of batch k: `(args, kwargs)`."""
        return _pick(self._args, k), _pick(self._kwargs, k)

    def __iter__(self):
        return (self[k] for k in range(self._count))


def _pick(structure, k):
    if isinstance(structure, Batches):
        return ops.convert_to_tensor(structure[k])
    if isinstance(structure, list | tuple):
        return type(structure)(_pick(item, k) for item in structure)
    if isinstance(structure, dict):
        return {key: _pick(item, k) for key, item in structure.items()}
    return structure


class _Computed:
    """A layer's outputs, computed when they are asked for; those of one batch are kept."""

    def __init__(self, layer, calls):
        self._run, self._calls, self._last = prepare(layer), calls, (None, None)

    def outputs(self, k):
        if self._last[0] != k:
            self._last = (k, self._run(*self._calls[k]))
        return self._last[1]


class _Column(Batches):
    def __init__(self, computed, index):
        self._computed, self._index = computed, index

    def __getitem__(self, k):
        return self._computed.outputs(k)[self._index]


class _Constant(Batches):
    def __init__(self, value):
        self._value = value

    def __getitem__(self, k):
        return self._value


def run_layers(graph, images, visit, progress):
    """Runs a graph layer by layer, each on all images before the next.

    In memory are one batch of what is being computed and small parts of tensors that are
    still needed. Tensors that layers with weights make, and quantized ones, lie in temporary
    files; the others are computed again for each of their readers.

    Args:
        graph: the graph of a model with one input.
        images: their `Stored` batches.
        visit: `visit(node, calls)` is given a node and its `Calls`, before it runs.
        progress: a `Progress`; advanced by each layer.
    """

    def apply(node, args, kwargs):
        calls = Calls(*positional(node.layer, args, kwargs), len(images))
        visit(node, calls)
        computed = _Computed(node.layer, calls)
        columns = [_Column(computed, index) for index in range(len(computed.outputs(0)))]
        ours = isinstance(node.layer, ReparamConv | Quantize)
        if _is_stored(graph, node) and (ours or len(columns) == 1):
            # What follows the tensor of our layers is its step, equal for all batches.
            columns[1:] = [_Constant(column[0]) for column in columns[1:]]
            stored = Stored(node.layer.step if isinstance(node.layer, Quantize) else None)
            for k in range(len(images)):
                stored.append(ops.convert_to_numpy(columns[0][k]))
            columns[0] = stored
        progress.advance()
        return tuple(columns)

    evaluate(graph, lambda node: images, apply)


def _is_stored(graph, node):
    if isinstance(node.layer, Quantize):
        return True
    readers = graph.consumers(node.name)
    rounded = len(readers) == 1 and isinstance(readers[0].layer, Quantize)
    return bool(node.layer.weights) and not rounded


def run_batch(graph, batch, visit=None, observe=None):
    """Runs a graph on one batch of images.

    Args:
        graph: the graph of a model with one input.
        batch: an array `(batch, ...)`.
        visit: `visit(node, args)`, called before a node runs.
        observe: `observe(node, value)`, called after it, with its first output; what it
            returns, if anything, takes that one's place.

    Returns:
        The outputs, in the graph's structure.
    """

    def apply(node, args, kwargs):
        args, kwargs = positional(node.layer, args, kwargs)
        if visit is not None:
            visit(node, args)
        first, *more = call(node.layer, args, kwargs)
        return (observed(node, first), *more)

    def observed(node, value):
        replacement = None if observe is None else observe(node, value)
        return value if replacement is None else replacement

    def feed(node):
        return observed(node, ops.convert_to_tensor(batch))

    return evaluate(graph, feed, apply)


def fitting(graph):
    """A function from an image's shape to the number of images that run at once.

    As many as a quarter of a gigabyte holds, 128 at most.

    Args:
        graph: the graph of a model with one input.
    """

    @functools.cache
    def images_at_once(shape):
        largest = 0

        def observe(node, value):
            nonlocal largest
            largest = max(largest, int(np.prod(value.shape)))

        run_batch(graph, np.zeros((1, *shape), np.float32), observe=observe)
        return min(_LARGEST_BATCH, max(1, _WORKING // (_OF_A_VALUE * largest)))

    return images_at_once
