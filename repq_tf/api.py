"""The public names of the package."""

from repq_tf import branches, callbacks, layers, models, optimizers, quantizers
from repq_tf.calibration import reestimate_batch_norm
from repq_tf.checkpoints import load_torch_checkpoint
from repq_tf.deployment import (
    export_c_array,
    export_metadata,
    export_onnx,
    export_tflite,
    export_tflite_float,
)
from repq_tf.distillation import Distiller
from repq_tf.inspection import allocate_bits, analyze, sensitivity, summary
from repq_tf.parity import check_parity
from repq_tf.post_training import (
    equalize,
    post_training_quantize,
    restore_batch_norm,
    synthesize_images,
)
from repq_tf.quantization import quantization_table, quantize, with_container, with_runtime
from repq_tf.reparameterization import merge, reparameterize
from repq_tf.upgrading import upgrade
from repq_tf.version import __version__

__all__ = [
    "Distiller",
    "__version__",
    "allocate_bits",
    "analyze",
    "branches",
    "callbacks",
    "check_parity",
    "equalize",
    "export_c_array",
    "export_metadata",
    "export_onnx",
    "export_tflite",
    "export_tflite_float",
    "layers",
    "load_torch_checkpoint",
    "merge",
    "models",
    "optimizers",
    "post_training_quantize",
    "quantization_table",
    "quantize",
    "quantizers",
    "reestimate_batch_norm",
    "reparameterize",
    "restore_batch_norm",
    "sensitivity",
    "summary",
    "synthesize_images",
    "upgrade",
    "with_container",
    "with_runtime",
]
