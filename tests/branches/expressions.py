"""Random branch expressions, with statistics that training may leave behind."""

import keras
import numpy as np
from hypothesis import strategies as st

from repq_tf.branches import (
    OABN,
    BatchNorm,
    Chain,
    Convolution,
    Fixed,
    Identity,
    Online,
    Scale,
    Sum,
    UnitNorm,
)
from repq_tf.windows import same_window

ops = keras.ops
_FILTER = np.array([[0.5, -1.0, 0.25], [2.0, 0.0, -0.5]])


@st.composite
def builders(draw, in_channels, out_channels, depth=3, groups=(1,)):
    """A function without arguments that returns a new branch of these channels."""
    kinds = ["convolution"] * 2
    if in_channels == out_channels:
        kinds += ["identity", "fixed"]
    if depth:
        kinds += ["batch_norm", "batch_norm", "oabn", "sum", "chain", "scale", "linear"]
    kind = draw(st.sampled_from(kinds))
    if kind == "fixed":
        return lambda: Fixed.depthwise(_FILTER, in_channels, "fixed")
    if kind == "identity":
        return Identity
    if kind == "convolution":
        fitting = [g for g in groups if in_channels % g == out_channels % g == 0]
        options = {
            "filters": out_channels,
            "kernel_size": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            "use_bias": draw(st.booleans()),
            "groups": draw(st.sampled_from(fitting)),
        }
        return lambda: Convolution(**options)
    if kind in ("batch_norm", "oabn", "scale"):
        child = draw(builders(in_channels, out_channels, depth - 1, groups))
        if kind == "scale":
            use_bias = draw(st.booleans())
            return lambda: Scale(child(), use_bias=use_bias)
        return lambda: BatchNorm(child()) if kind == "batch_norm" else OABN(child(), k=0.8)
    if kind == "linear":
        wrapper = draw(st.sampled_from((Online, UnitNorm)))
        middle = draw(st.sampled_from((2, 4)))
        return lambda: wrapper(
            Chain([Convolution(middle, (2, 1)), Convolution(out_channels, 2)])
        )
    if kind == "sum":
        count = draw(st.integers(1, 3))
        children = [
            draw(builders(in_channels, out_channels, depth - 1, groups)) for _ in range(count)
        ]
        return lambda: Sum([child() for child in children])
    middle = draw(st.sampled_from((2, 4)))
    first = draw(builders(in_channels, middle, depth - 1, groups))
    last = draw(builders(middle, out_channels, depth - 1, groups))
    return lambda: Chain([first(), last()])


def randomize(branch, seed, dead=True):
    """Gives every weight a random value: gammas of both signs, some variances near zero."""
    rng = np.random.default_rng(seed)
    for node in branch.walk():
        if isinstance(node, Convolution):
            shape = node.kernel.shape
            fan_in = np.prod(shape[:3])
            node.kernel.assign(rng.normal(size=shape) / np.sqrt(fan_in))
            if node.bias is not None:
                node.bias.assign(rng.normal(size=node.bias.shape))
        elif isinstance(node, Scale):
            node.gain.assign(
                rng.choice((-1, 1), node.gain.shape) * rng.uniform(0.3, 2, node.gain.shape)
            )
            if node.bias is not None:
                node.bias.assign(rng.normal(size=node.bias.shape))
        elif isinstance(node, BatchNorm):
            shape = node.gamma.shape
            sign = rng.choice((-1, 1), shape)
            variance = rng.uniform(0.3, 3, shape)
            if dead:
                variance = np.where(rng.random(shape) < 0.15, 1e-9, variance)
            node.gamma.assign(sign * rng.uniform(0.3, 2, shape))
            node.beta.assign(rng.normal(size=shape))
            node.statistics.moving_mean.assign(rng.normal(size=shape))
            node.statistics.moving_variance.assign(variance)


@st.composite
def windows(draw):
    """A function of `(kernel_size, strides, spatial)` that returns a window."""
    kind = draw(st.sampled_from(("same", "valid", "explicit")))
    if kind == "same":
        return same_window
    side = st.integers(0, 2)
    explicit = draw(st.tuples(st.tuples(side, side), st.tuples(side, side)))
    window = explicit if kind == "explicit" else ((0, 0), (0, 0))
    return lambda kernel_size, strides, spatial: window


def features(seed, branch, channels, batch=2, extra=(3, 4)):
    """Random features that are large enough for the branch, with a mean that is not zero."""
    shape = (batch, *(k + n for k, n in zip(branch.kernel_size, extra, strict=True)), channels)
    rng = np.random.default_rng(seed)
    return ops.convert_to_tensor(
        np.maximum(rng.normal(0.5, 1.0, shape), 0), keras.config.floatx()
    )
