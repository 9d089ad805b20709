"""The proof that a file computes what was trained; also a program, `--help` describes it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repq_tf.parity.compare import check_parity
    from repq_tf.parity.report import LayerParity, ParityReport

__all__ = ["LayerParity", "ParityReport", "check_parity"]


def __getattr__(name: str) -> Any:
    """Returns a public name, imported now: the program checks its arguments before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from repq_tf.parity import compare, report

    return getattr(compare if name == "check_parity" else report, name)
