"""Training recipes: the defaults of a run, by model family and data set.

The ImageNet recipes are the published ones: RepVGG (arXiv 2101.03697) trains 120 epochs and
decays kernels only; ACNet (arXiv 1908.03930) trains 100 epochs and decays everything; OREPA
(arXiv 2204.00826) decays its vectors too; QARepVGG (arXiv 2212.01593) and RepOpt (arXiv
2205.15242) decay less, RepOpt after a warm-up; give `--label_smoothing=0.1 --randaugment=2` for
its whole recipe. MobileOne's 300 epochs with annealed decay are not reproduced. ECBSR (ACM MM
2021) trains on DIV2K with Adam, for 1000 epochs of 64 crops an image. RepQ (arXiv 2311.05317)
keeps a block's own recipe for the quantized stage, except for the learning rate. The others are
short recipes, for small images and for few photographs.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained when the user does not say.

    Attributes:
        epochs: Epochs of the float stage.
        qat_epochs: Epochs of quantization-aware training.
        learning_rate: Peak learning rate of the float stage.
        qat_learning_rate: The same for quantization-aware training.
        optimizer: `"sgd"`, with momentum, or `"adam"`.
        schedule: `"cosine"`, or `"constant"`: no decay of the learning rate.
        weight_decay: L2 coefficient, in the papers' sense (see `optimizer.make_optimizer`).
        decay: What is decayed: `"kernels"`, `"gains"` or `"all"` (see
            `optimizer.make_optimizer`).
        warmup_epochs: Epochs over which the learning rate rises linearly.
        batch_size: Images per step, over all replicas together.
        augment: As `--augment`.
        branch_gamma: Initial gain of the branches' batch norms; `None` leaves it to the
            block.
        patch_size: Height and width of the small crops that super resolution trains on.
        crops_per_image: Crops of each image in an epoch.
    """

    epochs: float
    qat_epochs: float
    learning_rate: float
    qat_learning_rate: float
    optimizer: str = "sgd"
    schedule: str = "cosine"
    weight_decay: float = 1e-4
    decay: str = "kernels"
    warmup_epochs: float = 0.0
    batch_size: int = 128
    augment: str = "auto"
    branch_gamma: float | None = None
    patch_size: int | None = None
    crops_per_image: int | None = None


_DIGITS = Recipe(
    epochs=12,
    qat_epochs=4,
    learning_rate=0.05,
    qat_learning_rate=0.005,
    warmup_epochs=1,
    batch_size=64,
    augment="crop",
)
_SMALL_IMAGES = Recipe(
    epochs=60,
    qat_epochs=15,
    learning_rate=0.1,
    qat_learning_rate=0.01,
    weight_decay=5e-4,
    warmup_epochs=1,
)
_IMAGENET = Recipe(
    epochs=120,
    qat_epochs=120,
    learning_rate=0.1,
    qat_learning_rate=0.01,
    batch_size=256,
    augment="resized_crop",
)
_FINE_TUNE_SIZE = Recipe(
    epochs=60,
    qat_epochs=15,
    learning_rate=0.05,
    qat_learning_rate=0.005,
    warmup_epochs=2,
    batch_size=32,
)
_NO_FLIP = dataclasses.replace(_SMALL_IMAGES, augment="crop")
_CHARACTERS = dataclasses.replace(_FINE_TUNE_SIZE, augment="crop")

# Data set name -> recipe; every other data set gets the last one.
BY_DATASET = {
    "digits": _DIGITS,
    "cifar10": _SMALL_IMAGES,
    "cifar100": _SMALL_IMAGES,
    "binary_alpha_digits": _CHARACTERS,
    "cmaterdb": _CHARACTERS,
    "omniglot": _CHARACTERS,
    "mnist": _NO_FLIP,
    "mnist_corrupted": _NO_FLIP,
    "fashion_mnist": _SMALL_IMAGES,
    "kmnist": _NO_FLIP,
    "emnist": _NO_FLIP,
    "svhn_cropped": _NO_FLIP,
    "imagenet2012": _IMAGENET,
}

# Its authors keep the learning rate constant for a million and a half steps.
_DIV2K = Recipe(
    epochs=1000,
    qat_epochs=100,
    learning_rate=5e-4,
    qat_learning_rate=1e-4,
    optimizer="adam",
    schedule="constant",
    weight_decay=0.0,
    batch_size=32,
    patch_size=64,
    crops_per_image=64,
)
_PHOTOGRAPHS = dataclasses.replace(
    _DIV2K,
    epochs=50,
    qat_epochs=15,
    learning_rate=5e-3,
    qat_learning_rate=1e-3,
    schedule="cosine",
    batch_size=16,
    patch_size=32,
    crops_per_image=1600,
)
_FOLDER_OF_PHOTOGRAPHS = dataclasses.replace(
    _PHOTOGRAPHS,
    epochs=100,
    qat_epochs=30,
    learning_rate=2e-3,
    qat_learning_rate=5e-4,
    crops_per_image=16,
)
_SUPER_RESOLUTION = {"div2k": _DIV2K, "photographs": _PHOTOGRAPHS}

# Start of the model's name -> what the family's authors do differently: on ImageNet, elsewhere.
_BY_FAMILY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ac_": ({"epochs": 100, "qat_epochs": 100, "decay": "all"}, {"branch_gamma": 1 / 3}),
    "orepa_": ({"decay": "gains"}, {"decay": "gains"}),
    "qarepvgg_": ({"weight_decay": 4e-5}, {}),
    "repopt_": ({"weight_decay": 4e-5, "warmup_epochs": 5}, {}),
}


def find_recipe(model: str, dataset: str, task: str = "classification") -> Recipe:
    """Returns the recipe of a model on a data set.

    Args:
        model: Name of a model, such as `"ac_resnet18"`.
        dataset: What `--dataset` says; a TFDS configuration or version is ignored.
        task: What the model is for.

    Returns:
        The `Recipe`.
    """
    name = dataset.split(":")[0].split("/")[0]
    if task == "super_resolution":
        return _SUPER_RESOLUTION.get(name, _FOLDER_OF_PHOTOGRAPHS)
    recipe = BY_DATASET.get(name, _FINE_TUNE_SIZE)
    for prefix, (on_imagenet, elsewhere) in _BY_FAMILY.items():
        if model.startswith(prefix):
            changes = on_imagenet if recipe is _IMAGENET else elsewhere
            return dataclasses.replace(recipe, **changes)
    return recipe
