"""Callbacks of users' own `fit`: what quantization does, and when batch norms stand still."""

from typing import Any

from repq_tf.arguments import positive
from repq_tf.calibration import clip_rates
from repq_tf.graphs import read_graph
from repq_tf.keras_api import keras, ops
from repq_tf.layers import Quantize, ReparamConv


class QuantizationMonitor(keras.callbacks.Callback):
    """Adds the steps of grids, and the shares of values that they clip, to an epoch's logs.

    The callbacks behind it in the list of `fit`, and the history, then have them too: they are
    curves of `keras.callbacks.TensorBoard`, and columns of `CSVLogger`.

    Args:
        images: images on which clip rates are measured, as for `repq_tf.quantize`; a few dozen
            do. None leaves clip rates out.
        every: epochs from one measurement to the next.

    Example:
        >>> monitor = repq_tf.callbacks.QuantizationMonitor(images[:64])
        >>> board = keras.callbacks.TensorBoard("logs")
        >>> qat.fit(images, labels, epochs=5, callbacks=[monitor, board])
    """

    def __init__(self, images: Any = None, every: int = 1) -> None:
        super().__init__()
        self.images = images
        self.every = positive(every, "every")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, and adds `LAYER/step`, `LAYER/weight_clipped` and the like."""
        if logs is None or epoch % self.every:
            return
        for node in read_graph(self.model).nodes.values():
            layer = node.layer
            if isinstance(layer, Quantize):
                logs[f"{layer.name}/step"] = float(layer.step)
            elif isinstance(layer, ReparamConv) and layer.weight_quantizer is not None:
                steps = ops.convert_to_numpy(layer.weight_quantizer.step)
                logs[f"{layer.name}/weight_step"] = float(steps.mean())
        if self.images is not None:
            for name, rate in clip_rates(self.model, self.images).items():
                logs[f"{name}_clipped"] = rate


class FreezeBatchNorm(keras.callbacks.Callback):
    """Lets batch norms take their moving statistics from some epoch on, and keep them.

    Training then computes what inference does, which steadies the last epochs, the most at few
    bits. Blocks go on with `bn_statistics="running"`; Keras's own BatchNormalization is frozen,
    gamma and beta with it.

    Args:
        epoch: the first epoch of frozen statistics, counted from 0.

    Example:
        >>> qat.fit(images, labels, epochs=10, callbacks=[FreezeBatchNorm(8)])
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be a whole number from 0. Received: {epoch!r}")
        self.epoch = epoch
        self._frozen = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts anew: another `fit` may have other epochs."""
        self._frozen = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freezes the statistics once their epoch has come."""
        if self._frozen or epoch < self.epoch:
            return
        self._frozen = True
        for node in read_graph(self.model).nodes.values():
            if isinstance(node.layer, ReparamConv):
                node.layer.bn_statistics = "running"
            elif isinstance(node.layer, keras.layers.BatchNormalization):
                node.layer.trainable = False
        self.model.make_train_function(force=True)
