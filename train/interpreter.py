"""`.tflite` files, run by the LiteRT interpreter."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repq_tf.tflite import reading
from repq_tf.tflite.interpreter import Interpreter
from repq_tf.tflite.pixels import pixels_of


class Network:
    """A `.tflite` file as a function from float inputs to float outputs.

    A file that takes pixels gets those that it normalises to the inputs.

    Args:
        path: The file, with one input and one output.
        threads: Threads of the interpreter.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        self._interpreter = Interpreter(path, threads)
        self._pixels = None  # the parsed file, if it takes pixels
        if self._interpreter.input_type == np.uint8 and not self._interpreter.input_grid[0]:
            self._pixels = reading.read(path)[1]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the outputs for a batch of inputs, computed one by one.

        Inputs of another size than the file's are computed at their own.
        """
        outputs = []
        for image in self._stored(np.asarray(inputs)):
            self._interpreter.run(image[None])
            outputs.append(self._interpreter.output()[0])
        return _from_stored(np.stack(outputs), self._interpreter.output_grid())

    def _stored(self, inputs: np.ndarray) -> np.ndarray:
        if self._pixels is not None:
            return pixels_of(self._pixels, inputs)
        found = self._interpreter
        return _to_stored(inputs, found.input_type, found.input_grid)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """`(height, width, channels)`, with None for sizes that the file leaves open."""
        return self._interpreter.input_shape

    @property
    def output_channels(self) -> int:
        """The size of the output's last axis."""
        return self._interpreter.output_shape()[-1]

    def seconds(self) -> float:
        """Returns the time of one run on the input that was set last."""
        return self._interpreter.seconds()


def measure_latency(
    paths: Sequence[str],
    image: np.ndarray,
    budget: float = 4.0,
    most: int = 300,
    summary: Callable[..., Any] = np.median,
) -> list[float]:
    """Measures files against each other: batch 1, one thread, runs interleaved.

    Each round runs every file once, in a new order, since a run finds the caches as the one
    before has left them.

    Args:
        paths: The files.
        image: An input without the batch axis.
        budget: Seconds to spend, warm-up aside.
        most: Largest number of runs per file.
        summary: What is returned of each file's times; `np.min` on a busy machine.

    Returns:
        Milliseconds of each file, in order.
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
    return [float(ms) for ms in 1000 * summary(times, axis=0)]


def _to_stored(values: np.ndarray, dtype: np.dtype[Any], grid: tuple[float, int]) -> np.ndarray:
    """Converts floats to the type of a tensor, and to its scale and zero point."""
    from repq_tf.arithmetic import input_levels

    scale, zero_point = grid
    if not scale:
        return values.astype(dtype)
    info = np.iinfo(dtype)
    levels = input_levels(values, scale, info.min - zero_point, info.max - zero_point)
    return (levels + zero_point).astype(dtype)


def _from_stored(values: np.ndarray, grid: tuple[float, int]) -> np.ndarray:
    """Converts a tensor's values to floats, by its scale and zero point."""
    scale, zero_point = grid
    if not scale:
        return values.astype("float32")
    return (values.astype("float32") - zero_point) * np.float32(scale)
