"""Scikit-learn's handwritten digits: 1797 real images of 8x8, part of the package."""

import numpy as np

from repq_tf.train.data.pictures import resize_all
from repq_tf.train.tasks.classification.arrays import ArrayImages


def load_digits(image_size: int | None = None) -> ArrayImages:
    """Returns the digits, 80 % of each class for training; the split never changes.

    Args:
        image_size: Height and width to enlarge the images to; by default 8.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    images = np.round(digits.images * (255 / 16)).astype("uint8")[..., None]
    if image_size:
        images = resize_all(images, image_size)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    names = [str(n) for n in digits.target_names]
    return ArrayImages("digits", names, (x_train, y_train), (x_test, y_test))
