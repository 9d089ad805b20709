"""The public names of the package."""

from repq_tf.deployment.containers import with_container
from repq_tf.deployment.merge import merge
from repq_tf.deployment.metadata import export_metadata
from repq_tf.deployment.micro import export_c_array
from repq_tf.deployment.parity import ParityReport, check_parity
from repq_tf.deployment.tflite import export_tflite, export_tflite_float

__all__ = [
    "ParityReport",
    "check_parity",
    "export_c_array",
    "export_metadata",
    "export_tflite",
    "export_tflite_float",
    "merge",
    "with_container",
]
