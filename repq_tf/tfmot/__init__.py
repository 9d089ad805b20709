"""RepQ through TensorFlow Model Optimization (TFMOT), which lives on tf_keras.

Imported only on request. It needs `pip install "repq_tf[tfmot]"` and the environment variable
`TF_USE_LEGACY_KERAS=1` from before the first import of TensorFlow, Keras or repq_tf.

Example:
    >>> import tensorflow_model_optimization as tfmot
    >>> annotate = tfmot.quantization.keras.quantize_annotate_model
    >>> scheme = repq_tf.tfmot.RepQScheme(bits=8, calibration_data=images)
    >>> qat = tfmot.quantization.keras.quantize_apply(annotate(model), scheme)
    >>> qat.compile("sgd", loss)
    >>> qat.fit(images, labels)
    >>> repq_tf.export_tflite(qat, "model.tflite")
"""

from repq_tf.graphs import register_conversion
from repq_tf.tfmot import requirements  # noqa: F401, I001  before TFMOT is imported
from repq_tf.tfmot.configs import LSQQuantizeConfig, OutputQuantizeConfig, ReparamQuantizeConfig
from repq_tf.tfmot.quantizer import LSQQuantizer
from repq_tf.tfmot.scheme import RepQRegistry, RepQScheme
from repq_tf.tfmot.unwrap import from_tfmot

register_conversion("tensorflow_model_optimization", from_tfmot)

__all__ = [
    "LSQQuantizeConfig",
    "LSQQuantizer",
    "OutputQuantizeConfig",
    "RepQRegistry",
    "RepQScheme",
    "ReparamQuantizeConfig",
    "from_tfmot",
]
