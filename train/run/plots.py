"""Pictures of a run: training curves and weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repq_tf.keras_api import keras, ops
from repq_tf.train.run.products import writing

_WIDTH = 4.0
_COLUMNS = 4


def draw_curves(histories: Mapping[str, Mapping[str, list[float]]], path: str) -> None:
    """Draws every metric over the epochs, one row per stage.

    There is a mark for each epoch, so that a single one can be seen.

    Args:
        histories: Stage name -> column name -> values, as `records.read_history` returns.
        path: The PNG file to write.
    """
    names = ["learning_rate"]
    for history in histories.values():
        names += [n for n in history if n != "epoch" and not n.startswith("val_")]
    names = sorted(set(names), key=lambda n: (n == "learning_rate", n != "loss", n))
    from matplotlib.ticker import MaxNLocator

    figure, axes = grid(len(histories), len(names))
    for row, (stage, history) in zip(axes, histories.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            for column, style in ((name, "-"), (f"val_{name}", "--")):
                if column in history:
                    label = "test" if column.startswith("val_") else "training"
                    axis.plot(history["epoch"], history[column], f".{style}", label=label)
            if name == "loss":
                axis.set_yscale("log")
            axis.set_title(f"{stage}: {name}", fontsize=9)
            axis.set_xlabel("epoch", fontsize=8)
            axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
            axis.set_ylabel(with_unit(name), fontsize=8)
            if f"val_{name}" in history:
                axis.legend(fontsize=8)
    save(figure, path)


def draw_weights(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], path: str
) -> None:
    """Draws the distribution of every layer's merged kernel, before and after QAT.

    Args:
        before: Layer name -> kernel, as `merged_kernels` returns.
        after: The same after quantization-aware training.
        path: The PNG file to write.
    """
    rows = -(-len(before) // _COLUMNS)
    figure, axes = grid(rows, _COLUMNS)
    for axis in axes.flat[len(before) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, before, strict=False):
        limit = max(float(np.abs(kernels[name]).max()) for kernels in (before, after))
        bins = np.linspace(-limit, limit, 64) if limit else 64
        for kernels, label in ((before, "before QAT"), (after, "after QAT")):
            axis.hist(kernels[name].ravel(), bins, histtype="step", label=label, log=True)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("weight", fontsize=7)
        axis.set_ylabel("number of weights", fontsize=7)
    axes.flat[0].legend(fontsize=7)
    save(figure, path)


def with_unit(metric: str) -> str:
    """Returns the name of a metric with its unit."""
    for part, unit in (("accuracy", "share of images"), ("psnr", "dB")):
        if part in metric:
            return f"{metric}, {unit}"
    return metric


def merged_kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns layer name -> kernel of a merged model's convolutions and dense layers."""
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    return {
        layer.name: ops.convert_to_numpy(layer.kernel)
        for layer in model.layers
        if isinstance(layer, kinds)
    }


def grid(rows: int, columns: int, width: float = _WIDTH) -> tuple[Any, np.ndarray]:
    """Returns a figure and its axes `(rows, columns)`, each of a width in inches."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(width * columns, 0.75 * width * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: str) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=80)
