"""Post-training: what is done to a float network so that it is quantized better."""

from repq_tf.post_training.equalization import Equalization, StreamScales
from repq_tf.post_training.equalize import equalize
from repq_tf.post_training.pipeline import post_training_quantize
from repq_tf.post_training.restore import restore_batch_norm
from repq_tf.post_training.synthesis import synthesize_images

__all__ = [
    "Equalization",
    "StreamScales",
    "equalize",
    "post_training_quantize",
    "restore_batch_norm",
    "synthesize_images",
]
