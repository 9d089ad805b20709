"""Trains a network, quantizes it, and writes an integer `.tflite` file with a report.

    python train/main.py --model=ac_resnet18 --bits=8
    python train/main.py --task=super_resolution --model=ecbsr_m4c8 --scale=2 --bits=8

Every stage leaves its product in the run folder. The same command started again continues
where the last one was stopped, or prints the report if the run is complete.
"""

import inspect
import os
import sys

from absl import app, flags, logging

_AUTO = "Default: the recipe of the model and the data set."

flags.DEFINE_string(
    "task",
    None,
    "classification or super_resolution. Default: what the network is for; classification"
    " without --model.",
)
flags.DEFINE_string(
    "model",
    None,
    "Name of the network (repq_tf.models). Default: ac_resnet18; ecbsr_m4c8 for super"
    " resolution.",
)
flags.DEFINE_string(
    "method",
    "repq",
    "repq: re-parameterized in both stages, quantized on the merged kernel. merged: the"
    " branches are merged after the float stage. plain: the network without branches.",
)
flags.DEFINE_string(
    "bn_statistics",
    None,
    "Where RepQ takes the moments from with which batch norms are merged in quantized"
    " training: restored, batch, estimate, sample or running. Default: restored.",
)
flags.DEFINE_bool(
    "merged_bn",
    None,
    "With --method=merged: restore a batch norm after each merged convolution. Default: for"
    " classification.",
)
flags.DEFINE_integer("bits", None, "Bits of weights and activations, 2 to 8. Default: 8.")
flags.DEFINE_integer("weight_bits", None, "Bits of the weights, 2 to 8. Default: 8.")
flags.DEFINE_integer(
    "activation_bits", None, "Bits of the activations, 2 to 8, or 16. Default: 8."
)
flags.DEFINE_string(
    "container",
    "int8",
    "Of kernels of at most 4 bits in the file: int8; or int4, two weights a byte: half the"
    " size, slower convolutions.",
)
flags.DEFINE_string(
    "input_type",
    None,
    "What the file takes: int8 (int16 with activations of 16 bits), on the grid of its input,"
    " the default; uint8, pixels as cameras give them, which the file normalises as in"
    " training; or float32, normalised images.",
)
flags.DEFINE_bool(
    "c_array",
    False,
    "Write the file as a C header as well, model.h, for TensorFlow Lite Micro.",
)
flags.DEFINE_string(
    "quantizer",
    "keras",
    "keras: repq_tf's own layers quantize. tfmot: TensorFlow Model Optimization does, with"
    " LSQ on the merged kernels, in the same places; the whole run is then on tf_keras.",
)
flags.DEFINE_string(
    "dataset",
    None,
    "Classification: digits (scikit-learn's handwritten digits, no download; default), the name"
    " of an image classification data set of TFDS, or folder:PATH, a folder with one folder of"
    " images per class, optionally below train/ and test/. Super resolution: photographs"
    " (scikit-learn's two, no download; default), folder:PATH, a folder of photographs (its"
    " sub-folders of small images, LR* and *_LR*, are left out), or div2k of TFDS.",
)
flags.DEFINE_integer("scale", None, "Super resolution: 2, 3, 4, ... times larger. Default: 2.")
flags.DEFINE_string(
    "color", None, "Super resolution: y, the luma (BT.601) alone, or rgb. Default: y."
)
flags.DEFINE_string(
    "test_sets",
    None,
    "Super resolution: NAME:PATH,NAME:PATH,..., folders of photographs to test on, which may"
    " hold HR_x2/ and LR_x2/ for given small images. Default: those of the data set; of a"
    " folder, every tenth image, which is then not trained on.",
)
flags.DEFINE_integer(
    "patch_size",
    None,
    f"Super resolution: height and width of the small crops that are trained on. {_AUTO}",
)
flags.DEFINE_integer(
    "crops_per_image",
    None,
    f"Super resolution: random crops of each training image in an epoch. {_AUTO}",
)
flags.DEFINE_string("data_dir", None, "Folder of the prepared TFDS data sets.")
flags.DEFINE_integer(
    "image_size", None, "Resize images to this height and width. Default: their own size."
)
flags.DEFINE_string(
    "augment",
    None,
    "none; crop: random shift; crop_flip: and mirror; resized_crop: random area and aspect, and"
    f" mirror; auto: by image size. {_AUTO}",
)
flags.DEFINE_integer(
    "randaugment",
    0,
    "Random operations of RandAugment (arXiv 1909.13719, magnitude 9 of 10) on each training"
    " image, 0 for none; 2 is usual.",
)
flags.DEFINE_float(
    "mixup",
    0.0,
    "Alpha of mixup (arXiv 1710.09412): training images are blended in pairs by a weight from"
    " Beta(alpha, alpha). 0 for none; 0.2 is usual.",
)
flags.DEFINE_float(
    "label_smoothing",
    0.0,
    "Share of each training label that is spread over all classes, 0 to 1; 0.1 is usual.",
)
flags.DEFINE_bool(
    "cache",
    False,
    "Keep the compressed images of a TFDS set in memory after they were read once; an epoch is"
    " then a shuffle of the whole set. Sets of small images are in memory anyway.",
)
flags.DEFINE_bool(
    "skip_bad_images",
    False,
    "Leave out images that cannot be decoded, and count them in the report. All images are"
    " decoded once at every start to find them. Default: such an image ends the run with its"
    " name.",
)
flags.DEFINE_float("width", 1.0, "Multiplier of the network's channels.")
flags.DEFINE_float("epochs", None, f"Epochs of the float stage. {_AUTO}")
flags.DEFINE_float("qat_epochs", None, f"Epochs of quantization-aware training. {_AUTO}")
flags.DEFINE_float("learning_rate", None, f"Peak learning rate of the float stage. {_AUTO}")
flags.DEFINE_float("qat_learning_rate", None, f"The same of quantized training. {_AUTO}")
flags.DEFINE_float("weight_decay", None, f"L2 coefficient. {_AUTO}")
flags.DEFINE_integer("batch_size", None, f"Images per step, over all devices. {_AUTO}")
flags.DEFINE_integer(
    "calibration_images", 256, "Training images from which step sizes are initialised."
)
flags.DEFINE_integer("seed", 0, "Seed of weights, data order and augmentation.")
flags.DEFINE_bool(
    "deterministic",
    None,
    "Repeat a run bit for bit, on GPUs too, where it is slower. Default: on CPUs, without XLA.",
)
flags.DEFINE_string(
    "workdir",
    None,
    "Run folder. Default: runs/<model>-<method>-<bits>bit-<dataset>; for super resolution"
    " runs/<model>-x<scale>-<method>-<bits>bit-<dataset>.",
)
flags.DEFINE_string(
    "init_from",
    None,
    "A float .keras file or the folder of an earlier run: its float weights are used and the"
    " float stage is not repeated.",
)
flags.DEFINE_string(
    "strategy",
    "auto",
    "none: train on one device. mirrored: on all of this machine (TensorFlow). multi_worker:"
    " on several machines, which TF_CONFIG describes (tf_keras). data_parallel: on all of this"
    " machine, or of those that KERAS_DISTRIBUTION_* describes (JAX). auto: mirrored or"
    " data_parallel when there is more than one GPU. See docs/scaling.md.",
)
flags.DEFINE_bool(
    "sync_bn", None, "Synchronise batch norm over devices. Default: with several devices."
)
flags.DEFINE_string(
    "mixed_precision",
    "none",
    "none, bfloat16 or float16: type of the computations of both training stages; weights and"
    " statistics stay float32.",
)
flags.DEFINE_bool("jit_compile", None, "Compile with XLA. Default: except TensorFlow on CPU.")
flags.DEFINE_integer(
    "verbose",
    1,
    "0: only the report, 1: progress bars, 2: a line per epoch, and all that TensorFlow tells.",
)


def main(argv):
    """Runs all stages; user errors end with a message on stderr and exit status 1."""
    # TensorFlow's C++ notes; what matters comes as a Python error. Read when it is imported,
    # so the imports are here, which also makes --help quick.
    everything = flags.FLAGS.verbose > 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if everything else "3")
    if flags.FLAGS.quantizer == "tfmot":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"  # likewise
    if flags.FLAGS.deterministic:  # JAX reads it when it first computes
        wanted = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()
    if not everything:
        logging.set_verbosity(logging.WARNING)  # TFDS and tf.distribute tell each step
    from repq_tf.train import pipeline
    from repq_tf.train.errors import UserError
    from repq_tf.train.settings import resolve

    try:
        if len(argv) > 1:
            raise UserError(f"All arguments are --flags (see --help). Received: {argv[1]!r}")
        names = inspect.signature(resolve).parameters
        pipeline.run(resolve(**{name: flags.FLAGS[name].value for name in names}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main)
