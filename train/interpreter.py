"""`.tflite` files, run by the LiteRT interpreter."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.quiet import quiet
from repq_tf.tflite import reading
from repq_tf.tflite.pixels import pixels_of


class Network:
    """A `.tflite` file as a function from float inputs to float outputs.

    A file that takes pixels gets those that it normalises to the inputs.

    Args:
        path: The file, with one input and one output.
        threads: Threads of the interpreter.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._pixels = None  # the parsed file, if it takes pixels
        self._allocated: tuple[int, ...] | None = (
            None  # the input's shape that there is memory for
        )
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        if self._input["dtype"] == np.uint8 and not self._input["quantization"][0]:
            self._pixels = reading.read(path)[1]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the outputs for a batch of inputs, computed one by one.

        Inputs of another size than the file's are computed at their own.
        """
        stored, outputs = self._stored(np.asarray(inputs)), []
        self._allocate((1, *stored.shape[1:]))
        for image in stored:
            self._interpreter.set_tensor(self._input["index"], image[None])
            self._interpreter.invoke()
            outputs.append(self._interpreter.get_tensor(self._output["index"])[0])
        return _from_stored(np.stack(outputs), self._output)

    def _stored(self, inputs: np.ndarray) -> np.ndarray:
        if self._pixels is not None:
            return pixels_of(self._pixels, inputs)
        return _to_stored(inputs, self._input)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """`(height, width, channels)`, with None for sizes that the file leaves open."""
        return tuple(int(n) if n > 0 else None for n in self._input["shape_signature"][1:])

    @property
    def output_channels(self) -> int:
        """The size of the output's last axis."""
        return int(self._output["shape"][-1])

    def _allocate(self, shape: tuple[int, ...]) -> None:
        # Not before a shape is known: layers need not fit the size 1 that open sizes have.
        if shape != self._allocated:
            self._interpreter.resize_tensor_input(self._input["index"], shape)
            with quiet():  # LiteRT tells that it uses XNNPACK
                self._interpreter.allocate_tensors()
            self._allocated = shape

    def seconds(self) -> float:
        """Returns the time of one run on the input that was set last."""
        begin = time.perf_counter()
        self._interpreter.invoke()
        return time.perf_counter() - begin


def measure_latency(
    paths: Sequence[str], image: np.ndarray, budget: float = 4.0, most: int = 300
) -> list[float]:
    """Measures files against each other: batch 1, one thread, runs interleaved.

    Each round runs every file once, in a new order, since a run finds the caches as the one
    before has left them.

    Args:
        paths: The files.
        image: An input without the batch axis.
        budget: Seconds to spend, warm-up aside.
        most: Largest number of runs per file.

    Returns:
        Median milliseconds of each file, in order.
    """
    networks = [Network(path) for path in paths]
    for network in networks:
        network(image[None])
        for _ in range(5):
            network.seconds()
    times: list[list[float]] = []
    order = np.random.default_rng(0)
    end = time.perf_counter() + budget
    while len(times) < most and (len(times) < 10 or time.perf_counter() < end):
        seconds = {k: networks[k].seconds() for k in order.permutation(len(networks))}
        times.append([seconds[k] for k in range(len(networks))])
    return [float(ms) for ms in 1000 * np.median(times, axis=0)]


def _to_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Converts floats to the type and scale of a tensor."""
    from repq_tf.arithmetic import input_levels

    dtype = details["dtype"]
    scale, zero_point = details["quantization"]
    if not scale:
        return values.astype(dtype)
    info = np.iinfo(dtype)
    levels = input_levels(values, scale, info.min - zero_point, info.max - zero_point)
    return (levels + zero_point).astype(dtype)


def _from_stored(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Converts a tensor's values to floats."""
    scale, zero_point = details["quantization"]
    if not scale:
        return values.astype("float32")
    return (values.astype("float32") - zero_point) * np.float32(scale)
