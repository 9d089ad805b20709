import numpy as np
import pytest
import tensorflow_datasets as tfds

from repq_tf.train.data import tfds_images
from repq_tf.train.data.load import load_images
from repq_tf.train.data.tfds_stream import StreamedImages
from repq_tf.train.errors import UserError

TRAIN, TEST = 30, 11


class _Shapes(tfds.core.GeneratorBasedBuilder):
    """Pictures of one colour: the label."""

    VERSION = tfds.core.Version("1.0.0")
    size = (12, 12)
    splits = {"train": TRAIN, "test": TEST}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(*self.size, 3)),
                    "label": tfds.features.ClassLabel(num_classes=5),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._examples(count) for name, count in self.splits.items()}

    def _examples(self, count):
        for k in range(count):
            size = [n or 70 + 3 * k for n in self.size]
            image = np.full((*size, 3), 50 * (k % 5), "uint8")
            yield k, {"image": image, "label": k % 5}

    def _generate_examples(self):
        raise NotImplementedError


class RepqShapes(_Shapes):
    """All of one size."""


class RepqPhotos(_Shapes):
    """Each of its own size, as ImageNet's."""

    size = (None, None)


class RepqUnsplit(_Shapes):
    """Without test images."""

    splits = {"train": TRAIN}


class RepqUntrained(_Shapes):
    """Without training images."""

    splits = {"test": TEST}


class RepqUnlabelled(_Shapes):
    """With other features."""

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)


def _matches(images, labels):
    """Each picture has its label's colour, but for the border that augmentation blackens."""
    middle = np.asarray(images)[:, 4:-4, 4:-4]
    wanted = np.asarray(labels)[:, None, None, None] * 50 / 127.5 - 1
    return np.allclose(middle, wanted, atol=1e-5)


def test_small_sets_become_arrays(tmp_path):
    data = load_images("repq_shapes", str(tmp_path))
    assert (data.train_size, data.test_size) == (TRAIN, TEST)
    assert data.image_shape == (12, 12, 3)
    assert data.class_names == tuple("01234")
    assert _matches(*data.train_batches(0, 8, 0, "crop_flip", 3)[0])
    assert _matches(*data.test_sample(TEST))
    resized = load_images("repq_shapes", str(tmp_path), image_size=24)
    assert resized.image_shape == (24, 24, 3)
    assert _matches(*resized.test_sample(TEST))


@pytest.mark.parametrize("kind", ["none", "crop_flip", "resized_crop"])
def test_large_sets_are_streamed(tmp_path, kind):
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    assert isinstance(data, StreamedImages)
    assert data.image_shape == (66, 66, 3)

    def epoch(seed, number):
        batches = data.train_batches(number, 8, seed, kind, 3)
        assert int(batches.cardinality()) == 3
        return list(batches.as_numpy_iterator())

    first = epoch(1, 2)
    assert [images.shape for images, _ in first] == [(8, 66, 66, 3)] * 3
    for images, labels in first:
        assert kind == "crop_flip" or _matches(images, labels)
    again = epoch(1, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    for other in (epoch(1, 3), epoch(2, 2)):
        assert any(not np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_streamed_test_images_come_once_and_in_order(tmp_path):
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    batches = list(data.test_batches(4).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    assert sorted(labels) == sorted(k % 5 for k in range(TEST))
    assert all(_matches(*batch) for batch in batches)
    assert data.train_sample(7, 0).shape == (7, 66, 66, 3)
    images, sampled = data.test_sample(5)
    assert _matches(images, sampled) and len(sampled) == 5


def test_sets_too_large_for_memory_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_images, "MEMORY_LIMIT", 1000)
    data = load_images("repq_shapes", str(tmp_path), image_size=12)
    assert isinstance(data, StreamedImages)
    assert _matches(*data.test_sample(TEST))


def test_without_test_images_a_fifth_is_kept(tmp_path):
    data = load_images("repq_unsplit", str(tmp_path))
    assert (data.train_size, data.test_size) == (24, 6)


def test_no_training_images(tmp_path):
    with pytest.raises(UserError, match="no training images.*test"):
        load_images("repq_untrained", str(tmp_path))


def test_other_features(tmp_path):
    with pytest.raises(UserError, match="no feature 'image'.*text"):
        load_images("repq_unlabelled", str(tmp_path))


def test_unknown_names_get_similar_ones(tmp_path):
    with pytest.raises(UserError, match="--dataset.*'cifar11'.*cifar10"):
        load_images("cifar11", str(tmp_path))
    with pytest.raises(UserError, match="repq_shapes/large"):
        load_images("repq_shapes/large", str(tmp_path))


def test_a_missing_data_dir(tmp_path):
    with pytest.raises(UserError, match="--data_dir.*nowhere"):
        load_images("cifar10", str(tmp_path / "nowhere"))


def test_a_set_that_cannot_be_prepared(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(RepqShapes, "download_and_prepare", fail)
    with pytest.raises(UserError, match="could not prepare.*no network here"):
        load_images("repq_shapes", str(tmp_path))
