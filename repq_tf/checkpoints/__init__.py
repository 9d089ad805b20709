"""Checkpoints: the weights of other people's PyTorch models."""

from repq_tf.checkpoints.load import load_torch_checkpoint

__all__ = ["load_torch_checkpoint"]
