"""The flags of the program, and the settings of a run that they make."""

from repq_tf.train.settings.settings import Settings, resolve

__all__ = ["Settings", "resolve"]
