"""Convolutions in float64 NumPy and SciPy, which share no code with the library."""

import numpy as np
from scipy.signal import correlate


def convolution(x, kernel, bias=None, groups=1, strides=(1, 1), window=((0, 0), (0, 0))):
    """Correlates `(n, h, w, c)` with `(kh, kw, c / groups, out)`, channel by channel."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), *window, (0, 0)))
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    assert x.shape[-1] == inputs * groups
    maps = []
    for o in range(kernel.shape[3]):
        first = (o // outputs) * inputs
        maps.append(
            sum(
                correlate(x[..., first + i], kernel[None, :, :, i, o], "valid", "direct")
                for i in range(inputs)
            )
        )
    y = np.stack(maps, -1)[:, :: strides[0], :: strides[1]]
    return y if bias is None else y + np.asarray(bias, np.float64)


def moments(y):
    """Mean and (biased) variance of features, per channel."""
    y = np.asarray(y, np.float64)
    return y.mean((0, 1, 2)), y.var((0, 1, 2))


def crop(x, window):
    """Pads features by a window of zeros; negative sides are cut off."""
    (top, bottom), (left, right) = window
    x = np.pad(x, ((0, 0), *(((max(a, 0), max(b, 0))) for a, b in window), (0, 0)))
    height, width = x.shape[1:3]
    return x[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
