"""repq_tf: quantization-aware training of re-parameterized convolutions on the merged kernel."""

from repq_tf import branches, layers, quantizers

__all__ = ["branches", "layers", "quantizers"]
