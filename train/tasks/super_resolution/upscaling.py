"""Photographs of any size, enlarged by a super-resolution network in a `.tflite` file."""

from collections.abc import Callable

import numpy as np

from repq_tf.keras_api import keras
from repq_tf.tflite import reading
from repq_tf.tflite.receptive_field import receptive_field
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network
from repq_tf.train.run.run_folder import find_file
from repq_tf.train.tasks.super_resolution.color import to_network, to_pixels, to_rgb, to_ycbcr
from repq_tf.train.tasks.super_resolution.imresize import imresize
from repq_tf.train.tasks.super_resolution.photographs import (
    Photograph,
    check_writable,
    read_photograph,
    write_photograph,
)
from repq_tf.train.tasks.super_resolution.tiling import run_tiled

_TILE = 256
_KEPT = 4  # a tile has at least so many halos' size, and keeps a quarter of its result


class Upscaler:
    """A super-resolution network of luma or of RGB, run in tiles.

    Pixels have the range of `color.to_network`. A network of luma enlarges Y, and Cb and Cr are
    enlarged by bicubic interpolation, as in the literature; so is opacity. Grey photographs
    stay grey.

    Args:
        path: The `.tflite` file, in floating point or integer, for images of a fixed or of
            any size.
        tile: Height and width of the tiles. Default: the file's own size, 256 if it has none,
            but at least 4 times the receptive radius.
        threads: Threads of the interpreter.

    Raises:
        UserError: If the file is no such network, or the tile is too small for it.
    """

    def __init__(self, path: str, tile: int | None = None, threads: int = 1) -> None:
        self.path = path
        try:
            self.field = receptive_field(reading.read(path)[1])
            self.network = Network(path, threads)
        except OSError as error:
            raise UserError(f"--model={path} cannot be read: {error.strerror}") from error
        except (RuntimeError, ValueError) as error:  # RuntimeError: the interpreter's
            raise UserError(f"--model={path} is no super-resolution file: {error}.") from error
        *size, self.channels = self.network.input_shape
        if self.channels not in (1, 3):
            raise UserError(
                f"--model={path} must take images of 1 or 3 channels. Received: {self.channels}"
            )
        if self.network.output_channels != self.channels:
            raise UserError(
                f"--model={path} must make images of the {self.channels} channels that it"
                f" takes. Received: {self.network.output_channels}"
            )
        least = _KEPT * self.field.radius
        self.tile = tuple(max(n or _TILE, least) for n in size) if tile is None else (tile,) * 2
        if min(self.tile) <= 2 * self.field.radius:
            raise UserError(
                f"--tile must be larger than {2 * self.field.radius}, twice the receptive"
                f" radius of {path}. Received: {tile}"
            )

    def __call__(
        self, pixels: np.ndarray, progress: Callable[[int, int], object] | None = None
    ) -> np.ndarray:
        """Enlarges a photograph.

        Args:
            pixels: uint8 array `(h, w, c)`: grey, grey and opacity, RGB, or RGB and opacity.
            progress: Called after each tile with the number of tiles done, and of all.

        Returns:
            uint8 array `(scale h, scale w, c)`.
        """
        scale, count = self.field.scale, pixels.shape[2]
        grey, transparent = count < 3, count % 2 == 0
        colors = np.broadcast_to(pixels[..., : 1 if grey else 3], (*pixels.shape[:2], 3))
        if self.channels == 3:
            large = self._enlarge(colors, progress)
        else:
            y, chroma = np.split(to_ycbcr(colors), [1], axis=2)
            large = to_rgb(np.dstack([self._enlarge(y, progress), imresize(chroma, scale)]))
        if grey:
            large = large.mean(axis=2, keepdims=True)
        large = np.rint(np.clip(large, 0, 255)).astype("uint8")
        if transparent:
            large = np.dstack([large, imresize(pixels[..., -1], scale)])
        return large

    def run(
        self, image: np.ndarray, progress: Callable[[int, int], object] | None = None
    ) -> np.ndarray:
        """Returns what the network makes of an image of its own channels and range.

        Args:
            image: Array `(h, w, channels)`.
            progress: Called after each tile with the number of tiles done, and of all.
        """
        return run_tiled(
            lambda tile: self.network(tile[None])[0],
            image,
            self.tile,
            self.field.radius,
            self.field.scale,
            progress,
        )

    def _enlarge(
        self, pixels: np.ndarray, progress: Callable[[int, int], object] | None
    ) -> np.ndarray:
        return to_pixels(self.run(to_network(pixels), progress))


def upscale_file(
    source: str,
    target: str,
    model: str,
    tile: int | None = None,
    threads: int = 1,
    verbose: int = 1,
) -> None:
    """Enlarges the photograph in a file.

    Args:
        source: The file.
        target: The file to write, whole or not at all.
        model: A `.tflite` file, or the folder of a run that has written one.
        tile: See `Upscaler`.
        threads: Likewise.
        verbose: Whether to show a progress bar and the size of the result, 0 or more.

    Raises:
        UserError: If one of the files is not what it must be, before anything is computed.
    """
    photograph = read_photograph(source)
    upscaler = Upscaler(find_file(model), tile, threads)
    check_writable(target, photograph, upscaler.field.scale)
    bar = keras.utils.Progbar(None, unit_name="tile", verbose=min(verbose, 1))

    def show(done: int, count: int) -> None:
        bar.target = count
        bar.update(done)

    pixels = upscaler(photograph.pixels, show)
    write_photograph(target, Photograph(pixels, photograph.profile))
    if verbose:
        height, width = pixels.shape[:2]
        print(f"{target}: {width}x{height}, {upscaler.field.scale} times as large")
