import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from repq_tf.train.engines.mirrored import Mirrored
from repq_tf.train.errors import UserError
from repq_tf.train.tasks.classification import tfds_images, tfds_reading
from repq_tf.train.tasks.classification.augment import resolve_kind
from repq_tf.train.tasks.classification.load import load_images
from repq_tf.train.tasks.classification.regularization import Regularization
from repq_tf.train.tasks.classification.tfds_stream import StreamedImages

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


class RepqBroken(_Shapes):
    """With images of which two training images and a test image are cut off."""

    def _examples(self, count):
        for k, example in super()._examples(count):
            file = io.BytesIO()
            noise = np.random.default_rng(k).integers(0, 256, (12, 12, 3)).astype("uint8")
            Image.fromarray(noise).save(file, "JPEG")
            whole = file.getvalue()
            yield k, {**example, "image": io.BytesIO(whole[: -200 if k in (3, 20) else None])}


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_streamed_test_images_come_once_and_in_order(tmp_path):
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    batches = list(data.test_batches(4).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    assert sorted(labels) == sorted(k % 5 for k in range(TEST))
    assert all(_matches(*batch) for batch in batches)
    assert data.train_sample(7, 0).shape == (7, 66, 66, 3)
    images, sampled = data.test_sample(5)
    assert _matches(images, sampled) and len(sampled) == 5


def _epoch(data, **given):
    options = {"kind": "crop_flip", "steps": 3, **given}
    return list(data.train_batches(1, 8, 5, **options).as_numpy_iterator())


@pytest.mark.slow
def test_workers_together_read_what_one_reads_alone(tmp_path):
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    parts = [_epoch(data, shard=(worker, 2)) for worker in (0, 1)]
    for k, (images, labels) in enumerate(_epoch(data)):
        for worker, part in enumerate(parts):
            np.testing.assert_array_equal(part[k][0], images[worker::2])
            np.testing.assert_array_equal(part[k][1], labels[worker::2])


@pytest.mark.slow
def test_streams_are_regularized_and_repeatable(tmp_path):
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    plain = _epoch(data, kind="none")
    chosen = Regularization(mixup=0.5, label_smoothing=0.1)
    mixed = _epoch(data, kind="none", regularization=chosen)
    for (_, numbers), (images, labels) in zip(plain, mixed, strict=True):
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)
        colours = (images[:, 33, 33, 0] + 1) * 127.5 / 50
        unsmoothed = (labels - 0.1 / 5) / 0.9
        np.testing.assert_allclose(unsmoothed @ np.arange(5), colours, atol=1e-3)
        assert len(np.unique(labels, axis=0)) > len(np.unique(numbers))
    strong = _epoch(data, regularization=Regularization(randaugment=2))
    again = _epoch(data, regularization=Regularization(randaugment=2))
    for (a, labels), (b, same), (c, _) in zip(strong, again, _epoch(data), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(labels, same)
        assert not np.array_equal(a, c) and a.min() >= -1 and a.max() <= 1


@pytest.mark.slow
def test_a_cached_set_is_read_once(tmp_path):
    data = load_images("repq_photos", str(tmp_path), image_size=66, cache=True)
    first = _epoch(data)
    for file in tmp_path.rglob("*train.tfrecord*"):
        file.write_bytes(b"gone")
    again = _epoch(data)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_the_sets_of_the_recipes(tmp_path, name, monkeypatch):
    counts = {"train": 24, "validation" if name == "imagenet2012" else "test": 9}
    make = tfds.builder

    def builder(*args, **options):
        made = make(*args, **options)
        splits = [
            tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=0)
            for split, count in counts.items()
        ]
        made.info.set_splits(tfds.core.splits.SplitDict(splits))
        return made

    with tfds.testing.mock_data(num_examples=24):
        monkeypatch.setattr(tfds, "builder", builder)
        data = load_images(name, str(tmp_path))
        size = 224 if name == "imagenet2012" else 32
        classes = {"cifar10": 10, "cifar100": 100, "imagenet2012": 1000}[name]
        assert data.image_shape == (size, size, 3) and len(data.class_names) == classes
        batches = data.train_batches(0, 8, 0, resolve_kind("auto", size), 2)
        images, labels = next(iter(batches)) if name == "imagenet2012" else batches[0]
    assert images.shape == (8, size, size, 3) and labels.shape == (8,)
    assert -1 <= np.min(images) < np.max(images) <= 1 and 0 <= np.max(labels) < classes


def test_a_test_split_without_labels_is_none(tmp_path, monkeypatch):
    """ImageNet's, whose labels are all -1."""
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    assert data.test_size == TEST
    real = tfds_reading.Examples.dataset

    def unlabelled(self, *args):
        data = real(self, *args)
        if self.split.startswith("test"):
            data = data.map(lambda example: {**example, "label": example["label"] * 0 - 1})
        return data

    monkeypatch.setattr(tfds_reading.Examples, "dataset", unlabelled)
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    assert (data.train_size, data.test_size) == (round(0.8 * TRAIN), TRAIN - round(0.8 * TRAIN))


@pytest.mark.slow
def test_a_batch_of_tests_is_shared_evenly(tmp_path, two_replicas):
    """Also the last one, which is smaller: no replica may be without an image."""
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    tests = data.test_batches(2 * TEST // 3)
    found = Mirrored(two_replicas).fit_data(data.train_batches(0, 8, 0, "crop", 1), tests)
    parts = [
        [len(part) for part in two_replicas.experimental_local_results(labels)]
        for _, labels in found["validation_data"]
    ]
    assert parts == [[3, 4], [2, 2]] and found["validation_steps"] == 2


@pytest.mark.slow
def test_an_epoch_has_one_order(tmp_path):
    """Under JAX, `fit` looks at its first batch before it begins to read."""
    data = load_images("repq_photos", str(tmp_path), image_size=66)
    batches = data.train_batches(1, 8, 5, kind="crop_flip", steps=3)
    first, again = (list(batches.as_numpy_iterator()) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    following = data.train_batches(2, 8, 5, kind="none", steps=3).as_numpy_iterator()
    labels = [np.concatenate([batch[1] for batch in epoch]) for epoch in (first, following)]
    assert not np.array_equal(*labels)


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


def test_a_folder_without_its_prefix(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("photos", str(folder)):
        with pytest.raises(UserError, match=rf"--dataset.*, a folder \(folder:{name} reads"):
            load_images(name, str(tmp_path))


def test_a_missing_data_dir(tmp_path):
    with pytest.raises(UserError, match="--data_dir.*nowhere"):
        load_images("cifar10", str(tmp_path / "nowhere"))


def test_a_set_that_cannot_be_prepared(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(RepqShapes, "download_and_prepare", fail)
    with pytest.raises(UserError, match="could not prepare.*no network here"):
        load_images("repq_shapes", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [tfds_images.MEMORY_LIMIT, 10], ids=["arrays", "streamed"])
def test_images_that_cannot_be_decoded(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(tfds_images, "MEMORY_LIMIT", limit)
    with pytest.raises(UserError, match="image repq_broken-t.*tfrecord.*__.*skip_bad_images"):
        data = load_images("repq_broken", str(tmp_path), image_size=12)
        with data.reading():
            for _ in data.train_batches(0, TRAIN, 0, "none", 1):
                pass
    data = load_images("repq_broken", str(tmp_path), image_size=12, skip_bad_images=True)
    assert (data.train_size, data.test_size) == (TRAIN - 2, TEST - 1)
    assert len(data.skipped) == 3
    assert sum("repq_broken-train" in name for name in data.skipped) == 2
    batches = data.train_batches(0, TRAIN - 2, 0, "none", 1)
    images, labels = batches[0] if limit > 10 else next(iter(batches))
    assert len(images) == len(labels) == TRAIN - 2
    assert len(data.test_sample(TEST)[1]) == TEST - 1
    assert len(data.test_batches(4)) == -(-(TEST - 1) // 4)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "cut in a record", "cut between records"])
def test_damaged_records_are_named(tmp_path, damage, skip):
    load_images("repq_shapes", str(tmp_path))
    (file,) = tmp_path.rglob("*train.tfrecord*")
    whole = file.read_bytes()
    if damage == "flipped":
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    elif damage == "cut in a record":
        file.write_bytes(whole[: len(whole) - 50])
    else:
        size = int.from_bytes(whole[:8], "little") + 16
        file.write_bytes(whole[:size])
    with pytest.raises(UserError, match=f"{file.name} is damaged: .* of its {TRAIN} records"):
        load_images("repq_shapes", str(tmp_path), skip_bad_images=skip)
