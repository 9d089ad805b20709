"""Re-parameterization of whole networks: stock convolutions become blocks, and blocks those."""

from repq_tf.reparameterization.merge import merge
from repq_tf.reparameterization.patterns import PATTERNS
from repq_tf.reparameterization.reparameterize import reparameterize

__all__ = ["PATTERNS", "merge", "reparameterize"]
