import numpy as np
import pytest

from repq_tf.files.pictures import scale_pixels
from repq_tf.train.settings.flags import AUGMENTATIONS
from repq_tf.train.tasks.classification import augment
from repq_tf.train.tasks.classification.arrays import (
    ArrayDataset,
    ArrayImages,
    EvaluationDataset,
)
from repq_tf.train.tasks.classification.digits import load_digits


def _images(count=23, size=12, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, channels))
    return pixels.astype("uint8"), np.arange(count)


def _epoch(data):
    return [data[k] for k in range(len(data))]


def _same(a, b):
    pairs = [
        (x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    ]
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_epoch_is_a_function_of_seed_and_epoch(kind):
    def epoch(seed, number):
        return _epoch(ArrayDataset(*_images(), 5, (12, 12), kind, seed=seed, epoch=number))

    assert _same(epoch(1, 3), epoch(1, 3))
    assert not _same(epoch(1, 3), epoch(1, 4))
    assert not _same(epoch(1, 3), epoch(2, 3))


def test_batches_may_be_asked_for_in_any_order():
    data = ArrayDataset(*_images(), 5, (12, 12), "crop_flip")
    backwards = [data[k] for k in reversed(range(len(data)))]
    assert _same(_epoch(data), backwards[::-1])


def test_the_end_of_an_epoch_moves_on_to_the_next():
    data = ArrayDataset(*_images(), 5, (12, 12), "crop", epoch=0)
    data.on_epoch_end()
    assert _same(_epoch(data), _epoch(ArrayDataset(*_images(), 5, (12, 12), "crop", epoch=1)))


def test_an_epoch_holds_every_image_at_most_once_in_full_batches():
    labels = [y for _, y in _epoch(ArrayDataset(*_images(), 5, (12, 12)))]
    assert [len(y) for y in labels] == [5] * 4
    assert len(set(np.concatenate(labels))) == 20
    assert len(_epoch(ArrayDataset(*_images(), 5, (12, 12), steps=2))) == 2


def test_images_keep_their_labels_and_are_scaled():
    images, labels = _images()
    for batch, names in _epoch(ArrayDataset(images, labels, 5, (12, 12))):
        np.testing.assert_array_equal(batch, scale_pixels(images[names]))
        assert batch.dtype == "float32"
    ends = scale_pixels(np.array([0, 255], "uint8"))
    np.testing.assert_array_equal(ends, np.array([-1, 1], "float32"))


def test_evaluation_sees_every_image_once_and_in_order():
    images, labels = _images()
    batches = _epoch(EvaluationDataset(images, labels, 10, (12, 12)))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), scale_pixels(images))
    assert [len(y) for _, y in batches] == [10, 10, 3]


def test_crop_shifts_and_brings_in_black():
    images = np.full((64, 16, 16, 1), 200, "uint8")
    out = augment.augment(images, "crop", (16, 16), np.random.default_rng(0))
    assert out.shape == images.shape and out.dtype == "uint8"
    shifted = (out == 0).any(axis=(1, 2, 3))
    assert 0.8 < shifted.mean() <= 1
    assert ((out == 0) | (out == 200)).all()
    assert (out[:, 2:-2, 2:-2] == 200).all()


def test_flips_mirror_about_half():
    ramp = np.broadcast_to(np.arange(10, dtype="uint8")[:, None], (400, 10, 10, 1)).copy()
    out = augment.augment(ramp, "resized_crop", (10, 10), np.random.default_rng(0))
    falling = (out[:, 5, 0, 0] > out[:, 5, -1, 0]).mean()
    assert 0.4 < falling < 0.6
    out = augment.augment(ramp, "crop", (10, 10), np.random.default_rng(0))
    assert (out[:, 5, 2, 0] < out[:, 5, -3, 0]).all()


def test_resized_crops_choose_from_larger_pictures():
    images, _ = _images(size=32)
    for channels in (3, 1):
        out = augment.augment(
            images[..., :channels], "resized_crop", (24, 20), np.random.default_rng(0)
        )
        assert out.shape == (23, 24, 20, channels)
    np.testing.assert_array_equal(augment.central_crop(images, (24, 20)), images[:, 4:28, 6:26])


def test_auto_augmentation_goes_by_size():
    assert augment.resolve_kind("auto", 32) == "crop_flip"
    assert augment.resolve_kind("auto", 224) == "resized_crop"
    assert augment.resolve_kind("none", 224) == "none"


def test_digits_are_split_by_class_and_never_otherwise():
    digits = load_digits()
    assert digits.image_shape == (8, 8, 1)
    assert (digits.train_size, digits.test_size) == (1437, 360)
    images, labels = digits.test_sample(360)
    again, _ = load_digits().test_sample(360)
    np.testing.assert_array_equal(images, again)
    counts = np.bincount(labels)
    assert counts.min() >= 34 and counts.max() <= 37
    assert images.min() == -1 and images.max() == 1
    train = digits.train_sample(10**6, seed=0)
    together = {image.tobytes() for image in train} & {image.tobytes() for image in images}
    assert not together
    assert load_digits(16).image_shape == (16, 16, 1)


def test_samples_are_repeatable_and_spread():
    images, labels = _images()
    data = ArrayImages("some", list("ab"), (images, labels), (images, labels))
    np.testing.assert_array_equal(data.train_sample(4, 1), data.train_sample(4, 1))
    assert not np.array_equal(data.train_sample(4, 1), data.train_sample(4, 2))
    _, chosen = data.test_sample(5)
    np.testing.assert_array_equal(chosen, [0, 5, 11, 16, 22])
    assert len(data.test_sample(1000)[1]) == 23
