"""Which source of images a `--dataset` names."""

from repq_tf.train.settings.checks import check_dataset
from repq_tf.train.tasks.classification.images import Images


def load_images(
    dataset: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    cache: bool = False,
    skip_bad_images: bool = False,
) -> Images:
    """Returns the images that `--dataset` names.

    Args:
        dataset: `"digits"`, `"folder:PATH"`, or the name of a TFDS set.
        data_dir: Folder of prepared TFDS sets.
        image_size: Height and width to resize to; by default the images' own.
        cache: Keep compressed images of TFDS in memory.
        skip_bad_images: Leave out images that cannot be decoded; their names are the
            attribute `skipped` of the result. Default: they are errors.

    Returns:
        An `images.Images`.

    Raises:
        UserError: If there are no such images, or `data_dir` is given without a TFDS name.
    """
    check_dataset(dataset, "classification", data_dir)
    if dataset == "digits":
        from repq_tf.train.tasks.classification.digits import load_digits

        return load_digits(image_size)
    if dataset.startswith("folder:"):
        from repq_tf.train.tasks.classification.folder import load_folder

        return load_folder(dataset.removeprefix("folder:"), image_size, skip_bad_images)
    from repq_tf.train.tasks.classification.tfds_images import load_tfds

    return load_tfds(dataset, data_dir, image_size, cache, skip_bad_images)
