"""Enlarges a photograph of any size by a trained super-resolution network.

    python train/upscale.py in.png out.png --model=runs/ecbsr_m4c8-x2-repq-8bit-photographs

The network is the integer `.tflite` file itself. Large photographs are computed in tiles that
overlap by its receptive field, so that the result is that of the whole photograph at once.
"""

import os
import sys
from collections.abc import Sequence

from repq_tf.train.errors import UserError
from repq_tf.train.run.run_folder import find_file
from repq_tf.train.settings import command
from repq_tf.train.settings.flags import Flag, fill
from repq_tf.train.settings.kinds import Integer, Text

_FLAGS = (
    Flag(
        "model",
        Text("a .tflite file, or the folder of a run"),
        None,
        "A .tflite file, or the folder of a run. It must be given.",
    ),
    Flag(
        "tile",
        Integer(1),
        None,
        "Height and width of the tiles. Default: the file's own size, 256 if it takes any.",
    ),
    Flag("threads", Integer(1, 1024), os.cpu_count() or 1, "Threads of the interpreter."),
    Flag(
        "verbose",
        Integer(0, 2),
        1,
        "0: nothing, 1: a progress bar, 2: and all that TensorFlow tells.",
    ),
)
FLAGS = {flag.name: flag for flag in _FLAGS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Enlarges one photograph; user errors end with a message on stderr and exit status 1.

    Args:
        arguments: The names of the photograph and of the result, and flags; by default those of
            the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if command.asks_for_help(arguments):
        print(command.describe(__doc__, FLAGS))
        return
    try:
        given, names = command.read(arguments, FLAGS)
        values = fill(given, FLAGS)
        if len(names) != 2:
            raise UserError(
                "Two names are needed, of the photograph and of the result. Received:"
                f" {' '.join(names) or 'none'}"
            )
        if values["model"] is None:
            raise UserError(f"--model must be {FLAGS['model'].kind.allowed}. Received: none")
        find_file(values["model"])
        # Read when TensorFlow is imported.
        everything = values["verbose"] > 1
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if everything else "3")
        from repq_tf.train.tasks.super_resolution.upscaling import upscale_file

        upscale_file(*names, **values)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
