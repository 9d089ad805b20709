"""Super resolution: larger images out of small ones."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repq_tf import models
from repq_tf.keras_api import LEGACY, Tensor, keras, ops, to_numpy
from repq_tf.train.engines.batches import Batches, even_batch
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network
from repq_tf.train.settings import Settings
from repq_tf.train.settings.checks import split_test_sets
from repq_tf.train.settings.flags import WIDE_BITS
from repq_tf.train.tasks.base import Task
from repq_tf.train.tasks.super_resolution import image_quality
from repq_tf.train.tasks.super_resolution.color import (
    FINE_STEP,
    PIXEL_STEP,
    to_network,
    to_pixels,
)
from repq_tf.train.tasks.super_resolution.imresize import imresize
from repq_tf.train.tasks.super_resolution.pair import Pair
from repq_tf.train.tasks.super_resolution.pairs import load_pairs
from repq_tf.train.tasks.super_resolution.patches import (
    CentreDataset,
    PatchDataset,
    as_color,
    channels_of,
)
from repq_tf.train.tasks.super_resolution.plots import draw_comparison

# The files are compared with the Keras model, and drawn, on so many whole images.
_COMPARED = 20
_DRAWN = 3

# Height and width, in small pixels, of what is shown after each epoch.
_SHOWN = 64


class SuperResolution(Task):
    """Trains on crops of photographs, by the L1 loss; judges by PSNR and SSIM of the luma.

    `scale` pixels at the border of an image are not judged. PSNR and SSIM are those of the
    clipped output as it is (the ECBSR authors' convention) and, as `..._rounded`, those of
    the image of 8 bits that one would save; each is averaged over the images of a test set.

    Args:
        settings: `settings.Settings` of the run.

    Raises:
        UserError: If there are no such images, or they are too small to be cropped or judged.
    """

    pixels = (128.0, 128.0)
    meaning = "image, (pixels - 128) / 128"

    def __init__(self, settings: Settings) -> None:
        tests = split_test_sets(settings.test_sets)
        pairs = load_pairs(settings.dataset, settings.scale, tests, settings.data_dir)
        size = settings.patch_size
        self._train = [p for p in pairs.train if min(p.low.shape[:2]) >= size]
        self._tests = pairs.tests
        self._small = len(pairs.train) - len(self._train)
        if not self._train:
            raise UserError(
                "--patch_size must be at most the size of the small training images."
                f" Received: {size}, and none of {len(pairs.train)} images is that large"
            )
        for pair in self._test_pairs:
            _check_judged(pair, settings.scale)
        count = len(self._train) * settings.crops_per_image
        if settings.batch_size > count:
            raise UserError(
                "--batch_size must be at most the number of training crops,"
                f" {count} (--crops_per_image). Received: {settings.batch_size}"
            )
        self.steps_per_epoch = count // settings.batch_size
        self.headline = f"{next(iter(self._tests))}_psnr"
        self.columns = [
            (f"{name} PSNR", f"{name}_psnr", "{:.2f} dB".format) for name in self._tests
        ]
        self._settings = settings
        self._middles: dict[int, CentreDataset] = {}

    @property
    def _test_pairs(self) -> list[Pair]:
        return [pair for pairs in self._tests.values() for pair in pairs]

    def build(self, name: str, **options: Any) -> keras.Model:  # noqa: D102
        s = self._settings
        # Without batch norms this is the same function, at the price of one convolution.
        options["merged"] = True
        try:
            return models.build(name, scale=s.scale, channels=channels_of(s.color), **options)
        except ValueError as error:
            raise UserError(
                f"--model={name} cannot be built with --scale={s.scale} --color={s.color}:"
                f" {error}"
            ) from error

    def compile(  # noqa: D102
        self, model: keras.Model, optimizer: Any = None, jit_compile: bool | str | None = "auto"
    ) -> None:
        if LEGACY and jit_compile == "auto":  # a word that tf_keras does not know
            jit_compile = None
        scale = self._settings.scale

        def psnr(high: Tensor, output: Tensor) -> Tensor:
            return _psnr(high, output, scale)

        model.compile(
            optimizer=optimizer or "sgd",
            loss=keras.losses.MeanAbsoluteError(),
            metrics=[psnr],
            jit_compile=jit_compile,
        )

    def train_batches(self, epoch: int, steps: int, shard: tuple[int, int] = (0, 1)) -> Batches:  # noqa: D102
        s = self._settings
        return PatchDataset(
            self._train,
            s.color,
            s.scale,
            s.patch_size,
            s.crops_per_image,
            s.batch_size,
            seed=s.seed,
            epoch=epoch,
            steps=steps,
            shard=shard,
        )

    def validation_batches(self, devices: int = 1) -> Batches:
        """Returns the middles of the test images, as large as all of them have one."""
        s, tests = self._settings, self._test_pairs
        size = np.min([pair.low.shape[:2] for pair in tests], axis=0)
        batch = even_batch(len(tests), s.batch_size, devices)
        if batch not in self._middles:  # the same in each epoch
            self._middles[batch] = CentreDataset(tests, s.color, s.scale, size, batch)
        return self._middles[batch]

    def calibration_data(self, count: int) -> np.ndarray:  # noqa: D102
        s = self._settings
        crops = PatchDataset(
            self._train,
            s.color,
            s.scale,
            s.patch_size,
            -(-count // len(self._train)),
            count,
            seed=s.seed,
        )
        return crops[0][0]

    def quantize_options(self) -> dict[str, Any]:
        """Pixels are integers of the network's input and output, or 128 times integers."""
        step = FINE_STEP if self._settings.activation_bits == WIDE_BITS else PIXEL_STEP
        return {"input_step": step, "output_step": step}

    def test_inputs(self, count: int) -> list[np.ndarray]:
        """Returns whole images, spread over all test sets."""
        tests = self._test_pairs
        chosen = np.linspace(0, len(tests) - 1, min(count, _COMPARED)).astype(int)
        return [self._input(tests[k]) for k in np.unique(chosen)]

    def _input(self, pair: Pair) -> np.ndarray:
        """The network's input for an image, a batch of one."""
        return to_network(as_color(pair.low, self._settings.color))[None]

    def evaluate(self, model: keras.Model, verbose: int = 0) -> dict[str, float]:  # noqa: D102
        return self._judge(lambda inputs: to_numpy(model(inputs, training=False)), verbose)

    def evaluate_file(self, network: Network, verbose: int = 0) -> dict[str, float]:  # noqa: D102
        return self._judge(network, verbose)

    def references(self) -> dict[str, dict[str, float]]:  # noqa: D102
        return {"bicubic": self._average(self._bicubic)}

    def _judge(
        self, network: Callable[[np.ndarray], np.ndarray], verbose: int
    ) -> dict[str, float]:
        return self._average(lambda pair: to_pixels(network(self._input(pair))[0]), verbose)

    def _bicubic(self, pair: Pair) -> np.ndarray:
        pixels = as_color(pair.low, self._settings.color).astype("float64")
        return np.clip(imresize(pixels, self._settings.scale), 0, 255)

    def _average(
        self, upscale: Callable[[Pair], np.ndarray], verbose: int = 0
    ) -> dict[str, float]:
        """The metrics of a function from pairs to pixels, averaged over each test set."""
        metrics = {}
        bar = keras.utils.Progbar(len(self._test_pairs), unit_name="image", verbose=verbose)
        for name, pairs in self._tests.items():
            found = []
            for pair in pairs:
                found.append(
                    image_quality.judge(upscale(pair), pair.high, self._settings.scale)
                )
                bar.add(1)
            for metric in found[0]:
                values = [one[metric] for one in found]
                metrics[f"{name}_{metric}"] = float(np.mean(values))
        return metrics

    def normalize(self, images: np.ndarray) -> np.ndarray:  # noqa: D102
        return to_network(images)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        s = self._settings
        size = s.patch_size
        return {
            "data": s.dataset,
            "input": f"{'luma' if s.color == 'y' else 'RGB'}, (pixels - 128) / 128",
            "training images": len(self._train),
            "training images smaller than a crop": self._small,
            "test images": ", ".join(f"{k}: {len(v)}" for k, v in self._tests.items()),
            "crops": f"{size}x{size} of the small images, mirrored and transposed",
            "judged": "luma of BT.601, 16 to 235 (of grey pictures too, as of RGB),"
            f" {s.scale} pixels at the border left out",
        }

    def pictures(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Returns the middle of the first test image: bicubic, network, and the truth."""
        s, pair = self._settings, self._test_pairs[0]
        size = np.minimum(pair.low.shape[:2], _SHOWN)
        low, high = CentreDataset([pair], s.color, s.scale, size, 1)[0]
        shown = to_numpy(model(low, training=False))[0]
        bicubic = np.clip(imresize(to_pixels(low[0]), s.scale), 0, 255)
        row = np.concatenate([bicubic, to_pixels(shown), to_pixels(high[0])], axis=1)
        return {f"{pair.name}: bicubic, network, photograph": np.rint(row).astype("uint8")}

    def draw(  # noqa: D102
        self, networks: Mapping[str, Callable[[np.ndarray], np.ndarray]], folder: str
    ) -> list[str]:
        files = []
        for name, pairs in self._tests.items():
            for pair in pairs[:_DRAWN]:
                outputs = {"bicubic": self._bicubic(pair)}
                for label, network in networks.items():
                    outputs[label] = to_pixels(network(self._input(pair))[0])
                files.append(draw_comparison(pair, outputs, self._settings.scale, name, folder))
        return files


def _check_judged(pair: Pair, border: int) -> None:
    """Refuses a test image of which too little is left to judge."""
    height, width = (n - 2 * border for n in pair.high.shape[:2])
    if min(height, width) < image_quality.WINDOW:
        least = image_quality.WINDOW + 2 * border
        raise UserError(
            f"Test images (--test_sets) must be at least {least}x{least} at scale {border}:"
            f" without {border} pixels at each border, 11x11 must be left for SSIM. Received:"
            f" {pair.file or pair.name}, {pair.high.shape[0]}x{pair.high.shape[1]}"
        )


def _psnr(high: Tensor, output: Tensor, border: int) -> Tensor:
    """PSNR of each image of a batch of the network's numbers, in Keras's operations."""
    high, output = (x[:, border:-border, border:-border] for x in (high, output))
    output = ops.clip(ops.cast(output, high.dtype), -1.0, 127 / 128)
    error = ops.mean(ops.square(output - high), axis=(1, 2, 3)) / PIXEL_STEP**2
    return (10 / np.log(10)) * ops.log(255.0**2 / ops.maximum(error, 1e-10))
