"""What a branch is."""

from collections.abc import Iterator
from typing import Any

from repq_tf.branches.readings import Reading
from repq_tf.branches.streams import Streams
from repq_tf.keras_api import LEGACY, Array, Layer, Pair, Shape, Tensor, Variable
from repq_tf.kernels import AffineKernel
from repq_tf.windows import VALID, Window


class _LegacyNode(Layer):
    """A layer of tf_keras that can be frozen without what it holds, as Keras 3's can."""

    @property
    def trainable_weights(self) -> list[Variable]:
        """Those of its own unless it is frozen, and those of what it holds."""
        if self.trainable:
            return super().trainable_weights
        held = getattr(self, "children", ())
        return [weight for child in held for weight in child.trainable_weights]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """All others."""
        trained = {id(weight) for weight in self.trainable_weights}
        return [w for w in super().non_trainable_weights if id(w) not in trained]


_Node: Any = _LegacyNode if LEGACY else Layer


class Branch(_Node):
    """A node of a block's expression: a Keras layer with two readings.

    `branch(x)` runs it; `branch.merge(reading)` returns the `AffineKernel` that
    computes the same. A branch has no strides and no padding of its own: both are
    given when it runs, because they belong to the block.

    Subclasses set `kernel_size` and implement `output_channels`, `build`, `call`
    and `merge`.
    """

    kernel_size: Pair = (1, 1)

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        # Branches take and give features in the dtype they come in.
        super().__init__(name=name, dtype=dtype, autocast=False)

    def output_channels(self, in_channels: int) -> int:
        """The number of output channels for a number of input channels."""
        raise NotImplementedError

    def call(
        self,
        x: Tensor,
        window: Window = VALID,
        strides: Pair = (1, 1),
        training: bool | None = None,
    ) -> Tensor:
        """Runs the branch on `(batch, height, width, in_channels)`.

        Args:
            x: the features.
            window: zeros before and after each spatial axis (negative: cropped).
            strides: `(sh, sw)`.
            training: whether batch norms use the batch's moments.
        """
        raise NotImplementedError

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """Returns the branch's `AffineKernel`; `reading` defaults to inference."""
        raise NotImplementedError

    def shift(self, offset: Tensor) -> bool:
        """Adds `offset`, `(channels,)`, to the output, if a bias of the branch can take it.

        Returns:
            Whether one could.
        """
        return False

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Says which of its channels can only be scaled alike.

        Weights at its ends are noted in `streams`, which can scale them.

        Args:
            inputs: the channels of its input, `(in_channels,)` of the streams' numbers.
            streams: the `Streams`.

        Returns:
            Those of its output, `(out_channels,)`. Of a branch that does not say, no channel
            can be scaled.
        """
        outputs = streams.new(self.output_channels(len(inputs)))
        for channels in (inputs, outputs):
            streams.fix(channels, f"branch {self.name!r} ({type(self).__name__}) is not known")
        return outputs

    def walk(self) -> Iterator["Branch"]:
        """Yields the branch and everything below it, children first."""
        for child in getattr(self, "children", ()):
            yield from child.walk()
        yield self


def check_branch(value: Any, argument: str) -> Branch:
    """Returns a branch, or raises ValueError that says what to write in place of the value."""
    if isinstance(value, Branch):
        return value
    hint = "return the expression"
    if isinstance(value, Layer):
        hint = "use self.convolution(...) or self.batch_norm(...) of the block"
    elif isinstance(value, list | tuple):
        hint = "add them up with repq_tf.branches.Sum([...])"
    raise ValueError(
        f"{argument} must be a branch, which can be merged: {hint}. "
        f"Received: {type(value).__name__}"
    )


def check_branches(values: Any, name: str) -> list[Branch]:
    """A list of branches, of the combiner of a name; or a ValueError."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(
            f"{name}: branches must be a list of branches, and not be empty. "
            f"Received: {values if isinstance(values, list | tuple) else type(values).__name__}"
        )
    return [check_branch(value, f"{name}: each of branches") for value in values]


class Wrapper(Branch):
    """A branch made of one other."""

    def __init__(self, child: Branch, name: str, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.child = check_branch(child, "child")
        self.kernel_size = child.kernel_size

    @property
    def children(self) -> tuple[Branch, ...]:
        """The child alone."""
        return (self.child,)

    def output_channels(self, in_channels: int) -> int:
        """The child's output channels."""
        return self.child.output_channels(in_channels)

    def build(self, input_shape: Shape) -> None:
        """Builds the child."""
        self.child.build(input_shape)
        self.built = True
