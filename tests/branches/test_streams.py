"""Scaled expressions compute the same: on the streams that they report, in both modes."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.branches import (
    BatchNorm,
    Branch,
    Chain,
    Convolution,
    Fixed,
    Identity,
    NumpyReading,
    Scale,
    Streams,
    Sum,
    UnitNorm,
)
from tests.branches.expressions import builders, features, randomize

array = keras.ops.convert_to_numpy
CHANNELS = st.sampled_from((2, 4))


def built(branch, channels, seed=0):
    branch.build((None, None, None, channels))
    randomize(branch, seed, dead=False)
    for node in branch.walk():
        if isinstance(node, BatchNorm):
            node.epsilon = 1e-14  # which scales cannot pass through
    return branch


def joined(branch, channels):
    """The streams of a branch, and its input's and its output's channels."""
    streams = Streams()
    inputs = streams.new(channels)
    return streams, inputs, branch.join_streams(inputs, streams)


def draw_scales(streams, seed):
    """A random scale for each stream that can have one, for all channels."""
    roots = streams.roots
    values = np.exp(np.random.default_rng(seed).normal(size=len(roots)))
    values[list(streams.reasons)] = 1.0
    return values[roots]


def ends(branch, channels):
    """Which of its inputs and outputs are free: not fixed, and tied to no other channel."""
    streams, inputs, outputs = joined(branch, channels)
    roots, both = streams.roots, np.concatenate([inputs, outputs])
    counts = np.bincount(roots[both], minlength=len(roots))
    counts[list(streams.reasons)] = 2
    free = counts[roots[both]] == 1
    return "".join("-x"[int(f)] for f in free[:channels]), "".join(
        "-x"[int(f)] for f in free[channels:]
    )


@settings(max_examples=30)
@given(
    data=st.data(),
    channels=st.tuples(CHANNELS, CHANNELS),
    groups=st.sampled_from(((1,), (1, 2, 4))),
    seed=st.integers(0, 999),
)
def check_a_scaled_branch(data, channels, groups, seed):
    branch = built(data.draw(builders(*channels, groups=groups))(), channels[0], seed)
    x = array(features(seed, branch, channels[0], batch=3))
    start = branch.get_weights()
    before = {mode: array(branch(x, training=mode)) for mode in (False, True)}
    branch.set_weights(start)  # training has moved the statistics
    merged = branch.merge(NumpyReading())
    streams, inputs, outputs = joined(branch, channels[0])
    scales = draw_scales(streams, seed)
    streams.scale(scales)
    expected = merged.scale_inputs(scales[inputs]).scale(1 / scales[outputs])
    actual = branch.merge(NumpyReading())
    np.testing.assert_allclose(actual.kernel, expected.kernel, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual.bias, expected.bias, rtol=1e-9, atol=1e-9)
    for mode in (False, True):
        y = array(branch(x / scales[inputs], training=mode)) * scales[outputs]
        largest = np.abs(before[mode]).max() + 1e-30
        np.testing.assert_allclose(y / largest, before[mode] / largest, rtol=0, atol=1e-9)


def test_a_scaled_branch_computes_the_same(float64):
    check_a_scaled_branch()


@pytest.mark.parametrize(
    ("branch", "free"),
    [
        (lambda: Convolution(3, 1), ("xx", "xxx")),
        (lambda: Identity(), ("--", "--")),
        (lambda: BatchNorm(Identity()), ("xx", "xx")),
        (lambda: Scale(Identity()), ("xx", "xx")),
        (lambda: Sum([Convolution(2, 3), Identity()]), ("--", "--")),
        (lambda: Sum([BatchNorm(Convolution(2, 3)), BatchNorm(Identity())]), ("xx", "xx")),
        (lambda: BatchNorm(Sum([Convolution(2, 3), Identity()])), ("xx", "xx")),
        (
            lambda: Chain([Sum([Convolution(2, 1), Identity()]), Convolution(2, 3)]),
            ("xx", "xx"),
        ),
        (lambda: Fixed.average((2, 2), 2), ("--", "--")),
        (lambda: Fixed.dirac(2, 3), ("--", "--x")),
        (lambda: Fixed(np.ones((1, 1, 2, 2))), ("--", "--")),
        (lambda: BatchNorm(Fixed(np.ones((1, 1, 2, 2)))), ("--", "xx")),
        (lambda: UnitNorm(Convolution(2, 3)), ("--", "--")),
        (lambda: Scale(UnitNorm(Convolution(2, 3))), ("--", "xx")),
    ],
)
def test_which_channels_are_free(branch, free):
    assert ends(built(branch(), 2), 2) == free


def test_a_branch_that_does_not_say_is_left_alone():
    class Square(Branch):
        def output_channels(self, in_channels):
            return in_channels

    streams, inputs, outputs = joined(Square(name="square"), 2)
    reason = "branch 'square' (Square) is not known"
    assert streams.reasons == {int(k): reason for k in (*inputs, *outputs)}


def test_streams_are_joined_however_late():
    streams = Streams()
    a, b, c, one = (streams.new(n) for n in (2, 2, 2, 1))
    streams.fix(a[:1], "first")
    streams.join(b, c)
    streams.join(a, b)
    streams.fix(c, "second")
    roots = streams.roots
    np.testing.assert_array_equal(roots[a], roots[c])
    assert len(set(roots[a])) == 2
    assert streams.reasons == {int(roots[a][0]): "first", int(roots[a][1]): "second"}
    assert len(streams.join(one, c)) == 2
    assert len(set(streams.roots[np.concatenate([a, b, c, one])])) == 1
