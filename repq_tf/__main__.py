"""Lists the programs of the package."""

from repq_tf.version import __version__

_PROGRAMS = (
    ("repq-train", "repq_tf.train.main", "trains, quantizes and exports a network"),
    ("repq-upscale", "repq_tf.train.upscale", "enlarges a photograph by an exported network"),
    ("repq-parity", "repq_tf.parity", "compares a model with its .tflite file"),
)


def main() -> None:
    """Prints the names of the programs, and what they do."""
    print(f"repq_tf {__version__}. Its programs; --help describes each:\n")
    for command, module, purpose in _PROGRAMS:
        print(f"  {command:13} or python -m {module:26} {purpose}")


if __name__ == "__main__":
    main()
