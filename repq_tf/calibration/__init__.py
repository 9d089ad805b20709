"""Calibration: what images decide in a quantized model, statistics and step sizes."""

from repq_tf.calibration.batch_norm import reestimate_batch_norm
from repq_tf.calibration.steps import calibrate, clip_rates

__all__ = ["calibrate", "clip_rates", "reestimate_batch_norm"]
