"""Tiles against the whole image, for functions of known reach that pad with zeros."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate

from repq_tf.train.tasks.super_resolution.tiling import run_tiled, spans, tiles

SIZES = st.integers(1, 40)


@st.composite
def axes(draw):
    halo = draw(st.integers(0, 6))
    return draw(SIZES), draw(st.integers(2 * halo + 1, 2 * halo + 12)), halo


@given(axes())
def test_spans_cover_an_axis(axis):
    length, size, halo = axis
    found = spans(length, size, halo)
    kept = np.concatenate([np.arange(length)[span.keep] for span in found])
    np.testing.assert_array_equal(kept, np.arange(length))
    for span in found:
        assert span.read.stop - span.read.start == min(size, length)
        assert 0 <= span.read.start <= span.keep.start < span.keep.stop
        assert span.keep.stop <= span.read.stop <= length
        if span.read.start > 0:
            assert span.keep.start - span.read.start >= halo
        if span.read.stop < length:
            assert span.read.stop - span.keep.stop >= halo
    # No more tiles than it takes: with one less, even without waste, a pixel would be left.
    if len(found) > 1:
        assert (len(found) - 1) * (size - 2 * halo) + 2 * halo < length


class Layers:
    """Layers of 3x3 correlation, bias and ReLU with zeros around, and enlargement of pixels.

    Their reach is their number. Biases make the zeros at borders matter. Integers, so that
    equal means equal.
    """

    def __init__(self, depth, scale, seed=0):
        rng = np.random.default_rng(seed)
        self.kernels = rng.integers(-2, 3, (depth, 3, 3))
        self.kernels[:, ::2, ::2] += 3  # the corners always count
        self.biases = rng.integers(1, 5, depth)
        self.scale = scale

    def __call__(self, image):
        x = image[..., 0].astype("int64")
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = np.abs(correlate(x, kernel, mode="constant") + bias) % 1009
        parts = np.arange(self.scale**2).reshape(self.scale, self.scale)
        return np.kron(x, np.ones_like(parts))[..., None] + np.tile(parts, x.shape)[..., None]


@given(
    st.tuples(SIZES, SIZES),
    st.integers(0, 4),
    st.integers(0, 2),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
)
def test_tiles_give_the_whole_result(shape, depth, more, part, scale):
    """Borders of the image included, for any image, tile and halo that covers the reach."""
    function, halo = Layers(depth, scale), depth + more
    image = np.random.default_rng(1).integers(0, 100, (*shape, 1))
    size = tuple(2 * halo + n for n in part)
    seen, calls = set(), []

    def watched(x):
        seen.add(x.shape)
        return function(x)

    result = run_tiled(watched, image, size, halo, scale, lambda *count: calls.append(count))
    np.testing.assert_array_equal(result, function(image))
    assert seen == {(min(shape[0], size[0]), min(shape[1], size[1]), 1)}
    assert calls == [(k + 1, len(calls)) for k in range(len(calls))]
    assert len(calls) == len(tiles(shape, size, halo))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_halo_short_of_the_reach_shows(depth):
    image = np.random.default_rng(1).integers(0, 100, (40, 37, 1))
    function = Layers(depth, 2)
    whole, size = function(image), (2 * depth + 5, 2 * depth + 7)
    np.testing.assert_array_equal(run_tiled(function, image, size, depth, 2), whole)
    short = run_tiled(function, image, size, depth - 1, 2)
    assert (short != whole).any()
    # Away from the seams nothing is wrong: a seam lies after the first tile's kept part.
    (first, *_) = spans(40, size[0], depth - 1)
    assert (short[: 2 * first.keep.stop - 2, :8] == whole[: 2 * first.keep.stop - 2, :8]).all()


def test_halos_must_leave_something():
    with pytest.raises(ValueError, match="larger than two halos of 3, .* Received: 6"):
        spans(20, 6, 3)
    assert len(spans(6, 6, 3)) == 1
