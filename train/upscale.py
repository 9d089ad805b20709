"""Enlarges a photograph of any size by a trained super-resolution network.

    python train/upscale.py in.png out.png --model=runs/ecbsr_m4c8-x2-repq-8bit-photographs

The network is the integer `.tflite` file itself. Large photographs are computed in tiles that
overlap by its receptive field, so that the result is that of the whole photograph at once.
"""

import os
import sys

from absl import app, flags

flags.DEFINE_string("model", None, "A .tflite file, or the folder of a run.", required=True)
flags.DEFINE_integer(
    "tile",
    None,
    "Height and width of the tiles. Default: the file's own size, 256 if it takes any.",
    lower_bound=1,
)
flags.DEFINE_integer("threads", os.cpu_count(), "Threads of the interpreter.", lower_bound=1)
flags.DEFINE_integer(
    "verbose", 1, "0: nothing, 1: a progress bar, 2: and all that TensorFlow tells."
)


def main(argv):
    """Enlarges one photograph; user errors end with a message on stderr and exit status 1."""
    everything = flags.FLAGS.verbose > 1
    # Read when TensorFlow is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if everything else "3")
    from repq_tf.train.errors import UserError
    from repq_tf.train.tasks.super_resolution.upscaling import upscale_file

    try:
        if len(argv) != 3:
            raise UserError(
                "Two names are needed, of the photograph and of the result. Received:"
                f" {' '.join(argv[1:]) or 'none'}"
            )
        names = "model", "tile", "threads", "verbose"
        upscale_file(*argv[1:], **{name: flags.FLAGS[name].value for name in names})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
