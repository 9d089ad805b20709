"""Re-parameterization of existing networks: stock convolutions become blocks."""

from repq_tf.reparameterization.patterns import PATTERNS
from repq_tf.reparameterization.reparameterize import reparameterize

__all__ = ["PATTERNS", "reparameterize"]
