"""Deployment: the merged model, the integer file, and the proof that they agree."""

from repq_tf.deployment.merge import merge

__all__ = ["merge"]
