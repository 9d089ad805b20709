"""TFDS sets that do not fit in memory, as `tf.data` pipelines.

TensorFlow is imported where it is used: training on another backend may be without it.
"""

import numpy as np

from repq_tf.train.data.images import Images
from repq_tf.train.data.pictures import stored_size

_SHUFFLE_BUFFER = 10_000


class StreamedImages(Images):
    """Images that are decoded while training; an epoch's order is a function of the seed.

    Args:
        builder: A prepared TFDS builder with the features `image` and `label`.
        train: Split to train on.
        test: Split to test on.
        size: Height and width of the network's input.
    """

    def __init__(self, builder, train, test, size):
        info = builder.info
        channels = info.features["image"].shape[-1]
        super().__init__(
            name=info.full_name,
            class_names=tuple(info.features["label"].names),
            image_shape=(size, size, channels),
            train_size=info.splits[train].num_examples,
            test_size=info.splits[test].num_examples,
        )
        self._builder = builder
        self._train = train
        self._test = test

    def train_batches(self, epoch, batch_size, seed, kind, steps):  # noqa: D102
        import tensorflow as tf

        order, changes = np.random.default_rng([seed, epoch]).integers(2**31 - 1, size=2)
        data = self._encoded(self._train, shuffle_seed=int(order))
        data = data.shuffle(_SHUFFLE_BUFFER, seed=int(order)).enumerate()

        def prepare(index, example):
            image = self._decode(example["image"])
            image = self._augment(image, kind, tf.stack([tf.cast(changes, tf.int64), index]))
            return _scale(image), example["label"]

        data = data.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        data = data.batch(batch_size, drop_remainder=True).take(steps)
        return data.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)

    def test_batches(self, batch_size):  # noqa: D102
        return self._central(self._test).batch(batch_size).prefetch(2)

    def train_sample(self, count, seed):  # noqa: D102
        data = self._central(self._train, shuffle_seed=seed).take(count)
        return np.stack([image for image, _ in data.as_numpy_iterator()])

    def test_sample(self, count):  # noqa: D102
        pairs = list(self._central(self._test).take(count).as_numpy_iterator())
        return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])

    def _encoded(self, split, shuffle_seed=None):
        """Returns a split with its pictures still compressed."""
        import tensorflow_datasets as tfds

        return self._builder.as_dataset(
            split=split,
            shuffle_files=shuffle_seed is not None,
            read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed, try_autocache=False),
            decoders={"image": tfds.decode.SkipDecoding()},
        )

    def _central(self, split, shuffle_seed=None):
        """Returns a split's pictures as they are tested: resized, the middle cut out."""
        import tensorflow as tf

        size = self.image_shape[0]

        def prepare(example):
            image = _fit_square(self._decode(example["image"]), stored_size(size))
            return _scale(tf.image.resize_with_crop_or_pad(image, size, size)), example["label"]

        data = self._encoded(split, shuffle_seed)
        return data.map(prepare, tf.data.AUTOTUNE, deterministic=True)

    def _decode(self, data):
        import tensorflow as tf

        channels = self.image_shape[2]
        image = tf.io.decode_image(data, channels=channels, expand_animations=False)
        return tf.ensure_shape(image, (None, None, channels))

    def _augment(self, image, kind, seed):
        """The kinds of `augment.KINDS`, for one image."""
        import tensorflow as tf

        size, channels = self.image_shape[0], self.image_shape[2]
        if kind == "resized_crop":
            begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
                tf.shape(image),
                tf.zeros((1, 0, 4)),
                seed,
                min_object_covered=0.0,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                max_attempts=10,
                use_image_if_no_bounding_boxes=True,
            )
            image = tf.slice(image, begin, extent)
            image = tf.image.resize(image, (size, size), antialias=True)
        else:
            image = _fit_square(image, size)
        if kind in ("crop", "crop_flip"):
            border = max(1, size // 8)
            image = tf.pad(image, ((border, border), (border, border), (0, 0)))
            image = tf.image.stateless_random_crop(image, (size, size, channels), seed)
        if kind in ("crop_flip", "resized_crop"):
            image = tf.image.stateless_random_flip_left_right(image, seed + 1)
        return tf.ensure_shape(image, self.image_shape)


def _fit_square(image, size):
    """Resizes the middle square of an image to height and width `size`."""
    import tensorflow as tf

    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    return tf.image.resize(image, (size, size), antialias=True)


def _scale(image):
    """`images.scale_pixels` for tensors."""
    import tensorflow as tf

    return tf.cast(image, tf.float32) / 127.5 - 1.0
