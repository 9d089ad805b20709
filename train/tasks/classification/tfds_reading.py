"""The examples of a TFDS set as they lie on disk, and what is wrong with them.

TensorFlow is imported where it is used: training on another backend may be without it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from repq_tf.keras_api import Tensor
from repq_tf.train.errors import UserError


class Examples:
    """One split of a set, its images still compressed.

    Each example has `image`, `label` and `tfds_id`, which names its file and its place there.

    Args:
        builder: A prepared TFDS builder with the features `image` and `label`.
        split: Name of the split.
        cache: Keep the examples in memory once they were read.
    """

    def __init__(self, builder: Any, split: str, cache: bool = False) -> None:
        self.split = split
        self.skipped: tuple[str, ...] = ()
        self._builder = builder
        self._cached = self._read().cache() if cache else None

    @property
    def count(self) -> int:
        """Number of examples, without those skipped."""
        return self._builder.info.splits[self.split].num_examples - len(self.skipped)

    def skip_bad_images(self) -> None:
        """Leaves out the images that cannot be decoded; their names are in `skipped`."""
        with self.reading():
            self._check_files()
            self.skipped = tuple(self._undecodable())

    def dataset(self, shuffle_seed: int | None = None, buffer: int = 0) -> Any:
        """Returns a `tf.data.Dataset` of the examples.

        Args:
            shuffle_seed: Seed of their order; `None` leaves them as they lie.
            buffer: Number of examples among which the next one is chosen, if they are not
                in memory.
        """
        import tensorflow as tf

        if self._cached is None:
            data = self._read(shuffle_seed)
        else:
            data, buffer = self._cached, max(1, self.count)
        if self.skipped:
            skipped = tf.constant(self.skipped)
            data = data.filter(lambda example: tf.reduce_all(example["tfds_id"] != skipped))
        if shuffle_seed is None:
            return data
        # One order, however often it is read: JAX's `fit` looks at a batch before it begins.
        return data.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)

    def decode(self, data: Tensor) -> Tensor:
        """Returns the picture of compressed bytes."""
        import tensorflow as tf

        channels = self._builder.info.features["image"].shape[-1]
        image = tf.io.decode_image(data, channels=channels, expand_animations=False)
        return tf.ensure_shape(image, (None, None, channels))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Gives errors of reading the name of the file or image.

        Raises:
            UserError: In the place of an error of TensorFlow, if something is wrong with the
                examples.
        """
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            self._check_files(error)
            for name in self._undecodable():
                raise UserError(
                    f"The image {name} of {self._builder.info.full_name} cannot be decoded."
                    " --skip_bad_images leaves such images out."
                ) from error
            raise

    def _read(self, shuffle_seed: int | None = None) -> Any:
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(
            shuffle_seed=shuffle_seed,
            shuffle_reshuffle_each_iteration=False,
            try_autocache=False,
            add_tfds_id=True,
        )
        data = self._builder.as_dataset(
            split=self.split,
            shuffle_files=shuffle_seed is not None,
            read_config=config,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        names = ("image", "label", "tfds_id")
        return data.map(lambda example: {name: example[name] for name in names})

    def _check_files(self, cause: Exception | None = None) -> None:
        """Refuses files that are cut off or whose bytes have changed, by their checksums."""
        import tensorflow as tf

        for part in self._builder.info.splits[self.split].file_instructions:
            count = 0
            with contextlib.suppress(tf.errors.OpError):
                for _ in tf.data.TFRecordDataset(part.filename):
                    count += 1
            if count < part.examples_in_shard:
                raise UserError(
                    f"{part.filename} is damaged: {count} of its {part.examples_in_shard}"
                    " records can be read. Delete its folder and prepare the set again."
                ) from cause

    def _undecodable(self) -> Iterator[str]:
        """Yields the names of images that cannot be decoded."""
        import tensorflow as tf

        def decode(example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return example["tfds_id"], tf.shape(self.decode(example["image"]))

        data = self._read().map(decode, tf.data.AUTOTUNE).ignore_errors()
        good = {name for name, _ in data.as_numpy_iterator()}
        for example in self._read().as_numpy_iterator():
            if example["tfds_id"] not in good:
                yield example["tfds_id"].decode()
