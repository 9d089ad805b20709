"""What every source of images offers, and how pixels become the network's input."""

import abc

import numpy as np


def scale_pixels(images):
    """Maps uint8 pixels to float32 in [-1, 1]: a signed 8-bit grid hits them almost exactly."""
    return images.astype("float32") / np.float32(127.5) - np.float32(1)


class Images(abc.ABC):
    """Labelled images, split into training and test images.

    Args:
        name: Name for messages and the report.
        class_names: Names of the classes, in the order of the labels.
        image_shape: `(height, width, channels)` of the network's input.
        train_size: Number of training images.
        test_size: Number of test images.
    """

    def __init__(self, name, class_names, image_shape, train_size, test_size):
        self.name = name
        self.class_names = class_names
        self.image_shape = tuple(int(n) for n in image_shape)
        self.train_size = train_size
        self.test_size = test_size

    @abc.abstractmethod
    def train_batches(self, epoch, batch_size, seed, kind, steps):
        """Returns one epoch of `(images, labels)` batches, as `keras.Model.fit` takes them.

        Args:
            epoch: Which epoch; with `seed` it decides the order and the augmentation.
            batch_size: Images per batch, all batches being full.
            seed: Seed of order and augmentation.
            kind: Augmentation, one of `augment.KINDS`.
            steps: Number of batches.
        """

    @abc.abstractmethod
    def test_batches(self, batch_size):
        """Returns all test images in batches of at most `batch_size`, in a fixed order."""

    @abc.abstractmethod
    def train_sample(self, count, seed):
        """Returns at most `count` training images, not augmented, as one float32 array."""

    @abc.abstractmethod
    def test_sample(self, count):
        """Returns at most `count` test images and their labels, spread over the whole set."""
