"""The table of flags of `main.py`: the one place that says what can be set.

`command.py` makes the command line of it, `settings.py` the values of a run. `None` as a
default means that something else decides: the recipe, the model, the machine.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from repq_tf.model_names import TASKS
from repq_tf.train.errors import UserError
from repq_tf.train.settings.kinds import (
    Choice,
    Integer,
    Kind,
    Number,
    Switch,
    Text,
    did_you_mean,
)

AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop")
BN_STATISTICS = ("restored", "batch", "estimate", "sample", "running")
METHODS = ("plain", "merged", "repq", "ptq")
RANGES = ("min_error", "max", "percentile", "mae", "kl", "output_error")
ROUNDINGS = ("nearest", "descent", "adaround", "adaquant")
OWN_TEACHER = "float"  # of `--distill`: the run's own float network
WIDE_BITS = 16  # of activations

_RECIPE = "Default: the recipe of the model and the data set."
_CLASSIFICATION, _SUPER_RESOLUTION = TASKS
_BITS = Integer(2, 8)
_RATE = Number(low_open=True)
_EPOCHS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Flag:
    """A line of the table.

    Attributes:
        name: Its name, without dashes.
        kind: What values it takes; one of `kinds`.
        default: Its value when it is not given.
        help: What it means.
        group: The title under which `--help` shows it.
        task: The only task that it is of, if it is not of all.
        compared: Whether a run may only be continued with the value that it began with. False
            for where things lie, how much is printed, and what is written beside the file.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    group: str = ""
    task: str | None = None
    compared: bool = True

    def check(self, value: Any) -> None:
        """Raises UserError for a value that is not allowed."""
        if value is None or self.kind.admits(value):
            return
        hint = did_you_mean(value, self.kind.words) if isinstance(self.kind, Choice) else ""
        raise UserError(f"--{self.name} must be {self.kind.allowed}. Received: {value!r}{hint}")


_GROUPS = {
    "What": (
        Flag(
            "task",
            Choice(TASKS),
            None,
            "classification or super_resolution. Default: what the network is for;"
            " classification without --model.",
        ),
        Flag(
            "model",
            Text("the name of a network, such as ac_resnet18 or ecbsr_m4c8"),
            None,
            "Name of the network (repq_tf.models). Default: ac_resnet18; ecbsr_m4c8 for super"
            " resolution.",
        ),
        Flag(
            "method",
            Choice(METHODS),
            "repq",
            "repq: re-parameterized in both stages, quantized on the merged kernel. merged: the"
            " branches are merged after the float stage. plain: the network without branches."
            " ptq: quantized after the float stage, without training.",
        ),
        Flag(
            "width",
            Number(high=64, low_open=True),
            1.0,
            "Multiplier of the network's channels.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "init_from",
            Text("a float .keras file or the folder of an earlier run"),
            None,
            "A float .keras file or the folder of an earlier run: its float weights are used"
            " and the float stage is not repeated.",
        ),
        Flag(
            "upgrade",
            Text("a float .keras file"),
            None,
            "A trained classifier's .keras file in place of --model, from images normalised as"
            " here to logits: its convolutions become ACNet's blocks, which are trained on and"
            " then quantized beside the float network, or --distill. The file has the operators"
            " that it would have had.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "quantizer",
            Choice(("keras", "tfmot")),
            "keras",
            "keras: repq_tf's own layers quantize. tfmot: TensorFlow Model Optimization does,"
            " with LSQ on the merged kernels, in the same places; the whole run is then on"
            " tf_keras.",
        ),
        Flag(
            "bn_statistics",
            Choice(BN_STATISTICS),
            None,
            "Where RepQ takes the moments from with which batch norms are merged in quantized"
            " training: restored, batch, estimate, sample or running. Default: restored.",
        ),
        Flag(
            "merged_bn",
            Switch(),
            None,
            "With --method=merged: restore a batch norm after each merged convolution. Default:"
            " for classification.",
        ),
        Flag(
            "equalize",
            Switch(),
            None,
            "Equalize the float network's channels before it is quantized. Default: only with"
            " --method=ptq, where a kernel's grid is that of the whole tensor.",
        ),
        Flag(
            "restore_batch_norm",
            Switch(),
            False,
            "Give each convolution of the float network a batch norm that starts as the"
            " identity, after --equalize and before --finetune_epochs.",
        ),
    ),
    "Bits": (
        Flag("bits", _BITS, None, "Bits of weights and activations, 2 to 8. Default: 8."),
        Flag("weight_bits", _BITS, None, "Bits of the weights, 2 to 8. Default: 8."),
        Flag(
            "activation_bits",
            Integer(2, 8, also=WIDE_BITS),
            None,
            "Bits of the activations, 2 to 8, or 16. Default: 8.",
        ),
        Flag(
            "ranges",
            Choice(RANGES),
            None,
            "The rule of the first ranges of weights and activations: min_error, max,"
            " percentile, mae, kl (8 bits alone) or output_error. Default: min_error, but"
            " output_error for activations with --method=ptq.",
        ),
        Flag(
            "rounding",
            Choice(ROUNDINGS),
            None,
            "With --method=ptq: how kernels are rounded, to the nearest levels or to those with"
            " which layers compute what they did: descent, adaround or adaquant. Default:"
            " nearest.",
        ),
        Flag(
            "step_gradient",
            Choice(("bounded", "lsq")),
            "bounded",
            "How fast the step sizes of the weights learn: bounded, about as fast as the"
            " weights; or lsq, by LSQ's published gradient scale.",
        ),
        Flag(
            "step_rate",
            _RATE,
            1.0,
            "The learning rate of step sizes in quantized training, in parts of the others'.",
        ),
        Flag(
            "weight_levels",
            Choice(("uniform", "odd", "cluster")),
            "uniform",
            "Which numbers of steps weights of at most 4 bits may be: uniform, all between"
            " two bounds; odd, as many odd ones, which suits 2 bits; cluster, as many of int8,"
            " learned for each filter.",
        ),
        Flag(
            "wide_tap",
            Switch(),
            False,
            "Give the weight that an identity branch makes the bounds of int8 in kernels of"
            " fewer bits; for re-parameterized networks below 5 bits.",
        ),
        Flag(
            "dampening",
            Number(),
            0.0,
            "The weight of a loss that draws weights to their levels in quantized training, so"
            " that they oscillate less (arXiv 2203.11086). 0 for none.",
        ),
        Flag(
            "container",
            Choice(("int8", "int4")),
            "int8",
            "Of kernels of at most 4 bits in the file: int8; or int4, two weights a byte: half"
            " the size, slower convolutions.",
        ),
        Flag(
            "input_type",
            Choice(("int8", "uint8", "float32", "int16")),
            None,
            "What the file takes: int8 (int16 with activations of 16 bits), on the grid of its"
            " input, the default; uint8, pixels as cameras give them, which the file normalises"
            " as in training; or float32, normalised images.",
        ),
        Flag(
            "c_array",
            Switch(),
            False,
            "Write the file as a C header as well, model.h, for TensorFlow Lite Micro.",
            compared=False,
        ),
    ),
    "Data": (
        Flag(
            "dataset",
            Text("the name of a data set, or folder:PATH"),
            None,
            "Classification: digits (scikit-learn's handwritten digits, no download; default),"
            " the name of an image classification data set of TFDS, or folder:PATH, a folder"
            " with one folder of images per class, optionally below train/ and test/. Super"
            " resolution: photographs (scikit-learn's two, no download; default),"
            " folder:PATH, a folder of photographs (its sub-folders of small images, LR* and"
            " *_LR*, are left out), or div2k of TFDS.",
        ),
        Flag(
            "data_dir",
            Text("the folder of the prepared TFDS data sets"),
            None,
            "Folder of the prepared TFDS data sets.",
            compared=False,
        ),
        Flag(
            "calibration_images",
            Integer(1, 1_000_000),
            256,
            "Training images from which step sizes are initialised.",
        ),
        Flag(
            "image_size",
            Integer(2, 16_384),
            None,
            "Resize images to this height and width. Default: their own size.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "augment",
            Choice(("auto", *AUGMENTATIONS)),
            None,
            "none; crop: random shift; crop_flip: and mirror; resized_crop: random area and"
            f" aspect, and mirror; auto: by image size. {_RECIPE}",
            task=_CLASSIFICATION,
        ),
        Flag(
            "randaugment",
            Integer(0, 14),
            0,
            "Random operations of RandAugment (arXiv 1909.13719, magnitude 9 of 10) on each"
            " training image, 0 for none, at most the paper's 14; 2 is usual.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "mixup",
            Number(high=100),
            0.0,
            "Alpha of mixup (arXiv 1710.09412): training images are blended in pairs by a"
            " weight from Beta(alpha, alpha). 0 for none; 0.2 is usual.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "label_smoothing",
            Number(high=1, high_open=True),
            0.0,
            "Share of each training label that is spread over all classes, 0 to 1; 0.1 is"
            " usual.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "cache",
            Switch(),
            False,
            "Keep the compressed images of a TFDS set in memory after they were read once; an"
            " epoch is then a shuffle of the whole set. Sets of small images are in memory"
            " anyway.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "skip_bad_images",
            Switch(),
            False,
            "Leave out images that cannot be decoded, and count them in the report. All images"
            " are decoded once at every start to find them. Default: such an image ends the run"
            " with its name.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "scale",
            Integer(2),
            None,
            "2, 3, 4, ... times larger. Default: 2.",
            task=_SUPER_RESOLUTION,
        ),
        Flag(
            "color",
            Choice(("y", "rgb")),
            None,
            "y, the luma (BT.601) alone, or rgb. Default: y.",
            task=_SUPER_RESOLUTION,
        ),
        Flag(
            "test_sets",
            Text("NAME:PATH,NAME:PATH,..."),
            None,
            "NAME:PATH,NAME:PATH,..., folders of photographs to test on, which may hold HR_x2/"
            " and LR_x2/ for given small images. Default: those of the data set; of a folder,"
            " every tenth image, which is then not trained on.",
            task=_SUPER_RESOLUTION,
        ),
        Flag(
            "patch_size",
            Integer(1),
            None,
            f"Height and width of the small crops that are trained on. {_RECIPE}",
            task=_SUPER_RESOLUTION,
        ),
        Flag(
            "crops_per_image",
            Integer(1, 1_000_000),
            None,
            f"Random crops of each training image in an epoch. {_RECIPE}",
            task=_SUPER_RESOLUTION,
        ),
    ),
    "Training": (
        Flag(
            "epochs",
            Number(high=_EPOCHS, low_open=True),
            None,
            f"Epochs of the float stage. {_RECIPE}",
        ),
        Flag(
            "qat_epochs",
            Number(high=_EPOCHS),
            None,
            f"Epochs of quantization-aware training. {_RECIPE}",
        ),
        Flag(
            "finetune_epochs",
            Number(high=_EPOCHS),
            0.0,
            "Epochs of a second float stage, behind --equalize and --restore_batch_norm, at the"
            " learning rate of quantized training. 0 for none.",
        ),
        Flag(
            "anneal_identities",
            Switch(),
            False,
            "In the first half of --finetune_epochs, take the identity branches out of a"
            " RepVGG-type network, a part each epoch; with --distill it learns from the teacher"
            " meanwhile. Its merged kernels then have no large weights that few bits cannot"
            " hold.",
        ),
        Flag(
            "distill",
            Text("float, a float .keras file or the folder of an earlier run"),
            None,
            "A teacher of quantized training: float, the run's own float network; a float"
            " .keras file of the same images and classes; or the folder of an earlier run. The"
            " student learns what it makes of the images beside the labels.",
            task=_CLASSIFICATION,
        ),
        Flag(
            "distill_temperature",
            Number(low_open=True),
            4.0,
            "With --distill: by what logits are divided before they are compared.",
            task=_CLASSIFICATION,
        ),
        Flag("learning_rate", _RATE, None, f"Peak learning rate of the float stage. {_RECIPE}"),
        Flag("qat_learning_rate", _RATE, None, f"The same of quantized training. {_RECIPE}"),
        Flag("weight_decay", Number(), None, f"L2 coefficient. {_RECIPE}"),
        Flag("batch_size", Integer(1), None, f"Images per step, over all devices. {_RECIPE}"),
        Flag(
            "seed",
            Integer(0, 2**32 - 1),
            0,
            "Seed of weights, data order and augmentation.",
        ),
    ),
    "Devices": (
        Flag(
            "strategy",
            Choice(("auto", "none", "mirrored", "multi_worker", "data_parallel")),
            "auto",
            "none: train on one device. mirrored: on all of this machine (TensorFlow)."
            " multi_worker: on several machines, which TF_CONFIG describes (tf_keras)."
            " data_parallel: on all of this machine, or of those that KERAS_DISTRIBUTION_*"
            " describes (JAX). auto: mirrored or data_parallel when there is more than one GPU."
            " See docs/scaling.md.",
        ),
        Flag(
            "sync_bn",
            Switch(),
            None,
            "Synchronise batch norm over devices. Default: with several devices.",
        ),
        Flag(
            "mixed_precision",
            Choice(("none", "bfloat16", "float16")),
            "none",
            "none, bfloat16 or float16: type of the computations of both training stages;"
            " weights and statistics stay float32.",
        ),
        Flag(
            "jit_compile",
            Switch(),
            None,
            "Compile with XLA. Default: except TensorFlow on CPU.",
        ),
        Flag(
            "deterministic",
            Switch(),
            None,
            "Repeat a run bit for bit, on GPUs too, where it is slower. Default: on CPUs,"
            " without XLA.",
        ),
    ),
    "Run folder": (
        Flag(
            "workdir",
            Text("a folder"),
            None,
            "Run folder. Default: runs/<model>-<method>-<bits>bit-<dataset>; for super"
            " resolution runs/<model>-x<scale>-<method>-<bits>bit-<dataset>.",
            compared=False,
        ),
        Flag(
            "verbose",
            Integer(0, 2),
            1,
            "0: only the report, 1: progress bars, 2: a line per epoch, and all that TensorFlow"
            " tells.",
            compared=False,
        ),
    ),
}

FLAGS = {
    flag.name: dataclasses.replace(flag, group=group)
    for group, flags in _GROUPS.items()
    for flag in flags
}


def fill(given: Mapping[str, Any], table: Mapping[str, Flag] = FLAGS) -> dict[str, Any]:
    """Returns a value of every flag, its default where `given` has none or `None`.

    Args:
        given: Flag name -> value.
        table: Flag name -> `Flag`.

    Raises:
        UserError: A value is not allowed.
        TypeError: There is no such flag.
    """
    if unknown := sorted(set(given) - set(table)):
        raise TypeError(f"There is no flag called {', '.join(unknown)}")
    values = {}
    for name, flag in table.items():
        flag.check(given.get(name))
        values[name] = flag.default if given.get(name) is None else given[name]
    return values
