"""What must hold before TFMOT is imported, and TFMOT's classes made known to Keras."""

from repq_tf.keras_api import LEGACY, backend, keras

if not LEGACY:
    raise ImportError(
        "repq_tf.tfmot works on tf_keras, but Keras 3 had been chosen when repq_tf was "
        "imported. Start Python with the environment variable TF_USE_LEGACY_KERAS=1, or set "
        'os.environ["TF_USE_LEGACY_KERAS"] = "1" before the first import of tensorflow, keras '
        "or repq_tf; in this process it is too late."
    )
if backend() != "tensorflow":
    raise ImportError(
        "repq_tf.tfmot works on TensorFlow. Start Python with KERAS_BACKEND=tensorflow. "
        f"Received: KERAS_BACKEND={backend()}"
    )
try:
    import tensorflow_model_optimization as tfmot
except ModuleNotFoundError as error:
    raise ImportError(
        'repq_tf.tfmot needs tensorflow-model-optimization: pip install "repq_tf[tfmot]"'
    ) from error

tfmot_keras = tfmot.quantization.keras

# With these, models are loaded without `quantize_scope()`.
_classes = {}
for _objects in tfmot_keras.quantize_scope().custom_objects:
    _classes.update(_objects)
keras.utils.get_custom_objects().update(_classes)
QuantizeLayer = _classes["QuantizeLayer"]
