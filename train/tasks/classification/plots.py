"""Pictures of what classification networks do."""

from collections.abc import Sequence

import numpy as np

from repq_tf.train.run.plots import grid, save


def draw_predictions(
    images: np.ndarray, labels: np.ndarray, guesses: np.ndarray, names: Sequence[str], path: str
) -> None:
    """Draws pictures with their classes and the network's answers.

    Args:
        images: Inputs in [-1, 1], `(n, h, w, c)`.
        labels: Their classes.
        guesses: The network's answers.
        names: Names of the classes.
        path: The PNG file to write.
    """
    columns = 5
    figure, axes = grid(-(-len(images) // columns), columns, width=1.8)
    figure.suptitle("true / predicted", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, guess in zip(axes.flat, images, labels, guesses, strict=False):
        picture = np.clip((image + 1) / 2, 0, 1)
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
        color = "black" if label == guess else "red"
        axis.set_title(f"{names[label]} / {names[guess]}", fontsize=8, color=color)
    save(figure, path)
