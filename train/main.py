"""Trains a network, quantizes it, and writes an integer `.tflite` file with a report.

    python train/main.py --model=ac_resnet18 --bits=8
    python train/main.py --task=super_resolution --model=ecbsr_m4c8 --scale=2 --bits=8

Every stage leaves its product in the run folder. The same command started again continues
where the last one was stopped, or prints the report if the run is complete.
"""

import os
import sys
from collections.abc import Sequence

from repq_tf.train.errors import UserError
from repq_tf.train.run.run_folder import RunFolder, find_float_model
from repq_tf.train.settings import Settings, checks, command, resolve


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all stages; user errors end with a message on stderr and exit status 1.

    All that can be said without the data is said before TensorFlow is imported.

    Args:
        arguments: The flags; by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if command.asks_for_help(arguments):
        print(command.describe(__doc__))
        return
    try:
        values, others = command.read(arguments)
        if others:
            raise UserError(f"All arguments are --flags (see --help). Received: {others[0]!r}")
        settings = resolve(**values)
        checks.check_paths(settings)
        find_float_model(settings.init_from)
        find_float_model(settings.upgrade, "upgrade")
        find_float_model(settings.teacher_path, "distill")
        RunFolder(settings.workdir).check(settings)
        _prepare(settings)
        from repq_tf.train import pipeline

        pipeline.run(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def _prepare(settings: Settings) -> None:
    """Sets what TensorFlow, Keras and JAX read when they are imported."""
    from absl import logging

    everything = settings.verbose > 1
    # TensorFlow's C++ notes; what matters comes as a Python error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if everything else "3")
    # Its faster convolutions, which TensorFlow leaves off where a CPU has no AVX-512 VNNI.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if settings.quantizer == "tfmot":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if settings.deterministic:  # JAX reads it when it first computes
        wanted = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()
    if not everything:
        logging.set_verbosity(logging.WARNING)  # TFDS and tf.distribute tell each step


if __name__ == "__main__":
    main()
