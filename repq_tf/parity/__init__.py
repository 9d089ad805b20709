"""The proof that a file computes what was trained; also a program, `--help` describes it."""

from repq_tf.parity.compare import check_parity
from repq_tf.parity.report import LayerParity, ParityReport

__all__ = ["LayerParity", "ParityReport", "check_parity"]
