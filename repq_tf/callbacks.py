"""Callbacks of users' own `fit`: they watch quantization, and change networks on the way."""

from typing import Any

from repq_tf.arguments import positive
from repq_tf.branches import BatchNorm, Identity
from repq_tf.calibration import clip_rates
from repq_tf.distillation import Distiller
from repq_tf.graphs import read_graph
from repq_tf.keras_api import backend, keras, ops
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
        model = _trained(self.model)
        for node in read_graph(model).nodes.values():
            layer = node.layer
            if isinstance(layer, Quantize):
                logs[f"{layer.name}/step"] = float(layer.step)
            elif isinstance(layer, ReparamConv) and layer.weight_quantizer is not None:
                steps = ops.convert_to_numpy(layer.weight_quantizer.step)
                logs[f"{layer.name}/weight_step"] = float(steps.mean())
        if self.images is not None:
            for name, rate in clip_rates(model, self.images).items():
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
        for node in read_graph(_trained(self.model)).nodes.values():
            if isinstance(node.layer, ReparamConv):
                node.layer.bn_statistics = "running"
            elif isinstance(node.layer, keras.layers.BatchNormalization):
                node.layer.trainable = False
        self.model.make_train_function(force=True)


class AnnealIdentities(keras.callbacks.Callback):
    """Takes the identity branches out of a network while it is trained, a little each epoch.

    In epoch k of n the batch norm of each identity branch has `1 - k / n` of its gain and of
    its shift, and from the last one on none. The merged kernels then have no single large
    weight in each channel, which is what few bits cannot hold, and what the branch did the
    others have learned: from the labels, or better from the network as it was
    (`repq_tf.Distiller`). The operators of the merged network stay the same.

    What a step gives back to a branch that is gone is taken away at once; on JAX, which hands
    weights out at the end of an epoch, then.

    Args:
        epochs: n, counted from epoch 0 of `fit`.

    Raises:
        ValueError: `epochs` is bad, or, from `fit`, no block has an identity branch with a
            batch norm of its own.

    Example:
        >>> student = keras.models.clone_model(model)
        >>> student.set_weights(model.get_weights())
        >>> distiller = repq_tf.Distiller(student, model)
        >>> distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9))
        >>> anneal = repq_tf.callbacks.AnnealIdentities(4)
        >>> distiller.fit(images, labels, epochs=5, callbacks=[anneal])
        >>> quantized = repq_tf.quantize(student, bits=2, calibration_data=images[:512])
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = positive(epochs, "epochs")
        self._norms: list[BatchNorm] = []
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Finds the identity branches."""
        model = _trained(self.model)
        self._norms = identity_norms(model)
        if not self._norms:
            raise ValueError(
                f"model {model.name!r} has no identity branch with a batch norm of its own, as "
                "RepVGG's blocks have it, whose gain could be annealed"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes this epoch's part away: of what the epoch before had left."""
        self._done = epoch + 1 >= self.epochs
        self._scale(0.0 if self._done else 1 - 1 / (self.epochs - epoch))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes away what a step has given back to a branch that is gone."""
        if self._done and backend() != "jax":
            self._scale(0.0)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The same, on JAX."""
        if self._done:
            self._scale(0.0)

    def _scale(self, factor: float) -> None:
        for norm in self._norms:
            for variable in (norm.gamma, norm.beta):
                variable.assign(factor * ops.convert_to_tensor(variable))


def identity_norms(model: keras.Model) -> list[BatchNorm]:
    """The batch norms of a model's identity branches.

    Args:
        model: a Functional or Sequential Keras 3 model.
    """
    return [
        node
        for layer in {id(n.layer): n.layer for n in read_graph(model).nodes.values()}.values()
        if isinstance(layer, ReparamConv)
        for node in layer.expression.walk()
        if isinstance(node, BatchNorm) and isinstance(node.child, Identity)
    ]


def _trained(model: keras.Model) -> keras.Model:
    """The model itself, or the student of a `Distiller`."""
    return model.student if isinstance(model, Distiller) else model
