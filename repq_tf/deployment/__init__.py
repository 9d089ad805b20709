"""Deployment: the integer file, and what else devices need of it."""

from repq_tf.deployment.export import export_tflite
from repq_tf.deployment.float_file import export_tflite_float
from repq_tf.deployment.metadata import export_metadata
from repq_tf.deployment.micro import export_c_array
from repq_tf.deployment.onnx_file import export_onnx

__all__ = [
    "export_c_array",
    "export_metadata",
    "export_onnx",
    "export_tflite",
    "export_tflite_float",
]
